#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

namespace gimli::nn {

struct StepNorm2dOptions {
  StepNorm2dOptions(int64_t channels, int64_t steps) : channels_(channels), steps_(steps) {}
  TORCH_ARG(int64_t, channels);
  /// Inner steps with a weight and a bias of their own; with 0, all steps share one weight and one bias.
  TORCH_ARG(int64_t, steps);
};

/// Batch normalization for the steps of an inner loop (per-step batch normalization of MAML++, Antoniou et al. 2018):
/// (x - mean) / sqrt(var + 1e-5) * weight + bias, with the mean and the biased variance of each channel over the batch
/// at hand, and the weight and bias of the step at hand. Maps [n, channels, h, w] to itself.
///
/// Parameters are `weight`, which begins at 1, and `bias`, at 0: [steps, channels], or [channels] without steps. There
/// are no buffers. MAML++ records running statistics for each step too, but nothing reads them: its official code
/// normalizes with the batch in training and in evaluation.
///
/// MAML++ learns these parameters with the outer loss only: leave them out of the inner optimizer to do the same.
class StepNorm2dImpl final : public torch::nn::Cloneable<StepNorm2dImpl> {
 public:
  StepNorm2dImpl(int64_t channels, int64_t steps) : StepNorm2dImpl(StepNorm2dOptions(channels, steps)) {}
  /// Throws if there are fewer than 1 channel or 0 steps.
  explicit StepNorm2dImpl(const StepNorm2dOptions& options);

  void reset() override;
  /// `step` counts from 0. Later steps than there are rows use the last one. Throws if it is negative, if the input has
  /// other channels, or if a channel has one value only.
  at::Tensor forward(const at::Tensor& input, int64_t step);

  StepNorm2dOptions options;
  at::Tensor weight, bias;
};

TORCH_MODULE(StepNorm2d);

}  // namespace gimli::nn
