#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.RAdam.
struct RAdamOptions {
  RAdamOptions(double lr = 1e-3) : lr_(lr) {}
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, decoupled_weight_decay) = false;
  TORCH_ARG(bool, maximize) = false;
};

/// Rectified Adam (Liu et al. 2020), with t counting updates from 1, rho_inf = 2 / (1 - beta2) - 1 and
/// rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t):
///
///     g <- g + weight_decay theta                decoupled_weight_decay: theta <- (1 - lr weight_decay) theta
///     m <- beta1 m + (1 - beta1) g
///     v <- beta2 v + (1 - beta2) g^2
///     a <- r_t sqrt(1 - beta2^t) / (sqrt(v) + eps) where rho_t > 5, else 1
///     theta <- theta - lr / (1 - beta1^t) a m
///
/// with r_t^2 = (rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t). Where beta2 moves rho_t across 5
/// the update jumps; its derivative is that of the side on which it is. The slots are m and v.
class RAdam final : public UpdateRule {
 public:
  explicit RAdam(RAdamOptions options = {}) : options_(options) {}

  std::string name() const override { return "RAdam"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  RAdamOptions options_;
};

}  // namespace gimli::optim
