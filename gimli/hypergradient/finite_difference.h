#pragma once

#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// Hypergradients without second derivatives of the model. A step w' = Phi(w, g(w, phi), phi) is pulled back through
/// its update Phi alone, which gives v = (dPhi/dg)^T dL/dw', and through the gradient g of its inner loss by a central
/// difference of first-order gradients,
///
///     (dg/d(w, phi))^T v  ~  |v| / (2 epsilon) (grad_{w, phi} loss(w + epsilon v / |v|) - grad_{w, phi} loss(w - ...))
///
/// with an error of O(epsilon^2), and none but rounding where the loss is quadratic in w. What phi does in the update
/// itself (a learning rate, a gradient transform, the optimizer's state) is exact. The rule is any: with SGD and one
/// step this is DARTS (Liu et al. 2019, equations 7 and 8).
///
/// A step that is differentiated costs two first-order gradients more than one that is not, and its memory is that of
/// its state and its update; the graph of the model is never kept. Both evaluations draw the random numbers of the step
/// itself, and what they write to buffers is forgotten.
class FiniteDifference final : public Strategy {
 public:
  /// The last step.
  FiniteDifference() = default;

  /// Like the last step, with the difference taken at the last weights w_T (SAMA, Choe et al. 2023): for u = w - Phi
  ///
  ///     dL/dphi  ~  -(d^2 loss / dphi dw)(w_T) (du/dg)^T dL/dw_T + what phi does in the update
  ///
  /// the implicit gradient with the identity for the Hessian and the last update as preconditioner. The loss is that of
  /// the last step, with its random numbers. It does not reach the start.
  static FiniteDifference sama();

  /// The last `steps` steps in the place of one. Exact up to O(epsilon^2) where no meta-parameter acts before them.
  FiniteDifference& last(int64_t steps);

  /// The length of the step in the direction of v.
  FiniteDifference& epsilon(double length);

  std::string name() const override;
  std::string one_task_because() const override { return "its step is that of the direction of one task"; }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  int64_t last_ = 1;
  double epsilon_ = 0.01;
  bool at_final_weights_ = false;
};

}  // namespace gimli
