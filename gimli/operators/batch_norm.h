#pragma once

#include <ATen/core/Tensor.h>

namespace gimli::operators {

/// Batch normalization as in training, with the mean and the biased variance of each channel over the batch:
///
///     y = (x - mean) / sqrt(variance + eps) * weight + bias
///
/// x [n, channels, ...] is float or double and on the CPU, contiguous or channels last for passes without a copy;
/// weight and bias [channels] are of its type, or undefined for 1 and 0. Equal to at::batch_norm up to rounding, in
/// value and in derivatives of any order. Each of the value, the backward pass and the backward pass of that reads its
/// tensors twice and writes its results once, where libtorch composes the last of more than forty operators; all three
/// add in double. What derivatives of the third order and beyond go through is composed of operators.
///
/// Running statistics, unless undefined, move to the batch's by `momentum` in place, the variance as the unbiased one.
struct BatchNormInputs {
  at::Tensor x, weight, bias, running_mean, running_variance;
  double momentum, eps;
};

/// Whether `batch_norm` is for these.
bool has_batch_norm(const BatchNormInputs& inputs);

at::Tensor batch_norm(const BatchNormInputs& inputs);

/// Whether `relu` is for this: a result of `batch_norm`, as that returned it, which requires a gradient.
bool has_relu(const at::Tensor& y);

/// at::relu, the same in value and in derivatives of any order. The derivatives go from it to the inputs of
/// `batch_norm` at once, in passes that leave out g where y <= 0, and through y only if a hook or the caller of a
/// backward pass asks for its gradient.
at::Tensor relu(const at::Tensor& y);

}  // namespace gimli::operators
