#include "gimli/optim/rules/asgd.h"

#include <ATen/ATen.h>

#include <array>

namespace gimli::optim {

std::vector<HyperparameterSpec> ASGD::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"lambd", options_.lambd(), Domain::positive},
          {"alpha", options_.alpha(), Domain::real},
          {"t0", options_.t0(), Domain::real},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState ASGD::init(const at::Tensor&) const { return {0, {at::Tensor(), at::Tensor(), at::Tensor()}}; }

Iterate ASGD::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                     const Values& hyperparameters) const {
  const auto [lr, lambd, alpha, t0, weight_decay] = unpack<5>(hyperparameters);
  const int64_t t = state.step + 1;
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  const auto [eta, mu, a] = std::array{state.slots[0], state.slots[1], state.slots[2]};
  const auto rate = eta.defined() ? Value(eta) : lr;

  const auto next = add_scaled(scale(1 - lambd * rate, theta), -rate, g);
  const auto average = a.defined() ? add_scaled(a, Value(mu), next - a) : next;
  const auto next_rate = lr / pow(1 + lambd * lr * static_cast<double>(t), alpha);
  const auto next_mu = 1 / maximum(1, static_cast<double>(t) - t0);
  return {next, {t, {as_tensor(next_rate, theta), as_tensor(next_mu, theta), average}}};
}

}  // namespace gimli::optim
