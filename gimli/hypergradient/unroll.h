#pragma once

#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// Backpropagation through the recorded inner loop: all of it, its last K steps (truncated), or all of it with the
/// inner gradients as constants (first-order MAML, Finn et al. 2017). Memory grows with the number of steps recorded.
class Unroll final : public Strategy {
 public:
  Unroll() = default;

  /// The last `steps` steps; those before run without a graph. Exact where no meta-parameter acts before them.
  static Unroll last(int64_t steps);
  static Unroll first_order();

  std::string name() const override;
  std::string one_task_because() const override { return {}; }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  Graph graph_ = Graph::full;
  std::optional<int64_t> last_;
};

}  // namespace gimli
