#pragma once

#include <memory>
#include <type_traits>

#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// Another strategy, recorded once and then replayed without autograd (see Trace): the shapes of an inner loop do not
/// change from one batch of tasks to the next, so the operators of its forward, backward and double backward passes are
/// one list, which for new data is all that has to run. Operators on small tensors run on gimli's own kernels, so that
/// results differ from the strategy's by rounding; with `use_own_operators(false)` a replay is the same arithmetic.
///
///     const gimli::Captured captured;                    // keep it: it owns the recordings
///     problem.inputs([](const Task& task) { return gimli::TensorList{task.x, task.y, task.x_query, task.y_query}; });
///     hypergradient(problem, meta_parameters, tasks, captured, gimli::Threads(2));
///
/// The problem says what its closures read: the tensors of a task by `inputs`, others by `constants`. The model's, the
/// optimizer's and the meta-parameters are known. A recording is for one problem, as long as none of its settings is
/// changed, and for one set of shapes and meta-parameters. Frozen in it is what is no tensor: numbers that a closure
/// computes with, its control flow, train() and eval().
///
/// The recording is compared with the strategy itself, then the first replay for other data, the second, the fourth and
/// so on. Where there is nothing to replay (a closure draws random numbers, looks at a value, reads a tensor that nobody
/// declared) or where the comparison fails, the strategy runs as it is, and `CostReport::capture_remark` says why. Where
/// own kernels alone are to blame, because a loop makes much of rounding, libtorch's take their place.
class Captured final : public Strategy {
 public:
  /// Of Unroll().
  Captured();
  template <class S>
  requires(std::is_base_of_v<Strategy, S> && !std::is_same_v<S, Captured>) explicit Captured(S strategy)
      : Captured(std::make_shared<const S>(std::move(strategy))) {}

  std::string name() const override;
  std::string one_task_because() const override { return strategy_->one_task_because(); }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  class Cache;
  explicit Captured(std::shared_ptr<const Strategy> strategy);

  std::shared_ptr<const Strategy> strategy_;
  std::shared_ptr<Cache> cache_;
};

}  // namespace gimli
