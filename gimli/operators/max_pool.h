#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace gimli::operators {

/// Max-pooling by windows of 2 x 2 that do not overlap.
struct MaxPoolInputs {
  at::Tensor x;  ///< [n, channels, height, width]
  std::vector<int64_t> kernel, stride, padding, dilation;
  bool ceil_mode;
};

/// Whether `max_pool` is for these: 2, 2, 0, 1 and false.
bool has_max_pool(const MaxPoolInputs& inputs);

/// at::max_pool2d, the same in value and in derivatives of any order, ties and NaN included: the derivatives move
/// numbers to and from the largest pixels, each in one pass. libtorch looks at one pixel after the other.
at::Tensor max_pool(const MaxPoolInputs& inputs);

}  // namespace gimli::operators
