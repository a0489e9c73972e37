#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of LAMB, in the dialect of torch.optim.
struct LAMBOptions {
  LAMBOptions(double lr = 1e-3) : lr_(lr) {}
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-6;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, maximize) = false;
};

/// LAMB (You et al. 2020, algorithm 2), with t counting updates from 1:
///
///     m <- beta1 m + (1 - beta1) g
///     v <- beta2 v + (1 - beta2) g^2
///     r <- m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay theta
///     theta <- theta - lr |theta| / |r| r        the ratio of the norms is 1 where either of them is 0
///
/// The slots are m and v.
class LAMB final : public UpdateRule {
 public:
  explicit LAMB(LAMBOptions options = {}) : options_(options) {}

  std::string name() const override { return "LAMB"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  LAMBOptions options_;
};

}  // namespace gimli::optim
