#include "gimli/optim/rules/yogi.h"

#include <ATen/ATen.h>

namespace gimli::optim {

std::vector<HyperparameterSpec> Yogi::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"beta1", std::get<0>(options_.betas()), Domain::unit},
          {"beta2", std::get<1>(options_.betas()), Domain::unit},
          {"eps", options_.eps(), Domain::positive},
          {"initial_accumulator_value", options_.initial_accumulator_value(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState Yogi::init(const at::Tensor&) const { return {0, {at::Tensor(), at::Tensor()}}; }

Iterate Yogi::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                     const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, eps, initial_accumulator_value, weight_decay] = unpack<6>(hyperparameters);
  const int64_t t = state.step + 1;
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  const auto start = [&, &value = initial_accumulator_value](const at::Tensor& slot) {
    return slot.defined() ? slot : shift(at::zeros_like(g), value);
  };
  const auto m = moving_average(beta1, start(state.slots[0]), g);
  const auto before = start(state.slots[1]), square = g * g;
  const auto v = add_scaled(before, beta2 - 1, (before - square).sign() * square);
  const auto denominator = shift(root(divide(v, 1 - pow(beta2, t))), eps);
  return {add_scaled_ratio(theta, -(lr / (1 - pow(beta1, t))), m, denominator), {t, {m, v}}};
}

}  // namespace gimli::optim
