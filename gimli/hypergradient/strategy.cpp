#include "gimli/hypergradient/strategy.h"

#include <algorithm>
#include <cmath>

namespace gimli {

TaskCost& TaskCost::operator+=(const TaskCost& other) {
  inner_steps += other.inner_steps;
  gradient_evaluations += other.gradient_evaluations;
  outer_evaluations += other.outer_evaluations;
  solver_products += other.solver_products;
  states_stored = std::max(states_stored, other.states_stored);
  if (std::isnan(other.solver_residual) || other.solver_residual > solver_residual) {
    solver_residual = other.solver_residual;
  }
  if (solver_remark.empty()) solver_remark = other.solver_remark;
  if (capture_remark.empty()) capture_remark = other.capture_remark;
  capture_bytes = std::max(capture_bytes, other.capture_bytes);
  stationarity = std::max(stationarity, other.stationarity);
  return *this;
}

TaskCost TaskCost::times(int64_t tasks) const {
  auto result = *this;
  for (auto* count :
       {&result.inner_steps, &result.gradient_evaluations, &result.outer_evaluations, &result.solver_products})
    *count *= tasks;
  return result;
}

void OuterSum::add(const OuterValue& value) {
  total_ = total_.defined() ? total_ + value.loss : value.loss;
  auxiliary_ = value.auxiliary;
  ++count_;
}

}  // namespace gimli
