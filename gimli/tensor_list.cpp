#include "gimli/tensor_list.h"

#include <ATen/ATen.h>

#include <cmath>

namespace gimli {

TensorList sum(TensorList a, const TensorList& b) {
  TORCH_CHECK(a.size() == b.size(), "sum: lists of ", a.size(), " and ", b.size(), " tensors");
  for (size_t i = 0; i < a.size(); ++i) {
    if (b[i].defined()) a[i] = a[i].defined() ? a[i] + b[i] : b[i];
  }
  return a;
}

TensorList add_scaled(TensorList a, double factor, const TensorList& b) {
  TORCH_CHECK(a.size() == b.size(), "add_scaled: lists of ", a.size(), " and ", b.size(), " tensors");
  for (size_t i = 0; i < a.size(); ++i) {
    if (b[i].defined()) a[i] = a[i].defined() ? a[i] + factor * b[i] : factor * b[i];
  }
  return a;
}

double inner_product(const TensorList& a, const TensorList& b) {
  TORCH_CHECK(a.size() == b.size(), "inner_product: lists of ", a.size(), " and ", b.size(), " tensors");
  auto total = at::zeros({}, at::kDouble);
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].defined() || !b[i].defined()) continue;
    total = total + at::dot(a[i].flatten().to(at::kDouble), b[i].flatten().to(at::kDouble));
  }
  return total.item<double>();
}

double relative_distance(const TensorList& a, const TensorList& b) {
  const auto apart = add_scaled(a, -1, b);
  const auto square = inner_product(apart, apart);
  return square == 0 ? 0 : std::sqrt(square / inner_product(b, b));
}

TensorList divide(TensorList list, double divisor) {
  for (auto& tensor : list) {
    if (tensor.defined()) tensor = tensor / divisor;
  }
  return list;
}

void assign_gradients(const TensorList& parameters, const TensorList& gradients) {
  TORCH_CHECK(parameters.size() == gradients.size(), "assign_gradients: got ", gradients.size(), " gradients for ",
              parameters.size(), " parameters");
  for (size_t i = 0; i < parameters.size(); ++i) {
    parameters[i].mutable_grad() = gradients[i].defined() ? gradients[i].detach() : gradients[i];
  }
}

}  // namespace gimli
