#include "gimli/operators/layer_norm.h"

#include <ATen/ATen.h>

#include "gimli/operators/arguments.h"
#include "gimli/operators/batch_norm.h"

namespace gimli::operators {
namespace {

/// x with mean 0 and variance 1 in each of `count` equal parts of it in memory.
at::Tensor standardized(const at::Tensor& x, int64_t count, double eps) {
  return batch_norm({x.reshape({1, count, -1}), {}, {}, {}, {}, /*momentum=*/0, eps}).view(x.sizes());
}

at::Tensor affine(const at::Tensor& z, const at::Tensor& weight, const at::Tensor& bias) {
  if (!weight.defined()) return bias.defined() ? z + bias : z;
  return bias.defined() ? at::addcmul(bias, z, weight) : z * weight;
}

}  // namespace

bool has_layer_norm(const LayerNormInputs& at) {
  const auto dims = static_cast<int64_t>(at.shape.size());
  const auto has_shape = [&](const at::Tensor& tensor) { return !tensor.defined() || tensor.sizes() == at.shape; };
  return are_dense({at.x, at.weight, at.bias}) && dims > 0 && at.x.dim() >= dims &&
         at.x.sizes().slice(at.x.dim() - dims) == at.shape && has_shape(at.weight) && has_shape(at.bias);
}

at::Tensor layer_norm(const LayerNormInputs& at) {
  TORCH_CHECK(has_layer_norm(at),
              "layer_norm: expected an input of float or double on the CPU whose last dimensions are the shape, and "
              "weight and bias of that shape and type");
  return affine(standardized(at.x, at.x.numel() / c10::multiply_integers(at.shape), at.eps), at.weight, at.bias);
}

bool has_group_norm(const GroupNormInputs& at) {
  if (!are_dense({at.x, at.weight, at.bias}) || at.x.dim() < 2) return false;
  const auto channels = at.x.size(1);
  const auto has_shape = [&](const at::Tensor& tensor) {
    return !tensor.defined() || (tensor.dim() == 1 && tensor.size(0) == channels);
  };
  return at.groups > 0 && channels % at.groups == 0 && has_shape(at.weight) && has_shape(at.bias);
}

at::Tensor group_norm(const GroupNormInputs& at) {
  TORCH_CHECK(has_group_norm(at),
              "group_norm: expected an input [n, channels, ...] of float or double on the CPU, groups that divide its "
              "channels, and weight and bias [channels] of the same type");
  const auto of_channels = [&](const at::Tensor& tensor) {
    return tensor.defined() ? over_channels(tensor, at.x) : tensor;
  };
  return affine(standardized(at.x, at.x.size(0) * at.groups, at.eps), of_channels(at.weight), of_channels(at.bias));
}

}  // namespace gimli::operators
