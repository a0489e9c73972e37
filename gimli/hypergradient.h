#pragma once

#include "gimli/hypergradient/strategy.h"
#include "gimli/hypergradient/unroll.h"
#include "gimli/task_batch.h"

namespace gimli {

/// What a hypergradient cost over all tasks.
struct CostReport : TaskCost {
  std::string strategy;
  std::string task_batch;
  std::string task_batch_remark;  ///< what Auto measured, and what Vmap found when it compared
  double seconds = 0;             ///< wall time
};

struct Result {
  at::Tensor outer_loss;                 ///< mean over the tasks, 0-dimensional
  at::Tensor outer_losses;               ///< [tasks]
  TensorList auxiliary;                  ///< one a task, as the outer closure returned it last; undefined if it did not
  TensorList gradients;                  ///< of outer_loss, one a meta-parameter, of its shape
  std::vector<InnerState> final_states;  ///< one a task, if the problem keeps them
  std::vector<TensorList> solutions;     ///< one a task, of the linear systems of implicit gradients
  CostReport cost;
};

/// The mean outer loss over `tasks` and its gradient with respect to `meta_parameters`: tensors that require a gradient
/// and that the problem uses as initial weights (`model->parameters()`), as hyperparameters, or inside its closures. A
/// parameter that the model does not use has gradient 0; any other that no task's outer loss depends on is refused.
///
/// Gradients are summed in the order of the tasks, whatever the order in which they finish. `meta_parameters` are not
/// written to; see `assign_gradients`. Leave out the tasks if the closures take none. If it throws, model, optimizer,
/// libtorch's generators and the state of the calling thread are what they were.
Result hypergradient(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks = {},
                     const Strategy& strategy = Unroll(), const TaskBatch& batch = Sequential());

/// The outer losses alone, computed without any graph: memory does not grow with the number of steps.
Result evaluate(const Bilevel& problem, const TaskList& tasks = {}, const TaskBatch& batch = Sequential());

}  // namespace gimli
