#include "gimli/optim/rules/rprop.h"

#include <ATen/ATen.h>

namespace gimli::optim {

Rprop::Rprop(RpropOptions options) : options_(options) {
  const auto [minus, plus] = options.etas();
  TORCH_CHECK(0 < minus && minus < 1 && 1 < plus, "Rprop: expected etas below and above 1, got ", minus, " and ", plus);
  const auto [least, most] = options.step_sizes();
  TORCH_CHECK(least <= most, "Rprop: expected step_sizes in ascending order, got ", least, " and ", most);
}

std::vector<HyperparameterSpec> Rprop::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"etaminus", std::get<0>(options_.etas()), Domain::unit},
          {"etaplus", std::get<1>(options_.etas()), Domain::positive},
          {"step_size_min", std::get<0>(options_.step_sizes()), Domain::positive},
          {"step_size_max", std::get<1>(options_.step_sizes()), Domain::positive}};
}

ParameterState Rprop::init(const at::Tensor& parameter) const {
  auto slots = zeros(parameter, 1);
  slots.emplace_back();  // lr at the first update
  return {0, std::move(slots)};
}

Iterate Rprop::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                      const Values& hyperparameters) const {
  const auto [lr, etaminus, etaplus, step_size_min, step_size_max] = unpack<5>(hyperparameters);
  auto g = descent(gradient, options_.maximize());
  const auto tensor = [&](const Value& value) { return as_tensor(value, g).to(g.scalar_type()); };
  const auto agreement = g * state.slots[0];
  const auto factor =
      at::where(agreement > 0, tensor(etaplus), at::where(agreement < 0, tensor(etaminus), at::ones({}, g.options())));
  auto s = state.slots[1].defined() ? state.slots[1] : tensor(lr).expand_as(g);
  s = at::clamp(s * factor, tensor(step_size_min), tensor(step_size_max));
  g = g.masked_fill(agreement < 0, 0);
  return {theta - g.sign() * s, {state.step + 1, {g, s}}};
}

}  // namespace gimli::optim
