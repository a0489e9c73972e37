#pragma once

#include <torch/arg.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.Adadelta.
struct AdadeltaOptions {
  AdadeltaOptions(double lr = 1.0) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, rho) = 0.9;
  TORCH_ARG(double, eps) = 1e-6;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, maximize) = false;
};

/// Adadelta (Zeiler 2012):
///
///     g <- g + weight_decay theta
///     v <- rho v + (1 - rho) g^2
///     d <- sqrt(u + eps) / sqrt(v + eps) g
///     u <- rho u + (1 - rho) d^2
///     theta <- theta - lr d
///
/// The slots are v and u.
class Adadelta final : public UpdateRule {
 public:
  explicit Adadelta(AdadeltaOptions options = {}) : options_(options) {}

  std::string name() const override { return "Adadelta"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  AdadeltaOptions options_;
};

}  // namespace gimli::optim
