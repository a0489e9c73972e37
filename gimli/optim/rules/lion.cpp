#include "gimli/optim/rules/lion.h"

#include <ATen/ATen.h>

namespace gimli::optim {

std::vector<HyperparameterSpec> Lion::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"beta1", std::get<0>(options_.betas()), Domain::unit},
          {"beta2", std::get<1>(options_.betas()), Domain::unit},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState Lion::init(const at::Tensor& parameter) const { return {0, zeros(parameter, 1)}; }

Iterate Lion::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                     const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, weight_decay] = unpack<4>(hyperparameters);
  const auto g = descent(gradient, options_.maximize());
  const auto u = moving_average(beta1, state.slots[0], g).sign();
  const auto m = moving_average(beta2, state.slots[0], g);
  return {add_scaled(decayed(theta, lr, weight_decay), -lr, u), {state.step + 1, {m}}};
}

}  // namespace gimli::optim
