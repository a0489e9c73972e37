#include "gimli/optim/rules/nadam.h"

#include <ATen/ATen.h>

namespace gimli::optim {

std::vector<HyperparameterSpec> NAdam::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"beta1", std::get<0>(options_.betas()), Domain::unit},
          {"beta2", std::get<1>(options_.betas()), Domain::unit},
          {"eps", options_.eps(), Domain::positive},
          {"weight_decay", options_.weight_decay(), Domain::positive},
          {"momentum_decay", options_.momentum_decay(), Domain::positive}};
}

ParameterState NAdam::init(const at::Tensor& parameter) const {
  auto slots = zeros(parameter, 2);
  slots.emplace_back();  // the empty product, 1
  return {0, std::move(slots)};
}

Iterate NAdam::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                      const Values& hyperparameters) const {
  const auto [lr, beta1, beta2, eps, weight_decay, momentum_decay] = unpack<6>(hyperparameters);
  const int64_t t = state.step + 1;
  const bool decoupled = options_.decoupled_weight_decay();
  const auto g = descent(gradient, options_.maximize(), decoupled ? Value(0) : weight_decay, theta);
  const auto mu_at = [&, &beta1 = beta1, &momentum_decay = momentum_decay](int64_t step) {
    return beta1 * (1 - 0.5 * pow(0.96, static_cast<double>(step) * momentum_decay));
  };
  const auto mu = mu_at(t), mu_next = mu_at(t + 1);
  const auto product = state.slots[2].defined() ? Value(state.slots[2]) * mu : mu;
  const auto m = moving_average(beta1, state.slots[0], g);
  const auto v = moving_average(beta2, state.slots[1], g * g);
  const auto denominator = shift(root(divide(v, 1 - pow(beta2, t))), eps);

  auto next = decoupled ? decayed(theta, lr, weight_decay) : theta;
  next = add_scaled_ratio(next, -(lr * (1 - mu) / (1 - product)), g, denominator);
  next = add_scaled_ratio(next, -(lr * mu_next / (1 - product * mu_next)), m, denominator);
  return {next, {t, {m, v, as_tensor(product, theta)}}};
}

}  // namespace gimli::optim
