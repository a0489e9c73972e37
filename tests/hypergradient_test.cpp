#include "gimli/hypergradient.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <random>
#include <thread>

#include "expect.h"
#include "gimli/gimli.h"

namespace gimli {
namespace {

namespace nn = torch::nn;
using torch::Tensor;

const auto f64 = torch::dtype(torch::kDouble);

struct Regression {
  Tensor x, y, x_query, y_query;
};

std::vector<Regression> make_tasks(int count) {
  std::vector<Regression> tasks;
  for (int i = 0; i < count; ++i) {
    tasks.push_back(
        {torch::randn({6, 3}, f64), torch::randn({6, 2}, f64), torch::randn({6, 3}, f64), torch::randn({6, 2}, f64)});
  }
  return tasks;
}

class HypergradientTest : public testing::Test {
 protected:
  HypergradientTest() {
    torch::manual_seed(5);
    model = nn::Sequential(nn::Linear(3, 5), nn::Tanh(), nn::Linear(5, 2));
    model->to(torch::kDouble);
    tasks = make_tasks(3);
    lr = torch::tensor(0.1, f64.requires_grad(true));
    weights = torch::full({6}, 1., f64).requires_grad_();
  }

  /// Everything a problem can be differentiated in: initial weights, a learning rate, weights of examples.
  TensorList metas() const {
    auto list = model->parameters();
    list.push_back(lr);
    list.push_back(weights);
    return list;
  }

  template <class Rule>
  Bilevel problem(Rule rule) const {
    return Bilevel(model, optim::Optimizer(rule, model->parameters()).set("lr", lr))
        .steps(4)
        .inner([this](const Regression& task) {
          return ((model.ptr()->forward(task.x) - task.y).pow(2).sum(1) * weights).mean();
        })
        .outer([this](const Regression& task) {
          return torch::mse_loss(model.ptr()->forward(task.x_query), task.y_query);
        });
  }
  Bilevel problem() const { return problem(optim::SGD(optim::SGDOptions(0.1).momentum(0.9))); }

  nn::Sequential model;
  std::vector<Regression> tasks;
  Tensor lr, weights;
};

TEST_F(HypergradientTest, AgreesWithCentralDifferences) {
  const auto check = [&](const Bilevel& bilevel, const Strategy& strategy = Unroll()) {
    const auto report = gradcheck(bilevel, metas(), tasks, strategy);
    EXPECT_TRUE(report) << report.message;
  };
  check(problem());
  check(problem(optim::Adam(optim::AdamOptions(0.1))));
  check(problem().outer_at({0, 2, 4}));
  check(problem().gradient_transform(optim::clip_by_norm(0.5)));
  check(problem(), Unroll::last(4));
  check(problem(), Unroll::last(9));
}

TEST_F(HypergradientTest, IsTheBackwardPassOfTheImperativeLoop) {
  const auto bilevel = problem().outer_at({2, 4});
  const auto result = hypergradient(bilevel, metas(), tasks);
  auto total = torch::zeros({}, f64);
  for (const auto& task : tasks) {
    auto optimizer = optim::Optimizer(optim::SGD(optim::SGDOptions(0.1).momentum(0.9)), model->parameters());
    InnerLoop inner(model, optimizer.set("lr", lr));
    for (int k = 0; k < 4; ++k) {
      inner.step([&] { return ((model->forward(task.x) - task.y).pow(2).sum(1) * weights).mean(); });
      if (k % 2) total = total + inner.run([&] { return torch::mse_loss(model->forward(task.x_query), task.y_query); });
    }
  }
  total = total / 3;
  const auto expected = torch::autograd::grad({total}, metas());
  EXPECT_TRUE(torch::allclose(result.outer_loss, total, 1e-13, 0));
  EXPECT_EQ(result.outer_losses.numel(), 3);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(torch::allclose(result.gradients[i], expected[i], 1e-12, 1e-15)) << i;
  }
  EXPECT_EQ(result.cost.inner_steps, 12);
  EXPECT_EQ(result.cost.gradient_evaluations, 15);
  EXPECT_EQ(result.cost.states_stored, 5);
  EXPECT_EQ(result.cost.strategy, "Unroll()");
}

// Line 12 to 14 of Algorithm 1 for one weight w, loss (w x - y)^2 / 2 and SGD: w_{t+1} = w_t - lr x (w_t x - y).
TEST_F(HypergradientTest, AgreesWithTheClosedFormOfALinearProblem) {
  nn::Linear m(nn::LinearOptions(1, 1).bias(false));
  m->to(torch::kDouble);
  const double x = 1.3, y = 0.7, xq = -0.4, yq = 2, a = 0.1;
  const int T = 6;
  const auto bilevel = Bilevel(m, optim::Optimizer(optim::SGD(a), m->parameters()).set("lr", lr))
                           .steps(T)
                           .inner([&] {
                             return (m->forward(torch::full({1, 1}, x, f64)) - y).pow(2).sum() / 2;
                           })
                           .outer([&] {
                             return (m->forward(torch::full({1, 1}, xq, f64)) - yq).pow(2).sum() / 2;
                           });
  const auto result = hypergradient(bilevel, {m->weight, lr});

  const double w0 = m->weight.item<double>(), r = 1 - a * x * x, fixed = y / x;
  const double wT = fixed + std::pow(r, T) * (w0 - fixed);
  const double outer = (wT * xq - yq) * xq;
  EXPECT_NEAR(result.outer_loss.item<double>(), std::pow(wT * xq - yq, 2) / 2, 1e-13);
  EXPECT_NEAR(result.gradients[0].item<double>(), outer * std::pow(r, T), 1e-13);
  EXPECT_NEAR(result.gradients[1].item<double>(), outer * T * std::pow(r, T - 1) * -x * x * (w0 - fixed), 1e-13);
}

TEST_F(HypergradientTest, FirstOrderIsTheOuterGradientAtTheAdaptedWeights) {
  const auto result = hypergradient(problem(optim::SGD(0.1)), model->parameters(), tasks, Unroll::first_order());
  TensorList expected(model->parameters().size());
  for (const auto& task : tasks) {
    InnerLoop inner(model, optim::Optimizer(optim::SGD(0.1), model->parameters()),
                    InnerLoopOptions().graph(Graph::none));
    for (int k = 0; k < 4; ++k) {
      inner.step([&] { return (model->forward(task.x) - task.y).pow(2).sum(1).mean(); });
    }
    expected = sum(
        std::move(expected),
        torch::autograd::grad({inner.run([&] { return torch::mse_loss(model->forward(task.x_query), task.y_query); })},
                              inner.parameters()));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(torch::allclose(result.gradients[i], expected[i] / 3, 1e-12, 1e-15)) << i;
  }
}

TEST_F(HypergradientTest, TruncationCutsWhereTheProblemCouldTheSame) {
  const auto truncated = hypergradient(problem(), {lr, weights}, tasks, Unroll::last(3));
  const auto stopped = hypergradient(problem().stop_gradient_before({1}), {lr, weights}, tasks);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(torch::equal(truncated.gradients[i], stopped.gradients[i])) << i;
  EXPECT_TRUE(torch::equal(truncated.outer_loss, stopped.outer_loss));
  EXPECT_EQ(truncated.cost.states_stored, 4);

  const auto whole = hypergradient(problem(), metas(), tasks);
  const auto all = hypergradient(problem(), metas(), tasks, Unroll::last(4));
  for (size_t i = 0; i < metas().size(); ++i) EXPECT_TRUE(torch::equal(all.gradients[i], whole.gradients[i])) << i;
}

TEST_F(HypergradientTest, ThreadsChangeNoBit) {
  tasks = make_tasks(9);
  const auto expected = hypergradient(problem(), metas(), tasks, Unroll(), Threads(1));
  for (int threads : {2, 3}) {
    const Threads pool(threads);
    for (int round = 0; round < 3; ++round) {
      const auto result = hypergradient(problem(), metas(), tasks, Unroll(), pool);
      EXPECT_TRUE(torch::equal(result.outer_losses, expected.outer_losses));
      for (size_t i = 0; i < metas().size(); ++i) {
        EXPECT_TRUE(torch::equal(result.gradients[i], expected.gradients[i])) << i;
      }
    }
    EXPECT_TRUE(torch::equal(evaluate(problem(), tasks, pool).outer_losses, expected.outer_losses));
  }
}

TEST_F(HypergradientTest, RandomNumbersBelongToTheTaskAndTheStep) {
  auto bilevel = problem();
  bilevel.inner([&](const Regression& task) {
    return ((model.ptr()->forward(torch::dropout(task.x, 0.4, true)) - task.y).pow(2).sum(1) * weights).mean();
  });
  bilevel.outer([&](const Regression& task) {
    return torch::mse_loss(model.ptr()->forward(torch::dropout(task.x_query, 0.4, true)), task.y_query);
  });
  const auto run = [&](const TaskBatch& batch) { return hypergradient(bilevel, metas(), tasks, Unroll(), batch); };
  torch::manual_seed(1);
  const auto first = run(Threads(1)), second = run(Threads(1));
  EXPECT_FALSE(torch::equal(first.outer_losses, second.outer_losses)) << "each call draws anew";
  torch::manual_seed(1);
  const auto again = run(Threads(3));
  EXPECT_TRUE(torch::equal(again.outer_losses, first.outer_losses)) << "and the default generator decides what";
  expect_equal(again.gradients, first.gradients);

  bilevel.seed(4);
  const auto seeded = run(Threads(2));
  EXPECT_TRUE(torch::equal(run(Threads(1)).outer_losses, seeded.outer_losses));
  EXPECT_TRUE(torch::equal(evaluate(bilevel, tasks, Threads(1)).outer_losses, seeded.outer_losses));
  const auto same = std::vector<Regression>(3, tasks[0]);
  const auto losses = evaluate(bilevel, same).outer_losses;
  EXPECT_NE(losses[0].item<double>(), losses[1].item<double>()) << "tasks have streams of their own";
  bilevel.seed(5);
  EXPECT_FALSE(torch::equal(run(Threads(1)).outer_losses, seeded.outer_losses));
  const auto report = gradcheck(bilevel, metas(), tasks);
  EXPECT_TRUE(report) << report.message;
}

TEST_F(HypergradientTest, GradcheckHoldsTheRandomNumbersOfAProblemWithoutASeed) {
  auto bilevel = problem();
  bilevel.outer([&](const Regression& task) {
    return torch::mse_loss(model.ptr()->forward(torch::dropout(task.x_query, 0.4, true)), task.y_query);
  });
  const auto report = gradcheck(bilevel, {lr}, tasks);
  EXPECT_TRUE(report) << report.message;
}

// An outer closure in training mode does not move the running statistics that inner steps and the result see.
TEST_F(HypergradientTest, OuterClosuresOnlyLookAtTheState) {
  nn::Sequential normed(nn::Linear(3, 4), nn::BatchNorm1d(4), nn::Linear(4, 2));
  normed->to(torch::kDouble);
  const auto with = [&](std::vector<int64_t> outer_at) {
    return Bilevel(normed, optim::Optimizer(optim::SGD(0.1), normed->parameters()))
        .steps(3)
        .outer_at(std::move(outer_at))
        .keep_final_states(true)
        .inner([&](const Regression& task) { return torch::mse_loss(normed.ptr()->forward(task.x), task.y); })
        .outer(
            [&](const Regression& task) { return torch::mse_loss(normed.ptr()->forward(task.x_query), task.y_query); });
  };
  const auto often = hypergradient(with({0, 1, 2, 3}), normed->parameters(), tasks);
  const auto once = hypergradient(with({3}), normed->parameters(), tasks);
  for (size_t t = 0; t < tasks.size(); ++t) expect_equal(often.final_states[t].buffers, once.final_states[t].buffers);
}

TEST_F(HypergradientTest, AProximalTermPullsTowardsTheModelsOwnWeights) {
  const auto strength = torch::tensor(0.7, f64.requires_grad(true));
  auto by_hand = problem(optim::SGD(0.1));
  TensorList own;
  for (const auto& parameter : model->parameters()) own.push_back(parameter.detach().clone());
  by_hand.inner([&](const Regression& task) {
    auto loss = ((model.ptr()->forward(task.x) - task.y).pow(2).sum(1) * weights).mean();
    const auto parameters = model->parameters();
    for (size_t i = 0; i < own.size(); ++i) loss = loss + 0.35 * (parameters[i] - own[i]).square().sum();
    return loss;
  });
  const auto expected = hypergradient(by_hand, {lr, weights}, tasks);
  const auto result = hypergradient(problem(optim::SGD(0.1)).proximal(0.7), {lr, weights}, tasks);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(torch::allclose(result.gradients[i], expected.gradients[i], 1e-12, 0)) << i;
  auto all = metas();
  all.push_back(strength);
  const auto report = gradcheck(problem().proximal(strength), all, tasks);
  EXPECT_TRUE(report) << report.message;
  expect_error([&] { problem().proximal(-1); }, "Bilevel::proximal: expected a strength of at least 0, got -1");
}

// `scale` is adapted, but no inner loss uses it, so every step leaves it where it starts.
TEST_F(HypergradientTest, WeightsThatOnlyTheOuterLossUsesAreReachedByTruncatedStrategiesToo) {
  const auto scale = model->register_parameter("scale", torch::tensor(1.5, f64));
  auto bilevel = problem(optim::SGD(0.1));
  bilevel.outer([&](const Regression& task) {
    return torch::mse_loss(scale * model.ptr()->forward(task.x_query), task.y_query);
  });
  const auto expected = hypergradient(bilevel, {scale}, tasks).gradients[0];
  EXPECT_TRUE(gradcheck(bilevel, {scale}, tasks));
  const auto check = [&](const Strategy& strategy) {
    EXPECT_TRUE(torch::allclose(hypergradient(bilevel, {scale}, tasks, strategy).gradients[0], expected, 1e-12, 0))
        << strategy.name() << ": " << hypergradient(bilevel, {scale}, tasks, strategy).gradients[0].item<double>()
        << ", expected " << expected.item<double>();
  };
  check(Unroll::last(2));
  check(Unroll::last(0));
  check(Unroll::first_order());
  check(Replay());
  check(ForwardMode());
  check(FiniteDifference());
  check(FiniteDifference().last(2));
  check(FiniteDifference::sama());
  check(Implicit());

  auto cut = bilevel;
  cut.stop_gradient_before({2});
  const auto start = hypergradient(Bilevel(bilevel).keep_final_states(true), {lr}, tasks).final_states[0];
  for (const auto& unreached : {cut, Bilevel(bilevel).start_from(start)}) {
    expect_error([&] { hypergradient(unreached, {scale}, tasks); },
                 "meta-parameter 'scale' sets the start of the inner loop, which the outer loss does not reach");
    expect_error([&] { hypergradient(unreached, {scale}, tasks, Replay()); },
                 "meta-parameter 'scale' sets the start of the inner loop, which the outer loss does not reach");
  }
  {
    const torch::NoGradGuard no_gradient;
    scale.add_(1);
  }
  EXPECT_EQ(start.parameters.front().item<double>(), 1.5) << "a kept state has memory of its own";
}

TEST_F(HypergradientTest, HyperparametersThatDrawAreReplayed) {
  const optim::Hyperparameter drawn(
      [this](int64_t) { return optim::Hyperparameter(lr * (0.5 + torch::rand({}, f64))); });
  const auto bilevel = [&] {
    auto optimizer = optim::Optimizer(optim::SGD(optim::SGDOptions(0.1).momentum(0.9)), model->parameters());
    return Bilevel(model, optimizer.set("lr", drawn))
        .steps(4)
        .seed(5)
        .inner([this](const Regression& task) { return torch::mse_loss(model.ptr()->forward(task.x), task.y); })
        .outer([this](const Regression& task) {
          return torch::mse_loss(model.ptr()->forward(task.x_query), task.y_query);
        });
  }();
  const auto generator = at::detail::getDefaultCPUGenerator().get_state();
  const auto expected = hypergradient(bilevel, {lr}, tasks);
  const auto check = [&](const Strategy& strategy) {
    EXPECT_TRUE(
        torch::allclose(hypergradient(bilevel, {lr}, tasks, strategy).gradients[0], expected.gradients[0], 1e-12, 0))
        << strategy.name();
  };
  check(Unroll());
  check(Replay());
  check(Replay(Binomial(1)));
  check(Reversible());
  check(ForwardMode());
  EXPECT_TRUE(torch::equal(at::detail::getDefaultCPUGenerator().get_state(), generator));
}

TEST_F(HypergradientTest, DifferencesThatAreLostToRoundingAreRefused) {
  nn::Linear half(3, 2);
  half->to(torch::kBFloat16);
  const auto rate = torch::tensor(0.1, torch::dtype(torch::kBFloat16).requires_grad(true));
  const auto bilevel = Bilevel(half, optim::Optimizer(optim::SGD(0.1), half->parameters()).set("lr", rate))
                           .inner([&] {
                             return half->forward(torch::ones({1, 3}, torch::kBFloat16)).square().sum();
                           })
                           .outer([&] {
                             return half->forward(torch::ones({1, 3}, torch::kBFloat16)).sum();
                           });
  expect_error([&] { hypergradient(bilevel, {rate}, {}, FiniteDifference()); },
               "parameter 'weight' is of type BFloat16, in which a difference of gradients is lost to rounding");
  expect_error([&] { hypergradient(bilevel, {rate}, {}, Evolution()); },
               "meta-parameter 0 is of type BFloat16, in which a perturbation is lost to rounding");
}

TEST_F(HypergradientTest, WhatDependsOnMoreThanTaskAndStepIsRefused) {
  int calls = 0;
  auto generator = at::detail::createCPUGenerator(3);
  const auto drifting = problem().gradient_transform([&](TensorList gradients, const TensorList&, int64_t) {
    ++calls;
    for (auto& gradient : gradients) gradient = gradient * (1 + 0.1 * calls);
    return gradients;
  });
  auto drawing = problem();
  drawing.inner([&](const Regression& task) {
    return torch::mse_loss(model.ptr()->forward(task.x),
                           task.y + 1e-3 * at::empty_like(task.y).normal_(0, 1, generator));
  });
  const auto refused = [&](const Bilevel& bilevel, const Strategy& strategy) {
    expect_error([&] { hypergradient(bilevel, {lr}, tasks, strategy); }, "must depend on their task and step alone");
  };
  refused(drifting, Replay());
  refused(drifting, Replay(Binomial(1)));
  refused(drawing, Replay());
  refused(drawing, Reversible());
  refused(drawing, FiniteDifference());
}

TEST_F(HypergradientTest, ReportsWhatTheOuterClosureReturnsBesideItsLoss) {
  auto bilevel = problem();
  bilevel.outer([&](const Regression& task) {
    const auto prediction = model.ptr()->forward(task.x_query);
    return OuterValue(torch::mse_loss(prediction, task.y_query), prediction);
  });
  const auto result = hypergradient(bilevel, metas(), tasks, Unroll(), Threads(2));
  ASSERT_EQ(result.auxiliary.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_FALSE(result.auxiliary[i].requires_grad());
    const auto loss = torch::mse_loss(result.auxiliary[i], tasks[i].y_query);
    EXPECT_TRUE(torch::equal(loss, result.outer_losses[i]));
  }
}

TEST_F(HypergradientTest, ClosuresReceiveTheStep) {
  std::vector<int64_t> inner_steps, outer_steps;
  auto bilevel = Bilevel(model, optim::Optimizer(optim::SGD(0.1), model->parameters())).steps(3).outer_at({1, 3});
  bilevel.inner([&](const Regression& task, int64_t step) {
    inner_steps.push_back(step);
    return torch::mse_loss(model->forward(task.x), task.y);
  });
  bilevel.outer([&](const Regression& task, int64_t step) {
    outer_steps.push_back(step);
    return torch::mse_loss(model->forward(task.x_query), task.y_query) * step;
  });
  tasks.resize(1);
  const auto result = hypergradient(bilevel, model->parameters(), tasks);
  EXPECT_EQ(inner_steps, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(outer_steps, (std::vector<int64_t>{1, 3}));
  EXPECT_TRUE(torch::allclose(evaluate(bilevel, tasks).outer_loss, result.outer_loss, 1e-14, 0));
}

TEST_F(HypergradientTest, WarmStartsContinueWhereTheLastEnded) {
  tasks.resize(1);
  const auto first = hypergradient(problem().steps(2).keep_final_states(true), metas(), tasks);
  const auto second = evaluate(problem().steps(2).start_from(first.final_states[0]), tasks);
  const auto straight = evaluate(problem(), tasks);
  EXPECT_TRUE(torch::equal(second.outer_loss, straight.outer_loss));
}

// A parameter that the model does not use has gradient 0. Any other meta-parameter without a gradient is a mistake: it
// would stay what it is for ever.
TEST_F(HypergradientTest, MetaParametersThatAreNotReachedAreRefused) {
  const auto unused = model->register_parameter("unused", torch::ones({2, 2}, f64));
  EXPECT_TRUE(torch::equal(hypergradient(problem(), {lr, unused}, tasks).gradients[1], torch::zeros({2, 2}, f64)));

  const auto copy = lr.detach().clone().requires_grad_();
  expect_error(
      [&] {
        hypergradient(problem(), {weights, copy}, tasks);
      },
      "the outer loss does not depend on meta-parameter 1 (shape []) as Unroll() differentiates it");
  expect_error([&] { hypergradient(problem(), {weights}, tasks, Unroll::first_order()); },
               "does not depend on meta-parameter 0 (shape [6]) as Unroll::first_order() differentiates it");
  const auto start = hypergradient(problem().keep_final_states(true), {lr}, tasks).final_states[0];
  const TensorList initial{model->named_parameters()["0.weight"]};
  expect_error([&] { hypergradient(problem().start_from(start), initial, tasks); },
               "meta-parameter '0.weight' sets the start of the inner loop, which the outer loss does not reach");
  expect_error([&] { hypergradient(problem().stop_gradient_before({2}), initial, tasks); },
               "meta-parameter '0.weight' sets the start of the inner loop, which the outer loss does not reach");
}

TEST_F(HypergradientTest, AHyperparameterComputedOnceIsRefusedAndAFunctionLearned) {
  const auto log_lr = torch::tensor(-2., f64.requires_grad(true));
  const auto with = [&](const optim::Hyperparameter& value) {
    return Bilevel(model, optim::Optimizer(optim::SGD(0.1), model->parameters()).set("lr", value))
        .steps(3)
        .inner([&](const Regression& task) { return torch::mse_loss(model->forward(task.x), task.y); })
        .outer([&](const Regression& task) { return torch::mse_loss(model->forward(task.x_query), task.y_query); });
  };
  expect_error([&] { hypergradient(with(log_lr.exp()), {log_lr}, tasks); },
               "hyperparameter 'lr' was computed from other tensors once");
  const auto report = gradcheck(with([&](int64_t) { return optim::Hyperparameter(log_lr.exp()); }), {log_lr}, tasks);
  EXPECT_TRUE(report) << report.message;
}

TEST_F(HypergradientTest, OuterLossesMayDifferentiateThemselves) {
  auto bilevel = problem();
  bilevel.outer([&](const Regression& task) {
    const auto x = task.x_query.clone().requires_grad_();
    const auto slope = torch::autograd::grad({model.ptr()->forward(x).sum()}, {x}, {}, true, true)[0];
    return slope.pow(2).sum();
  });
  const auto report = gradcheck(bilevel, {lr, weights}, tasks);
  EXPECT_TRUE(report) << report.message;
  EXPECT_FALSE(evaluate(bilevel, tasks).outer_loss.requires_grad());
}

TEST_F(HypergradientTest, BadInputGetsOneSentence) {
  const auto p = problem();
  expect_error([&] { hypergradient(p, {}, tasks); }, "got no meta-parameters");
  expect_error([&] { hypergradient(p, {lr, weights, lr}, tasks); }, "meta-parameters 0 and 2 are the same tensor");
  expect_error([&] { hypergradient(problem().proximal(lr * 2), {lr}, tasks); },
               "Bilevel::proximal: the strength was computed from other tensors once");
  expect_error([&] { hypergradient(p, {lr.detach()}, tasks); }, "meta-parameter 0 does not require a gradient");
  expect_error([&] { hypergradient(p, {lr}, std::vector<Regression>{}); }, "got an empty list of tasks");
  expect_error([&] { hypergradient(p, {lr}, std::vector<double>{1}); }, "but they were given one of type double");
  expect_error([&] { hypergradient(p, {lr}); }, "but they were given no task");
  expect_error([&] { hypergradient(p, model->parameters(), tasks, Unroll::last(2)); },
               "Unroll::last(2): meta-parameter '0.weight' sets the start of the inner loop");
  expect_error(
      [&] {
        hypergradient(problem().outer_at({1, 4}), {lr}, tasks, Unroll::last(2));
      },
      "the outer loss after step 1 lies before what is differentiated");
  expect_error([&] { hypergradient(problem().outer_at({5}), {lr}, tasks); }, "step 5 is not among the 0 to 4 steps");
  expect_error([&] { Unroll::last(-1); }, "expected at least 0 steps, got -1");
  expect_error([&] { Threads(0); }, "expected 1 to 1024 threads, got 0");
  expect_error([&] { Threads(9'000'000'000); }, "expected 1 to 1024 threads, got 9000000000");
  expect_error([&] { hypergradient(Bilevel(model, optim::Optimizer(optim::SGD(1), {})), {lr}); }, "no inner loss");
  expect_error(
      [&] { hypergradient(problem().outer([](const Regression&) { return torch::tensor(1., f64); }), {lr}, tasks); },
      "depends on no tensor that requires a gradient");
}

TEST(ThreadsTest, RunsEveryTaskOnceAndRethrowsTheFirstError) {
  const Threads pool(3);
  for (int64_t count : {0, 1, 2, 3, 100}) {
    std::vector<std::atomic<int>> calls(count);
    pool.run(count, [&](int64_t i) { ++calls[i]; });
    for (const auto& n : calls) EXPECT_EQ(n, 1);
  }
  for (int round = 0; round < 20; ++round) {
    try {
      pool.run(50, [](int64_t i) {
        if (i >= 2) throw std::runtime_error(std::to_string(i));
      });
      FAIL();
    } catch (const std::runtime_error& error) {
      EXPECT_LE(std::stoi(error.what()), 4);  // of the three at most that are under way at once, the lowest
    }
  }
  EXPECT_EQ(pool.name(), "Threads(3)");
}

TEST(ThreadsTest, LeavesIntraOpThreadsOfTheCallerAlone) {
  const int original = at::get_num_threads();
  const int before = 2;
  at::set_num_threads(before);
  const Threads pool(2);
  std::vector<int> inside(4);
  pool.run(4, [&](int64_t i) { inside[i] = at::get_num_threads(); });
  for (int n : inside) EXPECT_EQ(n, 1);
  EXPECT_EQ(at::get_num_threads(), before);
  int in_a_new_thread = 0;
  std::thread([&] { in_a_new_thread = at::get_num_threads(); }).join();
  EXPECT_EQ(in_a_new_thread, before);
  at::set_num_threads(original);
}

TEST(ThreadsTest, PassesTheCallersModesOnAndRefusesToNest) {
  const Threads pool(2);
  torch::NoGradGuard no_gradient;
  pool.run(2, [](int64_t) { EXPECT_FALSE(torch::GradMode::is_enabled()); });
  EXPECT_THROW(pool.run(2, [&](int64_t) { pool.run(1, [](int64_t) {}); }), c10::Error);
  nn::Linear m(2, 2);
  const ModelTensors tensors(m);
  substituted(tensors, tensors.parameters.tensors, {}, [&] {
    EXPECT_THROW(pool.run(1, [](int64_t) {}), c10::Error);
    return 0;
  });
}

}  // namespace
}  // namespace gimli
