#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>
#include <unordered_set>
#include <vector>

#include "gimli/tensor_list.h"

namespace gimli {

struct VmapLayer;

/// While it lives, operators of this thread take a tensor [tasks, ...] that was wrapped for the tensor [...] of one
/// task, and compute for all tasks at once (a level of libtorch's functorch). Others are the same for all tasks.
/// Autograd stays below: a wrapped tensor has no graph, what it wraps has, so differentiate what was unwrapped.
///
/// Each task is computed as it would be alone, to rounding. Refused, by the operator's name, is what has no batching
/// rule (libtorch would loop over the tasks), and what looks at a value that is another for each task.
class VmapLevel final {
 public:
  /// For 0 tasks it does nothing.
  explicit VmapLevel(int64_t tasks);
  ~VmapLevel();
  VmapLevel(const VmapLevel&) = delete;
  VmapLevel& operator=(const VmapLevel&) = delete;

  /// That of this thread, or nullptr.
  static VmapLevel* current();
  /// Whether it has one, be it paused.
  static bool active();

  int64_t tasks() const { return tasks_; }

  /// [tasks, ...] as operators are to see it: [...]. Undefined tensors stay so.
  at::Tensor wrap(const at::Tensor& stacked) const;
  TensorList wrap(TensorList stacked) const;

  /// The [tasks, ...] of what operators computed; what is the same for all tasks is expanded.
  template <class T>
  T unwrap(T value) const {
    if constexpr (std::is_convertible_v<const T&, at::Tensor>) {
      return unwrapped(value);
    } else if constexpr (requires { std::tuple_size<T>::value; }) {
      std::apply([&](auto&... item) { ((item = unwrap(std::move(item))), ...); }, value);
      return value;
    } else if constexpr (std::is_same_v<T, TensorList>) {
      for (auto& tensor : value) tensor = unwrapped(tensor);
      return value;
    } else {
      TORCH_CHECK(tasks_ == 0, "VmapLevel: expected a tensor, or a tuple or list of tensors, as result");
      return value;
    }
  }

  /// From now on, operators may read what was wrapped, what they compute, these, and leaves that require a gradient.
  /// All else is refused: it would be one task's for all.
  void allow_only(const TensorList& shared);
  bool allows(const at::Tensor& tensor) const;
  /// What operators computed without wrapped tensors.
  void allow(const at::Tensor& computed);

  /// While it lives, this thread is outside of its level.
  class Pause final {
   public:
    Pause();
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    VmapLevel* const paused_;
    std::unique_ptr<VmapLayer> layer_;
  };

 private:
  at::Tensor unwrapped(const at::Tensor& tensor) const;

  const int64_t tasks_;
  int64_t level_ = 0;
  bool is_strict_ = false;
  std::unordered_set<const c10::StorageImpl*> allowed_;
  std::vector<c10::Storage> kept_;  // so that no other memory takes the place of what is allowed
};

bool is_wrapped(const at::TensorBase& tensor);

/// What a wrapped tensor wraps, with the tasks as whatever dimension; any other tensor itself.
const at::Tensor& physical(const at::Tensor& tensor);

/// What a wrapped tensor wraps, [tasks, ...]; [1, ...] of any other.
at::Tensor tasks_first(const at::Tensor& tensor);

/// `value`, whose dimensions are those of what `like` wraps, wrapped likewise.
at::Tensor wrapped_like(const at::Tensor& like, const at::Tensor& value);

}  // namespace gimli
