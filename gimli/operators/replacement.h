#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace gimli {

/// Whether inner loops use gimli's own forms of operators, whose second derivatives take less time and memory than
/// those that libtorch composes, in the place of libtorch's: batch, layer and group normalization, a ReLU that takes a
/// batch normalization, convolutions and max-pooling by 2 x 2 on the CPU, and in what Captured replays, operators on
/// small tensors. They do unless this is switched off, for the whole process. Returns what it was.
bool use_own_operators(bool use);
bool own_operators_in_use();

namespace operators {

/// Computes a call of an operator: puts its results in the place of its arguments and returns true. Or it returns false
/// and leaves the stack as it is, for arguments that are libtorch's to compute or to refuse.
using Replacement = bool (*)(torch::jit::Stack& stack);

/// What takes the place of the operator in an inner loop, or nullptr.
Replacement replacement_of(const c10::OperatorHandle& op);

}  // namespace operators
}  // namespace gimli
