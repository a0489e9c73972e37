#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace gimli {

/// Numbers that came out of the steps of an inner loop when they ran first. A step that gives another when it runs
/// again is refused: it depends on more than its task and its step (data that moved on, a generator of its own), and
/// the gradient would be that of another inner loop.
class StepRecord final {
 public:
  /// `strategy` and `what` the numbers are, for the error. Exact ones come out the same on the CPU, but for their last
  /// bits; of others, and on other devices, differences up to the root of the dtype's precision pass.
  StepRecord(std::string strategy, std::string what, bool exact = true)
      : strategy_(std::move(strategy)), what_(std::move(what)), exact_(exact) {}

  /// Steps come for the first time in their order, each with a number, or one for each of the tasks that run together.
  void see(int64_t step, const at::Tensor& number);

 private:
  const std::string strategy_, what_;
  const bool exact_;
  std::vector<std::vector<double>> numbers_;
};

}  // namespace gimli
