#include "gimli/optim/rules/adamax.h"

#include <ATen/ATen.h>

namespace gimli::optim {

std::vector<HyperparameterSpec> Adamax::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"beta1", std::get<0>(options_.betas()), Domain::unit},
          {"beta2", std::get<1>(options_.betas()), Domain::unit},
          {"eps", options_.eps(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState Adamax::init(const at::Tensor& parameter) const { return {0, zeros(parameter, 2)}; }

Iterate Adamax::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                       const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, eps, weight_decay] = unpack<5>(hyperparameters);
  const int64_t t = state.step + 1;
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  const auto m = moving_average(beta1, state.slots[0], g);
  const auto u = at::maximum(scale(beta2, state.slots[1]), shift(g.abs(), eps));
  return {add_scaled_ratio(theta, -(lr / (1 - pow(beta1, t))), m, u), {t, {m, u}}};
}

}  // namespace gimli::optim
