#pragma once

#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// The exact hypergradient through SGD with momentum in the memory of one state, by running the updates backwards
/// (Maclaurin, Duvenaud & Adams 2015):
///
///     theta_k = theta_{k+1} + lr b_{k+1},    b_k = (b_{k+1} - (1 - dampening) g_k) / momentum,    g_k the gradient at
///     theta_k
///
/// In floating point that misses the state by some units in the last place. What it misses is found as the loop runs
/// forward, and kept in a few bits a parameter and step (see LostBits), so that every state comes back bit by bit. The
/// inner loop is the same as with other strategies. Buffers are kept for each step.
///
/// Every parameter that is adapted is adapted by SGD with a momentum above 0 and without nesterov.
class Reversible final : public Strategy {
 public:
  std::string name() const override { return "Reversible()"; }
  std::string one_task_because() const override { return {}; }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;
};

}  // namespace gimli
