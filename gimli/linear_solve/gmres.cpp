#include <ATen/ATen.h>

#include <cmath>

#include "gimli/linear_solve/linear_system.h"

namespace gimli {
namespace {

/// What is smaller than this many roundings of what it was computed from is 0.
constexpr double roundings = 10;

/// (p, q) <- (c p + s q, c q - s p)
struct Rotation {
  double c, s;

  /// The one that takes (p, q) to (length, 0).
  static Rotation onto_first(double p, double q) {
    const double length = std::hypot(p, q);
    return length == 0 ? Rotation{1, 0} : Rotation{p / length, q / length};
  }

  void apply(double& p, double& q) const {
    const double first = c * p + s * q;
    q = c * q - s * p;
    p = first;
  }
};

/// Takes from `w` what lies in the span of the orthonormal `V`. Returns the coefficients of that, and |w| of the rest:
/// 0 if there is only rounding.
std::vector<double> orthogonalize(TensorList& w, const std::vector<TensorList>& V, double epsilon) {
  std::vector<double> h(V.size() + 1, 0);
  const double whole = length(w);
  double before = whole, after = whole;
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < V.size(); ++i) {
      const double part = inner_product(V[i], w);
      w = add_scaled(std::move(w), -part, V[i]);
      h[i] += part;
    }
    after = length(w);
    if (after > M_SQRT1_2 * before) break;
    before = after;
  }
  h.back() = after > roundings * epsilon * whole ? after : 0;
  return h;
}

struct LeastSquares {
  std::vector<double> y;
  bool singular;
};

/// The shortest y with the smallest |g - R y|, R given by its columns. Singular values that are rounding count as 0:
/// the last element of R need not be small where R is singular.
LeastSquares least_squares(const std::vector<std::vector<double>>& columns, const std::vector<double>& g,
                           double epsilon) {
  const auto k = static_cast<int64_t>(columns.size());
  if (k == 0) return {{}, false};
  auto R = at::zeros({k, k}, at::kDouble);
  for (int64_t j = 0; j < k; ++j) R.select(1, j).slice(0, 0, j + 1).copy_(at::tensor(columns[j]).slice(0, 0, j + 1));
  const auto [U, S, Vh] = at::linalg_svd(R);
  const auto kept = S.gt(roundings * epsilon * S[0]);
  const auto inverse = at::where(kept, S.reciprocal(), at::zeros_like(S));
  const auto y = Vh.t().mv(inverse * U.t().mv(at::tensor(g).slice(0, 0, k)));
  return {{y.data_ptr<double>(), y.data_ptr<double>() + k}, !kept.all().item<bool>()};
}

std::string iterate(LinearSystem& system, double target, TensorList& x, const TensorList& r, int64_t& iterations,
                    int64_t max_iterations, size_t restart) {
  std::vector<double> g{length(r)};  // Q |r| e_1
  std::vector<TensorList> V{divide(r, g[0])};
  std::vector<std::vector<double>> R;  // Q H
  std::vector<Rotation> Q;
  std::string remark;
  while (R.size() < restart && iterations < max_iterations && std::abs(g.back()) > target) {
    auto w = system.product(V.back());
    ++iterations;
    if (!std::isfinite(length(w))) {
      remark = not_finite(iterations);
      break;
    }

    const size_t j = R.size();
    auto h = orthogonalize(w, V, system.epsilon());
    const double rest = h.back();
    for (size_t i = 0; i < j; ++i) Q[i].apply(h[i], h[i + 1]);
    Q.push_back(Rotation::onto_first(h[j], h[j + 1]));
    Q[j].apply(h[j], h[j + 1]);
    g.push_back(0);
    Q[j].apply(g[j], g[j + 1]);
    R.push_back(std::move(h));
    if (rest == 0) break;
    V.push_back(divide(std::move(w), rest));
  }

  const auto [y, singular] = least_squares(R, g, system.epsilon());
  for (size_t j = 0; j < y.size(); ++j) x = add_scaled(std::move(x), y[j], V[j]);
  if (singular && remark.empty()) {
    remark = c10::str("A is singular, or rounding makes it so: x is a least-squares solution in the Krylov space of ",
                      y.size(), " dimensions");
  }
  return remark;
}

}  // namespace

GMRES::GMRES(GMRESOptions options) : options_(std::move(options)) {
  check_tolerance(name(), options_.tolerance());
  check_at_least(name(), "max_iterations", options_.max_iterations(), 1);
  check_at_least(name(), "restart", options_.restart(), 1);
}

LinearSolution GMRES::solve(const MatVec& A, const TensorList& b, const TensorList& start) const {
  return solve_with(*this, A, b, start, [&](LinearSystem& system) {
    return solve_in_cycles(system, options_.tolerance(), options_.max_iterations(), [&](auto&&... arguments) {
      return iterate(std::forward<decltype(arguments)>(arguments)..., options_.restart());
    });
  });
}

}  // namespace gimli
