#pragma once

#include <torch/arg.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.SGD.
struct SGDOptions {
  SGDOptions(double lr) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, momentum) = 0;
  TORCH_ARG(double, dampening) = 0;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, nesterov) = false;
  TORCH_ARG(bool, maximize) = false;
};

/// Stochastic gradient descent (Robbins & Monro 1951; Sutskever et al. 2013 for momentum):
///
///     g <- g + weight_decay theta
///     b <- momentum b + (1 - dampening) g        at the first update b <- g
///     theta <- theta - lr b                      nesterov: theta - lr (g + momentum b)
///
/// With momentum as the number 0 there is no b, as in torch.optim. As a tensor it always takes the second line, so that
/// its gradient exists at 0 too.
class SGD final : public UpdateRule {
 public:
  explicit SGD(SGDOptions options);

  std::string name() const override { return "SGD"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;
  bool is_elementwise() const override { return true; }
  void update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                  const std::vector<Values>& hyperparameters) const override;

  // The update undone, to rounding (Maclaurin et al. 2015, algorithm 2), where there is a momentum and no nesterov.

  /// theta = theta' + lr b', from what is known after the update,
  at::Tensor parameter_before(const at::Tensor& theta, const at::Tensor& b, const Values& hyperparameters) const;
  /// and b = (b' - (1 - dampening) g) / momentum, from the gradient at theta, if it was not the first update.
  at::Tensor momentum_before(const at::Tensor& b, const at::Tensor& gradient, const at::Tensor& theta,
                             const Values& hyperparameters) const;
  /// In words, why it cannot be undone with these hyperparameters; empty if it can.
  std::string irreversible(const Values& hyperparameters) const;

 private:
  SGDOptions options_;
};

}  // namespace gimli::optim
