#pragma once

#include <ATen/core/stack.h>

#include <memory>
#include <unordered_map>

#include "gimli/trace.h"
#include "gimli/trace/program.h"

namespace gimli::tracing {

/// Writes down what operators of its thread do.
class Recorder final {
 public:
  explicit Recorder(const TraceInputs& inputs);

  /// Of this thread, or nullptr.
  static thread_local Recorder* current;

  /// Why there can be none; empty if there can.
  static const std::string& unavailable();

  /// Calls `function` and records it.
  TensorList run(const std::function<TensorList()>& function);

  /// One operator, below autograd: calls it and writes it down.
  void call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

  void expect_finite(const at::Tensor& scalar, const std::string& what);

  /// What was recorded, or nullptr.
  std::unique_ptr<Program> finish(const TensorList& outputs);
  const std::string& refusal() const { return refusal_; }

 private:
  void refuse(const std::string& why);
  /// What is computed is not kept in memory, only its storage's address from being that of another.
  void add_slot(const at::Tensor& tensor, Slot::Kind kind, bool is_kept = true);
  void add_copied(const at::Tensor& tensor);
  std::optional<Geometry> geometry(const at::Tensor& tensor);
  std::shared_ptr<const Layout> shared(Layout layout);
  void add(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments,
           const std::vector<c10::IValue>& returns);

  std::unique_ptr<Program> program_;
  std::unordered_map<const c10::StorageImpl*, size_t> slot_of_;
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> seen_;
  std::unordered_multimap<size_t, std::shared_ptr<const Layout>> layouts_;  ///< by a hash
  std::string refusal_;
};

}  // namespace gimli::tracing
