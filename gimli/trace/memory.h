#pragma once

#include "gimli/tensor_list.h"
#include "gimli/trace/program.h"

namespace gimli::tracing {

/// The memory of a program's list, and its instructions bound to it.
class Memory final {
 public:
  explicit Memory(const Program& program);

  /// Runs the list.
  void run();

  /// The inputs that are copied, to be written to.
  const TensorList& copied() const { return copied_; }

  /// The outputs in memory of their own, or that of a shared input.
  TensorList outputs() const;

  at::Tensor tensor(const Geometry& geometry) const;

 private:
  struct Step {
    Loop loop;  ///< what runs, if it has a kernel
    const Instruction* instruction;
    std::vector<c10::IValue> stack;  ///< the arguments
    TensorList results;              ///< where results lie
    at::Tensor source;               ///< of copies and of what is expected to be finite
  };

  void* address(const Geometry& geometry) const;
  void bind_arguments(Step& step) const;
  void run(const Step& step);

  const Program& program_;
  at::Tensor arena_;
  TensorList inputs_, copied_, outputs_;
  std::vector<char*> bases_;
  std::vector<Step> steps_;
  std::vector<c10::IValue> stack_;
};

/// Copies a tensor to one of the same sizes.
void copy_values(const at::Tensor& from, const at::Tensor& to);

/// Throws a sentence that begins with `what` if `scalar` is not a finite number.
void check_finite(const at::Tensor& scalar, const std::string& what);

}  // namespace gimli::tracing
