#include "gimli/vmap/rules.h"

#include <ATen/ATen.h>
#include <ATen/core/Reduction.h>
#include <ATen/core/stack.h>

#include <unordered_map>

#include "gimli/operators/call.h"
#include "gimli/operators/replacement.h"
#include "gimli/operators/winograd.h"
#include "gimli/vmap/level.h"

namespace gimli {
namespace {

using torch::jit::Stack;

using operators::Call;

/// x W^T + b with weights of each task: one batched product.
bool linear(Stack& stack) {
  const Call call(stack, 3);
  const auto x = call.tensor(0), weight = call.tensor(1), bias = call.tensor(2);
  if (!is_wrapped(x) || !is_wrapped(weight) || x.dim() < 1 || weight.dim() != 2 || x.size(-1) != weight.size(1)) {
    return false;
  }
  const auto inputs = tasks_first(x), weights = tasks_first(weight).transpose(1, 2);
  auto sizes = inputs.sizes().vec();
  sizes.back() = weight.size(0);
  const auto rows = inputs.reshape({inputs.size(0), -1, inputs.size(-1)});
  const auto y = bias.defined() ? at::baddbmm(tasks_first(bias).unsqueeze(1), rows, weights) : at::bmm(rows, weights);
  return call.returns(VmapLevel::current()->wrap(y.reshape(sizes)));
}

/// -w_y x_y, summed over the samples or averaged with the weights w; x has the classes as dimension 1, or as its only.
bool nll_loss(Stack& stack) {
  // input, target, weight, reduction, ignore_index
  const Call call(stack, 5);
  const auto x = call.tensor(0), target = call.tensor(1), weight = call.tensor(2);
  const auto reduction = call[3].toInt(), ignored = call[4].toInt();
  const int64_t classes = x.dim() == 1 ? 0 : 1;
  const auto counts = target != ignored;
  const auto y = at::where(counts, target, at::zeros({}, target.options()));
  const auto nothing = at::zeros({}, x.options());
  const auto w = at::where(
      counts, weight.defined() ? weight.index_select(0, y.reshape({-1})).reshape(y.sizes()) : at::ones({}, x.options()),
      nothing);
  const auto losses = at::where(counts, -x.gather(classes, y.unsqueeze(classes)).squeeze(classes) * w, nothing),
             total = w.sum();
  torch::jit::drop(stack, 5);
  torch::jit::push(stack, reduction == at::Reduction::None  ? losses
                          : reduction == at::Reduction::Sum ? losses.sum()
                                                            : losses.sum() / total);
  torch::jit::push(stack, total);
  return true;
}

/// (1 - y) x - (1 + (p - 1) y) log(sigmoid(x)), with the weights p of the positive samples.
bool binary_cross_entropy_with_logits(Stack& stack) {
  // input, target, weight, positive weight, reduction
  const Call call(stack, 5);
  const auto x = call.tensor(0), y = call.tensor(1), weight = call.tensor(2), p = call.tensor(3);
  const auto reduction = call[4].toInt();
  const auto log_sigmoid = at::clamp_max(x, 0) - at::log1p(at::exp(-at::abs(x)));
  auto losses = (1 - y) * x - (p.defined() ? (1 + (p - 1) * y) * log_sigmoid : log_sigmoid);
  if (weight.defined()) losses = losses * weight;
  return call.returns(reduction == at::Reduction::None  ? losses
                      : reduction == at::Reduction::Sum ? losses.sum()
                                                        : losses.mean());
}

/// One direction of one layer of an LSTM (the form that libtorch gives to oneDNN), step by step.
bool lstm_layer(Stack& stack) {
  // input [time, samples, features], four weights, h, c, reverse, sizes of packed batches, mode, hidden size, layers,
  // biases, bidirectional, batch first, train
  const Call call(stack, 16);
  constexpr int64_t mode_of_lstm = 2;
  if (call[9].toInt() != mode_of_lstm || !call[8].toIntVector().empty()) return false;
  const bool reverse = call[7].toBool(), has_biases = call[12].toBool();
  const auto x = call.tensor(0), w_x = call.tensor(1), w_h = call.tensor(2);
  const auto b_x = has_biases ? call.tensor(3) : at::Tensor();
  const auto b_h = has_biases ? call.tensor(4) : at::Tensor();
  auto h = call.tensor(5), c = call.tensor(6);
  const auto of_inputs = at::linear(x, w_x, b_x).unbind(0);
  TensorList outputs(of_inputs.size());
  for (size_t k = 0; k < outputs.size(); ++k) {
    const auto t = reverse ? outputs.size() - 1 - k : k;
    const auto gates = (of_inputs[t] + at::linear(h, w_h, b_h)).chunk(4, -1);  // input, forget, cell, output
    c = gates[1].sigmoid() * c + gates[0].sigmoid() * gates[2].tanh();
    h = gates[3].sigmoid() * c.tanh();
    outputs[t] = h;
  }
  torch::jit::drop(stack, call.size());
  torch::jit::push(stack, at::stack(outputs), h, c, at::empty({0}, c.options()));
  return true;
}

/// Returns what `compute` computes for all tasks, [tasks, ...], outside of the level.
template <class Compute>
bool returns(const Call& call, Compute compute) {
  const auto y = [&] {
    const VmapLevel::Pause alone;  // functorch lets no autograd function of C++ run within
    return compute();
  }();
  return call.returns(VmapLevel::current()->wrap(y));
}

/// [tasks, n, channels, ...] as [n, tasks * channels, ...], and back.
at::Tensor as_channels(const at::Tensor& x) { return x.transpose(0, 1).flatten(1, 2); }
at::Tensor from_channels(const at::Tensor& x, int64_t tasks) { return x.unflatten(1, {tasks, -1}).transpose(0, 1); }
/// [tasks, channels] as [tasks * channels].
at::Tensor as_vector(const at::Tensor& numbers) { return numbers.defined() ? numbers.flatten() : numbers; }

/// Our own convolutions with weights of each task: one in as many groups or, where arithmetic is all there is, as many.
template <size_t dimensions>
bool convolution(Stack& stack) {
  const Call call(stack, 7);
  const auto inputs = operators::convolution_inputs(call, dimensions);
  if (!own_operators_in_use() || !inputs || !is_wrapped(inputs->weight)) return false;
  const auto x = VmapLevel::current()->unwrap(inputs->x), weight = VmapLevel::current()->unwrap(inputs->weight),
             bias = VmapLevel::current()->unwrap(inputs->bias);
  const auto with = [&](const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t groups) {
    return operators::ConvolutionInputs{x, weight, bias, inputs->stride, inputs->padding, inputs->dilation, groups};
  };
  const auto tasks = x.size(0);
  const auto first = with(x[0], weight[0], bias.defined() ? bias[0] : bias, inputs->groups);
  if (!operators::has_convolution(first)) return false;

  constexpr double many_products = 1e6;
  const auto products = static_cast<double>(first.x.numel()) / static_cast<double>(first.x.size(1)) *
                        static_cast<double>(first.weight.numel());
  const bool is_arithmetic =
      products > many_products && operators::has_winograd(first.x.sizes(), first.weight.sizes(), first.stride,
                                                          first.padding, first.dilation, first.groups);
  return returns(call, [&] {
    if (!is_arithmetic) {
      const auto y =
          operators::convolution(with(as_channels(x), weight.flatten(0, 1), as_vector(bias), tasks * inputs->groups));
      return from_channels(y, tasks);
    }
    const auto xs = x.unbind(), weights = weight.unbind(), biases = bias.defined() ? bias.unbind() : TensorList(tasks);
    TensorList ys;
    for (int64_t t = 0; t < tasks; ++t) {
      ys.push_back(operators::convolution(with(xs[t], weights[t], biases[t], inputs->groups)));
    }
    return at::stack(ys);
  });
}

/// Our own batch normalization, of all tasks' channels.
bool batch_norm(Stack& stack) {
  const Call call(stack, 9);
  auto inputs = operators::batch_norm_inputs(call);
  if (!own_operators_in_use() || !inputs || !is_wrapped(inputs->x) || inputs->x.dim() < 2) return false;
  for (auto* running : {&inputs->running_mean, &inputs->running_variance}) {
    if (!running->defined()) continue;
    if (!is_wrapped(*running) || !tasks_first(*running).is_contiguous()) return false;
    *running = tasks_first(*running).view({-1});
  }
  const auto x = tasks_first(inputs->x);
  inputs->x = as_channels(x);
  inputs->weight = as_vector(VmapLevel::current()->unwrap(inputs->weight));
  inputs->bias = as_vector(VmapLevel::current()->unwrap(inputs->bias));
  return operators::has_batch_norm(*inputs) &&
         returns(call, [&] { return from_channels(operators::batch_norm(*inputs), x.size(0)); });
}

/// Our own max-pooling, of all tasks' samples.
bool max_pool(Stack& stack) {
  const Call call(stack, 6);
  auto inputs = operators::max_pool_inputs(call);
  if (!own_operators_in_use() || !is_wrapped(inputs.x) || inputs.x.dim() != 4) return false;
  const auto x = tasks_first(inputs.x);
  inputs.x = x.flatten(0, 1);
  return operators::has_max_pool(inputs) && returns(call, [&] {
           return operators::max_pool(inputs).unflatten(0, {x.size(0), x.size(1)});
         });
}

}  // namespace

VmapRule vmap_rule_of(const c10::OperatorHandle& op) {
  static const std::unordered_map<c10::OperatorHandle, VmapRule> rules = [] {
    std::unordered_map<c10::OperatorHandle, VmapRule> result;
    for (const auto& [name, rule] : {std::pair("aten::linear", &linear),
                                     {"aten::binary_cross_entropy_with_logits", &binary_cross_entropy_with_logits},
                                     {"aten::conv1d", &convolution<1>},
                                     {"aten::conv2d", &convolution<2>},
                                     {"aten::conv3d", &convolution<3>},
                                     {"aten::batch_norm", &batch_norm},
                                     {"aten::max_pool2d", &max_pool},
                                     {"aten::mkldnn_rnn_layer", &lstm_layer},
                                     {"aten::nll_loss_forward", &nll_loss},
                                     {"aten::nll_loss2d_forward", &nll_loss}}) {
      result.emplace(c10::Dispatcher::singleton().findSchemaOrThrow(name, ""), rule);
    }
    return result;
  }();
  const auto found = rules.find(op);
  return found == rules.end() ? nullptr : found->second;
}

}  // namespace gimli
