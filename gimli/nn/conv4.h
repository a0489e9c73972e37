#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

namespace gimli::nn {

/// How a block halves the image.
enum class Conv4Pooling {
  /// A convolution of stride 1, and a 2x2 max-pool at the end of the block (Vinyals et al. 2016): n becomes
  /// floor(n / 2).
  kMaxPool,
  /// A convolution of stride 2, no pooling (Finn et al. 2017, for Omniglot): n becomes ceil(n / 2).
  kStride,
};

struct Conv4Options {
  explicit Conv4Options(int64_t classes) : classes_(classes) {}
  TORCH_ARG(int64_t, classes);
  TORCH_ARG(int64_t, in_channels) = 1;
  TORCH_ARG(int64_t, hidden) = 64;
  /// Height and width of the images.
  TORCH_ARG(int64_t, image_size) = 28;
  TORCH_ARG(Conv4Pooling, pooling) = Conv4Pooling::kMaxPool;
};

/// The few-shot literature's backbone (Vinyals et al. 2016, Finn et al. 2017): four blocks of a 3x3 convolution with
/// padding 1, batch normalization and ReLU, then a linear layer on what is left, flattened. From [n, in_channels,
/// image_size, image_size] to [n, classes].
///
/// Batch normalization always uses the statistics of the batch at hand, in evaluation too, and keeps none ("batch
/// normalization in training mode everywhere", section 5.2 of the paper): the module has no buffers, and `train()` and
/// `eval()` make no difference.
///
/// Weights begin as Glorot & Bengio's uniform ("xavier"), as Finn et al.'s convolutions do, biases at 0. Unlike Finn et
/// al.'s network for Omniglot, the last feature map is flattened, not averaged; with max-pooling and 28x28 images it is
/// 1x1 and both are one.
class Conv4Impl final : public torch::nn::Cloneable<Conv4Impl> {
 public:
  explicit Conv4Impl(int64_t classes) : Conv4Impl(Conv4Options(classes)) {}
  /// Throws if a count is below 1, or if four max-pools would leave nothing of the image.
  explicit Conv4Impl(const Conv4Options& options);

  void reset() override;
  at::Tensor forward(const at::Tensor& images);

  Conv4Options options;
  /// conv1, norm1, relu1, pool1, ..., conv4, ...
  torch::nn::Sequential features{nullptr};
  torch::nn::Linear classifier{nullptr};
};

TORCH_MODULE(Conv4);

}  // namespace gimli::nn
