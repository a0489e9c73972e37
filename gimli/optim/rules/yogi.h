#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Yogi, in the dialect of torch.optim.
struct YogiOptions {
  YogiOptions(double lr = 1e-2) : lr_(lr) {}
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-3;
  TORCH_ARG(double, initial_accumulator_value) = 1e-6;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, maximize) = false;
};

/// Yogi (Zaheer et al. 2018), with t counting updates from 1:
///
///     g <- g + weight_decay theta
///     m <- beta1 m + (1 - beta1) g
///     v <- v - (1 - beta2) sign(v - g^2) g^2
///     theta <- theta - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
///
/// Both m and v start at initial_accumulator_value. The slots are m and v.
class Yogi final : public UpdateRule {
 public:
  explicit Yogi(YogiOptions options = {}) : options_(options) {}

  std::string name() const override { return "Yogi"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  YogiOptions options_;
};

}  // namespace gimli::optim
