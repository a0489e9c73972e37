#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace gimli::app {

/// What a network is to classify.
struct NetworkOptions {
  int64_t channels = 1;  ///< of the images
  int64_t image_size = 28;
  int64_t classes = 5;
  int64_t hidden = 64;     ///< width, of the networks that have one: conv4, vgg
  int64_t norm_steps = 0;  ///< inner steps with a normalization of their own; of vgg
};

/// A new network and its forward pass, from images [n, channels, size, size] to logits [n, classes]. `step` is the step
/// of the inner loop, counted from 0, for networks that know it.
struct Network {
  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor& images, int64_t step)> forward;
};

using NetworkFactory = std::function<Network(const NetworkOptions&)>;

/// Makes a network known to every experiment that asks for one by name, beside those of the paper's Appendix B. A name
/// that is known is replaced. To be done before the command runs.
void register_network(const std::string& name, NetworkFactory factory);

/// In the order in which they were registered.
std::vector<std::string> network_names();

/// Throws if there is none of that name, or if it does not know what the options ask for.
Network make_network(const std::string& name, const NetworkOptions& options);

}  // namespace gimli::app
