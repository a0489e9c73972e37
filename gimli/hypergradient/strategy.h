#pragma once

#include "gimli/bilevel.h"

namespace gimli {

/// What differentiating the outer loss of one task cost, or of several: counts are then summed; states_stored,
/// capture_bytes, solver_residual and stationarity are those of the worst, the remarks are the first.
struct TaskCost {
  int64_t inner_steps = 0;           ///< steps of inner loops, recomputed ones included
  int64_t gradient_evaluations = 0;  ///< backward passes: inner gradients, and those that differentiate the outer loss
  int64_t outer_evaluations = 0;     ///< of the outer loss
  int64_t states_stored = 0;         ///< most inner states kept at once, the start included
  int64_t solver_products = 0;       ///< matrix-vector products of a linear solver
  double solver_residual = 0;        ///< |b - A x| / |b| of its solution; NaN if it was not taken
  std::string solver_remark = {};    ///< why it did not converge, in words
  std::string capture_remark = {};   ///< why Captured did not replay, in words
  int64_t capture_bytes = 0;         ///< of the memory in which it replays
  double stationarity = 0;           ///< norm of the inner gradient where a strategy took it to be 0

  TaskCost& operator+=(const TaskCost& other);
  /// That of several tasks that cost as much each.
  TaskCost times(int64_t tasks) const;
};

/// A way to differentiate the outer loss of one task.
class Strategy {
 public:
  virtual ~Strategy() = default;

  virtual std::string name() const = 0;

  struct TaskResult {
    at::Tensor outer_loss;  ///< summed over the steps that have one, 0-dimensional
    at::Tensor auxiliary;
    TensorList gradients;    ///< one a meta-parameter; undefined where the outer loss does not depend on it
    InnerState final_state;  ///< outside any graph
    TensorList solution;     ///< of the linear system of an implicit gradient
    TaskCost cost;
  };

  /// Why it cannot be given tasks that run together (a task with a `together()`, whose states, outer losses and
  /// auxiliary values have the tasks as first dimension, whose gradients are summed, whose costs are those of one
  /// task), or nothing if it can.
  virtual std::string one_task_because() const { return "it is written for one task at a time"; }

  /// Called for several tasks at once. Refuses, by its name and with the reason, what it cannot serve.
  virtual TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                   const TaskRef& task) const = 0;
};

/// The outer losses of an inner loop as it runs, added in the order of its steps.
class OuterSum final {
 public:
  void add(const OuterValue& value);

  bool empty() const { return !total_.defined(); }
  const at::Tensor& total() const { return total_; }
  const at::Tensor& auxiliary() const { return auxiliary_; }  ///< of the last
  int64_t count() const { return count_; }

 private:
  at::Tensor total_, auxiliary_;
  int64_t count_ = 0;
};

}  // namespace gimli
