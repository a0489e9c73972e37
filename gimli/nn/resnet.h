#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

namespace gimli::nn {

struct ResNetOptions {
  /// `layers` in each block: 1, 2 and 3 are `resnet-4`, `resnet-8` and `resnet-12` of the paper.
  ResNetOptions(int64_t classes, int64_t layers) : classes_(classes), layers_(layers) {}
  TORCH_ARG(int64_t, classes);
  TORCH_ARG(int64_t, layers);
  TORCH_ARG(int64_t, in_channels) = 1;
  /// Channels of each block.
  TORCH_ARG(std::vector<int64_t>, widths) = {64, 128, 256, 512};
};

/// The residual network of few-shot learning (He et al. 2016, as in TADAM, Oreshkin et al. 2018; `resnet-N` in
/// Appendix B of the paper). A block is
///
///     x <- max_pool_2x2(relu(layers(x) + norm(conv1x1(x))))
///
/// where `layers` are 3x3 convolutions with padding 1, each with batch normalization, and a ReLU between two of them.
/// The first block takes the images, without a projection before it. After the last, the mean over the map goes through
/// a linear layer. From [n, in_channels, h, w] to [n, classes]; images of any height and width that the pools leave
/// something of, which is 16 with four blocks.
///
/// Batch normalization always uses the statistics of the batch at hand, in evaluation too, and keeps none. Convolutions
/// have no bias; they begin as He et al.'s normal of variance 2 / (kernel area * output channels). The linear layer
/// begins as torch::nn::Linear does, with bias 0. The paper leaves open the widths, which are those of TADAM, and the
/// beginning.
class ResNetImpl final : public torch::nn::Cloneable<ResNetImpl> {
 public:
  ResNetImpl(int64_t classes, int64_t layers) : ResNetImpl(ResNetOptions(classes, layers)) {}
  /// Throws if a count is below 1, or if there are no widths.
  explicit ResNetImpl(const ResNetOptions& options);

  void reset() override;
  at::Tensor forward(const at::Tensor& images);

  ResNetOptions options;
  /// One each a block. Their modules are called conv1, norm1, relu1, conv2, ... and conv, norm.
  std::vector<torch::nn::Sequential> blocks, shortcuts;
  torch::nn::Linear classifier{nullptr};
};

TORCH_MODULE(ResNet);

}  // namespace gimli::nn
