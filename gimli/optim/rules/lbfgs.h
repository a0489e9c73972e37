#pragma once

#include <torch/arg.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of torch.optim.LBFGS that are of use without a line search.
struct LBFGSOptions {
  LBFGSOptions(double lr = 1) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, tolerance_grad) = 1e-7;
  TORCH_ARG(double, tolerance_change) = 1e-9;
  TORCH_ARG(int64_t, history_size) = 100;
};

/// L-BFGS without line search (Nocedal & Wright 2006, algorithm 7.4), on all parameters of the group as one vector: an
/// inner step is one iteration, of which `torch.optim.LBFGS::step` makes up to max_iter.
///
///     s, y <- the last step, and what it changed in g; kept for history_size updates if y's > 1e-10
///     d <- -H g                                  H from s and y by the two-loop recursion
///     theta <- theta + t d                       t = lr; at the first update lr min(1, 1 / |g|_1)
///
/// The two-loop recursion is differentiated through like everything else, and with it the whole history. Its decisions
/// (whether to keep a pair, and to stay where every |g| <= tolerance_grad or g'd > -tolerance_change) are constants to
/// the derivative. A parameter without a gradient has gradient 0.
///
/// The slots are g, t d, and s and y of each kept update, the oldest first.
class LBFGS final : public UpdateRule {
 public:
  explicit LBFGS(LBFGSOptions options = {});

  std::string name() const override { return "LBFGS"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;
  void update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                  const std::vector<Values>& hyperparameters) const override;

 private:
  LBFGSOptions options_;
};

}  // namespace gimli::optim
