#include "gimli/optim/rules/adafactor.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <cmath>
#include <limits>

namespace gimli::optim {
namespace {

/// max(x, bound), whose derivative at a tie is that of x.
at::Tensor at_least(const at::Tensor& x, const Value& bound) {
  if (bound.is_number()) return x.clamp_min(bound.number());
  return at::clamp_min(x, bound.tensor().to(x.scalar_type()));
}

at::Tensor rms(const at::Tensor& x) { return root(widened(x).square().mean()); }

Value machine_epsilon(const at::Tensor& x) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "Adafactor",
                                         [] { return static_cast<double>(std::numeric_limits<scalar_t>::epsilon()); });
}

}  // namespace

Adafactor::Adafactor(AdafactorOptions options) : options_(options) {
  TORCH_CHECK(options.beta2_decay() <= 0, "Adafactor: expected a beta2_decay of at most 0, got ",
              options.beta2_decay());
  TORCH_CHECK(options.d() >= 1, "Adafactor: expected d of at least 1, got ", options.d());
}

std::vector<HyperparameterSpec> Adafactor::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},     {"beta2_decay", options_.beta2_decay(), Domain::real},
          {"eps1", options_.eps1(), Domain::positive}, {"eps2", options_.eps2(), Domain::positive},
          {"d", options_.d(), Domain::positive},       {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState Adafactor::init(const at::Tensor& parameter) const {
  const auto zero = zeros(parameter, 1)[0];
  if (parameter.dim() < 2) return {0, {zero}};
  auto rows = parameter.sizes().vec(), columns = rows;
  rows.end()[-1] = columns.end()[-2] = 1;
  return {0, {zero.new_zeros(rows), zero.new_zeros(columns)}};
}

Iterate Adafactor::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                          const Values& hyperparameters) const {
  const auto [lr, beta2_decay, eps1, eps2, d, weight_decay] = unpack<6>(hyperparameters);
  check_scalar(beta2_decay, "Adafactor: beta2_decay");
  const auto t = static_cast<double>(state.step + 1);
  const auto g = descent(gradient, options_.maximize());
  const auto beta2 = 1 - pow(t, beta2_decay);
  const auto epsilon = eps1.is_off() ? machine_epsilon(theta) : eps1;

  auto slots = state.slots;
  at::Tensor v;
  if (g.dim() > 1) {
    slots[0] = moving_average(beta2, slots[0], (g * g).mean(-1, /*keepdim=*/true));
    slots[1] = moving_average(beta2, slots[1], (g * g).mean(-2, /*keepdim=*/true));
    v = slots[0].matmul(slots[1]) / at_least(slots[0].mean(-2, /*keepdim=*/true), epsilon);
  } else {
    slots[0] = v = moving_average(beta2, slots[0], g * g);
  }
  const auto u = g / root(at_least(v, epsilon * epsilon));
  const auto clipping = at_least(divide(rms(u), d), 1);
  const auto relative = at_least(rms(theta), eps2);
  const auto rate = minimum(lr, 1 / std::sqrt(t));
  return {add_scaled(decayed(theta, lr, weight_decay), -rate, (relative / clipping).to(u.scalar_type()) * u),
          {state.step + 1, slots}};
}

}  // namespace gimli::optim
