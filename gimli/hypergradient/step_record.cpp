#include "gimli/hypergradient/step_record.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "gimli/trace.h"

namespace gimli {

void StepRecord::see(int64_t step, const at::Tensor& number) {
  const Trace::Pause looking;
  const auto list = number.detach().to(at::kCPU, at::kDouble).flatten().contiguous();
  std::vector<double> values(list.const_data_ptr<double>(), list.const_data_ptr<double>() + list.numel());
  if (step == static_cast<int64_t>(numbers_.size())) {
    numbers_.push_back(std::move(values));
    return;
  }
  TORCH_INTERNAL_ASSERT(step < static_cast<int64_t>(numbers_.size()));
  const double precision = number.scalar_type() == at::kDouble  ? std::numeric_limits<double>::epsilon()
                           : number.scalar_type() == at::kFloat ? std::numeric_limits<float>::epsilon()
                                                                : 1. / 256;
  const double tolerance = exact_ && number.is_cpu() ? 4 * precision : std::sqrt(precision);
  for (size_t i = 0; i < values.size(); ++i) {
    const double value = values[i], before = numbers_[step][i];
    TORCH_CHECK(
        std::abs(value - before) <= tolerance * std::max(std::abs(value), std::abs(before)), strategy_, ": step ", step,
        " of the inner loop gave ", what_, " ", before, " and, run again, ", value,
        "; closures and gradient transforms must depend on their task and step alone, and draw random numbers from "
        "libtorch's default generator");
  }
}

}  // namespace gimli
