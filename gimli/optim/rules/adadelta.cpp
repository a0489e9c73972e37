#include "gimli/optim/rules/adadelta.h"

#include <ATen/ATen.h>

namespace gimli::optim {

std::vector<HyperparameterSpec> Adadelta::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"rho", options_.rho(), Domain::unit},
          {"eps", options_.eps(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState Adadelta::init(const at::Tensor& parameter) const { return {0, zeros(parameter, 2)}; }

Iterate Adadelta::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                         const Values& hyperparameters) const {
  const auto [lr, rho, eps, weight_decay] = unpack<4>(hyperparameters);
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  const auto v = moving_average(rho, state.slots[0], g * g);
  const auto d = root(shift(state.slots[1], eps)) / root(shift(v, eps)) * g;
  const auto u = moving_average(rho, state.slots[1], d * d);
  return {add_scaled(theta, -lr, d), {state.step + 1, {v, u}}};
}

}  // namespace gimli::optim
