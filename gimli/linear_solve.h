#pragma once

#include <torch/arg.h>

#include <functional>
#include <optional>
#include <string>

#include "gimli/tensor_list.h"

namespace gimli {

/// v -> A v. It gets and returns tensors of the shapes and types of b. It is called without gradient recording: one
/// that differentiates anew turns recording on, one that walks back through a recorded graph keeps the graph.
using MatVec = std::function<TensorList(const TensorList&)>;

/// x ~ A^-1 b and how good it is. Nothing that goes wrong in the numbers is an exception: it is told here.
struct LinearSolution {
  TensorList x;             ///< outside any graph; may share memory with b or the start
  int64_t products = 0;     ///< of A, those for the residual included
  double residual = 0;      ///< |b - A x| / |b|, taken from x itself and not from a recurrence; NaN if it was not taken
  bool converged = false;   ///< whether residual <= the solver's tolerance
  std::string remark = {};  ///< why it did not converge, in words
};

/// A way to solve A x = b where A is known by its products, which are what it costs: products of the transposed inner
/// Jacobian, dF/dw^T, in implicit hypergradients (Bengio 2000; Lorraine et al. 2020). A vector is a list of tensors of
/// any shapes, seen as one; numbers that belong to the whole vector are doubles, whatever the type of the tensors.
///
/// Damping is the caller's: v -> A v + rho v is a MatVec like others (Nystrom, which lives of rho, is the exception).
/// If b = 0, x = 0 at no cost. A b or start of other than defined tensors of floating point, or an A that returns
/// something other than what b looks like, is refused.
class LinearSolver {
 public:
  virtual ~LinearSolver() = default;

  virtual std::string name() const = 0;

  /// `start` is a first guess of x; an empty one is 0 and saves the product that its residual costs.
  virtual LinearSolution solve(const MatVec& A, const TensorList& b, const TensorList& start = {}) const = 0;
};

struct ConjugateGradientOptions {
  TORCH_ARG(double, tolerance) = 1e-5;
  TORCH_ARG(int64_t, max_iterations) = 100;
};

/// The method of conjugate gradients (Hestenes & Stiefel 1952), as in iMAML (Rajeswaran et al. 2019), for A symmetric
/// and positive definite. From r = p = b - A x:
///
///     x <- x + a p,   r' = r - a A p,   a = r^T r / p^T A p
///     p <- r' + (r'^T r' / r^T r) p
///
/// The j-th x minimizes x^T A x / 2 - b^T x, and so the error in the norm of A, over the directions so far. The error
/// is at most 2 ((sqrt(k) - 1) / (sqrt(k) + 1))^j of the first, k = the condition number, and 0 after n steps for n
/// unknowns.
///
/// An iteration is one product, and the residual at the end one more. If that one is above the tolerance although the
/// recurrence is below, it starts again from there, for as long as that helps. If p^T A p <= 0, A is
/// not positive definite and the last x no best one: it stops, says so, and returns the x with the smallest |r|.
class ConjugateGradient final : public LinearSolver {
 public:
  explicit ConjugateGradient(ConjugateGradientOptions options = {});

  std::string name() const override { return "ConjugateGradient"; }
  LinearSolution solve(const MatVec& A, const TensorList& b, const TensorList& start = {}) const override;

 private:
  ConjugateGradientOptions options_;
};

struct GMRESOptions {
  TORCH_ARG(double, tolerance) = 1e-5;
  /// All cycles together.
  TORCH_ARG(int64_t, max_iterations) = 100;
  /// The iterations of a cycle, and the vectors that it keeps.
  TORCH_ARG(int64_t, restart) = 30;
};

/// GMRES(restart) (Saad & Schultz 1986), for any A that is not singular. After j iterations of a cycle, x minimizes
/// |b - A x| over x0 + span{r0, A r0, ..., A^(j-1) r0}:
///
///     A V_j = V_(j+1) H     V orthonormal, by modified Gram-Schmidt, twice where the first time cancels
///     x = x0 + V_j y        y minimizes | |r0| e_1 - H y |, by Givens rotations
///
/// Exact after n iterations of one cycle for n unknowns. With a restart below n it may stand still where A is not
/// positive definite, which it notices. An iteration is one product, and a cycle's residual one more.
///
/// If A is singular, and the space can grow no more before the residual is small, x is the best in that space, with a
/// remark. For A with the same range as A^T that is a least-squares solution (Brown & Walker 1997).
class GMRES final : public LinearSolver {
 public:
  explicit GMRES(GMRESOptions options = {});

  std::string name() const override { return "GMRES"; }
  LinearSolution solve(const MatVec& A, const TensorList& b, const TensorList& start = {}) const override;

 private:
  GMRESOptions options_;
};

struct NeumannOptions {
  NeumannOptions(int64_t terms = 20) : terms_(terms) {}
  /// The highest power of the series.
  TORCH_ARG(int64_t, terms);
  /// Without one, 1 / |A|, with |A| estimated by `power_iterations` products.
  TORCH_ARG(std::optional<double>, alpha) = std::nullopt;
  TORCH_ARG(int64_t, power_iterations) = 10;
  TORCH_ARG(double, tolerance) = 1e-5;
};

/// The truncated Neumann series (Lorraine et al. 2020), for |I - alpha A| < 1,
///
///     x = alpha sum_{j <= terms} (I - alpha A)^j b,    b - A x = (I - alpha A)^(terms + 1) b
///
/// computed as Richardson's iteration x <- x + alpha (b - A x), terms + 1 times from 0, or from `start`; fewer if the
/// tolerance is reached before. Each costs one product, and the residual comes with it.
///
/// |A| is estimated by the largest |A v| / |v| of the power method from b (or the residual of `start`). It is a lower
/// bound, which for A symmetric positive definite may be wrong by a factor 2 before the series diverges. A residual
/// that grows says that |I - alpha A| >= 1: at twice the smallest it stops; x is the one with the smallest.
class Neumann final : public LinearSolver {
 public:
  explicit Neumann(NeumannOptions options = {});

  std::string name() const override { return "Neumann"; }
  LinearSolution solve(const MatVec& A, const TensorList& b, const TensorList& start = {}) const override;

 private:
  NeumannOptions options_;
};

struct NystromOptions {
  NystromOptions(int64_t rank = 10) : rank_(rank) {}
  /// How many of A's columns are drawn, and kept: memory for as many vectors. All of them if there are fewer.
  TORCH_ARG(int64_t, rank);
  TORCH_ARG(double, rho) = 1e-2;
  TORCH_ARG(uint64_t, seed) = 0;
  /// Of the damped system.
  TORCH_ARG(double, tolerance) = 1e-5;
};

/// The Nystrom approximation of A, symmetric positive semidefinite, in the damped system (Hataya & Yamada 2023):
///
///     (C W^+ C^T + rho I) x = b     C = A[:, K], W = A[K, K], K = `rank` columns, drawn without replacement
///     x = (b - B (rho I + B^T B)^-1 B^T b) / rho,     B B^T = C W^+ C^T
///
/// Exact for (A + rho I) x = b if C has the rank of A. `products`, rank + 1, are of A; the residual, unlike elsewhere,
/// is that of the damped system, |b - (A + rho I) x| / |b|. It says how much of A the columns have missed, and exceeds
/// 1 if that is more than rho. From `start`, x = start + what solves for the residual of start, at one product more.
class Nystrom final : public LinearSolver {
 public:
  explicit Nystrom(NystromOptions options = {});

  std::string name() const override { return "Nystrom"; }
  LinearSolution solve(const MatVec& A, const TensorList& b, const TensorList& start = {}) const override;

 private:
  NystromOptions options_;
};

/// x = b, as if A were the identity: the T1-T2 approximation (Luketina et al. 2016). It is there to cost nothing, so it
/// makes no product, the residual is NaN and it never claims to have converged (unless b = 0). `start` has no
/// influence.
class Identity final : public LinearSolver {
 public:
  std::string name() const override { return "Identity"; }
  LinearSolution solve(const MatVec& A, const TensorList& b, const TensorList& start = {}) const override;
};

}  // namespace gimli
