#pragma once

#include <c10/core/thread_pool.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gimli/tensor_list.h"

namespace gimli {

/// How the tasks of a batch are run.
class TaskBatch {
 public:
  virtual ~TaskBatch() = default;

  virtual std::string name() const = 0;

  /// How many of `count` tasks a call is for, which runs them together; the last call gets the rest.
  virtual int64_t together(int64_t count) const;

  /// What is to be run, as far as it decides how.
  struct Job {
    uint64_t problem;  ///< its identity
    std::string strategy;
    int64_t count;                ///< of tasks
    std::vector<int64_t> shapes;  ///< of a task's tensors
    bool operator==(const Job&) const = default;
  };
  struct Outcome {
    TensorList losses;  ///< one tensor, of all tasks
    TensorList gradients;
    double seconds;
    bool draws;  ///< whether operators drew random numbers
  };
  struct Choice {
    const TaskBatch& batch;
    std::string remark = {};
  };
  /// Runs all tasks on a batch with the same random numbers. The closures are given the `given`-th of tasks that run
  /// together, or the last if there are fewer.
  using Trial = std::function<Outcome(const TaskBatch&, int64_t given)>;
  /// What runs the job that `describe` describes: this one, unless it finds out by trials.
  virtual Choice choose(const std::function<Job()>& describe, const Trial& trial) const;

  /// Calls `function(i)` for every i in [0, count), in any order, possibly at once, and returns when all are done. If
  /// calls throw, the rest is not begun and the exception of the lowest i is rethrown.
  virtual void run(int64_t count, const std::function<void(int64_t)>& function) const = 0;
};

/// One after the other on the calling thread; each operator may use libtorch's intra-op threads.
class Sequential final : public TaskBatch {
 public:
  std::string name() const override { return "Sequential"; }
  void run(int64_t count, const std::function<void(int64_t)>& function) const override;
};

/// On a pool of threads that lives as long as the object and its copies. Every task runs on one thread with one
/// intra-op thread, so its result does not depend on how many there are: Threads(1) and Threads(8) agree bitwise.
/// (Closures that draw from libtorch's default generator, as dropout does, share it in the order in which they come.)
/// Several tasks a core beat several cores a task on the small operators of inner loops.
class Threads final : public TaskBatch {
 public:
  explicit Threads(int64_t count);

  int64_t count() const { return count_; }
  std::string name() const override;
  void run(int64_t count, const std::function<void(int64_t)>& function) const override;

 private:
  int64_t count_;
  std::shared_ptr<c10::ThreadPool> pool_;
};

/// Tasks together: the closures, written for one task, run once for all, and each operator
/// computes for all tasks (libtorch's vmap). Small networks, whose time is overhead, take the time of few tasks. States
/// have the tasks as first dimension while they run; results are those of Sequential, to rounding. A single task runs
/// as it is.
///
///     const gimli::Vmap vmap;                            // keep it: it remembers what it has compared
///     problem.inputs([](const Task& task) { return gimli::TensorList{task.x, task.y, task.x_query, task.y_query}; });
///     hypergradient(problem, meta_parameters, tasks, gimli::Unroll(), vmap);
///
/// The problem says what its closures read: the tensors of a task by `inputs`, of the same shapes in each task, others
/// by `constants`; the model's, the optimizer's and those that require a gradient are known. What else an operator
/// reads is refused, by the operator's name, and so are views of a task's tensors that were made before, operators that
/// have no batching rule, and those that look at values (item(), boolean indices). Each task draws its own random
/// numbers.
///
/// What no operator sees (numbers in a task, data_ptr()) would be that of the one task whose closures run. So the first
/// call for a problem and its shapes, then the second, the fourth and so on, runs the tasks with Sequential as well and
/// refuses what differs. In float32, rounding alone may make gradients differ, where it decides a near tie of a
/// max-pool or the sign of what goes into a ReLU. That is told by losses and gradients that are the same to the last
/// bit whichever task the closures are given (the eight whose losses differ most are), where no random numbers are
/// drawn; the cost report says so.
class Vmap final : public TaskBatch {
 public:
  /// All on the calling thread.
  Vmap();
  /// In as many parts, each on a thread of its own as with Threads.
  explicit Vmap(int64_t threads);

  std::string name() const override;
  int64_t together(int64_t count) const override;
  Choice choose(const std::function<Job()>& describe, const Trial& trial) const override;
  void run(int64_t count, const std::function<void(int64_t)>& function) const override;

 private:
  class Seen;
  std::shared_ptr<Seen> seen_;
  std::optional<Threads> threads_;
};

/// Sequential, Threads(n), Vmap() or Vmap(n), whichever was the fastest when a problem came with these shapes for the
/// first time; the cost report says which, what each took, and why Vmap was refused if it was. Keep it: it owns the
/// choice.
class Auto final : public TaskBatch {
 public:
  /// With as many threads; those of the processor by default.
  explicit Auto(int64_t threads = 0);

  std::string name() const override { return "Auto"; }
  Choice choose(const std::function<Job()>& describe, const Trial& trial) const override;
  void run(int64_t count, const std::function<void(int64_t)>& function) const override;

 private:
  class Chosen;
  std::vector<std::shared_ptr<const TaskBatch>> candidates_;
  std::shared_ptr<Chosen> chosen_;
};

}  // namespace gimli
