#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>

#include "gimli/tensor_list.h"

namespace gimli {

namespace tracing {
struct Program;
class Memory;
}  // namespace tracing

/// What tensors of a traced function are, besides those that it computes.
struct TraceInputs {
  TensorList copied;  ///< may be other tensors, of the same sizes and types, in each replay
  TensorList shared;  ///< the same tensors in each replay, with the contents that they have then
};

/// The operators that reach the backend while a function runs, below autograd: of its forward, backward and double
/// backward passes, one flat list. To replay it is to run that list alone, on memory that is laid out once: no graph,
/// no views, no allocation. A replay is the same arithmetic, and so differs by 0.
///
/// What the list does not show is frozen: control flow, numbers that are no tensors, memory that is read or written
/// past operators (`data_ptr()`, `from_blob`). So compare a replay on other data with the function itself before you
/// trust it.
class Trace final {
 public:
  struct Recording {
    TensorList outputs;  ///< what the function returned
    std::shared_ptr<const Trace> trace;
    std::string refusal;  ///< why there is no trace, in words
  };

  /// Calls `function` once. If it throws, so does this. It is not traced if it reads a tensor that is neither of
  /// `inputs` nor computed, draws random numbers, or looks at values, as item() and boolean indices do.
  static Recording record(const std::function<TensorList()>& function, const TraceInputs& inputs);

  ~Trace();

  /// The list with gimli's own kernels in the place of operators on small matrices and vectors, for this processor, and
  /// what follows a product done as it is stored. Differs by rounding. Each kernel is tried on random numbers against
  /// the operator before it is used.
  std::shared_ptr<const Trace> on_own_kernels() const;

  /// A copy of the list's memory; one replays at a time.
  using Memory = tracing::Memory;
  std::shared_ptr<Memory> allocate() const;

  /// What the function returns with these in the place of the `copied` inputs, outside of any graph: in memory of its
  /// own, or the memory of a `shared` input where it returns one.
  TensorList replay(Memory& memory, const TensorList& copied) const;

  int64_t size() const;          ///< operators in the list
  int64_t own_size() const;      ///< of them, those on own kernels
  int64_t memory_bytes() const;  ///< of a Memory

  /// Whether this thread records a function now.
  static bool is_recording();

  /// Throws a sentence that begins with `what` if `scalar` is not a finite number. It looks past the trace, and what is
  /// being recorded does the same in each replay.
  static void expect_finite(const at::Tensor& scalar, const std::string& what);

  /// While it lives, operators of this thread are not recorded: they only look at what was computed.
  class Pause final {
   public:
    Pause();
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    void* const paused_;
  };

 private:
  explicit Trace(std::unique_ptr<const tracing::Program> program);
  std::unique_ptr<const tracing::Program> program_;
};

}  // namespace gimli
