#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <thread>

#include "expect.h"
#include "gimli/memory_meter.h"
#include "own_operators.h"
#include "problem_table.h"

namespace gimli {
namespace {

using torch::Tensor;

class CapturedTest : public testing::TestWithParam<Pairing> {};
INSTANTIATE_TEST_SUITE_P(Table, CapturedTest, testing::ValuesIn(pairings()),
                         [](const auto& info) { return info.param.name(); });

TEST_P(CapturedTest, AgreesWithTheStrategyItself) {
  const auto learner = GetParam().learner();
  const auto metas = learner.all_meta_parameters();
  const auto problem = learner.problem(GetParam().optimizer.make(learner.module->parameters()))
                           .outer_at({0, 2, 4})
                           .keep_final_states(true);
  // LBFGS divides by differences of gradients, RMSprop by small ones: that makes more of float32's rounding.
  const bool by_lbfgs = GetParam().optimizer.name == "LBFGS";
  const double rounding = by_lbfgs ? 1e-3 : GetParam().optimizer.name == "RMSprop" ? 1e-4 : 1e-5;
  const double bound = GetParam().dtype == at::kDouble ? 1e-12 : rounding;
  // Dropout draws random numbers, and LBFGS looks at curvatures.
  const auto& network = GetParam().network.name;
  const bool replays = network != "lstm" && network != "transformer" && !by_lbfgs;
  struct Way {
    Captured strategy;
    bool own_operators;
  };
  for (const auto& [strategy, own_operators] :
       {Way{Captured(), true}, {Captured(), false}, {Captured(Replay()), true}}) {
    const OwnOperators in_use(own_operators);
    for (int round = 0; round < 3; ++round) {
      const auto tasks = learner.tasks(3);
      const auto expected = hypergradient(problem, metas, tasks);
      const auto result = hypergradient(problem, metas, tasks, strategy, Threads(2));
      EXPECT_EQ(result.cost.capture_remark.empty(), replays) << result.cost.capture_remark;
      EXPECT_LE(relative_error({result.outer_losses}, {expected.outer_losses}), bound);
      EXPECT_LE(relative_error(result.gradients, expected.gradients), bound);
      for (size_t t = 0; t < tasks.size(); ++t) {
        EXPECT_EQ(result.final_states[t].step, expected.final_states[t].step);
        EXPECT_LE(relative_error(result.final_states[t].parameters, expected.final_states[t].parameters), bound);
        EXPECT_LE(relative_error(result.final_states[t].buffers, expected.final_states[t].buffers), bound);
      }
      // The meta-parameters move, and the recording goes on with what they are.
      const torch::NoGradGuard no_gradient;
      for (const auto& meta : metas) meta.add_(0.01 * torch::randn_like(meta));
    }
  }
}

TEST(Captured, takes_any_strategy) {
  struct Row {
    std::shared_ptr<Captured> captured;
    std::shared_ptr<const Strategy> strategy;
    bool few = false;  ///< meta-parameters that act in each step
  };
  const auto row = [](auto strategy, bool few = false) {
    return Row{std::make_shared<Captured>(strategy), std::make_shared<decltype(strategy)>(strategy), few};
  };
  const std::vector<Row> rows{row(Unroll()),
                              row(Unroll::first_order()),
                              row(Unroll::last(2), true),
                              row(Replay(Binomial(1))),
                              row(Replay(Sqrt()).keep_gradients(true)),
                              row(Reversible()),
                              row(ForwardMode(), true),
                              row(FiniteDifference(), true),
                              row(Reptile())};
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    for (const auto& network : {networks[0], networks[1]}) {
      const auto& momentum = *std::find_if(inner_optimizers.begin(), inner_optimizers.end(),
                                           [](const InnerOptimizer& each) { return each.name == "SGD_momentum"; });
      const auto learner = Pairing{network, momentum, dtype}.learner();
      const auto problem = learner.problem(momentum.make(learner.module->parameters()));
      for (const auto& [captured, strategy, few] : rows) {
        const bool of_weights = strategy->name() == "Reptile()" || strategy->name() == "Unroll::first_order()";
        const auto metas = few          ? TensorList{learner.weights}
                           : of_weights ? learner.module->parameters()
                                        : learner.all_meta_parameters();
        for (int round = 0; round < 3; ++round) {
          const auto tasks = learner.tasks(2);
          const auto expected = hypergradient(problem, metas, tasks, *strategy);
          const auto result = hypergradient(problem, metas, tasks, *captured);
          const auto bound = dtype == at::kDouble ? 1e-10 : strategy->name() == "FiniteDifference()" ? 1e-2 : 1e-5;
          EXPECT_LE(relative_error(result.gradients, expected.gradients), bound) << captured->name() << network.name;
        }
      }
    }
  }
}

/// Linear regression, one step, with the learning rate and the initial weight as meta-parameters.
struct Regression {
  struct Task {
    Tensor x, y;
  };
  Regression() : model(2, 1) {}
  Bilevel problem(std::function<Tensor(const Task&)> loss) {
    return Bilevel(model, optim::Optimizer(optim::SGD(0.1), model->parameters()))
        .steps(2)
        .inputs([](const Task& task) {
          return TensorList{task.x, task.y};
        })
        .inner(loss)
        .outer([this](const Task& task) { return plain(task); });
  }
  Tensor plain(const Task& task) { return (model(task.x) - task.y).square().mean(); }
  std::vector<Task> tasks(int64_t rows = 5, int count = 1) {
    std::vector<Task> list;
    for (int i = 0; i < count; ++i) list.push_back({torch::randn({rows, 2}), torch::randn({rows, 1})});
    return list;
  }
  torch::nn::Linear model;
};

TEST(Captured, says_why_it_does_not_replay_and_is_right_all_the_same) {
  Regression regression;
  const auto metas = regression.model->parameters();
  const auto constant = torch::tensor(2.);
  double number = 1;
  struct Reason {
    std::function<Tensor(const Regression::Task&)> loss;
    std::string remark;
    int from;  ///< the call from which on it is known
  };
  const std::vector<Reason> reasons{
      {[&](const Regression::Task& task) { return constant * regression.plain(task); }, "not among its inputs", 0},
      {[&](const Regression::Task& task) { return regression.plain(task) * torch::rand({}); }, "random", 0},
      {[&](const Regression::Task& task) { return regression.plain(task) * task.y.sum().item<double>(); },
       "looks at values", 0},
      {[&](const Regression::Task& task) { return regression.plain(task) * double(*task.y.const_data_ptr<float>()); },
       "a replay differs", 1},
      {[&](const Regression::Task& task) { return regression.plain(task) * number; }, "a replay differs", 1},
  };
  for (const auto& [loss, remark, from] : reasons) {
    const Captured captured;
    const auto problem = regression.problem(loss).seed(3);
    for (int call = 0; call < 4; ++call) {
      number += 1;
      const auto tasks = regression.tasks();
      const auto result = hypergradient(problem, metas, tasks, captured);
      EXPECT_LE(relative_error(result.gradients, hypergradient(problem, metas, tasks).gradients), 1e-6);
      if (call < from) continue;
      EXPECT_NE(result.cost.capture_remark.find(remark), std::string::npos) << result.cost.capture_remark;
    }
  }
}

TEST(Captured, takes_declared_constants) {
  Regression regression;
  const auto constant = torch::tensor(2.);
  const auto problem =
      regression.problem([&](const Regression::Task& task) { return constant * regression.plain(task); })
          .constants({constant});
  const auto metas = regression.model->parameters();
  const Captured captured;
  for (int call = 0; call < 4; ++call) {
    const auto tasks = regression.tasks();
    const auto result = hypergradient(problem, metas, tasks, captured);
    EXPECT_EQ(result.cost.capture_remark, "");
    EXPECT_LE(relative_error(result.gradients, hypergradient(problem, metas, tasks).gradients), 1e-6);
    constant.add_(0.5);
  }
}

TEST(Captured, records_again_for_other_shapes_settings_and_models) {
  const Captured captured;
  for (int model = 0; model < 2; ++model) {
    Regression regression;
    auto problem = regression.problem([&](const Regression::Task& task) { return regression.plain(task); });
    const auto metas = regression.model->parameters();
    for (int call = 0; call < 12; ++call) {
      if (call == 6) problem.steps(3);
      const auto tasks = regression.tasks(call % 3 + 2, 2);
      const auto result = hypergradient(problem, metas, tasks, captured);
      EXPECT_EQ(result.cost.capture_remark, "");
      EXPECT_LE(relative_error(result.gradients, hypergradient(problem, metas, tasks).gradients), 1e-6);
    }
    regression.model->weight.set_requires_grad(false);
    const auto tasks = regression.tasks();
    EXPECT_LE(relative_error(hypergradient(problem, {regression.model->bias}, tasks, captured).gradients,
                             hypergradient(problem, {regression.model->bias}, tasks).gradients),
              1e-6);
  }
}

// Tasks are often views of one tensor; and a query set may be the support set in one task and not in another.
TEST(Captured, tasks_may_share_memory) {
  Regression regression;
  const auto problem = regression.problem([&](const Regression::Task& task) { return regression.plain(task); });
  const auto metas = regression.model->parameters();
  const Captured captured;
  for (int call = 0; call < 6; ++call) {
    const auto all = torch::randn({100, 4, 3});
    std::vector<Regression::Task> tasks;
    for (int t = 0; t < 3; ++t)
      tasks.push_back({all[90 + t].slice(1, 0, 2), all[90 + t].slice(1, call % 2, call % 2 + 1)});
    const auto result = hypergradient(problem, metas, tasks, captured);
    EXPECT_EQ(result.cost.capture_remark, "");
    EXPECT_LE(relative_error(result.gradients, hypergradient(problem, metas, tasks).gradients), 1e-6);
  }
}

TEST(Captured, an_exception_while_recording_leaves_it_ready) {
  Regression regression;
  bool fails = true;
  const auto problem = regression.problem([&](const Regression::Task& task) {
    TORCH_CHECK(!fails, "a failure of the closure");
    return regression.plain(task);
  });
  const Captured captured;
  const auto metas = regression.model->parameters();
  const auto tasks = regression.tasks();
  expect_error([&] { hypergradient(problem, metas, tasks, captured); }, "a failure of the closure");
  fails = false;
  for (int call = 0; call < 4; ++call) {
    const auto result = hypergradient(problem, metas, tasks, captured);
    EXPECT_EQ(result.cost.capture_remark, "");
    EXPECT_LE(relative_error(result.gradients, hypergradient(problem, metas, tasks).gradients), 1e-6);
  }
}

TEST(Captured, refuses_losses_that_are_not_finite_as_the_strategy_does) {
  Regression regression;
  const auto problem = regression.problem([&](const Regression::Task& task) { return regression.plain(task); });
  const auto metas = regression.model->parameters();
  const Captured captured;
  // The next replay is the sixth, which is not compared with the strategy itself.
  for (int call = 0; call < 6; ++call) hypergradient(problem, metas, regression.tasks(), captured);
  auto tasks = regression.tasks();
  tasks[0].y.fill_(std::numeric_limits<float>::infinity());
  expect_error([&] { hypergradient(problem, metas, tasks, captured); },
               message_of([&] { hypergradient(problem, metas, tasks); }).substr(0, 40));
}

TEST(Captured, serves_several_threads_at_once) {
  Regression regression;
  const auto problem = regression.problem([&](const Regression::Task& task) { return regression.plain(task); });
  const auto metas = regression.model->parameters();
  const auto tasks = regression.tasks(5, 6);
  const auto expected = hypergradient(problem, metas, tasks).gradients;
  const Captured captured;
  std::vector<TensorList> found(4);
  std::vector<std::thread> threads;
  for (auto& gradients : found) {
    threads.emplace_back([&] {
      for (int call = 0; call < 10; ++call) gradients = hypergradient(problem, metas, tasks, captured).gradients;
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& gradients : found) {
    expect_equal(gradients, found[0]);
    EXPECT_LE(relative_error(gradients, expected), 1e-6);
  }
}

TEST(Captured, threads_agree_bitwise) {
  Regression regression;
  const auto problem = regression.problem([&](const Regression::Task& task) { return regression.plain(task); });
  const auto metas = regression.model->parameters();
  const Captured one, two;
  for (int call = 0; call < 6; ++call) {
    const auto tasks = regression.tasks(5, 5);
    expect_equal(hypergradient(problem, metas, tasks, one, Threads(1)).gradients,
                 hypergradient(problem, metas, tasks, two, Threads(2)).gradients);
  }
}

/// The most bytes that a hypergradient takes.
int64_t peak_bytes(const Bilevel& problem, const TensorList& metas, const std::vector<Classification>& tasks,
                   const Strategy& strategy = Unroll()) {
  const MemoryMeter meter;
  hypergradient(problem, metas, tasks, strategy);
  return meter.peak_bytes();
}

TEST(Captured, replays_in_no_more_memory_than_autograd_takes) {
  const auto& optimizer = inner_optimizers[0];
  const auto learner = Pairing{networks[1], optimizer, at::kDouble}.learner();
  const auto problem = learner.problem(optimizer.make(learner.module->parameters()));
  const auto metas = learner.all_meta_parameters();
  const auto tasks = learner.tasks(1);
  const auto bytes = hypergradient(problem, metas, tasks, Captured()).cost.capture_bytes;
  EXPECT_GT(bytes, 0);
  EXPECT_LE(bytes, peak_bytes(problem, metas, tasks));
}

// Updates of many elements are recorded as the passes over memory that they are.
TEST(Captured, replays_updates_in_one_pass) {
  for (const auto& optimizer : inner_optimizers) {
    const auto& name = optimizer.name;
    if (name.find("SGD") == std::string::npos && name.find("Adam") == std::string::npos) continue;
    torch::manual_seed(11);
    torch::nn::Sequential network(torch::nn::Linear(4, 128), torch::nn::Tanh(), torch::nn::Linear(128, 128),
                                  torch::nn::Tanh(), torch::nn::Linear(128, 3));
    Learner learner(network.ptr(), [network](const Tensor& x) mutable { return network->forward(x); }, {4});
    learner.to(at::kDouble);
    const auto problem = learner.problem(optimizer.make(learner.module->parameters()));
    const auto metas = learner.all_meta_parameters();
    const OwnOperators libtorchs(false);
    const auto expect_replays = [&](const auto& strategy) {
      const Captured captured(strategy);
      for (int round = 0; round < 3; ++round) {
        const auto tasks = learner.tasks(2);
        const auto expected = hypergradient(problem, metas, tasks, strategy);
        const auto result = hypergradient(problem, metas, tasks, captured);
        EXPECT_EQ(result.cost.capture_remark, "") << name;
        expect_equal(result.gradients, expected.gradients);
        const auto peak = peak_bytes(problem, metas, {tasks[0]}, strategy);
        EXPECT_LE(result.cost.capture_bytes, peak + peak / 100) << name;  // of which a part aligns tensors
        const torch::NoGradGuard no_gradient;
        for (const auto& meta : metas) meta.add_(0.01 * torch::randn_like(meta));
      }
    };
    expect_replays(Unroll());
    expect_replays(Replay());
  }
}

TEST(Captured, what_it_returns_is_not_written_to_again) {
  Regression regression;
  const auto problem = regression.problem([&](const Regression::Task& task) { return regression.plain(task); });
  const auto metas = regression.model->parameters();
  const Captured captured;
  for (int call = 0; call < 5; ++call) hypergradient(problem, metas, regression.tasks(), captured);
  const auto kept = hypergradient(problem, metas, regression.tasks(), captured).gradients;
  const auto copies = clones(kept);
  for (int call = 0; call < 5; ++call) hypergradient(problem, metas, regression.tasks(), captured);
  expect_equal(kept, copies);
}

}  // namespace
}  // namespace gimli
