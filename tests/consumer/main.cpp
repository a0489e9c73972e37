// The weight of a linear layer is replaced, and the gradient arrives at the replacement.
#include <torch/nn/modules/linear.h>

#include <cstdio>

#include "gimli/substitution.h"

int main() {
  torch::nn::Linear model(torch::nn::LinearOptions(3, 2).bias(false));
  const auto x = at::ones({4, 3});
  const auto weight = at::full({2, 3}, 0.5).set_requires_grad(true);

  const auto y = gimli::substituted(model, {weight}, {}, [&] { return model(x); });
  y.sum().backward();

  const bool value = y.eq(1.5).all().item<bool>();
  const bool gradient = weight.grad().defined() && weight.grad().eq(4).all().item<bool>();
  const bool untouched = !model->weight.grad().defined();
  std::printf("value %d, gradient %d, model untouched %d\n", value, gradient, untouched);
  return value && gradient && untouched ? 0 : 1;
}
