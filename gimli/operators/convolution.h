#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace gimli::operators {

struct ConvolutionInputs {
  at::Tensor x, weight, bias;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
};

/// Whether `convolution` is for these.
bool has_convolution(const ConvolutionInputs& inputs);

/// at::convolution, with the same value and gradients, and a backward pass of the backward pass that consists of the
/// backend's own convolutions and backward passes:
///
///     g = dy, and u, v, w the gradients of dx, dweight, dbias
///     by g:       convolution(u, weight) + convolution(x, v) + w
///     by x:       the input's backward pass of (g, v)
///     by weight:  the weight's backward pass of (g, u)
///
/// libtorch's own formula goes over transposed tensors, with kernels as large as the images. What needs no gradient, as
/// images of a first layer, has none computed. Those of 3x3 filter as winograd.h says where that is faster. Derivatives
/// of the third order are libtorch's.
at::Tensor convolution(const ConvolutionInputs& inputs);

}  // namespace gimli::operators
