#include "gimli/optim/gradient_transform.h"

#include <ATen/ATen.h>

#include "gimli/optim/hyperparameter.h"

namespace gimli::optim {
namespace {

template <class Function>
TensorList map_defined(TensorList list, Function function) {
  for (auto& tensor : list) {
    if (tensor.defined()) tensor = function(tensor);
  }
  return list;
}

}  // namespace

GradientTransform clip_by_norm(double max_norm) {
  TORCH_CHECK(max_norm > 0, "clip_by_norm: expected a maximal norm above 0, got ", max_norm);
  return [max_norm](TensorList gradients, const TensorList&, int64_t) {
    at::Tensor sum_of_squares;
    for (const auto& g : gradients) {
      if (!g.defined()) continue;
      const auto squares = (g * g).sum();
      sum_of_squares = sum_of_squares.defined() ? sum_of_squares + squares : squares;
    }
    if (!sum_of_squares.defined()) return gradients;
    const auto scale = (max_norm / (root(sum_of_squares) + 1e-6)).clamp_max(1);
    return map_defined(std::move(gradients), [&](const at::Tensor& g) { return g * scale; });
  };
}

GradientTransform clip_by_value(double max_value) {
  TORCH_CHECK(max_value > 0, "clip_by_value: expected a maximal value above 0, got ", max_value);
  return [max_value](TensorList gradients, const TensorList&, int64_t) {
    return map_defined(std::move(gradients), [&](const at::Tensor& g) { return g.clamp(-max_value, max_value); });
  };
}

GradientTransform stop_gradient() {
  return [](TensorList gradients, const TensorList&, int64_t) {
    return map_defined(std::move(gradients), [](const at::Tensor& g) { return g.detach(); });
  };
}

}  // namespace gimli::optim
