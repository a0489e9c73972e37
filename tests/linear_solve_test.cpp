#include "gimli/linear_solve.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <memory>

#include "expect.h"

namespace {

using gimli::ConjugateGradient;
using gimli::ConjugateGradientOptions;
using gimli::expect_error;
using gimli::GMRES;
using gimli::GMRESOptions;
using gimli::Identity;
using gimli::LinearSolution;
using gimli::LinearSolver;
using gimli::MatVec;
using gimli::Neumann;
using gimli::NeumannOptions;
using gimli::Nystrom;
using gimli::NystromOptions;
using gimli::TensorList;

constexpr int64_t n = 12;
const double unreachable = 1e-300;  // a tolerance

using Shapes = std::vector<std::vector<int64_t>>;
const std::vector<Shapes> splits{{{n}}, {{2, 3}, {1}, {5}}, {{}, {0}, {5, 2, 1}, {1, 1}}};

TensorList split(const at::Tensor& vector, const Shapes& shapes = {{n}}) {
  TensorList list;
  int64_t begin = 0;
  for (const auto& shape : shapes) {
    const auto count = c10::multiply_integers(shape);
    list.push_back(vector.slice(0, begin, begin + count).view(shape));
    begin += count;
  }
  return list;
}

at::Tensor joined(const TensorList& list) {
  TensorList flat;
  for (const auto& tensor : list) flat.push_back(tensor.flatten());
  return at::cat(flat);
}

/// v -> A v, counting.
struct Product {
  at::Tensor A;
  Shapes shapes = {{A.size(0)}};
  std::shared_ptr<int64_t> calls = std::make_shared<int64_t>(0);

  TensorList operator()(const TensorList& v) const {
    ++*calls;
    return split(A.mv(joined(v)), shapes);
  }
};

template <class... Solvers>
std::vector<std::shared_ptr<const LinearSolver>> all_of(Solvers... solvers) {
  return {std::make_shared<const Solvers>(std::move(solvers))...};
}

double size(const at::Tensor& vector) { return at::linalg_vector_norm(vector.to(at::kDouble)).item<double>(); }
double relative_residual(const at::Tensor& A, const at::Tensor& x, const at::Tensor& b) {
  return size(b - A.mv(x)) / size(b);
}
void expect_near(const at::Tensor& actual, const at::Tensor& expected, double relative) {
  EXPECT_LE(size(actual - expected), relative * size(expected)) << actual << "\nexpected\n" << expected;
}

at::Tensor random(at::IntArrayRef sizes, uint64_t seed = 1) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed), at::TensorOptions(at::kDouble));
}
at::Tensor orthogonal() { return std::get<0>(at::linalg_qr(random({n, n}, 7))); }
at::Tensor symmetric(const at::Tensor& eigenvalues) {
  const auto Q = orthogonal();
  return Q.mm(eigenvalues.to(at::kDouble).diag()).mm(Q.t());
}
at::Tensor identity(int64_t size) { return at::eye(size, at::kDouble); }
at::Tensor numbers(std::vector<double> values) { return torch::tensor(values, at::kDouble); }

at::Tensor positive_definite() { return symmetric(at::linspace(1, 10, n)); }
at::Tensor badly_conditioned() { return symmetric(at::logspace(0, 6, n, 10, at::kDouble)); }
at::Tensor diagonal() { return at::linspace(0.5, 3, n, at::kDouble).diag(); }
at::Tensor nonsymmetric() { return 2 * identity(n) + 0.4 * random({n, n}, 3); }
at::Tensor indefinite() { return symmetric(at::linspace(-5.5, 5.5, n)); }
at::Tensor singular() { return symmetric(at::arange(n)); }
at::Tensor right_side() { return random({n}, 5); }
/// n -> n: e_i -> e_(i + 1)
at::Tensor shift() { return identity(n).roll(1, 0); }

TEST(LinearSolver, solves_what_it_is_for_in_every_type_and_split) {
  const auto cg = [](double tolerance) -> std::unique_ptr<LinearSolver> {
    return std::make_unique<ConjugateGradient>(ConjugateGradientOptions().tolerance(tolerance));
  };
  const auto gmres = [](double tolerance) -> std::unique_ptr<LinearSolver> {
    return std::make_unique<GMRES>(GMRESOptions().tolerance(tolerance));
  };
  const auto neumann = [](double tolerance) -> std::unique_ptr<LinearSolver> {
    return std::make_unique<Neumann>(NeumannOptions(1000).tolerance(tolerance));
  };
  const auto nystrom = [](double tolerance) -> std::unique_ptr<LinearSolver> {
    return std::make_unique<Nystrom>(NystromOptions(n).rho(0.5).tolerance(tolerance));
  };
  struct Row {
    std::function<std::unique_ptr<LinearSolver>(double)> solver;
    at::Tensor A;
    double tolerance = 1e-11, float_tolerance = 1e-5, damping = 0;
  };
  const std::vector<Row> table{
      {cg, positive_definite()},
      {cg, badly_conditioned(), 1e-9, NAN},
      {cg, diagonal()},
      {gmres, positive_definite()},
      {gmres, badly_conditioned(), 1e-9, NAN},
      {gmres, diagonal()},
      {gmres, nonsymmetric()},
      {gmres, indefinite()},
      {gmres, shift()},
      {neumann, positive_definite()},
      {neumann, diagonal()},
      {neumann, nonsymmetric()},
      {nystrom, positive_definite(), 1e-11, 1e-5, 0.5},
      {nystrom, badly_conditioned(), 1e-8, NAN, 0.5},
      {nystrom, diagonal(), 1e-11, 1e-5, 0.5},
      {nystrom, singular(), 1e-11, 1e-5, 0.5},
  };
  for (size_t row = 0; row < table.size(); ++row) {
    for (const auto type : {at::kDouble, at::kFloat}) {
      for (const auto& shapes : splits) {
        const double tolerance = type == at::kDouble ? table[row].tolerance : table[row].float_tolerance;
        if (std::isnan(tolerance)) continue;  // its condition number has no such solution
        const auto solver = table[row].solver(tolerance);
        SCOPED_TRACE(c10::str("row ", row, ", ", solver->name(), ", ", type, ", tensors: ", shapes.size()));
        const auto A = table[row].A.to(type), b = right_side().to(type);
        const Product product{A, shapes};
        const auto solution = solver->solve(product, split(b, shapes));

        ASSERT_EQ(solution.x.size(), shapes.size());
        for (size_t i = 0; i < shapes.size(); ++i) {
          EXPECT_EQ(solution.x[i].sizes(), at::IntArrayRef(shapes[i]));
          EXPECT_EQ(solution.x[i].scalar_type(), type);
        }
        EXPECT_TRUE(solution.converged) << solution.remark;
        EXPECT_EQ(solution.remark, "");
        EXPECT_EQ(solution.products, *product.calls);
        const auto damped = A.to(at::kDouble) + table[row].damping * identity(n);
        const auto x = joined(solution.x).to(at::kDouble);
        EXPECT_LE(solution.residual, tolerance);
        EXPECT_NEAR(solution.residual, relative_residual(damped, x, b.to(at::kDouble)), 0.1 * tolerance);
        const double condition = at::linalg_cond(damped).item<double>();
        expect_near(x, at::linalg_solve(damped, b.to(at::kDouble)), 1.1 * condition * tolerance);
      }
    }
  }
}

TEST(LinearSolver, never_claims_what_is_not_so) {
  const auto rotation = at::block_diag(TensorList(n / 2, numbers({0, 1, -1, 0}).view({2, 2})));
  const auto outside = right_side();
  struct Row {
    std::shared_ptr<LinearSolver> solver;
    at::Tensor A;
    std::string remark;
    at::ScalarType type = at::kDouble;
  };
  const auto cg = std::make_shared<ConjugateGradient>(),
             strict = std::make_shared<ConjugateGradient>(ConjugateGradientOptions().tolerance(1e-18));
  const auto gmres = std::make_shared<GMRES>();
  const auto neumann = std::make_shared<Neumann>(NeumannOptions(1000));
  const auto nystrom = std::make_shared<Nystrom>(NystromOptions(n / 2).rho(0.1));
  const std::vector<Row> table{
      {cg, indefinite(), "A is not positive definite: p^T A p = -"},
      {cg, -positive_definite(), "A is not positive definite: p^T A p = -"},
      {cg, singular(), "A is not positive definite: p^T A p = "},
      {cg, singular(), "A is not positive definite: p^T A p = ", at::kFloat},
      {cg, rotation, "A is not positive definite: p^T A p = 0 in iteration 1"},
      {cg, at::zeros({n, n}, at::kDouble), "A is not positive definite: p^T A p = 0 in iteration 1"},
      {cg, nonsymmetric(), "after 100 iterations"},
      {cg, badly_conditioned(), "after 100 iterations", at::kFloat},
      {strict, positive_definite(), "falls no more"},
      {gmres, singular(), "A is singular"},
      {gmres, singular(), "A is singular", at::kFloat},
      {gmres, at::zeros({n, n}, at::kDouble), "in the Krylov space of 1 dimensions"},
      {gmres, badly_conditioned(), "A is singular, or rounding makes it so", at::kFloat},
      {std::make_shared<GMRES>(GMRESOptions().max_iterations(n - 1)), shift(), "after 11 iterations"},
      {neumann, indefinite(), "|I - alpha A| >= 1"},
      {neumann, -positive_definite(), "|I - alpha A| >= 1"},
      {neumann, rotation, "|I - alpha A| >= 1"},
      {neumann, at::zeros({n, n}, at::kDouble), "A is singular"},
      {std::make_shared<Neumann>(NeumannOptions(1000).alpha(0.3)), positive_definite(), "alpha is 0.3"},
      {std::make_shared<Neumann>(NeumannOptions().alpha(1e60)), positive_definite(), "not finite", at::kFloat},
      {cg, 1e-60 * positive_definite(), "A is not positive definite", at::kFloat},
      {cg, 1e-42 * positive_definite(), "is not finite", at::kFloat},
      {std::make_shared<Neumann>(NeumannOptions(2)), positive_definite(), "is above the tolerance 1e-05"},
      {nystrom, positive_definite(), "is above the tolerance 1e-05"},
      {nystrom, indefinite(), "A is not positive semidefinite"},
      {nystrom, nonsymmetric(), "A is not symmetric"},
      {std::make_shared<Identity>(), positive_definite(), "was not computed"},
  };
  for (size_t row = 0; row < table.size(); ++row) {
    const auto& solver = *table[row].solver;
    SCOPED_TRACE(c10::str("row ", row, ", ", solver.name()));
    const auto A = table[row].A.to(table[row].type), b = right_side().to(table[row].type);
    const Product product{A};
    const auto solution = solver.solve(product, {b});
    EXPECT_FALSE(solution.converged);
    EXPECT_NE(solution.remark.find(table[row].remark), std::string::npos) << solution.remark;
    EXPECT_EQ(solution.products, *product.calls);
    if (solver.name() == "Identity") continue;
    const auto damped = A.to(at::kDouble) + (solver.name() == "Nystrom" ? 0.1 : 0) * identity(n);
    const double residual = relative_residual(damped, solution.x[0].to(at::kDouble), b.to(at::kDouble));
    EXPECT_NEAR(solution.residual, residual, (table[row].type == at::kFloat ? 0.5 : 1e-9) * residual + 1e-15);
  }
}

TEST(LinearSolver, starts_from_the_solution_at_one_product) {
  const auto A = positive_definite(), b = right_side();
  for (const auto& each : all_of(ConjugateGradient(), GMRES(), Neumann(), Nystrom(NystromOptions().rho(2)))) {
    const auto& solver = *each;
    SCOPED_TRACE(solver.name());
    const auto damped = A + (solver.name() == "Nystrom" ? 2 : 0) * identity(n);
    const TensorList x{at::linalg_solve(damped, b)};
    const auto solution = solver.solve(Product{A}, {b}, x);
    gimli::expect_equal(solution.x, x);
    EXPECT_EQ(solution.products, 1);
    EXPECT_TRUE(solution.converged);
    EXPECT_LT(solution.residual, 1e-14);
  }
}

TEST(LinearSolver, needs_no_product_for_zero) {
  const MatVec none = [](const TensorList&) -> TensorList { throw std::logic_error("called"); };
  const TensorList zero{at::zeros({2, 3}), at::zeros({})};
  for (const auto& each : all_of(ConjugateGradient(), GMRES(), Neumann(), Nystrom(), Identity())) {
    const auto& solver = *each;
    SCOPED_TRACE(solver.name());
    for (const auto& start : {TensorList{}, TensorList{at::ones({2, 3}), at::ones({})}}) {
      const auto solution = solver.solve(none, zero, start);
      gimli::expect_equal(solution.x, zero);
      EXPECT_EQ(solution.products, 0);
      EXPECT_EQ(solution.residual, 0);
      EXPECT_TRUE(solution.converged);
      EXPECT_EQ(solution.remark, "");
    }
    EXPECT_TRUE(solver.solve(none, {}).converged);
  }
}

TEST(LinearSolver, tells_of_numbers_that_are_not_finite) {
  const auto A = positive_definite(), b = right_side();
  for (const auto& each :
       all_of(ConjugateGradient(), GMRES(), Neumann(), Nystrom(), Neumann(NeumannOptions().alpha(0.05)))) {
    const auto& solver = *each;
    SCOPED_TRACE(solver.name());
    for (const double bad : {NAN, INFINITY}) {
      for (const int64_t first : {1, 3}) {
        int64_t calls = 0;
        const MatVec product = [&](const TensorList& v) -> TensorList {
          auto Av = A.mv(v[0]);
          if (++calls == first) Av[4] = bad;
          return {Av};
        };
        const auto solution = solver.solve(product, {b});
        EXPECT_FALSE(solution.converged);
        EXPECT_NE(solution.remark.find("not finite"), std::string::npos) << solution.remark;
        EXPECT_TRUE(at::isfinite(solution.x[0]).all().item<bool>());
        EXPECT_LE(calls, first + n);
      }
      auto worse = b.clone();
      worse[2] = bad;
      const auto solution = solver.solve(Product{A}, {worse});
      EXPECT_FALSE(solution.converged);
      EXPECT_EQ(solution.remark, "b is not finite");
      const auto started = solver.solve(Product{A}, {b}, {worse});
      EXPECT_FALSE(started.converged);
      EXPECT_NE(started.remark.find("not finite"), std::string::npos) << started.remark;
    }
  }
}

TEST(LinearSolver, refuses_what_does_not_fit) {
  const auto b = TensorList{at::ones({2}, at::kDouble)};
  const MatVec A = [](const TensorList& v) { return v; };
  const auto returns = [](TensorList list) -> MatVec { return [list](const TensorList&) { return list; }; };
  const GMRES solver;
  expect_error([&] { solver.solve(nullptr, b); }, "GMRES: A is empty");
  expect_error([&] { solver.solve(A, {at::Tensor()}); }, "GMRES: tensor 0 of b is undefined, expected floating point");
  expect_error([&] { solver.solve(A, {at::ones({2}, at::kLong)}); }, "GMRES: tensor 0 of b is Long");
  expect_error([&] { solver.solve(A, {at::ones({2}, at::kComplexDouble)}); }, "GMRES: tensor 0 of b is ComplexDouble");
  expect_error([&] { solver.solve(A, b, {b[0], b[0]}); }, "GMRES: the start has 2 tensors, expected 1 as in b");
  expect_error([&] { solver.solve(A, b, {at::ones({3}, at::kDouble)}); },
               "GMRES: the start: tensor 0 is a Double of shape [3], expected a Double of shape [2] as in b");
  expect_error([&] { solver.solve(A, b, {at::Tensor()}); }, "GMRES: the start: tensor 0 is undefined");
  expect_error([&] { solver.solve(returns({}), b); }, "GMRES: what A returned has 0 tensors, expected 1 as in b");
  expect_error(
      [&] {
        solver.solve(returns({at::ones({1, 2}, at::kDouble)}), b);
      },
      "GMRES: what A returned: tensor 0 is a Double of shape [1, 2], expected a Double of shape [2] as in b");
  expect_error([&] { solver.solve(returns({at::ones({2}, at::kFloat)}), b); }, "tensor 0 is a Float of shape [2]");
  expect_error([&] { solver.solve(returns({at::Tensor()}), b); }, "GMRES: what A returned: tensor 0 is undefined");

  using CG = ConjugateGradientOptions;
  expect_error([] { ConjugateGradient(CG().tolerance(0)); }, "ConjugateGradient: tolerance is 0, expected a positive");
  expect_error([] { ConjugateGradient(CG().tolerance(NAN)); }, "ConjugateGradient: tolerance is nan");
  expect_error([] { ConjugateGradient(CG().max_iterations(0)); }, "max_iterations is 0, expected at least 1");
  expect_error([] { GMRES(GMRESOptions().restart(0)); }, "GMRES: restart is 0, expected at least 1");
  expect_error([] { GMRES(GMRESOptions().tolerance(-1)); }, "GMRES: tolerance is -1, expected a positive number");
  expect_error([] { GMRES(GMRESOptions().max_iterations(-1)); }, "GMRES: max_iterations is -1, expected at least 1");
  expect_error([] { Neumann(NeumannOptions(-1)); }, "Neumann: terms is -1, expected at least 0");
  expect_error([] { Neumann(NeumannOptions().alpha(0)); }, "Neumann: alpha is 0, expected a positive number");
  expect_error([] { Neumann(NeumannOptions().power_iterations(0)); }, "power_iterations is 0, expected at least 1");
  expect_error([] { Neumann(NeumannOptions().tolerance(0)); }, "Neumann: tolerance is 0, expected a positive number");
  expect_error([] { Nystrom(NystromOptions(0)); }, "Nystrom: rank is 0, expected at least 1");
  expect_error([] { Nystrom(NystromOptions().rho(0)); }, "Nystrom: rho is 0, expected a positive number");
  expect_error([] { Nystrom(NystromOptions().tolerance(0)); }, "Nystrom: tolerance is 0, expected a positive number");
}

TEST(LinearSolver, solves_with_the_transposed_jacobian_of_a_recorded_graph) {
  const auto w = right_side().requires_grad_();
  const auto M = nonsymmetric();
  const auto F = M.mv(w.tanh() + w);
  const MatVec A = [&](const TensorList& v) {
    EXPECT_FALSE(at::GradMode::is_enabled());
    return torch::autograd::grad({F}, {w}, v, /*retain_graph=*/true);
  };
  const auto jacobian = M.mm((2 - w.detach().tanh().square()).diag());
  const auto solution = GMRES(GMRESOptions().tolerance(1e-12)).solve(A, {w});
  EXPECT_TRUE(solution.converged) << solution.remark;
  expect_near(solution.x[0], at::linalg_solve(jacobian.t(), w.detach()), 1e-10);
  EXPECT_FALSE(solution.x[0].requires_grad());
  EXPECT_FALSE(Identity().solve(A, {w}).x[0].requires_grad());
  EXPECT_TRUE(at::GradMode::is_enabled());
}

/// An orthonormal basis of span{r, A r, ..., A^(j-1) r}.
at::Tensor krylov(const at::Tensor& A, const at::Tensor& r, int64_t j) {
  TensorList powers{r};
  while (static_cast<int64_t>(powers.size()) < j) powers.push_back(A.mv(powers.back()));
  return std::get<0>(at::linalg_qr(at::stack(powers, 1)));
}

TEST(ConjugateGradient, minimizes_the_energy_over_the_krylov_space) {
  const auto A = positive_definite(), b = right_side(), start = random({n}, 9);
  for (const auto& x0 : {at::zeros_like(b), start}) {
    const auto r = b - A.mv(x0);
    for (int64_t j = 1; j <= 6; ++j) {
      const auto solution =
          ConjugateGradient(ConjugateGradientOptions().max_iterations(j)).solve(Product{A}, {b}, {x0});
      const auto K = krylov(A, r, j);
      expect_near(solution.x[0], x0 + K.mv(at::linalg_solve(K.t().mm(A).mm(K), K.t().mv(r))), 1e-12);
      EXPECT_EQ(solution.products, j + 2);
    }
  }
}

TEST(ConjugateGradient, needs_an_iteration_for_each_distinct_eigenvalue) {
  const auto b = right_side();
  for (int64_t distinct = 1; distinct <= n; ++distinct) {
    const Product A{symmetric(1 + at::arange(n).remainder(distinct))};
    const auto solution = ConjugateGradient(ConjugateGradientOptions().tolerance(1e-12)).solve(A, {b});
    EXPECT_TRUE(solution.converged) << solution.remark;
    EXPECT_EQ(solution.products, distinct + 1);
  }
}

TEST(ConjugateGradient, keeps_the_classical_bound) {
  for (const double condition : {10.0, 1e3}) {
    const auto A = symmetric(at::linspace(1, condition, n)), b = right_side(), x = at::linalg_solve(A, b);
    const auto energy = [&](const at::Tensor& e) { return std::sqrt(at::dot(e, A.mv(e)).item<double>()); };
    const double rate = (std::sqrt(condition) - 1) / (std::sqrt(condition) + 1);
    double previous = energy(x);
    for (int64_t j = 1; j <= n; ++j) {
      const auto options = ConjugateGradientOptions().tolerance(unreachable).max_iterations(j);
      const double error = energy(ConjugateGradient(options).solve(Product{A}, {b}).x[0] - x);
      EXPECT_LE(error, 2 * std::pow(rate, j) * energy(x));
      EXPECT_LE(error, previous);
      EXPECT_GT(error, j <= 6 ? 1e-3 * std::pow(rate, j) * energy(x) : 0);
      previous = error;
    }
    EXPECT_LE(previous, 1e-9 * energy(x));
  }
}

TEST(ConjugateGradient, starts_again_where_rounding_hides_the_residual) {
  const auto A = symmetric(at::linspace(1, 300, n)).to(at::kFloat), b = right_side().to(at::kFloat);
  const auto start = 1e3 * at::ones_like(b);
  const Product product{A};
  const auto solution = ConjugateGradient(ConjugateGradientOptions().tolerance(1e-4)).solve(product, {b}, {start});
  EXPECT_TRUE(solution.converged) << solution.remark;
  EXPECT_LE(relative_residual(A, solution.x[0], b), 1.1e-4);
}

TEST(ConjugateGradient, solves_a_singular_system_that_has_a_solution) {
  const auto A = singular(), x = A.mv(right_side());  // without a part in the null space
  const auto solution = ConjugateGradient(ConjugateGradientOptions().tolerance(1e-12)).solve(Product{A}, {A.mv(x)});
  EXPECT_TRUE(solution.converged) << solution.remark;
  expect_near(solution.x[0], x, 1e-10);
}

TEST(ConjugateGradient, returns_the_smallest_residual_where_it_has_to_stop) {
  const Product A{singular()};
  const TensorList b{right_side()};
  const auto stopped = ConjugateGradient().solve(A, b);
  double smallest = 1, last = 1;
  for (int64_t j = 1; j < stopped.products - 1; ++j) {
    last = ConjugateGradient(ConjugateGradientOptions().max_iterations(j)).solve(A, b).residual;
    smallest = std::min(smallest, last);
  }
  EXPECT_LT(smallest, 1);
  EXPECT_LT(smallest, last);
  EXPECT_NEAR(stopped.residual, smallest, 1e-9);
}

TEST(ConjugateGradient, returns_no_worse_than_it_started_from_where_there_is_no_solution) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (const auto type : {at::kDouble, at::kFloat}) {
      SCOPED_TRACE(c10::str("seed ", seed, ", ", type));
      const auto factor = random({n, 4}, seed);
      const auto A = factor.mm(factor.t()).to(type), b = random({n}, 1000 + seed).to(type);
      const auto solution = ConjugateGradient().solve(Product{A}, {b});
      EXPECT_NE(solution.remark.find("A is not positive definite"), std::string::npos) << solution.remark;
      EXPECT_LE(solution.residual, 1.01);
    }
  }
}

TEST(GMRES, minimizes_the_residual_over_the_krylov_space) {
  const auto b = right_side(), start = random({n}, 9);
  for (const auto& A : {nonsymmetric(), indefinite()}) {
    for (const auto& x0 : {at::zeros_like(b), start}) {
      const auto r = b - A.mv(x0);
      for (int64_t j = 1; j <= 6; ++j) {
        const auto solution = GMRES(GMRESOptions().max_iterations(j)).solve(Product{A}, {b}, {x0});
        const auto K = krylov(A, r, j);
        expect_near(solution.x[0], x0 + K.mv(std::get<0>(at::linalg_lstsq(A.mm(K), r.unsqueeze(1))).squeeze(1)), 1e-11);
        EXPECT_EQ(solution.products, j + 2);
      }
    }
  }
}

TEST(GMRES, is_exact_after_as_many_iterations_as_unknowns) {
  for (const auto& A : {nonsymmetric(), indefinite(), shift(), random({n, n}, 4)}) {
    const auto solution = GMRES(GMRESOptions().tolerance(1e-12)).solve(Product{A}, {right_side()});
    EXPECT_TRUE(solution.converged) << solution.remark;
    EXPECT_EQ(solution.products, n + 1);
  }
  const auto first = identity(n)[0];
  const auto late = GMRES(GMRESOptions().max_iterations(n - 1)).solve(Product{shift()}, {first});
  EXPECT_EQ(late.residual, 1);
  const auto stuck = GMRES(GMRESOptions().restart(n - 1)).solve(Product{shift()}, {first});
  EXPECT_EQ(stuck.remark, "the residual 1 falls no more, after 11 iterations");
  expect_near(GMRES().solve(Product{shift()}, {first}).x[0], identity(n)[n - 1], 1e-15);
}

TEST(GMRES, goes_on_after_restarts) {
  const auto A = positive_definite(), b = right_side();
  const Product product{A};
  const auto solution = GMRES(GMRESOptions().restart(3).tolerance(1e-10)).solve(product, {b});
  EXPECT_TRUE(solution.converged) << solution.remark;
  EXPECT_GT(solution.products, n + 1);
  auto x = at::zeros_like(b);  // two cycles by hand
  for (int cycle = 0; cycle < 2; ++cycle) {
    const auto r = b - A.mv(x), K = krylov(A, r, 3);
    x = x + K.mv(std::get<0>(at::linalg_lstsq(A.mm(K), r.unsqueeze(1))).squeeze(1));
  }
  expect_near(GMRES(GMRESOptions().restart(3).max_iterations(6)).solve(product, {b}).x[0], x, 1e-12);
}

TEST(GMRES, stops_where_the_space_ends) {
  const auto Q = orthogonal(), A = symmetric(at::arange(1, n + 1));
  const auto b = Q.select(1, 2) + 2 * Q.select(1, 5) - Q.select(1, 9);  // three eigenvectors
  const auto solution = GMRES(GMRESOptions().tolerance(unreachable).max_iterations(3)).solve(Product{A}, {b});
  EXPECT_LT(solution.residual, 1e-13);
  EXPECT_EQ(GMRES(GMRESOptions().tolerance(1e-13)).solve(Product{A}, {b}).products, 4);
}

TEST(GMRES, keeps_its_basis_orthogonal_where_the_product_cancels) {
  const auto A = identity(n) + 1e-7 * random({n, n}, 2);
  TensorList basis;
  const MatVec recorded = [&](const TensorList& v) -> TensorList {
    basis.push_back(v[0]);
    return {A.mv(v[0])};
  };
  GMRES(GMRESOptions().tolerance(unreachable).max_iterations(4)).solve(recorded, {right_side()});
  basis.pop_back();  // the residual
  ASSERT_EQ(basis.size(), 4);
  const auto V = at::stack(basis, 1);
  EXPECT_LE((V.t().mm(V) - identity(4)).abs().max().item<double>(), 1e-14);
}

TEST(GMRES, finds_least_squares_where_there_is_no_solution) {
  const auto A = singular(), b = right_side();
  const auto solution = GMRES().solve(Product{A}, {b});
  EXPECT_FALSE(solution.converged);
  EXPECT_LE(size(A.mv(b - A.mv(solution.x[0]))), 1e-11 * size(b));
  const auto null = orthogonal().select(1, 0);
  EXPECT_NEAR(solution.residual, std::abs(at::dot(null, b).item<double>()) / size(b), 1e-12);

  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (const auto type : {at::kDouble, at::kFloat}) {
      SCOPED_TRACE(c10::str("seed ", seed, ", ", type));
      const auto factor = random({n, 4}, seed), c = random({n}, 1000 + seed);
      const auto least = GMRES().solve(Product{factor.mm(factor.t()).to(type)}, {c.to(type)});
      EXPECT_NE(least.remark.find("A is singular"), std::string::npos) << least.remark;
      const auto x = std::get<0>(at::linalg_lstsq(factor.mm(factor.t()), c.unsqueeze(1), 1e-10, "gelsd")).squeeze(1);
      const double expected = size(c - factor.mm(factor.t()).mv(x)) / size(c);
      EXPECT_NEAR(least.residual, expected, type == at::kDouble ? 1e-10 : 1e-3);
      EXPECT_LE(size(least.x[0]), 1e3 * size(x));
    }
  }

  const auto consistent = GMRES(GMRESOptions().tolerance(1e-12)).solve(Product{A}, {A.mv(b)});
  EXPECT_TRUE(consistent.converged) << consistent.remark;

  const auto nilpotent = numbers({0, 1, 0, 0}).view({2, 2});
  const auto stuck = GMRES().solve(Product{nilpotent}, {numbers({1, 0})});  // A b = 0, although A (0, 1) = b
  EXPECT_FALSE(stuck.converged);
  EXPECT_EQ(stuck.residual, 1);
  EXPECT_NE(stuck.remark.find("A is singular"), std::string::npos) << stuck.remark;
}

TEST(Neumann, is_the_truncated_series) {
  const auto eigenvalues = at::linspace(0.5, 3, n, at::kDouble), b = right_side(), start = random({n}, 9);
  const auto exact = b / eigenvalues;
  for (const double alpha : {0.1, 0.5}) {
    for (const int64_t terms : {0, 1, 5, 30}) {
      const Neumann solver(NeumannOptions(terms).alpha(alpha).tolerance(unreachable));
      const auto damp = (1 - alpha * eigenvalues).pow(terms + 1);
      const auto solution = solver.solve(Product{eigenvalues.diag()}, {b});
      expect_near(solution.x[0], exact * (1 - damp), 1e-14);
      EXPECT_NEAR(solution.residual, size(damp * b) / size(b), 1e-15);
      EXPECT_EQ(solution.products, terms + 1);

      const auto continued = solver.solve(Product{eigenvalues.diag()}, {b}, {start});
      expect_near(continued.x[0], exact + damp * (start - exact), 1e-14);
      EXPECT_EQ(continued.products, terms + 2);
    }
  }
}

TEST(Neumann, takes_the_step_from_the_power_method) {
  const auto A = positive_definite(), b = right_side();
  for (const int64_t iterations : {1, 4, 200}) {
    double largest = 0;
    auto v = b;
    for (int64_t k = 0; k < iterations; ++k) {
      v = v / size(v);
      v = A.mv(v);
      largest = std::max(largest, size(v));
    }
    const auto options = NeumannOptions(7).power_iterations(iterations);
    const auto solution = Neumann(options).solve(Product{A}, {b});
    const auto expected = Neumann(NeumannOptions(7).alpha(1 / largest)).solve(Product{A}, {b});
    expect_near(solution.x[0], expected.x[0], 1e-12);
    EXPECT_EQ(solution.products, iterations + 8);
    EXPECT_NEAR(largest, 10, iterations == 200 ? 1e-8 : 5);
  }
}

TEST(Neumann, stops_at_the_tolerance_and_where_it_diverges) {
  const auto A = diagonal(), b = right_side();
  const auto reached = Neumann(NeumannOptions(1000).alpha(0.5).tolerance(1e-6)).solve(Product{A}, {b});
  EXPECT_TRUE(reached.converged);
  EXPECT_LT(reached.products, 100);
  const auto one_less = Neumann(NeumannOptions(reached.products - 2).alpha(0.5).tolerance(1e-6)).solve(Product{A}, {b});
  EXPECT_FALSE(one_less.converged);

  const auto diverged = Neumann(NeumannOptions(1000).alpha(0.8)).solve(Product{A}, {b});  // |1 - 0.8 * 3| = 1.4
  EXPECT_LT(diverged.products, 20);
  EXPECT_LE(diverged.residual, 1);
}

TEST(Nystrom, is_the_formula_of_the_columns_it_draws) {
  const auto A = positive_definite(), b = right_side(), start = random({n}, 9);
  const double rho = 0.3;
  for (const int64_t rank : {1, 4, 11, 12, 20}) {
    const Product product{A, splits[1]};
    TensorList asked;
    const MatVec recorded = [&](const TensorList& v) {
      asked.push_back(joined(v));
      return product(v);
    };
    const auto solution = Nystrom(NystromOptions(rank).rho(rho)).solve(recorded, split(b, splits[1]));
    EXPECT_EQ(solution.products, std::min(rank, n) + 1);
    asked.pop_back();  // the residual
    const auto E = at::stack(asked, 1);
    ASSERT_TRUE(at::equal(E.t().mm(E), identity(std::min(rank, n))));  // different columns
    const auto C = A.mm(E);
    const auto approximation = C.mm(at::linalg_pinv(E.t().mm(C))).mm(C.t()) + rho * identity(n);
    expect_near(joined(solution.x), at::linalg_solve(approximation, b), 1e-12);

    const auto r = b - A.mv(start) - rho * start;
    const auto continued = Nystrom(NystromOptions(rank).rho(rho)).solve(Product{A}, {b}, {start});
    expect_near(continued.x[0], start + at::linalg_solve(approximation, r), 1e-12);
    EXPECT_EQ(continued.products, std::min(rank, n) + 2);
  }
}

TEST(Nystrom, is_exact_for_low_rank) {
  const auto factor = random({n, 3}, 11), b = right_side();
  for (const auto type : {at::kDouble, at::kFloat}) {
    const bool precise = type == at::kDouble;
    const auto A = factor.mm(factor.t());
    for (const int64_t rank : {3, 5, 12}) {
      const auto options = NystromOptions(rank).rho(0.1).tolerance(precise ? 1e-11 : 1e-3);
      const auto solution = Nystrom(options).solve(Product{A.to(type)}, {b.to(type)});
      EXPECT_TRUE(solution.converged) << solution.remark;
      expect_near(solution.x[0], at::linalg_solve(A + 0.1 * identity(n), b), precise ? 1e-11 : 1e-3);
    }
  }
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto narrow = random({n, 2}, seed);
    const auto solver = Nystrom(NystromOptions(8).seed(seed).rho(1e-3).tolerance(1e-9));
    const auto solution = solver.solve(Product{narrow.mm(narrow.t())}, {b});
    EXPECT_TRUE(solution.converged) << solution.remark;
  }
  const auto nothing = Nystrom(NystromOptions().rho(0.1)).solve(Product{at::zeros({n, n}, at::kDouble)}, {b});
  EXPECT_TRUE(nothing.converged);
  expect_near(nothing.x[0], b / 0.1, 1e-15);
}

TEST(Nystrom, draws_the_same_columns_for_the_same_seed) {
  const auto A = positive_definite(), b = right_side();
  const auto x = [&](uint64_t seed) { return Nystrom(NystromOptions(4).seed(seed)).solve(Product{A}, {b}).x[0]; };
  EXPECT_TRUE(at::equal(x(0), x(0)));
  EXPECT_FALSE(at::equal(x(0), x(1)));
}

TEST(Identity, is_the_right_side_and_costs_nothing) {
  const Product A{positive_definite()};
  const auto b = right_side();
  const auto solution = Identity().solve(A, {b}, {at::ones_like(b)});
  gimli::expect_equal(solution.x, {b});
  EXPECT_EQ(*A.calls, 0);
  EXPECT_EQ(solution.products, 0);
  EXPECT_TRUE(std::isnan(solution.residual));
}

}  // namespace
