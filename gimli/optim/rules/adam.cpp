#include "gimli/optim/rules/adam.h"

#include <ATen/ATen.h>

#include "gimli/optim/fused/update.h"

namespace gimli::optim {
namespace {

std::vector<HyperparameterSpec> adam_hyperparameters(const AdamOptions& options) {
  return {{"lr", options.lr(), Domain::positive},
          {"beta1", std::get<0>(options.betas()), Domain::unit},
          {"beta2", std::get<1>(options.betas()), Domain::unit},
          {"eps", options.eps(), Domain::positive},
          {"weight_decay", options.weight_decay(), Domain::positive}};
}

// The lines that Adam and AdamW share: everything after the weight decay.
Iterate adam_update(const at::Tensor& theta, const at::Tensor& g, const ParameterState& state, bool amsgrad,
                    const Value& lr, const Value& beta1, const Value& beta2, const Value& eps) {
  const int64_t t = state.step + 1;

  const auto m = moving_average(beta1, state.slots[0], g);
  const auto v = moving_average(beta2, state.slots[1], g * g);
  // The option decides, as in torch.optim: a torch::optim optimizer's may have changed since its state was made.
  const auto u = amsgrad && state.slots.size() > 2 ? at::maximum(state.slots[2], v) : v;
  const auto denominator = shift(divide(root(u), sqrt(1 - pow(beta2, t))), eps);

  ParameterState next{t, {m, v}};
  if (amsgrad) next.slots.push_back(u);
  return {add_scaled_ratio(theta, -(lr / (1 - pow(beta1, t))), m, denominator), std::move(next)};
}

using fused::AdamFormula;

/// The same as one recipe; `last` stands for the weight decay.
fused::Recipe<AdamFormula> adam_recipe(const AdamFormula& formula, int64_t t, const Values& hyperparameters,
                                       const Value& last) {
  const auto [lr, beta1, beta2, eps, weight_decay] = unpack<5>(hyperparameters);
  return {formula, {-(lr / (1 - pow(beta1, t))), 1 - beta1, 1 - beta2, sqrt(1 - pow(beta2, t)), eps, last}};
}

}  // namespace

std::vector<HyperparameterSpec> Adam::hyperparameters() const { return adam_hyperparameters(options_); }
std::vector<HyperparameterSpec> AdamW::hyperparameters() const { return adam_hyperparameters(options_); }

ParameterState Adam::init(const at::Tensor& parameter) const {
  return {0, zeros(parameter, options_.amsgrad() ? 3 : 2)};
}
ParameterState AdamW::init(const at::Tensor& parameter) const {
  return {0, zeros(parameter, options_.amsgrad() ? 3 : 2)};
}

Iterate Adam::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                     const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, eps, weight_decay] = unpack<5>(hyperparameters);
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  return adam_update(theta, g, state, options_.amsgrad(), lr, beta1, beta2, eps);
}

Iterate AdamW::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                      const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, eps, weight_decay] = unpack<5>(hyperparameters);
  const auto g = descent(gradient, options_.maximize());
  return adam_update(decayed(theta, lr, weight_decay), g, state, options_.amsgrad(), lr, beta1, beta2, eps);
}

void Adam::update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                      const std::vector<Values>& hyperparameters) const {
  const auto recipe = [&](const ParameterState& state, const Values& values) {
    const auto& weight_decay = values[4];
    const AdamFormula formula{options_.amsgrad(), !weight_decay.is_off(), false, options_.maximize()};
    return adam_recipe(formula, state.step + 1, values, weight_decay);
  };
  fused::update_all<AdamFormula>(*this, recipe, iterates, gradients, hyperparameters);
}

void AdamW::update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                       const std::vector<Values>& hyperparameters) const {
  const auto recipe = [&](const ParameterState& state, const Values& values) {
    const auto &lr = values[0], &weight_decay = values[4];
    const AdamFormula formula{options_.amsgrad(), false, !weight_decay.is_off(), options_.maximize()};
    return adam_recipe(formula, state.step + 1, values, weight_decay.is_off() ? weight_decay : 1 - lr * weight_decay);
  };
  fused::update_all<AdamFormula>(*this, recipe, iterates, gradients, hyperparameters);
}

}  // namespace gimli::optim
