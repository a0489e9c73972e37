#include "gimli/hypergradient/forward_mode.h"

#include <gtest/gtest.h>

#include "expect.h"
#include "gimli/memory_meter.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/sgd.h"
#include "problem_table.h"

namespace gimli {
namespace {

namespace nn = torch::nn;

const auto f64 = torch::dtype(torch::kDouble);

// w_{t+1} = w_t - lr x (x w_t - y) and the outer loss (q w_T - p)^2 / 2.
TEST(ForwardModeTest, AgreesWithTheClosedFormOfALinearProblem) {
  nn::Linear model(nn::LinearOptions(1, 1).bias(false));
  model->to(torch::kDouble);
  const double x = 1.3, y = 0.7, q = -0.4, p = 2, a = 0.1;
  const int T = 6;
  const auto lr = torch::tensor(a, f64.requires_grad(true));
  const auto square = [&](double input, double target) {
    return (model->forward(torch::full({1, 1}, input, f64)) - target).pow(2).sum() / 2;
  };
  const auto problem = Bilevel(model, optim::Optimizer(optim::SGD(a), model->parameters()).set("lr", lr))
                           .steps(T)
                           .inner([&] { return square(x, y); })
                           .outer([&] { return square(q, p); });
  const auto result = hypergradient(problem, {model->weight, lr}, {}, ForwardMode());

  const double w_0 = model->weight.item<double>(), r = 1 - a * x * x, fixed = y / x;
  const double slope = ((fixed + std::pow(r, T) * (w_0 - fixed)) * q - p) * q;
  EXPECT_NEAR(result.gradients[0].item<double>(), slope * std::pow(r, T), 1e-13);
  EXPECT_NEAR(result.gradients[1].item<double>(), slope * T * std::pow(r, T - 1) * -x * x * (w_0 - fixed), 1e-13);
}

TEST(ForwardModeTest, MemoryDoesNotGrowWithTheNumberOfSteps) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(1);
  const auto peak = [&](int64_t steps) {
    const auto problem = learner.problem({optim::Adam(0.1), learner.module->parameters()}).steps(steps);
    const MemoryMeter meter;
    hypergradient(problem, learner.meta_parameters(), tasks, ForwardMode());
    return meter.peak_bytes();
  };
  EXPECT_EQ(peak(40), peak(4));
}

TEST(ForwardModeTest, ReportsWhatItCost) {
  const auto learner = mlp_learner();
  const auto problem = learner.problem({optim::SGD(0.1), learner.module->parameters()});
  const auto cost = hypergradient(problem, {learner.weights}, learner.tasks(1), ForwardMode()).cost;
  EXPECT_EQ(cost.strategy, "ForwardMode()");
  EXPECT_EQ(cost.inner_steps, 4);
  EXPECT_EQ(cost.outer_evaluations, 1);
  EXPECT_EQ(cost.states_stored, 1 + 6);
  EXPECT_EQ(cost.gradient_evaluations, 4 + 5 * (1 + 6) + 1);
}

TEST(ForwardModeTest, ReachesWhatUnrollReaches) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(1);
  const auto unused = learner.module->register_parameter("unused", torch::ones({2, 2}, f64));
  const auto problem = [&] { return learner.problem({optim::SGD(0.1), learner.module->parameters()}); };
  const auto gradients = hypergradient(problem(), {learner.lr, unused}, tasks, ForwardMode()).gradients;
  EXPECT_TRUE(torch::equal(gradients[1], torch::zeros({2, 2}, f64)));

  expect_error([&] { hypergradient(problem(), {torch::ones({3}, f64.requires_grad(true))}, tasks, ForwardMode()); },
               "the outer loss does not depend on meta-parameter 0 (shape [3]) as ForwardMode() differentiates it");
  expect_error(
      [&] { hypergradient(problem().stop_gradient_before({2}), learner.meta_parameters(), tasks, ForwardMode()); },
      "ForwardMode(): meta-parameter '2.bias' sets the start of the inner loop, which the outer loss does not reach");
}

TEST(ForwardModeTest, WithoutStepsIsTheOuterGradient) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(2);
  const auto metas = learner.module->parameters();
  const auto problem = learner.problem({optim::SGD(0.1), metas}).steps(0);
  const auto result = hypergradient(problem, metas, tasks, ForwardMode());
  expect_equal(result.gradients, hypergradient(problem, metas, tasks).gradients);
}

TEST(ForwardModeTest, BadInputGetsOneSentence) {
  const auto learner = mlp_learner();
  const auto tasks = learner.tasks(1);
  auto problem = learner.problem({optim::SGD(0.1), learner.module->parameters()});
  expect_error([&] { ForwardMode().max_elements(0); }, "ForwardMode::max_elements: expected at least 1, got 0");
  expect_error(
      [&] {
        hypergradient(problem, {learner.lr, learner.weights}, tasks, ForwardMode().max_elements(6));
      },
      "ForwardMode(): the meta-parameters have 7 elements, each of which would be a tangent, and max_elements "
      "is 6; use Replay");
  hypergradient(problem, {learner.lr, learner.weights}, tasks, ForwardMode().max_elements(7));

  const auto buffer = learner.module->register_buffer("mean", torch::zeros({6, 3}, f64));
  auto with_buffer = learner.problem({optim::SGD(0.1), learner.module->parameters()});
  with_buffer.inner([&](const Classification& task) {
    const auto logits = learner.forward(task.x);
    buffer.copy_(logits);
    return (logits.square().sum(1) * learner.weights).mean();
  });
  expect_error([&] { hypergradient(with_buffer, {learner.weights}, tasks, ForwardMode()); },
               "ForwardMode(): step 0 wrote to buffer 'mean' what depends on the weights");
}

}  // namespace
}  // namespace gimli
