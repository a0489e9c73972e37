#include "gimli/nn/densenet.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/pooling.h>

#include <algorithm>
#include <string>

namespace gimli::nn {
namespace {

torch::nn::Conv2d convolution(int64_t from, int64_t to, int64_t kernel) {
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(from, to, kernel).padding(kernel / 2).bias(false));
  torch::nn::init::kaiming_normal_(conv->weight, 0, torch::kFanOut, torch::kReLU);
  return conv;
}

}  // namespace

DenseNetOptions densenet_bc_100_12(int64_t classes) { return DenseNetOptions(classes); }

DenseNetOptions densenet_8(int64_t classes, int64_t in_channels) {
  return DenseNetOptions(classes)
      .in_channels(in_channels)
      .layers({2, 2, 2, 2})
      .growth(32)
      .initial_channels(0)
      .track_running_stats(false);
}

DenseNetImpl::DenseNetImpl(const DenseNetOptions& options_) : options(options_) {
  const auto& layers = options.layers();
  TORCH_CHECK(options.classes() >= 1, "DenseNet: expected at least 1 class, got ", options.classes());
  TORCH_CHECK(options.in_channels() >= 1, "DenseNet: expected at least 1 input channel, got ", options.in_channels());
  TORCH_CHECK(!layers.empty() && std::all_of(layers.begin(), layers.end(), [](int64_t count) { return count >= 1; }),
              "DenseNet: expected at least 1 block, each of at least 1 layer, got ", c10::IntArrayRef(layers));
  TORCH_CHECK(options.growth() >= 1, "DenseNet: expected a growth of at least 1, got ", options.growth());
  TORCH_CHECK(options.bottleneck() >= 1, "DenseNet: expected a bottleneck of at least 1, got ", options.bottleneck());
  TORCH_CHECK(options.compression() > 0 && options.compression() <= 1,
              "DenseNet: expected a compression in (0, 1], got ", options.compression());
  TORCH_CHECK(options.initial_channels() >= 0, "DenseNet: expected at least 0 initial channels, got ",
              options.initial_channels());
  reset();
}

void DenseNetImpl::reset() {
  blocks.clear();
  transitions.clear();
  const auto normalization = [&](int64_t channels) {
    return torch::nn::BatchNorm2d(
        torch::nn::BatchNorm2dOptions(channels).track_running_stats(options.track_running_stats()));
  };
  int64_t channels = options.in_channels();
  if (options.initial_channels() > 0) {
    conv = register_module("conv", convolution(channels, options.initial_channels(), 3));
    channels = options.initial_channels();
  }
  for (const auto count : options.layers()) {
    if (!blocks.empty()) {
      const auto kept = static_cast<int64_t>(options.compression() * static_cast<double>(channels));
      TORCH_CHECK(kept >= 1, "DenseNet: a compression of ", options.compression(), " leaves none of ", channels,
                  " channels");
      torch::nn::Sequential transition;
      transition->push_back("norm", normalization(channels));
      transition->push_back("relu", torch::nn::ReLU());
      transition->push_back("conv", convolution(channels, kept, 1));
      transition->push_back("pool", torch::nn::AvgPool2d(2));
      transitions.push_back(register_module("transition" + std::to_string(blocks.size()), transition));
      channels = kept;
    }
    auto& block = blocks.emplace_back();
    const auto name = "block" + std::to_string(blocks.size()) + "_layer";
    for (int64_t i = 1; i <= count; ++i) {
      torch::nn::Sequential layer;
      layer->push_back("norm1", normalization(channels));
      layer->push_back("relu1", torch::nn::ReLU());
      layer->push_back("conv1", convolution(channels, options.bottleneck() * options.growth(), 1));
      layer->push_back("norm2", normalization(options.bottleneck() * options.growth()));
      layer->push_back("relu2", torch::nn::ReLU());
      layer->push_back("conv2", convolution(options.bottleneck() * options.growth(), options.growth(), 3));
      block.push_back(register_module(name + std::to_string(i), layer));
      channels += options.growth();
    }
  }
  norm = register_module("norm", normalization(channels));
  classifier = register_module("classifier", torch::nn::Linear(channels, options.classes()));
  torch::nn::init::zeros_(classifier->bias);
}

at::Tensor DenseNetImpl::forward(const at::Tensor& images) {
  const int64_t least = int64_t{1} << transitions.size();
  TORCH_CHECK(images.dim() == 4 && images.size(1) == options.in_channels() && images.size(2) >= least &&
                  images.size(3) >= least,
              "DenseNet: expected images [n, ", options.in_channels(), ", h, w] with h and w of at least ", least,
              ", got ", images.sizes());
  auto features = conv ? conv->forward(images) : images;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i > 0) features = transitions[i - 1]->forward(features);
    for (auto& layer : blocks[i]) features = at::cat({features, layer->forward(features)}, 1);
  }
  return classifier->forward(norm->forward(features).relu().mean({2, 3}));
}

}  // namespace gimli::nn
