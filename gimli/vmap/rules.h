#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace gimli {

/// Computes a call of an operator on wrapped tensors: puts its results in the place of its arguments and returns true.
/// Or it returns false and leaves the stack as it is.
using VmapRule = bool (*)(torch::jit::Stack& stack);

/// A batching rule of ours, where libtorch has none or a slow one, or nullptr.
VmapRule vmap_rule_of(const c10::OperatorHandle& op);

}  // namespace gimli
