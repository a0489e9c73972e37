#include "gimli/hypergradient/replay.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "expect.h"
#include "gimli/gimli.h"

namespace gimli {
namespace {

namespace nn = torch::nn;
using torch::Tensor;

const auto f64 = torch::dtype(torch::kDouble);

template <class T>
std::shared_ptr<const Strategy> made(T strategy) {
  return std::make_shared<const T>(std::move(strategy));
}

/// A net of 1,000 weights whose states are large beside what one recorded step needs, so that kept states show.
class ReplayTest : public testing::Test {
 protected:
  ReplayTest() {
    torch::manual_seed(7);
    model = nn::Sequential(nn::Linear(1, 300), nn::Tanh(), nn::Linear(300, 1));
    model->to(torch::kDouble);
    x = torch::rand({4, 1}, f64);
    y = torch::rand({4, 1}, f64);
    lr = torch::tensor(0.003, f64.requires_grad(true));
  }

  template <class Rule>
  Bilevel problem(Rule rule, int64_t steps) const {
    return Bilevel(model, optim::Optimizer(std::move(rule), model->parameters()).set("lr", lr))
        .steps(steps)
        .inner([this] { return torch::mse_loss(model.ptr()->forward(x), y); })
        .outer([this] { return torch::mse_loss(model.ptr()->forward(y), x); });
  }
  Bilevel adam(int64_t steps) const { return problem(optim::Adam(optim::AdamOptions(0.003)), steps); }
  Bilevel sgd(int64_t steps) const { return problem(optim::SGD(optim::SGDOptions(0.003).momentum(0.9)), steps); }

  TensorList metas() const {
    auto list = model->parameters();
    list.push_back(lr);
    return list;
  }

  int64_t peak_bytes(const Bilevel& bilevel, const Strategy& strategy) const {
    const MemoryMeter meter;
    const auto result = hypergradient(bilevel, metas(), {}, strategy);
    return meter.peak_bytes();
  }

  int64_t parameter_bytes() const {
    int64_t bytes = 0;
    for (const auto& parameter : model->parameters()) bytes += parameter.nbytes();
    return bytes;
  }

  nn::Sequential model{nullptr};
  Tensor x, y, lr;
};

TEST_F(ReplayTest, PeakMemoryIsThatOfOneStepAndOfTheStatesKept) {
  const auto check = [&](const ReplaySchedule& schedule, const Strategy& strategy) {
    const auto one_step = peak_bytes(adam(2), strategy);
    const int64_t state = 3 * parameter_bytes();
    for (const int64_t T : {4, 16, 64, 256, 1024}) {
      const auto kept = cost_of(schedule.plan(T), T).kept;
      const auto states = static_cast<double>(peak_bytes(adam(T), strategy) - one_step) / state;
      EXPECT_NEAR(states, kept, 2.5) << schedule.name() << ", " << T << " steps";
    }
  };
  check(KeepAll(), Replay());
  check(Sqrt(), Replay(Sqrt()));
  check(Tree(2), Replay(Tree(2)));
  check(Binomial(3), Replay(Binomial(3)));
}

// 1, 64 and 1,024 steps: what grows, and what does not.
TEST_F(ReplayTest, OrdersOfGrowthAreThoseOfTheSchedules) {
  const auto states = [&](const Strategy& strategy, int64_t T) {
    return static_cast<double>(peak_bytes(adam(T), strategy) - peak_bytes(adam(1), strategy)) / (3 * parameter_bytes());
  };
  EXPECT_LT(states(Replay(Binomial(4)), 1024), 6);                     // O(1)
  EXPECT_LT(states(Replay(Tree()), 1024), 12);                         // O(log T)
  EXPECT_LT(states(Replay(Sqrt()), 1024), 64);                         // O(sqrt T)
  EXPECT_NEAR(states(Replay(), 1024) / states(Replay(), 64), 16, 1.);  // O(T)
  EXPECT_NEAR(states(Unroll(), 512) / states(Unroll(), 64), 8, 1.);    // O(T)
  EXPECT_GT(states(Unroll(), 64), 1.5 * states(Replay(), 64));
}

TEST_F(ReplayTest, KeptGradientsAreSmallerThanStatesAndNeedNoLossAgain) {
  constexpr int64_t T = 64;
  const auto strategy = Replay(Sqrt()).keep_gradients(true);
  const auto growth = peak_bytes(adam(T), strategy) - peak_bytes(adam(2), strategy);
  EXPECT_LT(growth, (T + 3 * (2 * 8 + 2)) * parameter_bytes());
  const auto expected = hypergradient(adam(T), metas(), {}, Replay());
  const auto result = hypergradient(adam(T), metas(), {}, strategy);
  EXPECT_EQ(expected.cost.gradient_evaluations, T + 2 * T + 1);
  EXPECT_EQ(result.cost.gradient_evaluations, expected.cost.gradient_evaluations);
  const auto advanced = cost_of(Sqrt().plan(T), T).advanced;
  EXPECT_EQ(hypergradient(adam(T), metas(), {}, Replay(Sqrt())).cost.gradient_evaluations, advanced + 1 + 2 * T + 1);
  EXPECT_EQ(result.cost.inner_steps, advanced + 1 + T);
  expect_equal(result.gradients, expected.gradients);
}

TEST_F(ReplayTest, ReversedMomentumComesBackBitByBitInAFewBitsAStep) {
  constexpr int64_t T = 300;
  const auto bilevel = sgd(T).keep_final_states(true);
  const auto expected = hypergradient(bilevel, metas(), {}, Replay());
  const auto result = hypergradient(bilevel, metas(), {}, Reversible());
  expect_equal(result.gradients, expected.gradients);
  expect_equal(result.final_states[0].parameters, expected.final_states[0].parameters);

  const auto growth = peak_bytes(sgd(T), Reversible()) - peak_bytes(sgd(2), Reversible());
  const double bits = 8. * growth / (T - 2) / (parameter_bytes() / 8);
  EXPECT_LT(bits, 16) << "where a state has 128";
  EXPECT_GT(bits, 1);
}

TEST_F(ReplayTest, StepsThatComeOutDifferentlyAreRefused) {
  auto drifting = adam(4);
  int calls = 0;
  drifting.inner([&] { return torch::mse_loss(model.ptr()->forward(x), y) * (1 + 0.1 * calls++); });
  expect_error([&] { hypergradient(drifting, metas(), {}, Replay()); },
               "Replay(KeepAll): step 3 of the inner loop gave");
  auto drawing = sgd(4);
  auto generator = at::detail::createCPUGenerator(3);
  drawing.inner([&] { return torch::mse_loss(model.ptr()->forward(x), at::empty_like(y).normal_(0, 1, generator)); });
  expect_error([&] { hypergradient(drawing, metas(), {}, Reversible()); }, "must depend on their task and step alone");
}

TEST_F(ReplayTest, BuffersThatCarryAGraphAreRefused) {
  auto carrying = adam(4);
  const auto memory = model->register_buffer("memory", torch::zeros({4, 1}, f64));
  carrying = Bilevel(model, optim::Optimizer(optim::SGD(0.1), model->parameters()))
                 .steps(3)
                 .inner([&] {
                   const auto prediction = model.ptr()->forward(x);
                   memory.mul_(0.5).add_(prediction);
                   return torch::mse_loss(memory, y);
                 })
                 .outer([&] { return torch::mse_loss(model.ptr()->forward(x), y); });
  EXPECT_NO_THROW(hypergradient(carrying, model->parameters()));
  for (const auto& strategy : {made(Replay()), made(Replay(Binomial(1)))}) {
    expect_error([&] { hypergradient(carrying, model->parameters(), {}, *strategy); },
                 "wrote to buffer 'memory' what depends on the weights");
  }
}

TEST_F(ReplayTest, RecommendedStrategiesFitAndAreTheFastestThatDo) {
  constexpr int64_t T = 100;
  const auto roomy = recommend(adam(T), metas(), int64_t{1} << 30);
  EXPECT_EQ(roomy.strategy->name(), "Unroll()");
  EXPECT_NEAR(static_cast<double>(peak_bytes(adam(T), Unroll())) / roomy.peak_bytes, 1, 0.05);
  std::string last;
  for (const double share : {0.8, 0.3, 0.15, 0.1}) {
    const auto limit = static_cast<int64_t>(share * roomy.peak_bytes);
    const auto tight = recommend(adam(T), metas(), limit);
    EXPECT_LE(peak_bytes(adam(T), *tight.strategy), limit) << tight.reason;
    EXPECT_LE(tight.peak_bytes, limit) << tight.reason;
    EXPECT_NE(tight.strategy->name(), last) << tight.reason;
    last = tight.strategy->name();
  }
  EXPECT_NE(last.find("Binomial"), std::string::npos) << last;
  expect_error([&] { recommend(adam(T), metas(), 1000); }, "which is more than the limit of 1 KB");
  expect_error([&] { recommend(adam(T), metas(), 0); }, "expected a memory limit above 0 bytes, got 0");

  auto several = adam(T).outer_at({20, 40, 60, 80, 100});
  several.outer(
      [&] { return torch::mse_loss(model.ptr()->forward(torch::cat(std::vector<Tensor>(500, x))).mean(), y.mean()); });
  const auto chosen = recommend(several, metas(), 30'000'000);
  EXPECT_LE(peak_bytes(several, *chosen.strategy), 30'000'000) << chosen.reason;
  EXPECT_NE(chosen.strategy->name(), "Unroll()");
  EXPECT_GT(peak_bytes(several, Unroll()), 30'000'000);
}

TEST(MemoryMeterTest, Nests) {
  const MemoryMeter outer;
  Tensor kept;
  {
    const MemoryMeter inner;
    kept = torch::empty({1000}, f64);
    EXPECT_EQ(inner.live_bytes(), 8000);
  }
  EXPECT_EQ(outer.live_bytes(), 8000);
  kept = Tensor();
  EXPECT_EQ(outer.live_bytes(), 0);
  EXPECT_EQ(outer.peak_bytes(), 8000);
}

TEST_F(ReplayTest, WhatCannotBeUndoneIsRefused) {
  const auto reversed = [&](const Bilevel& bilevel) { hypergradient(bilevel, metas(), {}, Reversible()); };
  expect_error(
      [&] { reversed(adam(3)); },
      "Reversible(): step 0 of parameter '0.weight' cannot be undone: Adam is not SGD with momentum; use Replay");
  expect_error([&] { reversed(problem(optim::SGD(0.1), 3)); },
               "without momentum, nothing tells from where a step came");
  expect_error([&] { reversed(problem(optim::SGD(optim::SGDOptions(0.1).momentum(0.9).nesterov(true)), 3)); },
               "with nesterov, the step taken depends on the gradient where it began");
}

}  // namespace
}  // namespace gimli
