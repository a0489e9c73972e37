#include "gimli/hypergradient/finite_difference.h"

#include <gtest/gtest.h>

#include "expect.h"
#include "gimli/memory_meter.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/sgd.h"
#include "problem_table.h"

namespace gimli {
namespace {

namespace nn = torch::nn;
using torch::Tensor;
using torch::autograd::grad;

const auto f64 = torch::dtype(torch::kDouble);

double norm_of(const TensorList& list) {
  double norm = 0;
  for (const auto& tensor : list) norm = std::hypot(norm, tensor.norm().item<double>());
  return norm;
}

TEST(FiniteDifferenceTest, OfAllStepsIsUnrollUpToTheSquareOfEpsilon) {
  for (auto& [name, problem, metas, tasks] : problem_table()) {
    problem.keep_final_states(true);
    const auto expected = hypergradient(problem, metas, tasks);
    const auto result = hypergradient(problem, metas, tasks, FiniteDifference().last(4).epsilon(1e-4));
    for (size_t i = 0; i < metas.size(); ++i) {
      EXPECT_LE(relative_error({result.gradients[i]}, {expected.gradients[i]}), 1e-6) << name << ", " << i;
    }
    EXPECT_TRUE(torch::equal(result.outer_losses, expected.outer_losses)) << name;
    for (size_t i = 0; i < tasks.size(); ++i) {
      expect_equal(result.final_states[i].parameters, expected.final_states[i].parameters);
      expect_equal(result.final_states[i].buffers, expected.final_states[i].buffers);
    }
    const auto error = [&](double epsilon) {
      const auto strategy = FiniteDifference().last(4).epsilon(epsilon);
      return relative_error(hypergradient(problem, metas, tasks, strategy).gradients, expected.gradients);
    };
    EXPECT_NEAR(error(4e-3) / error(2e-3), 4, 0.1) << name;
  }
}

TEST(FiniteDifferenceTest, OfTheLastStepsIsTruncatedUnroll) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(2);
  const auto metas = learner.hyperparameters();
  for (const auto& rule :
       {optim::Optimizer(optim::SGD(optim::SGDOptions(0.1).momentum(0.9)), learner.module->parameters()),
        optim::Optimizer(optim::Adam(0.1), learner.module->parameters())}) {
    for (const int64_t last : {0, 1, 2, 3, 4, 9}) {
      const auto problem = learner.problem(rule).outer_at({4}).outer([&](const Classification& task) {
        return (learner.forward(task.x_query).square().sum(1) * learner.weights).mean() * learner.lr +
               learner.loss_network.ptr()->forward(learner.forward(task.x_query)).sum();
      });
      const auto expected = hypergradient(problem, metas, tasks, Unroll::last(last)).gradients;
      const auto error = [&](double epsilon) {
        const auto strategy = FiniteDifference().last(last).epsilon(epsilon);
        return relative_error(hypergradient(problem, metas, tasks, strategy).gradients, expected);
      };
      EXPECT_LE(error(1e-4), 1e-7) << last;
      if (last == 0) continue;
      EXPECT_NEAR(error(4e-2) / error(2e-2), 4, 0.1) << last;
    }
  }
}

/// A linear model with a squared inner loss: quadratic in its weights.
class QuadraticTest : public testing::Test {
 protected:
  QuadraticTest() : model(3, 2) {
    torch::manual_seed(1);
    model->to(torch::kDouble);
    x = torch::randn({5, 3}, f64);
    y = torch::randn({5, 2}, f64);
    x_query = torch::randn({5, 3}, f64);
    weights = torch::linspace(0.5, 1.5, 5, f64).requires_grad_();
    lr = torch::tensor(0.1, f64.requires_grad(true));
  }

  Tensor inner(int64_t step) {
    return (step + 1) * ((model->forward(x) - y).square().sum(1) * weights.square()).mean();
  }
  Tensor outer() { return model->forward(x_query).tanh().sum(); }

  optim::Optimizer optimizer(bool adam) const {
    auto result = adam ? optim::Optimizer(optim::Adam(0.1), model->parameters())
                       : optim::Optimizer(optim::SGD(0.1), model->parameters());
    return result.set("lr", lr);
  }
  Bilevel problem(const optim::Optimizer& optimizer, int64_t steps) {
    return Bilevel(model, optimizer).steps(steps).inner([this](int64_t step) { return inner(step); }).outer([this] {
      return outer();
    });
  }

  nn::Linear model;
  Tensor x, y, x_query, weights, lr;
};

TEST_F(QuadraticTest, IsExactToRounding) {
  auto metas = model->parameters();
  metas.push_back(lr);
  metas.push_back(weights);
  for (const bool adam : {false, true}) {
    const auto bilevel = problem(optimizer(adam), 3);
    const auto all = hypergradient(bilevel, metas, {}, FiniteDifference().last(3)).gradients;
    EXPECT_LE(relative_error(all, hypergradient(bilevel, metas).gradients), 1e-12);
    const auto last = hypergradient(bilevel, {lr, weights}, {}, FiniteDifference()).gradients;
    EXPECT_LE(relative_error(last, hypergradient(bilevel, {lr, weights}, {}, Unroll::last(1)).gradients), 1e-12);
  }
}

// Equations 7 and 8 of Liu et al. 2019: -xi [dL/da (w+) - dL/da (w-)] / (2 eps), w+- = w +- eps lambda,
// eps = 0.01 / |lambda|, lambda the gradient of the validation loss at w - xi dL/dw.
TEST(FiniteDifferenceTest, WithSgdAndOneStepIsDarts) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(1);
  const auto parameters = learner.module->parameters();
  const auto problem = learner.problem({optim::SGD(0.1), parameters}).steps(1);
  const auto result = hypergradient(problem, {learner.weights}, tasks, FiniteDifference());

  const double xi = 0.1;
  auto loop = problem.start(Graph::none);
  const auto w = loop.parameters();
  problem.step(loop, TaskRef::to(tasks[0]));
  const auto lambda = grad({problem.outer(loop, TaskRef::to(tasks[0])).loss}, loop.parameters());
  const double eps = 0.01 / norm_of(lambda);
  const auto at = [&](double sign) {
    auto branch = problem.start(Graph::none);
    auto state = branch.state();
    for (size_t i = 0; i < w.size(); ++i) state.parameters[i] = w[i] + sign * eps * lambda[i];
    branch.set_state(state);
    return grad({problem.loss(branch, TaskRef::to(tasks[0]))}, {learner.weights})[0];
  };
  const auto expected = -xi * (at(1) - at(-1)) / (2 * eps);
  EXPECT_LE(relative_error({result.gradients[0]}, {expected}), 1e-12);
}

// -(d^2 loss / dphi dw)(w_T) P lambda with P = du/dg of the last update u: lr for SGD, and for Adam, by the quotient
// rule with D = sqrt(v / (1 - beta2^t)) + eps,
//   lr ((1 - beta1) / (1 - beta1^t) / D - m / (1 - beta1^t) (1 - beta2) g / (sqrt(v (1 - beta2^t)) D^2)).
TEST_F(QuadraticTest, SamaIsItsDefinition) {
  for (const bool adam : {false, true}) {
    for (const int t : {1, 3}) {
      const auto bilevel = problem(optimizer(adam), t);
      const auto result = hypergradient(bilevel, {weights, lr}, {}, FiniteDifference::sama());

      auto loop = bilevel.start(Graph::none);
      for (int k = 0; k < t - 1; ++k) bilevel.step(loop, {});
      const auto before = loop.parameters();
      const auto g = loop.gradients(loop.run([&] { return inner(t - 1); }));
      bilevel.step(loop, {});
      const auto lambda = grad({bilevel.outer(loop, {}).loss}, loop.parameters());
      const auto at_end = grad({loop.run([&] { return inner(t - 1); })}, loop.parameters(), {}, true, true);
      auto mixed = torch::zeros({}, f64), of_lr = torch::zeros({}, f64);
      for (size_t i = 0; i < g.size(); ++i) {
        auto P = torch::full_like(g[i], 0.1);
        if (adam) {
          const auto &m = loop.state().optimizer[i].slots[0], &v = loop.state().optimizer[i].slots[1];
          const double b1 = 1 - std::pow(0.9, t), b2 = 1 - std::pow(0.999, t);
          const auto D = (v / b2).sqrt() + 1e-8;
          P = 0.1 * ((1 - 0.9) / b1 / D - m / b1 * (1 - 0.999) * g[i] / ((v * b2).sqrt() * D.square()));
        }
        mixed = mixed - (at_end[i] * (P * lambda[i]).detach()).sum();
        of_lr = of_lr + (lambda[i] * (loop.parameters()[i] - before[i]) / 0.1).sum();
      }
      EXPECT_LE(relative_error({result.gradients[0]}, {grad({mixed}, {weights})[0]}), adam && t == 1 ? 1e-6 : 1e-10)
          << adam << t;
      EXPECT_LE(relative_error({result.gradients[1]}, {of_lr.detach()}), 1e-12) << adam << t;
    }
  }
}

TEST(FiniteDifferenceTest, ThreadsChangeNoBit) {
  for (const auto& [name, problem, metas, tasks] : problem_table()) {
    const auto strategy = FiniteDifference().last(4);
    const auto expected = hypergradient(problem, metas, tasks, strategy);
    expect_equal(hypergradient(problem, metas, tasks, strategy, Threads(2)).gradients, expected.gradients);
  }
}

TEST_F(QuadraticTest, AStationaryOuterLossHasGradientZero) {
  auto bilevel = problem(optimizer(false), 2);
  bilevel.outer([&] { return 0 * outer(); });
  const auto result = hypergradient(bilevel, {weights}, {}, FiniteDifference());
  EXPECT_TRUE(torch::equal(result.gradients[0], torch::zeros({5}, f64)));
}

TEST(FiniteDifferenceTest, MemoryAndCostsDoNotGrowWithTheStepsBefore) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(1);
  const auto run = [&](int64_t steps, const FiniteDifference& strategy) {
    const auto problem = learner.problem({optim::Adam(0.1), learner.module->parameters()}).steps(steps);
    const MemoryMeter meter;
    const auto cost = hypergradient(problem, learner.hyperparameters(), tasks, strategy).cost;
    return std::pair(cost, meter.peak_bytes());
  };
  for (const auto& strategy : {FiniteDifference(), FiniteDifference::sama(), FiniteDifference().last(3)}) {
    const auto [few, few_bytes] = run(6, strategy);
    const auto [many, many_bytes] = run(60, strategy);
    EXPECT_EQ(many_bytes, few_bytes);
    EXPECT_EQ(many.inner_steps, 60);
    EXPECT_EQ(many.gradient_evaluations - many.inner_steps, few.gradient_evaluations - few.inner_steps);
    EXPECT_EQ(many.states_stored, few.states_stored);
  }
  const auto cost = run(6, FiniteDifference().last(3)).first;
  EXPECT_EQ(cost.gradient_evaluations, 6 + 2 * 3 + 1);
  EXPECT_EQ(cost.states_stored, 4);
  EXPECT_EQ(cost.strategy, "FiniteDifference().last(3)");
}

TEST(FiniteDifferenceTest, WithoutStepsIsTheOuterGradient) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(2);
  const auto metas = learner.module->parameters();
  const auto problem = learner.problem({optim::SGD(0.1), metas}).steps(0);
  const auto result = hypergradient(problem, metas, tasks, FiniteDifference());
  expect_equal(result.gradients, hypergradient(problem, metas, tasks).gradients);
}

TEST(FiniteDifferenceTest, BadInputGetsOneSentence) {
  expect_error([] { FiniteDifference().last(-1); }, "FiniteDifference::last: expected at least 0 steps, got -1");
  expect_error([] { FiniteDifference::sama().last(2); }, "sama() differentiates the last step alone, got 2");
  for (const double epsilon : {0., -1., std::nan(""), HUGE_VAL}) {
    expect_error([&] { FiniteDifference().epsilon(epsilon); }, "FiniteDifference::epsilon: expected a positive number");
  }

  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(1);
  const auto problem = [&] { return learner.problem({optim::SGD(0.1), learner.module->parameters()}); };
  expect_error([&] { hypergradient(problem(), learner.meta_parameters(), tasks, FiniteDifference()); },
               "FiniteDifference(): meta-parameter '2.bias' sets the start of the inner loop");
  expect_error([&] { hypergradient(problem(), learner.meta_parameters(), tasks, FiniteDifference::sama()); },
               "FiniteDifference::sama(): meta-parameter '2.bias' sets the start of the inner loop");
  expect_error(
      [&] {
        hypergradient(problem().outer_at({2, 4}), {learner.lr}, tasks, FiniteDifference());
      },
      "FiniteDifference(): the outer loss after step 2 lies before what is differentiated");

  const auto buffer = learner.module->register_buffer("mean", torch::zeros({6, 3}, f64));
  auto with_buffer = problem();
  with_buffer.inner([&](const Classification& task) {
    const auto logits = learner.forward(task.x);
    buffer.copy_(logits);
    return (logits.square().sum(1) * learner.weights).mean();
  });
  expect_error([&] { hypergradient(with_buffer, {learner.weights}, tasks, FiniteDifference()); },
               "FiniteDifference(): step 3 wrote to buffer 'mean' what depends on the weights");
}

}  // namespace
}  // namespace gimli
