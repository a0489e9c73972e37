#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.Adam and AdamW.
struct AdamOptions {
  AdamOptions(double lr = 1e-3) : lr_(lr) {}
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, amsgrad) = false;
  TORCH_ARG(bool, maximize) = false;
};

/// Adam (Kingma & Ba 2014), with t counting updates from 1:
///
///     g <- g + weight_decay theta
///     m <- beta1 m + (1 - beta1) g
///     v <- beta2 v + (1 - beta2) g^2             amsgrad: u <- max(u, v) stands for v below
///     theta <- theta - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
///
/// The slots are m, v and, with amsgrad, u.
class Adam final : public UpdateRule {
 public:
  explicit Adam(AdamOptions options = {}) : options_(options) {}

  std::string name() const override { return "Adam"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;
  bool is_elementwise() const override { return true; }
  void update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                  const std::vector<Values>& hyperparameters) const override;

 private:
  AdamOptions options_;
};

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019): theta <- (1 - lr weight_decay) theta comes in the place
/// of the first line.
class AdamW final : public UpdateRule {
 public:
  explicit AdamW(AdamOptions options = AdamOptions().weight_decay(1e-2)) : options_(options) {}

  std::string name() const override { return "AdamW"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;
  bool is_elementwise() const override { return true; }
  void update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                  const std::vector<Values>& hyperparameters) const override;

 private:
  AdamOptions options_;
};

}  // namespace gimli::optim
