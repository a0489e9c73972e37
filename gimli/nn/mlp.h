#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <cstdint>
#include <vector>

namespace gimli::nn {

/// Linear layers from sizes[0] to sizes[1] and so on, with a ReLU between two of them: mlp({1, 40, 40, 1}) is the
/// network of Finn et al. 2017 for sine waves. Maps [n, sizes.front()] to [n, sizes.back()]. Initialised as
/// torch::nn::Linear is. Throws if there are fewer than two sizes or one is below 1.
torch::nn::Sequential mlp(const std::vector<int64_t>& sizes);

}  // namespace gimli::nn
