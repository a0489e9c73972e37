#pragma once

#include "gimli/bilevel.h"
#include "gimli/task_batch.h"

namespace gimli {

/// What a hypergradient cost, over all tasks.
struct CostReport {
  std::string strategy;
  std::string task_batch;
  int64_t inner_steps = 0;           ///< steps of inner loops, recomputed ones included
  int64_t gradient_evaluations = 0;  ///< backward passes: one a step, and those of the outer loss
  int64_t states_stored = 0;         ///< most inner states kept at once for one task, the start included
  double seconds = 0;                ///< wall time
};

struct Result {
  at::Tensor outer_loss;                 ///< mean over the tasks, 0-dimensional
  at::Tensor outer_losses;               ///< [tasks]
  TensorList auxiliary;                  ///< one a task, as the outer closure returned it last; undefined if it did not
  TensorList gradients;                  ///< of outer_loss, one a meta-parameter, of its shape
  std::vector<InnerState> final_states;  ///< one a task, if the problem keeps them
  CostReport cost;
};

/// A way to differentiate the outer loss of one task.
class Strategy {
 public:
  virtual ~Strategy() = default;

  virtual std::string name() const = 0;

  struct TaskResult {
    at::Tensor outer_loss;
    at::Tensor auxiliary;
    TensorList gradients;  ///< one a meta-parameter; undefined where the outer loss does not depend on it
    InnerState final_state;
    int64_t inner_steps = 0, gradient_evaluations = 0, states_stored = 0;
  };

  /// Called for several tasks at once.
  virtual TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                   const TaskRef& task) const = 0;
};

/// Backpropagation through the recorded inner loop: all of it, its last K steps (truncated), or all of it with the
/// inner gradients as constants (first-order MAML, Finn et al. 2017). Memory grows with the number of steps recorded.
class Unroll final : public Strategy {
 public:
  Unroll() = default;

  /// The last `steps` steps; those before run without a graph. Exact where no meta-parameter acts before them.
  static Unroll last(int64_t steps);
  static Unroll first_order();

  std::string name() const override;
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  Graph graph_ = Graph::full;
  std::optional<int64_t> last_;
};

/// The mean outer loss over `tasks` and its gradient with respect to `meta_parameters`: tensors that require a gradient
/// and that the problem uses as initial weights (`model->parameters()`), as hyperparameters, or inside its closures. A
/// parameter that the model does not use has gradient 0; any other that no task's outer loss depends on is refused.
///
/// Gradients are summed in the order of the tasks, whatever the order in which they finish. `meta_parameters` are not
/// written to; see `assign_gradients`. Leave out the tasks if the closures take none.
Result hypergradient(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks = {},
                     const Strategy& strategy = Unroll(), const TaskBatch& batch = Sequential());

/// The outer losses alone, computed without any graph: memory does not grow with the number of steps.
Result evaluate(const Bilevel& problem, const TaskList& tasks = {}, const TaskBatch& batch = Sequential());

}  // namespace gimli
