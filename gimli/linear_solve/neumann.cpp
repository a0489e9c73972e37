#include <cmath>

#include "gimli/linear_solve/linear_system.h"

namespace gimli {
namespace {

/// The largest |A v| / |v| of the power method from `v`.
double largest_gain(LinearSystem& system, TensorList v, int64_t iterations) {
  double largest = 0;
  for (int64_t k = 0; k < iterations; ++k) {
    v = divide(v, length(v));
    v = system.product(v);
    const double gain = length(v);
    if (!std::isfinite(gain)) return gain;
    if (gain == 0) break;
    largest = std::max(largest, gain);
  }
  return largest;
}

}  // namespace

Neumann::Neumann(NeumannOptions options) : options_(std::move(options)) {
  check_at_least(name(), "terms", options_.terms(), 0);
  TORCH_CHECK(!options_.alpha() || *options_.alpha() > 0, name(), ": alpha is ", *options_.alpha(),
              ", expected a positive number");
  check_at_least(name(), "power_iterations", options_.power_iterations(), 1);
  check_tolerance(name(), options_.tolerance());
}

LinearSolution Neumann::solve(const MatVec& A, const TensorList& b, const TensorList& start) const {
  return solve_with(*this, A, b, start, [&](LinearSystem& system) {
    const double tolerance = options_.tolerance();
    const double target = tolerance * system.length_of_b();
    auto x = system.start();
    auto r = system.residual_of_start();
    double smallest = length(r);
    if (!(smallest > target)) return system.solution(x, r, tolerance);

    double alpha = options_.alpha().value_or(0);
    if (!options_.alpha()) {
      const double gain = largest_gain(system, r, options_.power_iterations());
      if (!std::isfinite(gain)) return system.solution(x, r, tolerance, "A v is not finite in the power method");
      if (gain == 0) return system.solution(x, r, tolerance, "A is singular: A (b - A x) = 0");
      alpha = 1 / gain;
    }

    auto best_x = x, best_r = r;
    std::string remark;
    for (int64_t j = 0; j <= options_.terms() && smallest > target; ++j) {
      x = add_scaled(std::move(x), alpha, r);
      r = system.residual(x);
      const double size = length(r);
      if (size < smallest) {
        smallest = size;
        best_x = x, best_r = r;
        remark.clear();
        continue;
      }
      remark = std::isfinite(size) ? c10::str("the residual grew from ", smallest / system.length_of_b(), " to ",
                                              size / system.length_of_b(), " at term ", j,
                                              ", as it does if |I - alpha A| >= 1; alpha is ", alpha)
                                   : c10::str("A v is not finite at term ", j);
      if (!(size <= 2 * smallest)) break;
    }
    return system.solution(std::move(best_x), best_r, tolerance, std::move(remark));
  });
}

}  // namespace gimli
