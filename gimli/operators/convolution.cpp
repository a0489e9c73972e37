#include "gimli/operators/convolution.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>

#include "gimli/operators/arguments.h"
#include "gimli/operators/winograd.h"

namespace gimli::operators {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Of the gradients by x, weight and bias.
using Wanted = std::array<bool, 3>;

/// All but the tensors.
struct Geometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;

  void save(AutogradContext* ctx) const {
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["groups"] = groups;
  }
  static Geometry saved(AutogradContext* ctx) {
    const auto list = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    return {list("stride"), list("padding"), list("dilation"), ctx->saved_data["groups"].toInt()};
  }

  /// What is to be differentiated, for derivatives of the third order, goes through libtorch's operators.
  bool has_winograd(const at::Tensor& x, const at::Tensor& weight, bool weight_gradient = false) const {
    return !at::GradMode::is_enabled() &&
           operators::has_winograd(x.sizes(), weight.sizes(), stride, padding, dilation, groups, weight_gradient);
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {}) const {
    if (has_winograd(x, weight)) return winograd(x, weight, if_defined(bias), padding);
    return at::convolution(x, weight, bias, stride, padding, dilation, /*transposed=*/false,
                           /*output_padding=*/std::vector<int64_t>(stride.size(), 0), groups);
  }
  /// The gradients by x, weight and bias, as far as `wanted`.
  variable_list backward(const at::Tensor& g, const at::Tensor& x, const at::Tensor& weight, Wanted wanted) const {
    at::Tensor of_x, of_weight;
    if (wanted[0] && has_winograd(x, weight)) of_x = winograd_input_gradient(g, weight, padding);
    if (wanted[1] && has_winograd(x, weight, true)) of_weight = winograd_weight_gradient(g, x, padding);
    const Wanted left{wanted[0] && !of_x.defined(), wanted[1] && !of_weight.defined(), wanted[2]};
    if (!left[0] && !left[1] && (of_x.defined() || of_weight.defined())) {
      return {of_x, of_weight, wanted[2] ? g.sum({0, 2, 3}) : at::Tensor()};
    }
    const auto channels = weight.size(0);
    const auto [libtorchs_of_x, libtorchs_of_weight, of_bias] = at::convolution_backward(
        g, x, weight, c10::IntArrayRef(channels), stride, padding, dilation, /*transposed=*/false,
        /*output_padding=*/std::vector<int64_t>(stride.size(), 0), groups, left);
    return {left[0] ? libtorchs_of_x : of_x, left[1] ? libtorchs_of_weight : of_weight, of_bias};
  }
};

/// Those that are wanted: a function cannot return undefined tensors.
variable_list packed(const variable_list& gradients, Wanted wanted) {
  variable_list result;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i]) result.push_back(gradients[i]);
  }
  return result;
}

/// Undefined in the place of the others.
variable_list unpacked(const variable_list& gradients, Wanted wanted) {
  variable_list result(wanted.size());
  for (size_t i = 0, next = 0; i < wanted.size(); ++i) {
    if (wanted[i]) result[i] = gradients[next++];
  }
  return result;
}

at::Tensor sum(const at::Tensor& a, const at::Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }

/// The backward pass, as a function of its own.
struct Backward final : torch::autograd::Function<Backward> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& g, const at::Tensor& x, const at::Tensor& weight,
                               const Geometry& geometry, Wanted wanted) {
    ctx->save_for_backward({g, x, weight});
    ctx->saved_data["wanted"] = c10::List<bool>({wanted[0], wanted[1], wanted[2]});
    ctx->set_materialize_grads(false);
    geometry.save(ctx);
    return packed(geometry.backward(g, x, weight, wanted), wanted);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto geometry = Geometry::saved(ctx);
    const auto list = ctx->saved_data["wanted"].toBoolList();
    const auto &g = saved[0], &x = saved[1], &weight = saved[2];
    const auto of = unpacked(gradients, {list[0], list[1], list[2]});
    const auto &u = of[0], &v = of[1], &w = of[2];

    at::Tensor of_g, of_x, of_weight;
    if (ctx->needs_input_grad(0)) {
      if (u.defined()) of_g = geometry.forward(u, weight, w);
      if (v.defined()) of_g = sum(of_g, geometry.forward(x, v, u.defined() ? at::Tensor() : w));
      if (!u.defined() && !v.defined() && w.defined()) {
        of_g = over_channels(w, g).expand_as(g);
      }
    }
    if (ctx->needs_input_grad(1) && v.defined()) of_x = geometry.backward(g, x, v, {true, false, false})[0];
    if (ctx->needs_input_grad(2) && u.defined()) of_weight = geometry.backward(g, u, weight, {false, true, false})[1];
    return {of_g, of_x, of_weight, {}, {}};
  }
};

struct Forward final : torch::autograd::Function<Forward> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& given_bias, const Geometry& geometry) {
    const auto bias = given_bias.value_or(at::Tensor());
    ctx->save_for_backward({x, weight});
    ctx->saved_data["has_bias"] = bias.defined();
    geometry.save(ctx);
    return geometry.forward(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    const Wanted wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1), has_bias && ctx->needs_input_grad(2)};
    const auto of = unpacked(Backward::apply(gradients[0], x, weight, Geometry::saved(ctx), wanted), wanted);
    return {of[0], of[1], of[2], {}};
  }
};

}  // namespace

bool has_convolution(const ConvolutionInputs& at) {
  return are_dense({at.x, at.weight, at.bias}) && at.weight.defined() && at.x.dim() == at.weight.dim() &&
         at.x.dim() >= 3;
}

at::Tensor convolution(const ConvolutionInputs& at) {
  TORCH_CHECK(has_convolution(at),
              "convolution: expected an input and a weight of the same number of dimensions, at least 3, of "
              "float or double and on the CPU");
  return Forward::apply(at.x, at.weight, if_defined(at.bias), Geometry{at.stride, at.padding, at.dilation, at.groups});
}

}  // namespace gimli::operators
