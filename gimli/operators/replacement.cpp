#include "gimli/operators/replacement.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/stack.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <atomic>
#include <unordered_map>

#include "gimli/operators/batch_norm.h"
#include "gimli/operators/convolution.h"
#include "gimli/operators/layer_norm.h"
#include "gimli/operators/max_pool.h"

namespace gimli {
namespace {

std::atomic<bool> in_use = true;

}  // namespace

bool use_own_operators(bool use) { return in_use.exchange(use); }
bool own_operators_in_use() { return in_use; }

namespace operators {
namespace {

using torch::jit::Stack;

/// The arguments of a call, and the place of its result.
class Call final {
 public:
  Call(Stack& stack, size_t arguments) : stack_(stack), arguments_(arguments) {}

  const c10::IValue& operator[](size_t i) const { return torch::jit::peek(stack_, i, arguments_); }
  at::Tensor tensor(size_t i) const { return (*this)[i].isNone() ? at::Tensor() : (*this)[i].toTensor(); }
  /// A list of integers, of which one stands for `count` equal ones.
  std::vector<int64_t> integers(size_t i, size_t count) const {
    auto list = (*this)[i].toIntVector();
    if (list.size() == 1) list.resize(count, list[0]);
    return list;
  }
  /// Whether there may be derivatives other than autograd's backward passes, which own operators do not have.
  bool has_other_derivatives() const {
    if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) return true;
    for (size_t i = 0; i < arguments_; ++i) {
      const auto& argument = (*this)[i];
      if (argument.isTensor() && torch::autograd::isFwGradDefined(argument.toTensor())) return true;
    }
    return false;
  }
  bool returns(at::Tensor result) const {
    torch::jit::drop(stack_, arguments_);
    torch::jit::push(stack_, std::move(result));
    return true;
  }

 private:
  Stack& stack_;
  const size_t arguments_;
};

/// By `compute`, if it is for these inputs.
template <class Inputs>
bool replace(Call call, const Inputs& inputs, bool has(const Inputs&), at::Tensor compute(const Inputs&)) {
  if (!has(inputs) || call.has_other_derivatives()) return false;
  return call.returns(compute(inputs));
}

bool replace_batch_norm(Stack& stack) {
  // input, weight, bias, running mean, running variance, training, momentum, eps, cudnn
  const Call call(stack, 9);
  const BatchNormInputs inputs{call.tensor(0), call.tensor(1),     call.tensor(2),    call.tensor(3),
                               call.tensor(4), call[6].toDouble(), call[7].toDouble()};
  return call[5].toBool() && replace(call, inputs, has_batch_norm, batch_norm);
}

bool replace_layer_norm(Stack& stack) {
  // input, shape, weight, bias, eps, cudnn
  const Call call(stack, 6);
  const LayerNormInputs inputs{call.tensor(0), call[1].toIntVector(), call.tensor(2), call.tensor(3),
                               call[4].toDouble()};
  return replace(call, inputs, has_layer_norm, layer_norm);
}

bool replace_group_norm(Stack& stack) {
  // input, groups, weight, bias, eps, cudnn
  const Call call(stack, 6);
  const GroupNormInputs inputs{call.tensor(0), call[1].toInt(), call.tensor(2), call.tensor(3), call[4].toDouble()};
  return replace(call, inputs, has_group_norm, group_norm);
}

template <size_t dimensions>
bool replace_convolution(Stack& stack) {
  // input, weight, bias, stride, padding, dilation, groups
  const Call call(stack, 7);
  const ConvolutionInputs inputs{call.tensor(0),
                                 call.tensor(1),
                                 call.tensor(2),
                                 call.integers(3, dimensions),
                                 call.integers(4, dimensions),
                                 call.integers(5, dimensions),
                                 call[6].toInt()};
  return inputs.x.dim() == dimensions + 2 && replace(call, inputs, has_convolution, convolution);
}

bool replace_relu(Stack& stack) {
  const Call call(stack, 1);
  return replace(call, call.tensor(0), has_relu, relu);
}

bool replace_max_pool(Stack& stack) {
  // input, kernel, stride, padding, dilation, ceil mode
  const Call call(stack, 6);
  const auto kernel = call.integers(1, 2), stride = call.integers(2, 2);
  const MaxPoolInputs inputs{
      call.tensor(0),      kernel,          stride.empty() ? kernel : stride, call.integers(3, 2),
      call.integers(4, 2), call[5].toBool()};
  return replace(call, inputs, has_max_pool, max_pool);
}

}  // namespace

Replacement replacement_of(const c10::OperatorHandle& op) {
  static const std::unordered_map<c10::OperatorHandle, Replacement> replacements = [] {
    std::unordered_map<c10::OperatorHandle, Replacement> result;
    for (const auto& [name, replacement] : {std::pair("aten::batch_norm", &replace_batch_norm),
                                            {"aten::layer_norm", &replace_layer_norm},
                                            {"aten::group_norm", &replace_group_norm},
                                            {"aten::conv1d", &replace_convolution<1>},
                                            {"aten::conv2d", &replace_convolution<2>},
                                            {"aten::conv3d", &replace_convolution<3>},
                                            {"aten::relu", &replace_relu},
                                            {"aten::max_pool2d", &replace_max_pool}}) {
      result.emplace(c10::Dispatcher::singleton().findSchemaOrThrow(name, ""), replacement);
    }
    return result;
  }();
  const auto found = replacements.find(op);
  if (found == replacements.end() || !in_use || at::autocast::is_autocast_enabled(at::kCPU)) return nullptr;
  return found->second;
}

}  // namespace operators
}  // namespace gimli
