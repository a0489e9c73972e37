#include "gimli/optim/rules/muon.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace gimli::optim {
namespace {

/// a X + b Y Z.
at::Tensor combined(const Value& a, const at::Tensor& X, const Value& b, const at::Tensor& Y, const at::Tensor& Z) {
  if (a.is_number() && b.is_number()) return at::addmm(X, Y, Z, a.number(), b.number());
  return scale(a, X) + scale(b, Y.matmul(Z));
}

double rate_scale(const std::string& function, const at::Tensor& theta) {
  const auto rows = static_cast<double>(theta.size(0)), columns = static_cast<double>(theta.size(1));
  return function == "original" ? std::sqrt(std::max(1.0, rows / columns)) : 0.2 * std::sqrt(std::max(rows, columns));
}

}  // namespace

Muon::Muon(MuonOptions options) : options_(std::move(options)) {
  TORCH_CHECK(options_.adjust_lr_fn() == "original" || options_.adjust_lr_fn() == "match_rms_adamw",
              "Muon: expected adjust_lr_fn \"original\" or \"match_rms_adamw\", got \"", options_.adjust_lr_fn(), "\"");
  TORCH_CHECK(options_.ns_steps() >= 0 && options_.ns_steps() < 100, "Muon: expected 0 to 99 ns_steps, got ",
              options_.ns_steps());
}

std::vector<HyperparameterSpec> Muon::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive},
          {"momentum", options_.momentum(), Domain::unit},
          {"ns_a", std::get<0>(options_.ns_coefficients()), Domain::real},
          {"ns_b", std::get<1>(options_.ns_coefficients()), Domain::real},
          {"ns_c", std::get<2>(options_.ns_coefficients()), Domain::real},
          {"eps", options_.eps(), Domain::positive}};
}

ParameterState Muon::init(const at::Tensor& parameter) const {
  TORCH_CHECK(parameter.dim() == 2, "Muon: expected matrices, got a parameter of shape ", parameter.sizes(),
              "; give the others to an optimizer of their own");
  return {0, zeros(parameter, 1)};
}

Iterate Muon::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                     const Values& hyperparameters) const {
  const auto [lr, weight_decay, momentum, ns_a, ns_b, ns_c, eps] = unpack<7>(hyperparameters);
  for (const auto& value : {ns_a, ns_b, ns_c, eps}) check_scalar(value, "Muon: eps and each of the ns_coefficients");
  const auto b = moving_average(momentum, state.slots[0], gradient);
  const auto u = options_.nesterov() ? moving_average(momentum, b, gradient) : b;

  const bool tall = theta.size(0) > theta.size(1);
  auto X = u.to(options_.orthogonalization_dtype().value_or(theta.scalar_type()));
  if (tall) X = X.t();
  X = X / at::maximum(euclidean_norm(X), as_tensor(eps, X)).to(X.scalar_type());
  for (int64_t i = 0; i < options_.ns_steps(); ++i) {
    const auto A = X.matmul(X.t());
    X = combined(ns_a, X, 1, combined(ns_b, A, ns_c, A, A), X);
  }
  if (tall) X = X.t();

  const auto rate = lr * rate_scale(options_.adjust_lr_fn(), theta);
  return {add_scaled(decayed(theta, lr, weight_decay), -rate, X.to(theta.scalar_type())), {state.step + 1, {b}}};
}

}  // namespace gimli::optim
