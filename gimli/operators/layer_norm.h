#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace gimli::operators {

/// at::layer_norm and at::group_norm up to rounding, by the passes of `batch_norm`: examples, or groups of their
/// channels, take the place of channels.
struct LayerNormInputs {
  at::Tensor x;
  std::vector<int64_t> shape;  ///< of the last dimensions, over which it normalizes
  at::Tensor weight, bias;     ///< of that shape, or undefined
  double eps;
};

bool has_layer_norm(const LayerNormInputs& inputs);
at::Tensor layer_norm(const LayerNormInputs& inputs);

struct GroupNormInputs {
  at::Tensor x;  ///< [n, channels, ...]
  int64_t groups;
  at::Tensor weight, bias;  ///< [channels], or undefined
  double eps;
};

bool has_group_norm(const GroupNormInputs& inputs);
at::Tensor group_norm(const GroupNormInputs& inputs);

}  // namespace gimli::operators
