#pragma once

#include <c10/core/thread_pool.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace gimli {

/// How the tasks of a batch are run.
class TaskBatch {
 public:
  virtual ~TaskBatch() = default;

  virtual std::string name() const = 0;

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

  std::string name() const override;
  void run(int64_t count, const std::function<void(int64_t)>& function) const override;

 private:
  int64_t count_;
  std::shared_ptr<c10::ThreadPool> pool_;
};

}  // namespace gimli
