#include "gimli/nn/conv4.h"

#include <c10/util/Exception.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/pooling.h>

#include <string>

namespace gimli::nn {
namespace {

constexpr int kBlocks = 4;

int64_t feature_map_size(const Conv4Options& options) {
  int64_t size = options.image_size();
  for (int block = 0; block < kBlocks; ++block) {
    size = options.pooling() == Conv4Pooling::kMaxPool ? size / 2 : (size + 1) / 2;
  }
  return size;
}

template <class Layer>
void initialize(Layer& layer) {
  torch::nn::init::xavier_uniform_(layer->weight);
  torch::nn::init::zeros_(layer->bias);
}

}  // namespace

Conv4Impl::Conv4Impl(const Conv4Options& options_) : options(options_) {
  TORCH_CHECK(options.classes() >= 1, "Conv4: expected at least 1 class, got ", options.classes());
  TORCH_CHECK(options.in_channels() >= 1, "Conv4: expected at least 1 input channel, got ", options.in_channels());
  TORCH_CHECK(options.hidden() >= 1, "Conv4: expected at least 1 hidden channel, got ", options.hidden());
  TORCH_CHECK(options.image_size() >= 1, "Conv4: expected an image size of at least 1, got ", options.image_size());
  TORCH_CHECK(feature_map_size(options) >= 1, "Conv4: four 2x2 max-pools need an image size of at least 16, got ",
              options.image_size());
  reset();
}

void Conv4Impl::reset() {
  const bool strided = options.pooling() == Conv4Pooling::kStride;
  const int64_t map_size = feature_map_size(options);
  features = register_module("features", torch::nn::Sequential());
  int64_t channels = options.in_channels();
  for (int block = 1; block <= kBlocks; ++block) {
    const auto number = std::to_string(block);
    torch::nn::Conv2d conv(torch::nn::Conv2dOptions(channels, options.hidden(), 3).padding(1).stride(strided ? 2 : 1));
    initialize(conv);
    features->push_back("conv" + number, conv);
    features->push_back(
        "norm" + number,
        torch::nn::BatchNorm2d(torch::nn::BatchNorm2dOptions(options.hidden()).track_running_stats(false)));
    features->push_back("relu" + number, torch::nn::ReLU());
    if (!strided) features->push_back("pool" + number, torch::nn::MaxPool2d(2));
    channels = options.hidden();
  }
  classifier = register_module("classifier", torch::nn::Linear(channels * map_size * map_size, options.classes()));
  initialize(classifier);
}

at::Tensor Conv4Impl::forward(const at::Tensor& images) {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == options.in_channels() && images.size(2) == options.image_size() &&
                  images.size(3) == options.image_size(),
              "Conv4: expected images [n, ", options.in_channels(), ", ", options.image_size(), ", ",
              options.image_size(), "], got ", images.sizes());
  return classifier->forward(features->forward(images).flatten(1));
}

}  // namespace gimli::nn
