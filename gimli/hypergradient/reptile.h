#pragma once

#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// Reptile (Nichol et al. 2018): in the place of a gradient by initial weights theta_0, the way back from where the
/// inner loop ends,
///
///     theta_0 - theta_T
///
/// so that a step of SGD with learning rate r along it is their update theta_0 + r (theta_T - theta_0), averaged over
/// the tasks. It looks at inner losses only: the outer loss is evaluated for the report and not differentiated. No
/// graph is kept, and memory does not grow with the number of steps.
///
/// Serves initial weights that the inner loop adapts, starting from the model's own.
class Reptile final : public Strategy {
 public:
  std::string name() const override { return "Reptile()"; }
  std::string one_task_because() const override { return "its way back is that of one task"; }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;
};

}  // namespace gimli
