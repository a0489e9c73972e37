#include <gtest/gtest.h>

#include "expect.h"
#include "strategies_table.h"

namespace gimli {
namespace {

using torch::Tensor;

struct ExactStrategy {
  std::string name;
  std::shared_ptr<const Strategy> strategy;
  std::string only = {};  ///< the optimizer that it takes, if it does not take all
};

template <class T>
ExactStrategy row(T strategy, std::string only = {}) {
  return {strategy.name(), std::make_shared<const T>(std::move(strategy)), std::move(only)};
}

const std::vector<ExactStrategy> exact_strategies{
    row(Unroll::last(99)),
    row(Replay()),
    row(Replay(Sqrt())),
    row(Replay(Binomial(1))),
    row(Replay(Binomial(2))),
    row(Replay(Tree(2))),
    row(Replay(Sqrt()).keep_gradients(true)),
    row(Replay(Binomial(2)).keep_gradients(true)),
    row(Replay(Tree(3)).offload(true)),
    row(Reversible(), "SGD_momentum"),
};

constexpr int64_t steps = 5;

const std::vector<std::vector<int64_t>> outer_steps{{steps}, {0, 2, 3, steps}};

struct Case {
  const Network* network;
  const InnerOptimizer* optimizer;
  at::ScalarType dtype;
};

std::vector<Case> cases() {
  std::vector<Case> result;
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    for (const auto& network : networks) {
      for (const auto& optimizer : inner_optimizers) result.push_back({&network, &optimizer, dtype});
    }
  }
  return result;
}

class ExactStrategiesTest : public testing::TestWithParam<Case> {
 protected:
  StrategyProblem problem{*GetParam().network, *GetParam().optimizer, GetParam().dtype};
  double bound = GetParam().dtype == at::kDouble ? 1e-12 : 1e-5;
};

INSTANTIATE_TEST_SUITE_P(Table, ExactStrategiesTest, testing::ValuesIn(cases()), [](const auto& info) {
  return info.param.network->name + "_" + info.param.optimizer->name +
         (info.param.dtype == at::kDouble ? "_float64" : "_float32");
});

TEST_P(ExactStrategiesTest, AgreeToRounding) {
  const auto metas = problem.meta_parameters();
  for (const auto& outer : outer_steps) {
    const auto bilevel = problem.bilevel(steps).outer_at(outer).keep_final_states(true);
    const auto expected = hypergradient(bilevel, metas, problem.tasks);
    for (const auto& [name, strategy, only] : exact_strategies) {
      if (!only.empty() && only != GetParam().optimizer->name) {
        expect_error([&] { hypergradient(bilevel, metas, problem.tasks, *strategy); }, name + ": ");
        continue;
      }
      const auto result = hypergradient(bilevel, metas, problem.tasks, *strategy);
      EXPECT_LE(relative_difference({result.outer_losses}, {expected.outer_losses}), bound) << name;
      for (size_t i = 0; i < metas.size(); ++i) {
        EXPECT_LE(relative_difference({result.gradients[i]}, {expected.gradients[i]}), bound) << name << ", " << i;
      }
      for (size_t t = 0; t < problem.tasks.size(); ++t) {
        const auto &last = result.final_states[t], &expected_last = expected.final_states[t];
        EXPECT_EQ(last.step, steps);
        EXPECT_LE(relative_difference(last.parameters, expected_last.parameters), bound) << name;
        EXPECT_LE(relative_difference(last.buffers, expected_last.buffers), bound) << name;
      }
    }
  }
}

// Along a random direction through all meta-parameters at once.
TEST_P(ExactStrategiesTest, AgreeWithCentralDifferences) {
  if (GetParam().dtype != at::kDouble) return;
  const auto metas = problem.meta_parameters();
  const auto bilevel = problem.bilevel(steps).outer_at({0, 2, steps});
  const auto gradients = hypergradient(bilevel, metas, problem.tasks).gradients;
  torch::manual_seed(23);
  TensorList direction;
  double expected = 0;
  for (size_t i = 0; i < metas.size(); ++i) {
    direction.push_back(torch::randn_like(metas[i]));
    expected += (direction[i] * gradients[i]).sum().item<double>();
  }
  const auto outer_loss_at = [&](double h) {
    const auto move = [&](double by) {
      const torch::NoGradGuard no_gradient;
      for (size_t i = 0; i < metas.size(); ++i) metas[i].add_(direction[i], by);
    };
    move(h);
    const auto loss = evaluate(bilevel, problem.tasks).outer_loss.item<double>();
    move(-h);
    return loss;
  };
  const auto slope = [&](double h) { return (outer_loss_at(h) - outer_loss_at(-h)) / (2 * h); };
  const double h = 2e-5, numeric = (4 * slope(h / 2) - slope(h)) / 3;
  EXPECT_NEAR(numeric, expected, 1e-7 * std::max(1., std::abs(expected)));
}

}  // namespace
}  // namespace gimli
