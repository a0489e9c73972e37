#pragma once

#include <torch/arg.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.Adagrad.
struct AdagradOptions {
  AdagradOptions(double lr = 1e-2) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, lr_decay) = 0;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(double, initial_accumulator_value) = 0;
  TORCH_ARG(double, eps) = 1e-10;
  TORCH_ARG(bool, maximize) = false;
};

/// Adagrad (Duchi et al. 2011; appendix A.2 of the paper), with t counting updates from 1:
///
///     g <- g + weight_decay theta
///     s <- s + g^2                               at the first update s <- initial_accumulator_value + g^2
///     theta <- theta - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
///
/// The slot is s.
class Adagrad final : public UpdateRule {
 public:
  explicit Adagrad(AdagradOptions options = {}) : options_(options) {}

  std::string name() const override { return "Adagrad"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  AdagradOptions options_;
};

}  // namespace gimli::optim
