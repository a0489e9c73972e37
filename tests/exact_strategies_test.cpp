#include <gtest/gtest.h>

#include <atomic>

#include "expect.h"
#include "strategies_table.h"

namespace gimli {
namespace {

using torch::Tensor;

struct ExactStrategy {
  std::string name;
  std::shared_ptr<const Strategy> strategy;
  std::string only = {};  ///< the optimizer that it takes, if it does not take all
  bool few = false;       ///< whether it is for few meta-parameters
};

template <class T>
ExactStrategy row(T strategy, std::string only = {}, bool few = false) {
  return {strategy.name(), std::make_shared<const T>(std::move(strategy)), std::move(only), few};
}

const std::vector<ExactStrategy> exact_strategies{
    row(Replay()),
    row(Replay(Sqrt())),
    row(Replay(Binomial(1))),
    row(Replay(Binomial(2))),
    row(Replay(Tree(2))),
    row(Replay(Sqrt()).keep_gradients(true)),
    row(Replay(Binomial(2)).keep_gradients(true)),
    row(Replay(Tree(3)).offload(true)),
    row(Reversible(), "SGD_momentum"),
    row(ForwardMode(), {}, true),
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
  const auto metas = problem.meta_parameters(), few_metas = problem.few_meta_parameters();
  for (const auto& outer : outer_steps) {
    const auto bilevel = problem.bilevel(steps).outer_at(outer).keep_final_states(true);
    const auto expected = hypergradient(bilevel, metas, problem.tasks);
    for (const auto& [name, strategy, only, few] : exact_strategies) {
      if (!only.empty() && only != GetParam().optimizer->name) {
        expect_error([&] { hypergradient(bilevel, metas, problem.tasks, *strategy); }, name + ": ");
        continue;
      }
      const auto& asked = few ? few_metas : metas;
      const auto result = hypergradient(bilevel, asked, problem.tasks, *strategy);
      EXPECT_LE(relative_difference({result.outer_losses}, {expected.outer_losses}), bound) << name;
      for (size_t i = 0; i < asked.size(); ++i) {
        const auto gradient = expected.gradients[i + metas.size() - asked.size()];
        EXPECT_LE(relative_difference({result.gradients[i]}, {gradient}), bound) << name << ", " << i;
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

// What else a problem may have, for a few of the table.
class ProblemVariantsTest : public testing::TestWithParam<std::string> {
 protected:
  StrategyProblem problem{network("transformer"), inner_optimizer(GetParam())};
};

INSTANTIATE_TEST_SUITE_P(Optimizers, ProblemVariantsTest, testing::Values("SGD_momentum", "Adam"));

TEST_P(ProblemVariantsTest, AgreeToRounding) {
  const auto strength = torch::tensor(0.3, torch::dtype(torch::kDouble).requires_grad(true));
  const auto factor = torch::tensor(0.7, torch::dtype(torch::kDouble).requires_grad(true));
  const auto start =
      hypergradient(problem.bilevel(3).keep_final_states(true), {problem.lr}, problem.tasks).final_states[0];
  const auto few = problem.few_meta_parameters(), all = problem.meta_parameters();
  const auto with = [](TensorList list, const Tensor& more) {
    list.push_back(more);
    return list;
  };
  const auto scaled_and_noisy = [factor](TensorList gradients, const TensorList&, int64_t) {
    for (auto& gradient : gradients) gradient = gradient * factor + 0.01 * torch::randn_like(gradient);
    return gradients;
  };

  struct Variant {
    std::string name;
    Bilevel bilevel;
    TensorList metas;
  };
  const std::vector<Variant> variants{
      {"warm start", problem.bilevel(steps).start_from(start), few},
      {"stops", problem.bilevel(steps).stop_gradient_before({1, 3}).outer_at({1, 4, 5}), few},
      {"stop before the first step", problem.bilevel(steps).stop_gradient_before({0}), few},
      {"no outer loss at the end", problem.bilevel(steps).outer_at({0, 2}), all},
      {"no step", problem.bilevel(0), problem.model->parameters()},
      {"one step", problem.bilevel(1), all},
      {"proximal", problem.bilevel(steps).proximal(0.5), all},
      {"learned proximal", problem.bilevel(steps).proximal(strength), with(all, strength)},
      {"gradient transform that draws", problem.bilevel(steps).gradient_transform(scaled_and_noisy), with(all, factor)},
  };
  for (const auto& [variant, bilevel, metas] : variants) {
    const auto expected = hypergradient(bilevel, metas, problem.tasks);
    for (const auto& [name, strategy, only, few] : exact_strategies) {
      if (few || (!only.empty() && only != GetParam())) continue;
      const auto result = hypergradient(bilevel, metas, problem.tasks, *strategy);
      EXPECT_LE(relative_difference({result.outer_losses}, {expected.outer_losses}), 1e-12) << variant << ", " << name;
      EXPECT_LE(relative_difference(result.gradients, expected.gradients), 1e-12) << variant << ", " << name;
    }
    if (variant.find("stop") != std::string::npos || variant == "no step") continue;
    const auto numeric = gradcheck(bilevel, {metas.back()}, problem.tasks, Unroll(), GradcheckOptions().absolute(1e-6));
    EXPECT_TRUE(numeric) << variant << ": " << numeric.message;
  }
}

// The n-th call of a closure throws, for every n that there is.
TEST(InterruptionTest, LeavesModelGeneratorsAndThreadAsTheyWere) {
  StrategyProblem problem(network("conv"), inner_optimizer("SGD_momentum"), at::kDouble, 3);
  const auto metas = problem.meta_parameters();
  std::atomic<int> calls, fatal;
  const auto interrupted = [&](auto closure) {
    return [&, closure](const Examples& task) {
      if (++calls == fatal) throw std::runtime_error("interrupted");
      return closure(task);
    };
  };
  auto& sequential = dynamic_cast<torch::nn::SequentialImpl&>(*problem.model);
  auto bilevel =
      Bilevel(*problem.model, inner_optimizer("SGD_momentum").make(problem.model->parameters()).set("lr", problem.lr))
          .steps(3)
          .outer_at({1, 3})
          .inner(interrupted([&](const Examples& task) {
            const auto prediction = torch::dropout(sequential.forward(task.x), 0.3, true);
            return ((prediction - task.y).pow(2).sum(1) * problem.example_weights).mean();
          }))
          .outer(interrupted(
              [&](const Examples& task) { return (sequential.forward(task.x_query) - task.y_query).pow(2).mean(); }));
  const auto asked = problem.few_meta_parameters();
  const Sequential sequentially;
  const Threads threads(2);
  const auto generator_state = [] { return at::detail::getDefaultCPUGenerator().get_state(); };
  for (const auto& [name, strategy, only, few] : exact_strategies) {
    for (const TaskBatch* batch : std::initializer_list<const TaskBatch*>{&sequentially, &threads}) {
      const auto run = [&, strategy = strategy] {
        calls = 0;
        return hypergradient(bilevel, asked, problem.tasks, *strategy, *batch);
      };
      fatal = 0;
      torch::manual_seed(1);
      const auto expected = run();
      const int count = calls;
      torch::manual_seed(1);
      const auto parameters = clones(problem.model->parameters()), buffers = clones(problem.model->buffers());
      const auto generator = generator_state();
      for (int n = 1; n <= count; ++n) {
        fatal = n;
        EXPECT_THROW(run(), std::runtime_error) << name << ", call " << n;
        EXPECT_FALSE(Substitution::active());
        EXPECT_TRUE(torch::GradMode::is_enabled());
        EXPECT_TRUE(torch::equal(generator_state(), generator)) << name << ", call " << n;
      }
      expect_equal(problem.model->parameters(), parameters);
      expect_equal(problem.model->buffers(), buffers);
      for (const auto& meta : metas) EXPECT_FALSE(meta.grad().defined());
      fatal = 0;
      const auto result = run();
      expect_equal(result.gradients, expected.gradients);
      EXPECT_TRUE(torch::equal(result.outer_losses, expected.outer_losses));
    }
  }
}

}  // namespace
}  // namespace gimli
