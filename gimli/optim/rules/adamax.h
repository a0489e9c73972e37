#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.Adamax.
struct AdamaxOptions {
  AdamaxOptions(double lr = 2e-3) : lr_(lr) {}
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, maximize) = false;
};

/// Adamax (Kingma & Ba 2014, algorithm 2), with t counting updates from 1:
///
///     g <- g + weight_decay theta
///     m <- beta1 m + (1 - beta1) g
///     u <- max(beta2 u, |g| + eps)
///     theta <- theta - lr / (1 - beta1^t) m / u
///
/// The slots are m and u.
class Adamax final : public UpdateRule {
 public:
  explicit Adamax(AdamaxOptions options = {}) : options_(options) {}

  std::string name() const override { return "Adamax"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  AdamaxOptions options_;
};

}  // namespace gimli::optim
