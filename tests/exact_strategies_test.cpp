#include <gtest/gtest.h>

#include <atomic>

#include "expect.h"
#include "problem_table.h"

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

class ExactStrategiesTest : public testing::TestWithParam<Pairing> {
 protected:
  ExactStrategiesTest() {
    learner.emplace(GetParam().learner());
    tasks = learner->tasks(1);
  }

  Bilevel problem() const {
    return learner->problem(GetParam().optimizer.make(learner->module->parameters())).steps(steps);
  }

  std::optional<Learner> learner;
  std::vector<Classification> tasks;
  double bound = GetParam().dtype == at::kDouble ? 1e-12 : 1e-5;
};

INSTANTIATE_TEST_SUITE_P(Table, ExactStrategiesTest, testing::ValuesIn(pairings()),
                         [](const auto& info) { return info.param.name(); });

TEST_P(ExactStrategiesTest, AgreeToRounding) {
  const auto metas = learner->all_meta_parameters(), few_metas = learner->hyperparameters();
  for (const auto& outer : outer_steps) {
    const auto bilevel = problem().outer_at(outer).keep_final_states(true);
    const auto expected = hypergradient(bilevel, metas, tasks);
    for (const auto& [name, strategy, only, few] : exact_strategies) {
      if (!only.empty() && only != GetParam().optimizer.name) {
        expect_error([&] { hypergradient(bilevel, metas, tasks, *strategy); }, name + ": ");
        continue;
      }
      const auto& asked = few ? few_metas : metas;
      const auto result = hypergradient(bilevel, asked, tasks, *strategy);
      EXPECT_LE(relative_error({result.outer_losses}, {expected.outer_losses}), bound) << name;
      for (size_t i = 0; i < asked.size(); ++i) {
        const auto gradient = expected.gradients[i];
        EXPECT_LE(relative_error({result.gradients[i]}, {gradient}), bound) << name << ", " << i;
      }
      for (size_t t = 0; t < tasks.size(); ++t) {
        const auto &last = result.final_states[t], &expected_last = expected.final_states[t];
        EXPECT_EQ(last.step, steps);
        EXPECT_LE(relative_error(last.parameters, expected_last.parameters), bound) << name;
        EXPECT_LE(relative_error(last.buffers, expected_last.buffers), bound) << name;
      }
    }
  }
}

// Along a random direction through all meta-parameters at once.
TEST_P(ExactStrategiesTest, AgreeWithCentralDifferences) {
  if (GetParam().dtype != at::kDouble) return;
  const auto metas = learner->all_meta_parameters();
  const auto bilevel = problem().outer_at({0, 2, steps});
  const auto gradients = hypergradient(bilevel, metas, tasks).gradients;
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
    const auto loss = evaluate(bilevel, tasks).outer_loss.item<double>();
    move(-h);
    return loss;
  };
  const auto slope = [&](double h) { return (outer_loss_at(h) - outer_loss_at(-h)) / (2 * h); };
  const double h = 2e-5, numeric = (4 * slope(h / 2) - slope(h)) / 3;
  EXPECT_NEAR(numeric, expected, 1e-7 * std::max(1., std::abs(expected)));
}

TEST(ProblemTableTest, ExactStrategiesAgreeToRounding) {
  for (const auto& [row_name, problem, metas, tasks] : problem_table()) {
    const bool has_momentum = problem.optimizer().groups()[0].rule->name() == "SGD";
    const auto expected = hypergradient(problem, metas, tasks);
    for (const auto& [name, strategy, only, few] : exact_strategies) {
      if (!only.empty() && !has_momentum) continue;
      const auto result = hypergradient(problem, metas, tasks, *strategy);
      EXPECT_TRUE(torch::equal(result.outer_losses, expected.outer_losses)) << row_name << ", " << name;
      EXPECT_LE(relative_error(result.gradients, expected.gradients), 1e-12) << row_name << ", " << name;
      const auto in_threads = hypergradient(problem, metas, tasks, *strategy, Threads(2));
      expect_equal(in_threads.gradients, result.gradients);
    }
    if (row_name.find("stop") != std::string::npos) continue;
    const auto numeric = gradcheck(problem, {metas.back()}, tasks, Unroll(), GradcheckOptions().absolute(1e-6));
    EXPECT_TRUE(numeric) << row_name << ": " << numeric.message;
  }
}

// The n-th call of a closure throws, for every n that there is.
TEST(InterruptionTest, LeavesModelGeneratorsAndThreadAsTheyWere) {
  torch::manual_seed(11);
  const auto learner = networks[1].make();
  const auto tasks = learner.tasks(3);
  const auto metas = learner.all_meta_parameters();
  std::atomic<int> calls, fatal;
  const auto interrupted = [&](auto closure) {
    return [&, closure](const Classification& task) {
      if (++calls == fatal) throw std::runtime_error("interrupted");
      return closure(task);
    };
  };
  const auto model = learner.module;
  auto bilevel = Bilevel(*model, inner_optimizers[1].make(model->parameters()).set("lr", learner.lr))
                     .steps(3)
                     .outer_at({1, 3})
                     .inner(interrupted([&](const Classification& task) {
                       const auto logits = torch::dropout(learner.forward(task.x), 0.3, true);
                       return (logits.square().sum(1) * learner.weights).mean();
                     }))
                     .outer(interrupted([&](const Classification& task) {
                       return torch::nll_loss(learner.forward(task.x_query).log_softmax(1), task.y_query);
                     }));
  const TensorList asked{learner.lr, learner.weights};
  const Sequential sequentially;
  const Threads threads(2);
  const auto generator_state = [] { return at::detail::getDefaultCPUGenerator().get_state(); };
  auto strategies = exact_strategies;
  strategies.push_back(row(FiniteDifference().last(3)));
  strategies.push_back(row(Evolution(EvolutionOptions().pairs(1))));
  strategies.push_back(row(Evolution(EvolutionOptions().pairs(1).window(2))));
  for (const auto& [name, strategy, only, few] : strategies) {
    for (const TaskBatch* batch : std::initializer_list<const TaskBatch*>{&sequentially, &threads}) {
      const auto run = [&, strategy = strategy] {
        calls = 0;
        return hypergradient(bilevel, asked, tasks, *strategy, *batch);
      };
      fatal = 0;
      torch::manual_seed(1);
      const auto expected = run();
      const int count = calls;
      torch::manual_seed(1);
      const auto parameters = clones(model->parameters()), buffers = clones(model->buffers());
      const auto generator = generator_state();
      for (int n = 1; n <= count; ++n) {
        fatal = n;
        EXPECT_THROW(run(), std::runtime_error) << name << ", call " << n;
        EXPECT_FALSE(Substitution::active());
        EXPECT_TRUE(torch::GradMode::is_enabled());
        EXPECT_TRUE(torch::equal(generator_state(), generator)) << name << ", call " << n;
      }
      expect_equal(model->parameters(), parameters);
      expect_equal(model->buffers(), buffers);
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
