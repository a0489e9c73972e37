#include "gimli/optim/schedule.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace gimli::optim {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

void check(const char* function, const char* parameter, const Value& value, double lowest = -infinity,
           double highest = infinity) {
  if (!value.is_number()) {
    const auto& tensor = value.tensor();
    TORCH_CHECK(tensor.defined() && tensor.is_floating_point(), function, ": expected the ", parameter,
                " to be a number or a floating-point tensor, got ",
                tensor.defined() ? c10::str("one of ", tensor.scalar_type()) : "an undefined tensor");
    return;
  }
  const double number = value.number();
  const auto range = highest < infinity   ? c10::str("to be from ", lowest, " to ", highest)
                     : lowest > -infinity ? c10::str("to be finite and at least ", lowest)
                                          : "to be finite";
  TORCH_CHECK(std::isfinite(number) && number >= lowest && number <= highest, function, ": expected the ", parameter,
              " ", range, ", got ", number);
}

}  // namespace

Schedule constant(Value start) {
  check("constant", "start", start);
  return [=](int64_t) { return start; };
}

Schedule step_decay(Value start, int64_t period, Value factor) {
  check("step_decay", "start", start);
  check("step_decay", "factor", factor, 0);
  TORCH_CHECK(period >= 1, "step_decay: expected a period of at least 1 step, got ", period);
  return [=](int64_t t) { return start * pow(factor, t / period); };
}

Schedule multi_step(Value start, std::vector<int64_t> milestones, Value factor) {
  check("multi_step", "start", start);
  check("multi_step", "factor", factor, 0);
  TORCH_CHECK(std::is_sorted(milestones.begin(), milestones.end()) && (milestones.empty() || milestones[0] >= 0),
              "multi_step: expected milestones in ascending order from 0 on, got ", c10::IntArrayRef(milestones));
  return [=](int64_t t) {
    return start * pow(factor, std::upper_bound(milestones.begin(), milestones.end(), t) - milestones.begin());
  };
}

Schedule exponential_decay(Value start, Value factor) {
  check("exponential_decay", "start", start);
  check("exponential_decay", "factor", factor, 0);
  return [=](int64_t t) { return start * pow(factor, t); };
}

Schedule cosine(Value start, Value end, int64_t steps) {
  check("cosine", "start", start);
  check("cosine", "end", end);
  TORCH_CHECK(steps >= 1, "cosine: expected at least 1 step, got ", steps);
  return [=](int64_t t) {
    const double progress = static_cast<double>(std::min(t, steps)) / static_cast<double>(steps);
    return end + (start - end) * ((1 + std::cos(std::numbers::pi * progress)) / 2);
  };
}

Schedule linear_warmup(Schedule after, int64_t steps, Value start_factor) {
  TORCH_CHECK(after, "linear_warmup: expected a schedule to follow the warm-up, got an empty function");
  TORCH_CHECK(steps >= 0, "linear_warmup: expected 0 steps or more, got ", steps);
  check("linear_warmup", "start factor", start_factor, 0, 1);
  return [=](int64_t t) {
    if (t >= steps) return after(t - steps);
    const double progress = static_cast<double>(t) / static_cast<double>(steps);
    return after(0) * (start_factor + (1 - start_factor) * progress);
  };
}

}  // namespace gimli::optim
