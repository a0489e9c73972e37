#include "app/network.h"

#include <c10/util/Exception.h>
#include <fmt/ranges.h>

#include "app/config.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/densenet.h"
#include "gimli/nn/resnet.h"
#include "gimli/nn/vgg.h"

namespace gimli::app {
namespace {

using Row = std::pair<std::string, NetworkFactory>;

/// Of modules whose forward takes the images alone.
template <class Make>
Row row(const char* name, Make make) {
  return {name, [name, make](const NetworkOptions& options) -> Network {
            TORCH_CHECK(options.norm_steps == 0, name, " has no normalization for each step; vgg has");
            auto module = make(options);
            return {module.ptr(), [module](const at::Tensor& x, int64_t) mutable { return module->forward(x); }};
          }};
}

auto resnet(int64_t layers) {
  return [layers](const NetworkOptions& options) {
    return nn::ResNet(nn::ResNetOptions(options.classes, layers).in_channels(options.channels));
  };
}

nn::Conv4 conv4(const NetworkOptions& options, nn::Conv4Pooling pooling) {
  return nn::Conv4(nn::Conv4Options(options.classes)
                       .in_channels(options.channels)
                       .image_size(options.image_size)
                       .hidden(options.hidden)
                       .pooling(pooling));
}

Network vgg(const NetworkOptions& options) {
  auto module = nn::Vgg(nn::VggOptions(options.classes)
                            .in_channels(options.channels)
                            .image_size(options.image_size)
                            .hidden(options.hidden)
                            .norm_steps(options.norm_steps));
  return {module.ptr(), [module](const at::Tensor& x, int64_t step) mutable { return module->forward(x, step); }};
}

std::vector<Row>& rows() {
  static std::vector<Row> rows{
      {"vgg", vgg},
      row("resnet-4", resnet(1)),
      row("resnet-8", resnet(2)),
      row("resnet-12", resnet(3)),
      row("densenet-8",
          [](const auto& options) { return nn::DenseNet(nn::densenet_8(options.classes, options.channels)); }),
      row("conv4", [](const auto& options) { return conv4(options, nn::Conv4Pooling::kMaxPool); }),
      row("conv4-stride", [](const auto& options) { return conv4(options, nn::Conv4Pooling::kStride); }),
  };
  return rows;
}

}  // namespace

void register_network(const std::string& name, NetworkFactory factory) {
  for (auto& [known, made] : rows()) {
    if (known == name) {
      made = std::move(factory);
      return;
    }
  }
  rows().emplace_back(name, std::move(factory));
}

std::vector<std::string> network_names() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : rows()) names.push_back(name);
  return names;
}

Network make_network(const std::string& name, const NetworkOptions& options) {
  for (const auto& [known, factory] : rows()) {
    if (known == name) return factory(options);
  }
  TORCH_CHECK(false, "there is no network '", name, "'", suggestion(name, network_names()));
}

}  // namespace gimli::app
