#include "gimli/linear_solve/linear_system.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace gimli {
namespace {

/// Expects `list` to be `what`, tensors that look like those of b.
void check_like(const TensorList& list, const TensorList& b, const std::string& what) {
  TORCH_CHECK(list.size() == b.size(), what, " has ", list.size(), " tensors, expected ", b.size(), " as in b");
  for (size_t i = 0; i < b.size(); ++i) {
    TORCH_CHECK(list[i].defined(), what, ": tensor ", i, " is undefined");
    TORCH_CHECK(list[i].sizes() == b[i].sizes() && list[i].scalar_type() == b[i].scalar_type(), what, ": tensor ", i,
                " is a ", list[i].scalar_type(), " of shape ", list[i].sizes(), ", expected a ", b[i].scalar_type(),
                " of shape ", b[i].sizes(), " as in b");
  }
}

double spacing_at_one(at::ScalarType type) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "epsilon",
                                         [] { return static_cast<double>(std::numeric_limits<scalar_t>::epsilon()); });
}

TensorList detached(TensorList list) {
  for (auto& tensor : list) tensor = tensor.detach();
  return list;
}

}  // namespace

LinearSystem::LinearSystem(const LinearSolver& solver, const MatVec& A, const TensorList& b, const TensorList& start)
    : solver_(solver.name()), A_(A), starts_at_zero_(start.empty()) {
  TORCH_CHECK(A, solver_, ": A is empty, expected a function that returns A v");
  for (size_t i = 0; i < b.size(); ++i) {
    TORCH_CHECK(b[i].defined() && b[i].is_floating_point(), solver_, ": tensor ", i, " of b is ",
                b[i].defined() ? c10::toString(b[i].scalar_type()) : "undefined", ", expected floating point");
    epsilon_ = std::max(epsilon_, spacing_at_one(b[i].scalar_type()));
  }
  if (!starts_at_zero_) check_like(start, b, solver_ + ": the start");
  b_ = detached(b);
  if (starts_at_zero_) {
    for (const auto& tensor : b_) start_.push_back(at::zeros_like(tensor));
  } else {
    start_ = detached(start);
  }
  length_of_b_ = length(b_);
}

TensorList LinearSystem::residual_of_start() { return starts_at_zero_ ? b_ : residual(start_); }

TensorList LinearSystem::product(const TensorList& v) {
  ++products_;
  auto Av = A_(v);
  check_like(Av, b_, solver_ + ": what A returned");
  return detached(std::move(Av));
}

TensorList LinearSystem::residual(const TensorList& x) { return add_scaled(b_, -1, product(x)); }

LinearSolution LinearSystem::solution(TensorList x, const TensorList& r, double tolerance, std::string remark) const {
  const double residual = length(r) / length_of_b_;
  const bool converged = residual <= tolerance;
  if (converged) {
    remark.clear();
  } else if (remark.empty()) {
    remark = std::isfinite(residual) ? c10::str("the residual ", residual, " is above the tolerance ", tolerance)
                                     : "b - A x is not finite";
  }
  return {std::move(x), products_, residual, converged, std::move(remark)};
}

LinearSolution solve_with(const LinearSolver& solver, const MatVec& A, const TensorList& b, const TensorList& start,
                          const std::function<LinearSolution(LinearSystem&)>& method) {
  const at::NoGradGuard no_grad;
  LinearSystem system(solver, A, b, start);
  if (system.length_of_b() == 0) return {.x = system.b(), .converged = true};
  if (!std::isfinite(system.length_of_b())) return {.x = system.start(), .residual = NAN, .remark = "b is not finite"};
  return method(system);
}

LinearSolution solve_in_cycles(LinearSystem& system, double tolerance, int64_t max_iterations, const Cycle& cycle) {
  const double target = tolerance * system.length_of_b();
  auto x = system.start();
  auto r = system.residual_of_start();
  int64_t iterations = 0;
  std::string remark;
  while (remark.empty() && length(r) > target) {
    auto next = x;
    remark = cycle(system, target, next, r, iterations, max_iterations);
    auto residual = system.residual(next);
    const bool exhausted = remark.empty() && iterations == max_iterations;
    if (!exhausted && !(length(residual) < length(r))) {
      if (remark.empty()) {
        remark = c10::str("the residual ", length(r) / system.length_of_b(), " falls no more, after ", iterations,
                          " iterations");
      }
      break;
    }
    x = std::move(next);
    r = std::move(residual);
    if (exhausted) {
      remark = c10::str("the residual is ", length(r) / system.length_of_b(), " after ", iterations, " iterations");
    }
  }
  return system.solution(std::move(x), r, tolerance, std::move(remark));
}

double length(const TensorList& v) { return std::sqrt(inner_product(v, v)); }

std::string not_finite(int64_t iteration) { return c10::str("A v is not finite in iteration ", iteration); }

void check_tolerance(const std::string& solver, double tolerance) {
  TORCH_CHECK(tolerance > 0, solver, ": tolerance is ", tolerance, ", expected a positive number");
}

void check_at_least(const std::string& solver, const char* option, int64_t value, int64_t least) {
  TORCH_CHECK(value >= least, solver, ": ", option, " is ", value, ", expected at least ", least);
}

}  // namespace gimli
