#include "gimli/operators/replacement.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <atomic>
#include <unordered_map>

#include "gimli/operators/batch_norm.h"
#include "gimli/operators/call.h"
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

/// Whether there may be derivatives other than autograd's backward passes, which own operators do not have.
bool has_other_derivatives(const Call& call) {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) return true;
  for (size_t i = 0; i < call.size(); ++i) {
    if (call[i].isTensor() && torch::autograd::isFwGradDefined(call[i].toTensor())) return true;
  }
  return false;
}

/// By `compute`, if it is for these inputs.
template <class Inputs>
bool replace(Call call, const Inputs& inputs, bool has(const Inputs&), at::Tensor compute(const Inputs&)) {
  if (!has(inputs) || has_other_derivatives(call)) return false;
  return call.returns(compute(inputs));
}

bool replace_batch_norm(Stack& stack) {
  const Call call(stack, 9);
  const auto inputs = batch_norm_inputs(call);
  return inputs && replace(call, *inputs, has_batch_norm, batch_norm);
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
  const Call call(stack, 7);
  const auto inputs = convolution_inputs(call, dimensions);
  return inputs && replace(call, *inputs, has_convolution, convolution);
}

bool replace_relu(Stack& stack) {
  const Call call(stack, 1);
  return replace(call, call.tensor(0), has_relu, relu);
}

bool replace_max_pool(Stack& stack) {
  const Call call(stack, 6);
  return replace(call, max_pool_inputs(call), has_max_pool, max_pool);
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
