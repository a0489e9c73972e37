#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Lion, in the dialect of torch.optim.
struct LionOptions {
  LionOptions(double lr = 1e-4) : lr_(lr) {}
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.99);
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, maximize) = false;
};

/// Lion (Chen et al. 2023, algorithm 2):
///
///     u <- sign(beta1 m + (1 - beta1) g)
///     theta <- (1 - lr weight_decay) theta - lr u
///     m <- beta2 m + (1 - beta2) g
///
/// The update sees no more of m and g than a sign: beta1, beta2 and past gradients have derivative 0 almost everywhere.
/// The slot is m.
class Lion final : public UpdateRule {
 public:
  explicit Lion(LionOptions options = {}) : options_(options) {}

  std::string name() const override { return "Lion"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  LionOptions options_;
};

}  // namespace gimli::optim
