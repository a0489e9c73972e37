#include "gimli/optim/rules/coordinates.h"

#include <ATen/ATen.h>

namespace gimli::optim {

Coordinates::Coordinates(const std::vector<Iterate>& iterates, const TensorList& gradients) {
  for (size_t i = 0; i < iterates.size(); ++i) {
    if (!gradients[i].defined()) continue;
    used_.push_back(i);
    sizes_.push_back(iterates[i].parameter.numel());
  }
}

TensorList Coordinates::split(const at::Tensor& rows) const { return at::split_with_sizes(rows, sizes_); }

void check_network(const std::string& rule, const torch::nn::Module& network, const at::Tensor& parameter) {
  const auto weight = network.parameters()[0];
  TORCH_CHECK(parameter.scalar_type() == weight.scalar_type() && parameter.device() == weight.device(), rule,
              ": the network is ", weight.scalar_type(), " on ", weight.device(), ", but a parameter of shape ",
              parameter.sizes(), " is ", parameter.scalar_type(), " on ", parameter.device(),
              "; convert the network first, with network()->to(...)");
}

}  // namespace gimli::optim
