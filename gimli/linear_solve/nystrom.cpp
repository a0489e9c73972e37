#include <ATen/ATen.h>

#include <cmath>
#include <random>
#include <set>

#include "gimli/linear_solve/linear_system.h"

namespace gimli {
namespace {

/// An eigenvalue of W that is smaller than this many roundings an unknown, relative to the largest, is 0.
constexpr double roundings = 10;

/// `count` of the numbers below `size`, all subsets as likely (R. Floyd's algorithm), and the same on every platform.
std::set<int64_t> drawn(int64_t size, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::set<int64_t> chosen;
  for (int64_t last = size - count; last < size; ++last) {
    if (!chosen.insert(static_cast<int64_t>(random() % (last + 1))).second) chosen.insert(last);
  }
  return chosen;
}

/// Columns of A, each tensor of the list flattened: [rank, n_i].
struct Columns {
  TensorList C;
  at::Tensor W;  ///< their rows of the same numbers, [rank, rank], double
};

Columns columns_of(LinearSystem& system, int64_t rank, uint64_t seed) {
  const auto& b = system.b();
  int64_t size = 0;
  for (const auto& tensor : b) size += tensor.numel();
  rank = std::min(rank, size);

  Columns columns;
  for (const auto& tensor : b) columns.C.push_back(tensor.new_empty({rank, tensor.numel()}));
  TensorList rows;
  int64_t k = 0, begin = 0;
  size_t i = 0;
  for (const int64_t index : drawn(size, rank, seed)) {
    for (; index - begin >= b[i].numel(); ++i) begin += b[i].numel();
    TensorList unit;
    for (const auto& tensor : b) unit.push_back(at::zeros_like(tensor, at::MemoryFormat::Contiguous));
    unit[i].view(-1)[index - begin] = 1;
    const auto column = system.product(unit);
    for (size_t t = 0; t < b.size(); ++t) columns.C[t][k].copy_(column[t].flatten());
    rows.push_back(columns.C[i].select(1, index - begin));
    ++k;
  }
  for (auto& row : rows) row = row.to(at::kDouble);
  columns.W = at::stack(rows);
  return columns;
}

/// C F, which like C has its columns in the first dimension.
TensorList times(const TensorList& C, const at::Tensor& F) {
  TensorList B;
  for (const auto& part : C) B.push_back(F.t().mm(part.to(at::kDouble)).to(part.scalar_type()));
  return B;
}

/// B z, a vector like `like`.
TensorList combination(const TensorList& B, const at::Tensor& z, const TensorList& like) {
  TensorList vector;
  for (size_t t = 0; t < B.size(); ++t) vector.push_back(B[t].t().mv(z.to(B[t].scalar_type())).view_as(like[t]));
  return vector;
}

/// B^T V, where V has its columns in the first dimension too.
at::Tensor inner_products(const TensorList& B, const TensorList& V) {
  at::Tensor total;
  for (size_t t = 0; t < B.size(); ++t) {
    const auto part = B[t].to(at::kDouble).mm(V[t].to(at::kDouble).t());
    total = total.defined() ? total + part : part;
  }
  return total;
}

TensorList as_columns(TensorList vector) {
  for (auto& tensor : vector) tensor = tensor.reshape({1, -1});
  return vector;
}

}  // namespace

Nystrom::Nystrom(NystromOptions options) : options_(std::move(options)) {
  check_at_least(name(), "rank", options_.rank(), 1);
  TORCH_CHECK(options_.rho() > 0, name(), ": rho is ", options_.rho(), ", expected a positive number");
  check_tolerance(name(), options_.tolerance());
}

LinearSolution Nystrom::solve(const MatVec& A, const TensorList& b, const TensorList& start) const {
  return solve_with(*this, A, b, start, [&](LinearSystem& system) {
    const double rho = options_.rho(), tolerance = options_.tolerance();
    const auto& x = system.start();
    const auto r = add_scaled(system.residual_of_start(), -rho, x);
    if (!(length(r) > tolerance * system.length_of_b())) return system.solution(x, r, tolerance);

    const auto [C, W] = columns_of(system, options_.rank(), options_.seed());
    if (!std::isfinite(length(C))) return system.solution(x, r, tolerance, "a column of A is not finite");

    // B = C F with F F^T = W^+. B^T B is not taken as F^T (C^T C) F, in which small eigenvalues drown.
    const auto [eigenvalues, vectors] = at::linalg_eigh((W + W.t()) / 2);
    const double zero = roundings * W.size(0) * system.epsilon() * eigenvalues.abs().max().item<double>();
    const auto kept = (eigenvalues > zero).nonzero().flatten();
    const auto B = times(C, vectors.index_select(1, kept) / eigenvalues.index_select(0, kept).sqrt());
    const auto shifted = inner_products(B, B) + rho * at::eye(kept.size(0), W.options());
    const auto z = std::get<0>(at::linalg_solve_ex(shifted, inner_products(B, as_columns(r)))).squeeze(1);
    auto solution = add_scaled(x, 1 / rho, add_scaled(r, -1, combination(B, z, r)));

    std::string remark;
    const double least = eigenvalues.min().item<double>(), asymmetry = (W - W.t()).abs().max().item<double>();
    if (asymmetry > zero) {
      remark = c10::str("A is not symmetric: two of its elements differ by ", asymmetry);
    } else if (least < -zero) {
      remark = c10::str("A is not positive semidefinite: a principal submatrix has the eigenvalue ", least);
    }
    const auto residual = add_scaled(system.residual(solution), -rho, solution);
    return system.solution(std::move(solution), residual, tolerance, std::move(remark));
  });
}

}  // namespace gimli
