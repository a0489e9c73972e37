#include "gimli/linear_solve.h"

#include "gimli/linear_solve/linear_system.h"

namespace gimli {

LinearSolution Identity::solve(const MatVec& A, const TensorList& b, const TensorList& start) const {
  return solve_with(*this, A, b, start, [](LinearSystem& system) {
    return LinearSolution{
        .x = system.b(), .residual = NAN, .remark = "x = b by definition, and b - A x was not computed"};
  });
}

}  // namespace gimli
