#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace gimli::operators {

/// Normalization of channels and its derivatives, as operators of libtorch's dispatcher below autograd, so that a Trace
/// sees them: gimli::norm, gimli::norm_backward and gimli::norm_double_backward. Each reads its tensors twice and
/// writes its results once, one channel after the other; all add in double. The tensors are `are_dense`.

struct Normalized {
  at::Tensor y;               ///< (x - mean) / sqrt(variance + eps) * weight + bias
  at::Tensor mean, variance;  ///< [channels] of x, the biased one, of double
};

Normalized norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                double eps);

/// What the derivatives of a normalization are of.
struct NormPoint {
  at::Tensor x;
  std::optional<at::Tensor> weight, bias;
  at::Tensor mean, variance;
  double eps;
  bool rectified;  ///< of max(y, 0), in the place of y
};

struct NormGradients {
  at::Tensor x, weight, bias;
};

/// The gradients by x, weight and bias, for g that of y.
NormGradients norm_backward(const at::Tensor& g, const NormPoint& at);

struct NormSecondGradients {
  at::Tensor g, x, weight;
};

/// The gradients by g, x and weight, for u, v and w those of what `norm_backward` returns.
NormSecondGradients norm_double_backward(const at::Tensor& u, const std::optional<at::Tensor>& v,
                                         const std::optional<at::Tensor>& w, const at::Tensor& g, const NormPoint& at);

}  // namespace gimli::operators
