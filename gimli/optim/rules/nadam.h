#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.NAdam.
struct NAdamOptions {
  NAdamOptions(double lr = 2e-3) : lr_(lr) {}
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(double, momentum_decay) = 4e-3;
  TORCH_ARG(bool, decoupled_weight_decay) = false;
  TORCH_ARG(bool, maximize) = false;
};

/// Adam with Nesterov's momentum (Dozat 2016), with t counting updates from 1 and
/// mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2):
///
///     g <- g + weight_decay theta                decoupled_weight_decay: theta <- (1 - lr weight_decay) theta
///     p <- p mu_t                                the product of all mu so far
///     m <- beta1 m + (1 - beta1) g
///     v <- beta2 v + (1 - beta2) g^2
///     theta <- theta - lr ((1 - mu_t) / (1 - p) g + mu_(t+1) / (1 - p mu_(t+1)) m) / (sqrt(v / (1 - beta2^t)) + eps)
///
/// The slots are m, v and p, which is 0-dimensional unless beta1 or momentum_decay is given per element.
class NAdam final : public UpdateRule {
 public:
  explicit NAdam(NAdamOptions options = {}) : options_(options) {}

  std::string name() const override { return "NAdam"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  NAdamOptions options_;
};

}  // namespace gimli::optim
