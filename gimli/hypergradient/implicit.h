#pragma once

#include "gimli/hypergradient/strategy.h"
#include "gimli/linear_solve.h"

namespace gimli {

/// The hypergradient at a stationary point of the inner loop, by the implicit function theorem: where the inner loop
/// ends, F(w, phi) = 0 is taken to hold for F = the gradient of the inner loss (with its proximal term, and after the
/// gradient transforms), so
///
///     dL/dphi = dL/dphi|_w - x^T dF/dphi,    (dF/dw + damping I)^T x = dL/dw
///
/// (Bengio 2000; Pedregosa 2016; Lorraine et al. 2020). The inner loop itself leaves no trace: it runs without a graph,
/// memory does not grow with its steps, and it does not matter how it got there. F is that of the last step's data.
///
///     Implicit(ConjugateGradient())                 for inner losses that are convex there
///     Implicit(GMRES())                             for any that are not singular there
///     Implicit(ConjugateGradient()) and a problem with .proximal(lambda): iMAML (Rajeswaran et al. 2019)
///     Implicit(Identity())                          T1-T2 (Luketina et al. 2016)
///
/// The cost report says how far from stationary the end was (`stationarity`, the norm of F) and how well the system was
/// solved. Learning rates have no influence on a stationary point, and initial weights only through a proximal term;
/// they are refused. So is weight decay inside the optimizer, which moves the fixed point: put it into the inner loss,
/// or use the transform weight_decay. The outer loss is that after the last step.
class Implicit final : public Strategy {
 public:
  Implicit() : Implicit(ConjugateGradient()) {}
  template <class Solver>
  requires std::is_base_of_v<LinearSolver, Solver>
  explicit Implicit(Solver solver) : solver_(std::make_shared<const Solver>(std::move(solver))) {}

  /// At least 0.
  Implicit& damping(double damping);

  /// Where the solver begins: Result::solutions of an earlier call, one a task.
  Implicit& start_from(std::vector<TensorList> solutions);

  std::string name() const override;
  std::string one_task_because() const override {
    return "its linear system is solved for one task, to its own residual";
  }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  void check(const Bilevel& problem) const;

  std::shared_ptr<const LinearSolver> solver_;
  double damping_ = 0;
  std::vector<TensorList> solutions_;
};

}  // namespace gimli
