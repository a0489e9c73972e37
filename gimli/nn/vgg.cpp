#include "gimli/nn/vgg.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/nn/init.h>

#include <string>

namespace gimli::nn {
namespace {

constexpr int kStages = 4;

template <class Layer>
void initialize(Layer& layer) {
  torch::nn::init::xavier_uniform_(layer->weight);
  torch::nn::init::zeros_(layer->bias);
}

}  // namespace

VggImpl::VggImpl(const VggOptions& options_) : options(options_) {
  TORCH_CHECK(options.classes() >= 1, "Vgg: expected at least 1 class, got ", options.classes());
  TORCH_CHECK(options.in_channels() >= 1, "Vgg: expected at least 1 input channel, got ", options.in_channels());
  TORCH_CHECK(options.hidden() >= 1, "Vgg: expected at least 1 hidden channel, got ", options.hidden());
  TORCH_CHECK(options.norm_steps() >= 0, "Vgg: expected at least 0 steps of normalization, got ", options.norm_steps());
  TORCH_CHECK(options.image_size() >> kStages >= 1, "Vgg: four 2x2 max-pools need an image size of at least 16, got ",
              options.image_size());
  reset();
}

void VggImpl::reset() {
  convs.clear();
  norms.clear();
  int64_t channels = options.in_channels();
  for (int stage = 1; stage <= kStages; ++stage) {
    const auto number = std::to_string(stage);
    const auto conv = torch::nn::Conv2dOptions(channels, options.hidden(), 3).padding(1);
    convs.push_back(register_module("conv" + number, torch::nn::Conv2d(conv)));
    norms.push_back(register_module("norm" + number, StepNorm2d(options.hidden(), options.norm_steps())));
    initialize(convs.back());
    channels = options.hidden();
  }
  const int64_t map_size = options.image_size() >> kStages;
  classifier = register_module("classifier", torch::nn::Linear(channels * map_size * map_size, options.classes()));
  initialize(classifier);
}

at::Tensor VggImpl::forward(const at::Tensor& images) {
  TORCH_CHECK(options.norm_steps() == 0, "Vgg: a network with ", options.norm_steps(),
              " steps of normalization needs the step, as in forward(images, step)");
  return forward(images, 0);
}

at::Tensor VggImpl::forward(const at::Tensor& images, int64_t step) {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == options.in_channels() && images.size(2) == options.image_size() &&
                  images.size(3) == options.image_size(),
              "Vgg: expected images [n, ", options.in_channels(), ", ", options.image_size(), ", ",
              options.image_size(), "], got ", images.sizes());
  TORCH_CHECK(step >= 0, "Vgg: expected a step of at least 0, got ", step);
  auto features = images;
  for (int stage = 0; stage < kStages; ++stage) {
    features = norms[stage]->forward(convs[stage]->forward(features), step);
    features = at::max_pool2d(at::leaky_relu(features), 2);
  }
  return classifier->forward(features.flatten(1));
}

}  // namespace gimli::nn
