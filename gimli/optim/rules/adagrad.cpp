#include "gimli/optim/rules/adagrad.h"

#include <ATen/ATen.h>

namespace gimli::optim {

std::vector<HyperparameterSpec> Adagrad::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"lr_decay", options_.lr_decay(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive},
          {"initial_accumulator_value", options_.initial_accumulator_value(), Domain::positive},
          {"eps", options_.eps(), Domain::positive}};
}

ParameterState Adagrad::init(const at::Tensor&) const { return {0, {at::Tensor()}}; }

Iterate Adagrad::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                        const Values& hyperparameters) const {
  const auto [lr, lr_decay, weight_decay, initial_accumulator_value, eps] = unpack<5>(hyperparameters);
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  const auto s = state.slots[0].defined() ? at::addcmul(state.slots[0], g, g) : shift(g * g, initial_accumulator_value);
  const auto rate = lr / (1 + static_cast<double>(state.step) * lr_decay);
  return {add_scaled_ratio(theta, -rate, g, shift(root(s), eps)), {state.step + 1, {s}}};
}

}  // namespace gimli::optim
