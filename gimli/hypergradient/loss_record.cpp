#include "gimli/hypergradient/loss_record.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace gimli {

void LossRecord::see(int64_t step, const at::Tensor& loss) {
  const auto value = loss.item<double>();
  if (step == static_cast<int64_t>(losses_.size())) {
    losses_.push_back(value);
    return;
  }
  TORCH_INTERNAL_ASSERT(step < static_cast<int64_t>(losses_.size()));
  const double precision = loss.scalar_type() == at::kDouble  ? std::numeric_limits<double>::epsilon()
                           : loss.scalar_type() == at::kFloat ? std::numeric_limits<float>::epsilon()
                                                              : 1. / 256;
  const double bound = std::sqrt(precision) * std::max(std::abs(value), std::abs(losses_[step]));
  TORCH_CHECK(std::abs(value - losses_[step]) <= bound, name_, ": step ", step, " of the inner loop gave the loss ",
              losses_[step], " and, run again, ", value,
              "; its closure must depend on its task and step alone, and draw random numbers from libtorch's default "
              "generator");
}

}  // namespace gimli
