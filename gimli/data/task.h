#pragma once

#include <torch/data/example.h>

#include <cstdint>

namespace gimli::data {

/// One task of a meta-learning problem: the inner loop learns from `support`, the outer loss is taken on `query`. Each
/// is a whole batch, `data` and `target`.
struct Task {
  torch::data::Example<> support;
  torch::data::Example<> query;
};

/// A distribution of tasks, indexed by the order in which a run meets them.
///
/// `task(index)` is a pure function of the source's options (its seed among them) and of the index: the same tensors
/// whatever was asked for before, from any thread, in any process. So a run resumes where it stopped, an evaluation on
/// tasks 0 to 599 is the same for every method, and tasks can be made by as many threads as there are.
class TaskSource {
 public:
  virtual ~TaskSource() = default;

  /// Safe to call from several threads at once. `index` is at least 0; sources that sample have no last task.
  virtual Task task(int64_t index) const = 0;
};

}  // namespace gimli::data
