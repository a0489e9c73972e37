#include "gimli/operators/batch_norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <optional>

#include "gimli/operators/arguments.h"
#include "gimli/operators/norm.h"

namespace gimli::operators {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What `norm_double_backward` returns, composed of operators that can be differentiated.
NormSecondGradients second_composed(const at::Tensor& u, const at::Tensor& of_weight, const at::Tensor& of_bias,
                                    const at::Tensor& of_y, const NormPoint& at) {
  std::vector<int64_t> over{0};
  for (int64_t d = 2; d < at.x.dim(); ++d) over.push_back(d);
  const auto of_channels = [&](const std::optional<at::Tensor>& t, double otherwise) {
    return over_channels(t ? *t : at::full({at.x.size(1)}, otherwise, at.x.options()), at.x);
  };
  const auto mean = [&](const at::Tensor& t) { return t.mean(over, /*keepdim=*/true); };
  const auto weight = of_channels(at.weight, 1), v = of_channels(if_defined(of_weight), 0),
             w = of_channels(if_defined(of_bias), 0);
  const auto centred = at.x - mean(at.x);
  const auto r = (mean(centred.square()) + at.eps).rsqrt();
  const auto z = centred * r;
  const auto closed = (z * weight + of_channels(at.bias, 0)).detach() <= 0;
  const auto rectified = [&](const at::Tensor& t) { return at.rectified ? t.masked_fill(closed, 0) : t; };
  const auto g = rectified(of_y);
  const auto project = [&](const at::Tensor& h) { return h - mean(h) - z * mean(h * z); };
  const auto projected_u = project(u);
  const auto a = mean(projected_u * g);  // A / n
  const auto h = v * g - weight * r * (u * mean(g * z) + g * mean(u * z));
  const auto n = static_cast<double>(at.x.numel() / at.x.size(1));
  return {rectified(weight * r * projected_u + v * z + w), r * project(h) - weight * r * r * a * z,
          (n * r * a).flatten()};
}

/// The backward pass, as a function of its own.
struct Backward final : torch::autograd::Function<Backward> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& g, const at::Tensor& x,
                               const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                               const at::Tensor& mean, const at::Tensor& variance, double eps, bool rectified) {
    ctx->save_for_backward({g, x, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), mean, variance});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["rectified"] = rectified;
    ctx->set_materialize_grads(false);
    const auto of = norm_backward(g, {x, weight, bias, mean, variance, eps, rectified});
    return {of.x, of.weight, of.bias};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto& g = saved[0];
    const NormPoint at{saved[1],
                       if_defined(saved[2]),
                       if_defined(saved[3]),
                       saved[4],
                       saved[5],
                       ctx->saved_data["eps"].toDouble(),
                       ctx->saved_data["rectified"].toBool()};
    const auto u = gradients[0].defined() ? gradients[0] : at::zeros_like(at.x);
    const auto &v = gradients[1], &w = gradients[2];
    const auto of = at::GradMode::is_enabled() ? second_composed(u, v, w, g, at)
                                               : norm_double_backward(u, if_defined(v), if_defined(w), g, at);
    return {of.g, of.x, at.weight ? of.weight : at::Tensor(), {}, {}, {}, {}, {}};
  }
};

/// What `Forward` and `Rectified` save for their backward passes.
struct Saved {
  at::Tensor x, weight, bias, mean, variance;
  double eps;

  void save(AutogradContext* ctx) const {
    ctx->save_for_backward({x, weight, bias, mean, variance});
    ctx->saved_data["eps"] = eps;
  }
  static Saved of(AutogradContext* ctx) {
    const auto saved = ctx->get_saved_variables();
    return {saved[0], saved[1], saved[2], saved[3], saved[4], ctx->saved_data["eps"].toDouble()};
  }
  /// By x, weight and bias.
  variable_list backward(const at::Tensor& g, bool rectified) const {
    const auto of = Backward::apply(g, x, if_defined(weight), if_defined(bias), mean, variance, eps, rectified);
    return {of[0], weight.defined() ? of[1] : at::Tensor(), bias.defined() ? of[2] : at::Tensor()};
  }
};

/// y, and the mean and the variance.
struct Forward final : torch::autograd::Function<Forward> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& weight,
                               const std::optional<at::Tensor>& bias, double eps) {
    const auto [y, mean, variance] = norm(x, weight, bias, eps);
    Saved{x, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), mean, variance, eps}.save(ctx);
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({mean, variance});
    return {y, mean, variance};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    if (!gradients[0].defined()) return variable_list(4);
    const auto of = Saved::of(ctx).backward(gradients[0], false);
    return {of[0], of[1], of[2], {}};
  }
};

using ForwardNode = torch::autograd::CppNode<Forward>;

/// Whether something besides the nodes before it asks for the gradient that arrives at a node: a hook, or the caller of
/// this backward pass.
bool is_watched(torch::autograd::Node* node) {
  if (!node->tensor_pre_hooks().empty() || !node->retains_grad_hooks().empty() || !node->pre_hooks().empty() ||
      !node->post_hooks().empty()) {
    return true;
  }
  const auto* executed = torch::autograd::get_current_graph_task_exec_info();
  if (!executed) return false;
  const auto found = executed->find(node);
  return found != executed->end() && found->second.captures_;
}

/// max(y, 0) of what `Forward` returned, in the graph as a function of Forward's inputs; of y only if that is watched.
struct Rectified final : torch::autograd::Function<Rectified> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y, const at::Tensor& x,
                            const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                            const at::Tensor& mean, const at::Tensor& variance, double eps, ForwardNode* node) {
    Saved{x, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), mean, variance, eps}.save(ctx);
    ctx->saved_data["node"] = reinterpret_cast<int64_t>(node);  // which lives as long as the edge to y
    return at::relu(y);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = Saved::of(ctx);
    const auto& g = gradients[0];
    variable_list result(8);
    if (is_watched(reinterpret_cast<ForwardNode*>(ctx->saved_data["node"].toInt()))) {
      const auto y = norm(saved.x, if_defined(saved.weight), if_defined(saved.bias), saved.eps).y;
      result[0] = g.masked_fill(y <= 0, 0);
    } else {
      const auto of = saved.backward(g, true);
      std::copy(of.begin(), of.end(), result.begin() + 1);
    }
    return result;
  }
};

ForwardNode* node_of(const at::Tensor& y) { return dynamic_cast<ForwardNode*>(y.grad_fn().get()); }

void move(const at::Tensor& running, const at::Tensor& now, double momentum) {
  if (running.defined()) running.copy_((1 - momentum) * running.to(at::kDouble) + momentum * now);
}

}  // namespace

bool has_batch_norm(const BatchNormInputs& at) {
  const auto is_of_channels = [&](const at::Tensor& tensor) {
    return !tensor.defined() || (tensor.dim() == 1 && tensor.size(0) == at.x.size(1));
  };
  return are_dense({at.x, at.weight, at.bias, at.running_mean, at.running_variance}) && at.x.dim() >= 2 &&
         is_of_channels(at.weight) && is_of_channels(at.bias) && is_of_channels(at.running_mean) &&
         is_of_channels(at.running_variance);
}

at::Tensor batch_norm(const BatchNormInputs& at) {
  TORCH_CHECK(has_batch_norm(at),
              "batch_norm: expected an input [n, channels, ...] of float or double on the CPU, and "
              "weight, bias and running statistics [channels] of the same type");
  const auto result = Forward::apply(at.x, if_defined(at.weight), if_defined(at.bias), at.eps);
  const at::NoGradGuard no_grad;
  const auto n = static_cast<double>(at.x.numel() / at.x.size(1));
  move(at.running_mean, result[1], at.momentum);
  move(at.running_variance, result[2] * (n / (n - 1)), at.momentum);
  return result[0];
}

bool has_relu(const at::Tensor& y) { return are_dense({y}) && y._version() == 0 && node_of(y) != nullptr; }

at::Tensor relu(const at::Tensor& y) {
  TORCH_CHECK(has_relu(y), "relu: expected a result of batch_norm that requires a gradient");
  auto* node = node_of(y);
  const auto [x, weight, bias, mean, variance, eps] = Saved::of(&node->ctx_);
  return Rectified::apply(y, x, if_defined(weight), if_defined(bias), mean, variance, eps, node);
}

}  // namespace gimli::operators
