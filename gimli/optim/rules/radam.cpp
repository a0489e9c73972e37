#include "gimli/optim/rules/radam.h"

#include <ATen/ATen.h>

namespace gimli::optim {
namespace {

/// a of the header: the rectified adaptive rate where its variance is tractable, and 1 elsewhere.
at::Tensor adaptation(const at::Tensor& v, const Value& beta2, const Value& eps, int64_t t) {
  const auto correction = 1 - pow(beta2, t);
  const auto adaptive = [&](const Value& rho_inf, const Value& rho) {
    const auto square = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho);
    return scale(sqrt(square) * sqrt(correction), shift(root(v), eps).reciprocal());
  };
  const auto rho_inf = 2 / (1 - beta2) - 1;
  const auto rho = rho_inf - 2 * static_cast<double>(t) * pow(beta2, t) / correction;
  if (rho.is_number()) return rho.number() > 5 ? adaptive(rho_inf, rho) : at::ones({}, v.options());
  // Where it is not tractable its root has no value: the branch is taken elsewhere, so that no NaN reaches a gradient.
  const auto tractable = rho.tensor() > 5;
  const auto at_tractable = [&](const Value& x, double elsewhere) {
    return Value(at::where(tractable, x.tensor(), at::scalar_tensor(elsewhere, x.tensor().options())));
  };
  return at::where(tractable, adaptive(at_tractable(rho_inf, 8), at_tractable(rho, 6)), at::ones({}, v.options()));
}

}  // namespace

std::vector<HyperparameterSpec> RAdam::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"beta1", std::get<0>(options_.betas()), Domain::unit},
          {"beta2", std::get<1>(options_.betas()), Domain::unit},
          {"eps", options_.eps(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState RAdam::init(const at::Tensor& parameter) const { return {0, zeros(parameter, 2)}; }

Iterate RAdam::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                      const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, eps, weight_decay] = unpack<5>(hyperparameters);
  const int64_t t = state.step + 1;
  const bool decoupled = options_.decoupled_weight_decay();
  const auto g = descent(gradient, options_.maximize(), decoupled ? Value(0) : weight_decay, theta);
  const auto m = moving_average(beta1, state.slots[0], g);
  const auto v = moving_average(beta2, state.slots[1], g * g);
  const auto a = adaptation(v, beta2, eps, t);
  return {add_scaled(decoupled ? decayed(theta, lr, weight_decay) : theta, -(lr / (1 - pow(beta1, t))), a * m),
          {t, {m, v}}};
}

}  // namespace gimli::optim
