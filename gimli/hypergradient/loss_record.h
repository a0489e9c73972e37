#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace gimli {

/// The inner losses that steps gave when they ran first. A step that gives another when it runs again is refused: its
/// closure depends on more than its task and its step (data that moved on, a generator of its own), and the gradient
/// would be that of another inner loop.
class LossRecord final {
 public:
  /// `name` is the strategy's, for the error.
  explicit LossRecord(std::string name) : name_(std::move(name)) {}

  /// Steps come for the first time in their order. Losses on the CPU are equal to the last bits, other devices may add
  /// in another order: differences up to the root of the dtype's precision pass.
  void see(int64_t step, const at::Tensor& loss);

 private:
  const std::string name_;
  std::vector<double> losses_;
};

}  // namespace gimli
