#pragma once

#include <ATen/core/stack.h>

#include <optional>
#include <vector>

#include "gimli/operators/batch_norm.h"
#include "gimli/operators/convolution.h"
#include "gimli/operators/max_pool.h"

namespace gimli::operators {

/// The arguments of a call, and the place of its result.
class Call final {
 public:
  Call(torch::jit::Stack& stack, size_t arguments) : stack_(stack), arguments_(arguments) {}

  const c10::IValue& operator[](size_t i) const { return torch::jit::peek(stack_, i, arguments_); }
  at::Tensor tensor(size_t i) const { return (*this)[i].isNone() ? at::Tensor() : (*this)[i].toTensor(); }
  /// A list of integers, of which one stands for `count` equal ones.
  std::vector<int64_t> integers(size_t i, size_t count) const {
    auto list = (*this)[i].toIntVector();
    if (list.size() == 1) list.resize(count, list[0]);
    return list;
  }
  size_t size() const { return arguments_; }
  /// Puts the result in the place of the arguments, and returns true.
  bool returns(at::Tensor result) const {
    torch::jit::drop(stack_, arguments_);
    torch::jit::push(stack_, std::move(result));
    return true;
  }

 private:
  torch::jit::Stack& stack_;
  const size_t arguments_;
};

/// Of aten::batch_norm in training.
inline std::optional<BatchNormInputs> batch_norm_inputs(const Call& call) {
  // input, weight, bias, running mean, running variance, training, momentum, eps, cudnn
  if (!call[5].toBool()) return std::nullopt;
  return BatchNormInputs{call.tensor(0), call.tensor(1),     call.tensor(2),    call.tensor(3),
                         call.tensor(4), call[6].toDouble(), call[7].toDouble()};
}

/// Of aten::conv1d, conv2d or conv3d with samples.
inline std::optional<ConvolutionInputs> convolution_inputs(const Call& call, size_t dimensions) {
  // input, weight, bias, stride, padding, dilation, groups
  if (call.tensor(0).dim() != static_cast<int64_t>(dimensions) + 2) return std::nullopt;
  return ConvolutionInputs{call.tensor(0),
                           call.tensor(1),
                           call.tensor(2),
                           call.integers(3, dimensions),
                           call.integers(4, dimensions),
                           call.integers(5, dimensions),
                           call[6].toInt()};
}

/// Of aten::max_pool2d.
inline MaxPoolInputs max_pool_inputs(const Call& call) {
  // input, kernel, stride, padding, dilation, ceil mode
  const auto kernel = call.integers(1, 2), stride = call.integers(2, 2);
  return {call.tensor(0),      kernel,          stride.empty() ? kernel : stride, call.integers(3, 2),
          call.integers(4, 2), call[5].toBool()};
}

}  // namespace gimli::operators
