#pragma once

#include <future>
#include <vector>

#include "app/dataset.h"

namespace gimli::app {

/// The tasks of each iteration, i B to i B + B - 1 of a data set's training tasks for a batch of B. Those of the next
/// one are made while this one computes.
class TaskQueue final {
 public:
  TaskQueue(const Dataset& dataset, int64_t batch) : dataset_(dataset), batch_(batch) {}

  std::vector<data::Task> take(int64_t iteration) {
    if (iteration_ != iteration || !next_.valid()) begin(iteration);
    auto tasks = next_.get();
    begin(iteration + 1);
    return tasks;
  }

 private:
  void begin(int64_t iteration) {
    iteration_ = iteration;
    next_ = std::async(std::launch::async, [this, first = iteration * batch_] {
      std::vector<data::Task> tasks;
      for (int64_t i = 0; i < batch_; ++i) tasks.push_back(task_on(*dataset_.training, first + i, dataset_.device));
      return tasks;
    });
  }

  const Dataset& dataset_;
  int64_t batch_;
  int64_t iteration_ = 0;
  std::future<std::vector<data::Task>> next_;
};

}  // namespace gimli::app
