#pragma once

#include <torch/arg.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.RMSprop.
struct RMSpropOptions {
  RMSpropOptions(double lr = 1e-2) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, alpha) = 0.99;
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(double, momentum) = 0;
  TORCH_ARG(bool, centered) = false;
  TORCH_ARG(bool, maximize) = false;
};

/// RMSprop (Tieleman & Hinton 2012; centered: Graves 2013):
///
///     g <- g + weight_decay theta
///     v <- alpha v + (1 - alpha) g^2
///     a <- alpha a + (1 - alpha) g               only if centered: v - a^2 stands for v below
///     d <- g / (sqrt(v) + eps)
///     b <- momentum b + d                        only with momentum: b stands for d below
///     theta <- theta - lr d
///
/// Rounding can make v - a^2 negative, where torch.optim's root is NaN; it counts as 0 here. The slots are v, a and b.
class RMSprop final : public UpdateRule {
 public:
  explicit RMSprop(RMSpropOptions options = {}) : options_(options) {}

  std::string name() const override { return "RMSprop"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  RMSpropOptions options_;
};

}  // namespace gimli::optim
