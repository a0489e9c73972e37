#include "gimli/optim/rules/rmsprop.h"

#include <ATen/ATen.h>

#include <array>

namespace gimli::optim {

std::vector<HyperparameterSpec> RMSprop::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"alpha", options_.alpha(), Domain::unit},
          {"eps", options_.eps(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive},
          {"momentum", options_.momentum(), Domain::unit}};
}

ParameterState RMSprop::init(const at::Tensor& parameter) const {
  auto slots = zeros(parameter, options_.centered() ? 2 : 1);
  slots.resize(3);
  return {0, std::move(slots)};
}

Iterate RMSprop::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                        const Values& hyperparameters) const {
  const auto [lr, alpha, eps, weight_decay, momentum] = unpack<5>(hyperparameters);
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  auto [v, a, b] = std::array{state.slots[0], state.slots[1], state.slots[2]};

  v = moving_average(alpha, v, g * g);
  auto variance = v;
  if (options_.centered()) {
    a = moving_average(alpha, a.defined() ? a : at::zeros_like(g), g);
    variance = (v - a * a).clamp_min(0);
  }
  const auto deviation = shift(root(variance), eps);
  if (momentum.is_off()) return {add_scaled_ratio(theta, -lr, g, deviation), {state.step + 1, {v, a, b}}};
  const auto d = g / deviation;
  b = b.defined() ? add_scaled(d, momentum, b) : d;
  return {add_scaled(theta, -lr, b), {state.step + 1, {v, a, b}}};
}

}  // namespace gimli::optim
