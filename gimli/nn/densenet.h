#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

namespace gimli::nn {

struct DenseNetOptions {
  explicit DenseNetOptions(int64_t classes) : classes_(classes) {}
  TORCH_ARG(int64_t, classes);
  TORCH_ARG(int64_t, in_channels) = 3;
  /// Layers in each block.
  TORCH_ARG(std::vector<int64_t>, layers) = {16, 16, 16};
  /// Channels that a layer adds: k in Huang et al. 2017.
  TORCH_ARG(int64_t, growth) = 12;
  /// A layer first reduces its input to bottleneck * growth channels.
  TORCH_ARG(int64_t, bottleneck) = 4;
  /// A transition keeps floor(compression * channels) of them.
  TORCH_ARG(double, compression) = 0.5;
  /// Channels of a 3x3 convolution before the first block; with 0 there is none.
  TORCH_ARG(int64_t, initial_channels) = 24;
  /// Whether batch normalization keeps running statistics and uses them in evaluation, as torch::nn::BatchNorm2d does
  /// by default. Without, it uses the statistics of the batch at hand, in evaluation too.
  TORCH_ARG(bool, track_running_stats) = true;
};

/// DenseNet-BC of depth 100 with growth 12, for CIFAR-10 (Huang et al. 2017, section 5.1 of the paper): the defaults.
/// Its 769,162 parameters are 299 tensors.
DenseNetOptions densenet_bc_100_12(int64_t classes = 10);

/// `densenet-8` of Appendix B of the paper, for few-shot classification: four blocks of two layers, no initial
/// convolution, statistics of the batch always. The paper leaves open the other numbers: growth 32, bottleneck 4 and
/// compression 0.5 are those of DenseNet-121 in torchvision.
DenseNetOptions densenet_8(int64_t classes, int64_t in_channels = 1);

/// The densely connected network with bottlenecks and compression (DenseNet-BC, Huang et al. 2017). A layer is
///
///     x <- concatenate(x, conv3x3(relu(norm(conv1x1(relu(norm(x)))))))
///
/// and between two blocks stands a transition: norm, ReLU, 1x1 convolution, 2x2 average pool. After the last block come
/// norm, ReLU, the mean over the map (on 32x32 images and three blocks, the authors' 8x8 average pool) and a linear
/// layer. From [n, in_channels, h, w] to [n, classes]; images of any height and width that the pools leave something
/// of.
///
/// Convolutions have no bias; they begin as He et al.'s normal of variance 2 / (kernel area * output channels), as the
/// authors' do. Normalizations begin at weight 1 and bias 0, the linear layer as torch::nn::Linear does, with bias 0.
class DenseNetImpl final : public torch::nn::Cloneable<DenseNetImpl> {
 public:
  /// Throws if a count is below 1, or if compression is not in (0, 1] or leaves no channel.
  explicit DenseNetImpl(const DenseNetOptions& options);

  void reset() override;
  at::Tensor forward(const at::Tensor& images);

  DenseNetOptions options;
  torch::nn::Conv2d conv{nullptr};                         ///< the initial one, or empty
  std::vector<std::vector<torch::nn::Sequential>> blocks;  ///< their layers: norm1, relu1, conv1, norm2, relu2, conv2
  std::vector<torch::nn::Sequential> transitions;          ///< norm, relu, conv, pool; one less than blocks
  torch::nn::BatchNorm2d norm{nullptr};
  torch::nn::Linear classifier{nullptr};
};

TORCH_MODULE(DenseNet);

}  // namespace gimli::nn
