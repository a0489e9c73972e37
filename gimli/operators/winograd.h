#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace gimli::operators {

/// Convolutions with a weight [outputs, inputs, 3, 3], stride and dilation 1, no groups and a padding of 0 to 2, with
/// 16 products where the definition has 36: the minimal filtering F(2x2, 3x3) of Winograd (1980) in the form of Lavin
/// and Gray (2016), with libtorch's values up to rounding. A value that is not finite makes results NaN in the tiles of
/// 4x4 pixels that it is in, where the definition has it in 3x3, and infinite ones infinite.
///
/// They are operators of libtorch's dispatcher below autograd, so that a Trace sees them: gimli::winograd and
/// gimli::winograd_weight. The tensors are `are_dense`. Results lie in memory as at::convolution's would.

/// Whether they are expected to be faster than libtorch's, for an x of this size, or the gradient by the weight is.
bool has_winograd(at::IntArrayRef x, at::IntArrayRef weight, at::IntArrayRef stride, at::IntArrayRef padding,
                  at::IntArrayRef dilation, int64_t groups, bool weight_gradient = false);

/// The convolution.
at::Tensor winograd(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    at::IntArrayRef padding);

/// The gradient by x, for g that of the result.
at::Tensor winograd_input_gradient(const at::Tensor& g, const at::Tensor& weight, at::IntArrayRef padding);

/// The gradient by the weight.
at::Tensor winograd_weight_gradient(const at::Tensor& g, const at::Tensor& x, at::IntArrayRef padding);

}  // namespace gimli::operators
