#include <cmath>
#include <utility>

#include "gimli/linear_solve/linear_system.h"

namespace gimli {
namespace {

std::string iterate(LinearSystem& system, double target, TensorList& x, TensorList r, int64_t& iterations,
                    int64_t max_iterations) {
  auto p = r;
  double rr = inner_product(r, r);
  auto best = x;
  double smallest = rr;
  const auto stop = [&](std::string remark) {
    x = std::move(best);
    return remark;
  };
  while (std::sqrt(rr) > target && iterations < max_iterations) {
    const auto Ap = system.product(p);
    const double pAp = inner_product(p, Ap);
    ++iterations;
    if (!std::isfinite(pAp)) return stop(not_finite(iterations));
    if (pAp <= 0) {
      return stop(c10::str("A is not positive definite: p^T A p = ", pAp, " in iteration ", iterations));
    }

    const double a = rr / pAp;
    x = add_scaled(std::move(x), a, p);
    r = add_scaled(std::move(r), -a, Ap);
    const double previous = std::exchange(rr, inner_product(r, r));
    p = add_scaled(r, rr / previous, p);
    if (rr < smallest) {
      smallest = rr;
      best = x;
    }
  }
  return {};
}

}  // namespace

ConjugateGradient::ConjugateGradient(ConjugateGradientOptions options) : options_(std::move(options)) {
  check_tolerance(name(), options_.tolerance());
  check_at_least(name(), "max_iterations", options_.max_iterations(), 1);
}

LinearSolution ConjugateGradient::solve(const MatVec& A, const TensorList& b, const TensorList& start) const {
  return solve_with(*this, A, b, start, [&](LinearSystem& system) {
    return solve_in_cycles(system, options_.tolerance(), options_.max_iterations(), iterate);
  });
}

}  // namespace gimli
