#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

#include "gimli/nn/step_norm.h"

namespace gimli::nn {

struct VggOptions {
  explicit VggOptions(int64_t classes) : classes_(classes) {}
  TORCH_ARG(int64_t, classes);
  TORCH_ARG(int64_t, in_channels) = 1;
  /// Height and width of the images.
  TORCH_ARG(int64_t, image_size) = 28;
  /// Channels of each convolution: 64 for Omniglot; MAML++ takes 48 for mini-ImageNet.
  TORCH_ARG(int64_t, hidden) = 64;
  /// Inner steps whose normalizations have a weight and a bias of their own, as MAML++ proposes. With 0, all steps
  /// share them: "batch normalization in training mode everywhere" (section 5.2 of the paper).
  TORCH_ARG(int64_t, norm_steps) = 0;
};

/// The network of MAML++ (Antoniou et al. 2018), `vgg` in Appendix B of the paper: four stages of a 3x3 convolution
/// with padding 1, batch normalization, leaky ReLU of slope 0.01 and 2x2 max-pool, then a linear layer on what is left,
/// flattened. From [n, in_channels, image_size, image_size] to [n, classes].
///
/// It is Conv4 but for the leaky ReLU and the normalization, which knows the step (see StepNorm2d): statistics are the
/// batch's always, in evaluation too, and none are kept. Weights begin as Glorot & Bengio's uniform ("xavier"), biases
/// at 0.
class VggImpl final : public torch::nn::Cloneable<VggImpl> {
 public:
  explicit VggImpl(int64_t classes) : VggImpl(VggOptions(classes)) {}
  /// Throws if a count is too small, or if four max-pools would leave nothing of the image.
  explicit VggImpl(const VggOptions& options);

  void reset() override;
  /// For a network whose steps share their normalization; throws for another.
  at::Tensor forward(const at::Tensor& images);
  /// In the given inner step, which counts from 0: the loss of step k and, in MAML++, the outer loss on the weights
  /// that it leads to, are both computed in step k. Steps from norm_steps on share the last one's normalization.
  at::Tensor forward(const at::Tensor& images, int64_t step);

  VggOptions options;
  std::vector<torch::nn::Conv2d> convs;
  std::vector<StepNorm2d> norms;
  torch::nn::Linear classifier{nullptr};
};

TORCH_MODULE(Vgg);

}  // namespace gimli::nn
