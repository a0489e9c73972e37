#include "gimli/nn/step_norm.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/nn/functional/batchnorm.h>

#include <algorithm>
#include <vector>

namespace gimli::nn {

StepNorm2dImpl::StepNorm2dImpl(const StepNorm2dOptions& options_) : options(options_) {
  TORCH_CHECK(options.channels() >= 1, "StepNorm2d: expected at least 1 channel, got ", options.channels());
  TORCH_CHECK(options.steps() >= 0, "StepNorm2d: expected at least 0 steps, got ", options.steps());
  reset();
}

void StepNorm2dImpl::reset() {
  std::vector<int64_t> sizes{options.channels()};
  if (options.steps() > 0) sizes.insert(sizes.begin(), options.steps());
  weight = register_parameter("weight", at::ones(sizes));
  bias = register_parameter("bias", at::zeros(sizes));
}

at::Tensor StepNorm2dImpl::forward(const at::Tensor& input, int64_t step) {
  TORCH_CHECK(input.dim() == 4 && input.size(1) == options.channels(), "StepNorm2d: expected an input [n, ",
              options.channels(), ", h, w], got ", input.sizes());
  TORCH_CHECK(step >= 0, "StepNorm2d: expected a step of at least 0, got ", step);
  const auto of_step = [&](const at::Tensor& rows) {
    return options.steps() == 0 ? rows : rows.select(0, std::min(step, options.steps() - 1));
  };
  return torch::nn::functional::batch_norm(
      input, {}, {},
      torch::nn::functional::BatchNormFuncOptions().weight(of_step(weight)).bias(of_step(bias)).training(true));
}

}  // namespace gimli::nn
