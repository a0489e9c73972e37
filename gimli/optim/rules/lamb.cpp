#include "gimli/optim/rules/lamb.h"

#include <ATen/ATen.h>

namespace gimli::optim {
namespace {

at::Tensor trust_ratio(const at::Tensor& theta, const at::Tensor& r) {
  const auto theta_norm = euclidean_norm(theta), r_norm = euclidean_norm(r);
  const auto defined = (theta_norm > 0).logical_and(r_norm > 0);
  const auto one = at::ones({}, theta_norm.options());
  return at::where(defined, theta_norm / at::where(defined, r_norm, one), one);
}

}  // namespace

std::vector<HyperparameterSpec> LAMB::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"beta1", std::get<0>(options_.betas()), Domain::unit},
          {"beta2", std::get<1>(options_.betas()), Domain::unit},
          {"eps", options_.eps(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState LAMB::init(const at::Tensor& parameter) const { return {0, zeros(parameter, 2)}; }

Iterate LAMB::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                     const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, eps, weight_decay] = unpack<5>(hyperparameters);
  const int64_t t = state.step + 1;
  const auto g = descent(gradient, options_.maximize());
  const auto m = moving_average(beta1, state.slots[0], g);
  const auto v = moving_average(beta2, state.slots[1], g * g);
  auto r = divide(m, 1 - pow(beta1, t)) / shift(root(divide(v, 1 - pow(beta2, t))), eps);
  if (!weight_decay.is_off()) r = add_scaled(r, weight_decay, theta);
  return {add_scaled(theta, -lr, trust_ratio(theta, r).to(r.scalar_type()) * r), {t, {m, v}}};
}

}  // namespace gimli::optim
