#include "gimli/nn/resnet.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>

#include <algorithm>
#include <string>

namespace gimli::nn {
namespace {

void push_convolution(torch::nn::Sequential& layers, const std::string& number, int64_t from, int64_t to,
                      int64_t kernel) {
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(from, to, kernel).padding(kernel / 2).bias(false));
  torch::nn::init::kaiming_normal_(conv->weight, 0, torch::kFanOut, torch::kReLU);
  layers->push_back("conv" + number, conv);
  layers->push_back("norm" + number,
                    torch::nn::BatchNorm2d(torch::nn::BatchNorm2dOptions(to).track_running_stats(false)));
}

}  // namespace

ResNetImpl::ResNetImpl(const ResNetOptions& options_) : options(options_) {
  const auto& widths = options.widths();
  TORCH_CHECK(options.classes() >= 1, "ResNet: expected at least 1 class, got ", options.classes());
  TORCH_CHECK(options.layers() >= 1, "ResNet: expected at least 1 layer in each block, got ", options.layers());
  TORCH_CHECK(options.in_channels() >= 1, "ResNet: expected at least 1 input channel, got ", options.in_channels());
  TORCH_CHECK(!widths.empty() && std::all_of(widths.begin(), widths.end(), [](int64_t width) { return width >= 1; }),
              "ResNet: expected at least 1 width, each at least 1, got ", c10::IntArrayRef(widths));
  reset();
}

void ResNetImpl::reset() {
  blocks.clear();
  shortcuts.clear();
  int64_t channels = options.in_channels();
  for (const auto width : options.widths()) {
    const auto number = std::to_string(blocks.size() + 1);
    blocks.push_back(register_module("block" + number, torch::nn::Sequential()));
    shortcuts.push_back(register_module("shortcut" + number, torch::nn::Sequential()));
    for (int64_t layer = 1; layer <= options.layers(); ++layer) {
      push_convolution(blocks.back(), std::to_string(layer), layer == 1 ? channels : width, width, 3);
      if (layer < options.layers()) blocks.back()->push_back("relu" + std::to_string(layer), torch::nn::ReLU());
    }
    push_convolution(shortcuts.back(), "", channels, width, 1);
    channels = width;
  }
  classifier = register_module("classifier", torch::nn::Linear(channels, options.classes()));
  torch::nn::init::zeros_(classifier->bias);
}

at::Tensor ResNetImpl::forward(const at::Tensor& images) {
  const int64_t least = int64_t{1} << blocks.size();
  TORCH_CHECK(images.dim() == 4 && images.size(1) == options.in_channels() && images.size(2) >= least &&
                  images.size(3) >= least,
              "ResNet: expected images [n, ", options.in_channels(), ", h, w] with h and w of at least ", least,
              ", got ", images.sizes());
  auto features = images;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto sum = blocks[i]->forward(features) + shortcuts[i]->forward(features);
    features = at::max_pool2d(sum.relu(), 2);
  }
  return classifier->forward(features.mean({2, 3}));
}

}  // namespace gimli::nn
