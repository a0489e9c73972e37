#pragma once

#include "gimli/linear_solve.h"

namespace gimli {

/// A x = b while a solver is at it: checked, without gradients, its products counted.
class LinearSystem final {
 public:
  LinearSystem(const LinearSolver& solver, const MatVec& A, const TensorList& b, const TensorList& start);

  const TensorList& b() const { return b_; }
  double length_of_b() const { return length_of_b_; }
  /// The coarsest spacing of floating-point numbers at 1 among b's types.
  double epsilon() const { return epsilon_; }

  const TensorList& start() const { return start_; }
  /// b - A start, which for a start of 0 takes no product.
  TensorList residual_of_start();

  TensorList product(const TensorList& v);
  /// b - A x
  TensorList residual(const TensorList& x);

  /// `x`, of which `r` is the residual, with what there is to say about it if that is not small enough.
  LinearSolution solution(TensorList x, const TensorList& r, double tolerance, std::string remark = {}) const;

 private:
  std::string solver_;
  const MatVec& A_;
  TensorList b_, start_;
  bool starts_at_zero_;
  double length_of_b_, epsilon_ = 0;
  int64_t products_ = 0;
};

/// What `method` finds, unless b = 0 or is not finite.
LinearSolution solve_with(const LinearSolver& solver, const MatVec& A, const TensorList& b, const TensorList& start,
                          const std::function<LinearSolution(LinearSystem&)>& method);

/// Takes x and its residual r to better ones, until |r| <= `target` by its own account or `iterations`, which it counts
/// up, are `max_iterations`. Returns why it cannot go on, or nothing.
using Cycle = std::function<std::string(LinearSystem& system, double target, TensorList& x, TensorList r,
                                        int64_t& iterations, int64_t max_iterations)>;

/// Repeats `cycle` from the true residual of what the last one reached, for as long as that makes the residual smaller;
/// an x that does not is dropped, unless it came with the last iteration (the |r| of conjugate gradients may rise
/// first).
LinearSolution solve_in_cycles(LinearSystem& system, double tolerance, int64_t max_iterations, const Cycle& cycle);

/// |v|
double length(const TensorList& v);

std::string not_finite(int64_t iteration);

void check_tolerance(const std::string& solver, double tolerance);

/// Expects `value` >= `least`.
void check_at_least(const std::string& solver, const char* option, int64_t value, int64_t least);

}  // namespace gimli
