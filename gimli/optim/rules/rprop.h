#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.Rprop.
struct RpropOptions {
  RpropOptions(double lr = 1e-2) : lr_(lr) {}
  typedef std::tuple<double, double> range_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(range_t, etas) = std::make_tuple(0.5, 1.2);
  TORCH_ARG(range_t, step_sizes) = std::make_tuple(1e-6, 50.0);
  TORCH_ARG(bool, maximize) = false;
};

/// Resilient propagation (Riedmiller & Braun 1993), with g' the gradient of the update before, 0 at the first:
///
///     s <- clamp(s f, step_size_min, step_size_max)   at the first update s = lr
///     f = etaplus where g g' > 0, etaminus where g g' < 0, else 1
///     g <- 0 where g g' < 0
///     theta <- theta - sign(g) s
///
/// The update sees no more of a gradient than its sign, so it is differentiable in the hyperparameters, but its
/// derivative with respect to the gradient is 0 almost everywhere. The slots are g' and s.
class Rprop final : public UpdateRule {
 public:
  explicit Rprop(RpropOptions options = {});

  std::string name() const override { return "Rprop"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  RpropOptions options_;
};

}  // namespace gimli::optim
