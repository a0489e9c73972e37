#include "gimli/hypergradient/implicit.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "expect.h"
#include "gimli/gimli.h"

namespace gimli {
namespace {

namespace nn = torch::nn;
using torch::Tensor;

const auto f64 = torch::dtype(torch::kDouble);

/// Inner loss w^T A w / 2 - w^T B phi for w in R^4, outer loss |w - target|^2 / 2: with w* = A^-1 B phi, dL/dphi is
/// B^T A^-1 (w* - target).
class ImplicitTest : public testing::Test {
 protected:
  ImplicitTest() : model(nn::LinearOptions(4, 1).bias(false)) {
    torch::manual_seed(2);
    model->to(torch::kDouble);
    const auto q = std::get<0>(torch::linalg_qr(torch::randn({4, 4}, f64)));
    A = q.matmul(torch::diag(torch::tensor({1., 0.7, 0.4, 0.3}, f64))).matmul(q.t());
    B = torch::randn({4, 3}, f64);
    target = torch::randn({4}, f64);
    phi = torch::randn({3}, f64.requires_grad(true));
    w0 = model->weight.detach().flatten().clone();
  }

  Bilevel problem(int64_t steps = 150, optim::SGDOptions options = optim::SGDOptions(1.)) const {
    return Bilevel(model, optim::Optimizer(optim::SGD(options), model->parameters()))
        .steps(steps)
        .inner([this] {
          const auto w = model->weight.flatten();
          return w.dot(A.matmul(w)) / 2 - w.dot(B.matmul(phi));
        })
        .outer([this] { return (model->weight.flatten() - target).square().sum() / 2; });
  }

  /// B^T (A + damping I)^-1 (w* - target).
  Tensor closed_form(double damping = 0) const {
    const auto residual = torch::linalg_solve(A, B.matmul(phi.detach())) - target;
    return B.t().matmul(torch::linalg_solve(A + damping * torch::eye(4, f64), residual));
  }

  static double error(const Tensor& actual, const Tensor& expected) {
    return ((actual.flatten() - expected.flatten()).norm() / expected.norm()).item<double>();
  }

  nn::Linear model;
  Tensor A, B, target, phi, w0;
};

TEST_F(ImplicitTest, IsTheClosedFormOfAQuadraticProblem) {
  const auto check = [&](const Implicit& strategy, const Tensor& expected, double bound) {
    const auto result = hypergradient(problem(), {phi}, {}, strategy);
    EXPECT_LT(error(result.gradients[0], expected), bound) << strategy.name();
    EXPECT_LT(result.cost.stationarity, 1e-14) << strategy.name();
    return result.cost;
  };
  const auto tight = ConjugateGradient(ConjugateGradientOptions().tolerance(1e-13));
  const auto cost = check(Implicit(tight), closed_form(), 1e-12);
  EXPECT_LE(cost.solver_products, 6);
  EXPECT_LE(cost.solver_residual, 1e-13);
  EXPECT_EQ(cost.solver_remark, "");
  EXPECT_EQ(cost.strategy, "Implicit(ConjugateGradient)");
  check(Implicit(GMRES(GMRESOptions().tolerance(1e-13))), closed_form(), 1e-12);
  check(Implicit(Neumann(NeumannOptions(200).alpha(1).tolerance(1e-13))), closed_form(), 1e-11);
  check(Implicit(Nystrom(NystromOptions(4).rho(0.1))), closed_form(0.1), 1e-11);
  check(Implicit(tight).damping(0.25), closed_form(0.25), 1e-12);
  const auto identity = B.t().matmul(torch::linalg_solve(A, B.matmul(phi.detach())) - target);
  EXPECT_TRUE(std::isnan(check(Implicit(Identity()), identity, 1e-12).solver_residual));
}

TEST_F(ImplicitTest, IsTheLimitOfUnrolling) {
  const auto unrolled = hypergradient(problem(), {phi}).gradients[0];
  EXPECT_LT(error(unrolled, closed_form()), 1e-12);
  const auto momentum = problem(400, optim::SGDOptions(0.3).momentum(0.6));
  EXPECT_LT(error(hypergradient(momentum, {phi}, {}, Implicit(GMRES(GMRESOptions().tolerance(1e-13)))).gradients[0],
                  closed_form()),
            1e-11);
}

// With j terms the error is A^-1 (I - alpha A)^(j + 1) b: on the whole as |I - alpha A|^(j + 1).
TEST_F(ImplicitTest, NeumannsErrorFallsAsTheSeriesSays) {
  const double alpha = 0.8;
  const auto b = torch::linalg_solve(A, B.matmul(phi.detach())) - target;
  for (const int64_t terms : {0, 1, 2, 4, 8, 16, 32}) {
    const auto result =
        hypergradient(problem(), {phi}, {}, Implicit(Neumann(NeumannOptions(terms).alpha(alpha).tolerance(1e-15))));
    const auto missed = torch::linalg_matrix_power(torch::eye(4, f64) - alpha * A, terms + 1).matmul(b);
    const auto expected = B.t().matmul(torch::linalg_solve(A, missed));
    EXPECT_LT((closed_form() - result.gradients[0] - expected).norm().item<double>(), 1e-12) << terms;
    EXPECT_LE((closed_form() - result.gradients[0]).norm().item<double>(),
              std::pow(1 - alpha * 0.3, terms + 1) * (B.norm() * b.norm() / 0.3).item<double>());
  }
}

// iMAML: w* = (A + lambda)^-1 (B phi + lambda w_0), so dL/dw_0 = lambda (A + lambda)^-1 (w* - target), and
// dL/dlambda = (w* - target)^T (A + lambda)^-1 (w_0 - w*).
TEST_F(ImplicitTest, ReachesInitialWeightsAndStrengthThroughAProximalTerm) {
  const auto strength = torch::tensor(0.5, f64.requires_grad(true));
  const auto bilevel = problem(150, optim::SGDOptions(0.8)).proximal(strength);
  const auto result = hypergradient(bilevel, {model->weight, phi, strength}, {},
                                    Implicit(ConjugateGradient(ConjugateGradientOptions().tolerance(1e-13))));
  const auto regularised = A + 0.5 * torch::eye(4, f64);
  const auto w = torch::linalg_solve(regularised, B.matmul(phi.detach()) + 0.5 * w0);
  const auto x = torch::linalg_solve(regularised, w - target);
  EXPECT_LT(error(result.gradients[0], 0.5 * x), 1e-12);
  EXPECT_LT(error(result.gradients[1], B.t().matmul(x)), 1e-12);
  EXPECT_LT(error(result.gradients[2], x.dot(w0 - w).reshape(1)), 1e-12);
}

// F = M grad L for an M that is not symmetric has the same zeros.
TEST_F(ImplicitTest, GmresServesWhatIsNotSymmetricAndConjugateGradientsSayThatTheyDoNot) {
  const auto M = torch::eye(4, f64) + 0.6 * torch::triu(torch::ones({4, 4}, f64), 1);
  const auto bilevel =
      problem(600, optim::SGDOptions(0.2)).gradient_transform([M](TensorList gradients, const TensorList&, int64_t) {
        for (auto& gradient : gradients) gradient = M.matmul(gradient.flatten()).reshape_as(gradient);
        return gradients;
      });
  const auto result = hypergradient(bilevel, {phi}, {}, Implicit(GMRES(GMRESOptions().tolerance(1e-13))));
  EXPECT_LT(error(result.gradients[0], closed_form()), 1e-10);
  const auto wrong =
      hypergradient(bilevel, {phi}, {}, Implicit(ConjugateGradient(ConjugateGradientOptions().tolerance(1e-8))));
  EXPECT_GT(wrong.cost.solver_residual, 1e-8);
  EXPECT_NE(wrong.cost.solver_remark, "");
}

TEST_F(ImplicitTest, SaysWhereTheInnerLossIsNotConvex) {
  const auto indefinite = A - 0.5 * torch::eye(4, f64);
  auto saddle = problem(0);
  saddle.inner([&, indefinite] {
    const auto w = model->weight.flatten();
    return w.dot(indefinite.matmul(w)) / 2 - w.dot(B.matmul(phi));
  });
  {
    const torch::NoGradGuard no_gradient;
    model->weight.copy_(torch::linalg_solve(indefinite, B.matmul(phi)).reshape({1, 4}));
  }
  const auto expected = B.t().matmul(torch::linalg_solve(indefinite, model->weight.detach().flatten() - target));
  const auto result = hypergradient(saddle, {phi}, {}, Implicit(GMRES(GMRESOptions().tolerance(1e-13))));
  EXPECT_LT(error(result.gradients[0], expected), 1e-11);
  const auto wrong = hypergradient(saddle, {phi}, {}, Implicit());
  EXPECT_NE(wrong.cost.solver_remark.find("not positive definite"), std::string::npos) << wrong.cost.solver_remark;
}

TEST_F(ImplicitTest, StartsFromEarlierSolutions) {
  const auto strategy = Implicit(ConjugateGradient(ConjugateGradientOptions().tolerance(1e-10)));
  const auto first = hypergradient(problem(), {phi}, {}, strategy);
  const auto second = hypergradient(problem(), {phi}, {}, Implicit(strategy).start_from(first.solutions));
  EXPECT_LE(second.cost.solver_products, 1);
  expect_equal(second.gradients, first.gradients);
  expect_error([&] { hypergradient(problem(), {phi}, {}, Implicit(strategy).start_from({{torch::ones({2}, f64)}})); },
               "[2]");
}

TEST_F(ImplicitTest, WhatTheInnerLossDoesNotUseStaysWhereItStarts) {
  const auto scale = model->register_parameter("scale", torch::tensor(1.5, f64));
  const auto idle = model->register_parameter("idle", torch::tensor(2., f64));
  auto bilevel = Bilevel(model, optim::Optimizer(optim::SGD(1.), model->parameters()))
                     .steps(150)
                     .inner([&] {
                       const auto w = model->weight.flatten();
                       return w.dot(A.matmul(w)) / 2 - w.dot(B.matmul(phi));
                     })
                     .outer([&] { return (scale * model->weight.flatten() - target).square().sum() / 2; });
  const auto result = hypergradient(bilevel, {phi, scale, idle}, {}, Implicit());
  const auto expected = hypergradient(bilevel, {phi, scale, idle});
  EXPECT_LT(error(result.gradients[0], expected.gradients[0]), 1e-4);
  EXPECT_LT(error(result.gradients[1].reshape(1), expected.gradients[1].reshape(1)), 1e-12);
  EXPECT_EQ(result.gradients[2].item<double>(), 0);
}

TEST_F(ImplicitTest, MemoryDoesNotGrowWithSteps) {
  const auto peak = [&](int64_t steps) {
    const MemoryMeter meter;
    const auto result = hypergradient(problem(steps), {phi}, {}, Implicit());
    return meter.peak_bytes();
  };
  EXPECT_EQ(peak(10), peak(500));
}

TEST_F(ImplicitTest, WhatItCannotServeIsRefused) {
  const auto lr = torch::tensor(0.5, f64.requires_grad(true));
  const auto with_lr = [&] {
    return Bilevel(model, optim::Optimizer(optim::SGD(1.), model->parameters()).set("lr", lr))
        .steps(3)
        .inner([&] { return model->weight.square().sum(); })
        .outer([&] { return model->weight.sum(); });
  }();
  expect_error([&] { hypergradient(with_lr, {lr}, {}, Implicit()); },
               "does not depend on meta-parameter 0 (shape []) as Implicit");
  expect_error([&] { hypergradient(problem(), model->parameters(), {}, Implicit()); },
               "Implicit(ConjugateGradient): meta-parameter 'weight' sets the start of the inner loop");
  expect_error(
      [&] {
        hypergradient(problem(5).outer_at({2, 5}), {phi}, {}, Implicit());
      },
      "the outer loss after step 2 lies before what is differentiated");
  expect_error([&] { hypergradient(problem(5, optim::SGDOptions(0.1).weight_decay(0.1)), {phi}, {}, Implicit()); },
               "SGD's weight_decay moves its fixed point");
  expect_error([&] { hypergradient(problem(5).stop_gradient_before({2}), {phi}, {}, Implicit()); },
               "the gradient is to stop between steps, but this one does not go through steps");
  auto empty =
      Bilevel(model, optim::Optimizer(optim::SGD(1.), model->parameters())).steps(0).outer([&] { return phi.sum(); });
  expect_error([&] { hypergradient(empty, {phi}, {}, Implicit()); }, "without an inner loss nothing is stationary");
  const auto memory = model->register_buffer("memory", torch::zeros({4}, f64));
  auto carrying = problem(3);
  carrying.inner([&] {
    const auto w = model->weight.flatten();
    memory.copy_(w);
    return w.dot(A.matmul(w)) / 2 - w.dot(B.matmul(phi));
  });
  expect_error([&] { hypergradient(carrying, {phi}, {}, Implicit()); }, "wrote to buffer 'memory'");
  expect_error([&] { Implicit().damping(-1); }, "Implicit::damping: expected at least 0, got -1");
}

}  // namespace
}  // namespace gimli
