#pragma once

#include <torch/arg.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.ASGD.
struct ASGDOptions {
  ASGDOptions(double lr = 1e-2) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, lambd) = 1e-4;
  TORCH_ARG(double, alpha) = 0.75;
  TORCH_ARG(double, t0) = 1e6;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, maximize) = false;
};

/// Averaged stochastic gradient descent (Polyak & Juditsky 1992), with t counting updates from 1:
///
///     g <- g + weight_decay theta
///     theta <- (1 - lambd eta) theta - eta g     with eta = lr at the first update
///     a <- a + mu (theta - a)                    with mu = 1 at the first update
///     eta <- lr / (1 + lambd lr t)^alpha
///     mu <- 1 / max(1, t - t0)
///
/// The slots are eta, mu (0-dimensional, unless a hyperparameter is given per element) and the average a.
class ASGD final : public UpdateRule {
 public:
  explicit ASGD(ASGDOptions options = {}) : options_(options) {}

  std::string name() const override { return "ASGD"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  ASGDOptions options_;
};

}  // namespace gimli::optim
