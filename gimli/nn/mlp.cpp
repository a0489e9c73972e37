#include "gimli/nn/mlp.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>

namespace gimli::nn {

torch::nn::Sequential mlp(const std::vector<int64_t>& sizes) {
  TORCH_CHECK(sizes.size() >= 2, "mlp: expected at least 2 sizes, got ", sizes.size());
  TORCH_CHECK(std::all_of(sizes.begin(), sizes.end(), [](int64_t size) { return size >= 1; }),
              "mlp: expected sizes of at least 1, got ", c10::IntArrayRef(sizes));
  torch::nn::Sequential layers;
  for (size_t i = 1; i < sizes.size(); ++i) {
    if (i > 1) layers->push_back(torch::nn::ReLU());
    layers->push_back(torch::nn::Linear(sizes[i - 1], sizes[i]));
  }
  return layers;
}

}  // namespace gimli::nn
