#include <gtest/gtest.h>

#include <thread>

#include "expect.h"
#include "gimli/memory_meter.h"
#include "problem_table.h"

namespace gimli {
namespace {

using at::Tensor;

/// A linear regression that can be disturbed.
struct Regression {
  struct Task {
    Tensor x, y;
    double number = 1;
    Tensor view = {};
  };

  Bilevel problem(std::function<Tensor(const Task&)> loss) const {
    return Bilevel(model, optim::Optimizer(optim::SGD(0.1), model->parameters()))
        .steps(3)
        .inputs([](const Task& task) {
          return TensorList{task.x, task.y};
        })
        .inner(std::move(loss))
        .outer([this](const Task& task) { return OuterValue(plain(task), task.y); });
  }
  Bilevel problem() const {
    return problem([this](const Task& task) { return plain(task); });
  }
  Tensor plain(const Task& task) const { return (model.ptr()->forward(task.x) - task.y).square().mean(); }
  std::vector<Task> tasks(int count, int64_t rows = 5) const {
    std::vector<Task> list;
    for (int i = 0; i < count; ++i) {
      list.push_back({torch::randn({rows, 2}, torch::kDouble), torch::randn({rows, 1}, torch::kDouble), 1. + i});
      list.back().view = list.back().x.select(1, 0);
    }
    return list;
  }
  Result run(const Bilevel& bilevel, const std::vector<Task>& tasks, const TaskBatch& batch,
             const Strategy& strategy = Unroll()) const {
    return hypergradient(bilevel, model->parameters(), tasks, strategy, batch);
  }

  Regression() { model->to(torch::kDouble); }
  torch::nn::Linear model{2, 1};
};

/// A function of the user's own.
struct Doubled final : torch::autograd::Function<Doubled> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return 2 * x; }
  static TensorList backward(torch::autograd::AutogradContext*, const TensorList& gradients) {
    return {2 * gradients[0]};
  }
};

TEST(Vmap, refuses_what_it_cannot_know_to_be_right) {
  torch::manual_seed(1);
  const Regression regression;
  const auto own = torch::randn({5, 1}, torch::kDouble), number = torch::tensor(1., torch::kDouble);
  using Task = Regression::Task;
  struct Row {
    std::string words;
    std::function<Tensor(const Task&)> loss;
  };
  const std::vector<Row> rows{
      {"aten::mul reads a tensor (Double of shape [5, 1]) of which nobody said whether each task has its own",
       [&](const Task& task) { return regression.plain(task) * (own * 2).mean(); }},
      {"through an alias", [&](const Task& task) { return regression.plain(task) * task.view.mean(); }},
      {"writes to",
       [&](const Task& task) {
         const Tensor y = task.y;
         y.mul_(2);
         return regression.plain(task);
       }},
      {"differ from tasks that run one by one", [&](const Task& task) { return regression.plain(task) * task.number; }},
      {"differ from tasks that run one by one",
       [&](const Task& task) { return regression.plain(task) * *task.y.const_data_ptr<double>(); }},
      {"cannot use C++ torch::autograd::Function with functorch",
       [&](const Task& task) { return Doubled::apply(regression.plain(task)); }},
      {"looks at a value", [&](const Task& task) { return regression.plain(task) * task.y.sum().item<double>(); }},
      {"returns a tensor (Double of shape []) of which nobody said", [&](const Task&) { return number; }},
      {"must be a scalar of floating point, got Double of shape [5, 1]",
       [&](const Task& task) { return regression.model.ptr()->forward(task.x); }},
      {"expected a finite number",
       [&](const Task& task) { return regression.plain(task) / (task.y.square().sum() * 0); }},
  };
  for (const auto& [words, loss] : rows) {
    expect_error([&] { regression.run(regression.problem(loss), regression.tasks(3), Vmap()); }, words);
    EXPECT_FALSE(VmapLevel::active());
  }

  auto undeclared = Bilevel(regression.model, optim::Optimizer(optim::SGD(0.1), regression.model->parameters()))
                        .inner([&](const Task& task) { return regression.plain(task); })
                        .outer([&](const Task& task) { return regression.plain(task); });
  expect_error([&] { regression.run(undeclared, regression.tasks(2), Vmap()); }, "Bilevel::inputs");

  auto uneven = regression.tasks(2);
  uneven.push_back(regression.tasks(1, /*rows=*/4)[0]);
  expect_error([&] { regression.run(regression.problem(), uneven, Vmap()); },
               "input 0 of task 2 is Double of shape [4, 2], that of task 0 Double of shape [5, 2]");
  auto other_type = regression.tasks(2);
  other_type[1].y = other_type[1].y.to(at::kFloat);
  expect_error([&] { regression.run(regression.problem(), other_type, Vmap()); }, "input 1 of task 1 is Float");

  const std::vector<std::shared_ptr<const Strategy>> strategies{
      std::make_shared<Implicit>(), std::make_shared<FiniteDifference>(), std::make_shared<Evolution>(),
      std::make_shared<Reptile>()};
  for (const auto& strategy : strategies) {
    expect_error([&] { regression.run(regression.problem(), regression.tasks(2), Vmap(), *strategy); },
                 "Vmap: " + strategy->name() + " does not take tasks together: its ");
  }
}

TEST(Vmap, takes_declared_constants_and_what_requires_a_gradient) {
  torch::manual_seed(1);
  const Regression regression;
  const auto constant = torch::randn({5, 1}, torch::kDouble), learned = torch::randn({5, 1}, torch::kDouble);
  learned.set_requires_grad(true);
  const auto problem =
      regression
          .problem([&](const Regression::Task& task) {
            const auto x = task.x * constant + torch::tensor({0.5, 1.5}, torch::kDouble);
            return ((regression.model.ptr()->forward(x) - task.y) * learned).square().mean() * torch::ones({}).mean();
          })
          .constants({constant});
  const auto tasks = regression.tasks(4);
  const auto expected = hypergradient(problem, {learned}, tasks);
  const auto result = hypergradient(problem, {learned}, tasks, Unroll(), Vmap());
  EXPECT_LE(relative_error(result.gradients, expected.gradients), 1e-12);
  EXPECT_LE(relative_error(result.auxiliary, expected.auxiliary), 1e-12);
}

TEST(Vmap, compares_the_first_call_and_then_the_second_the_fourth_and_so_on) {
  torch::manual_seed(1);
  const Regression regression;
  int64_t calls = 0;
  const auto problem = regression.problem([&](const Regression::Task& task) {
    ++calls;
    return regression.plain(task);
  });
  const Vmap vmap;
  const auto copy = vmap;
  std::vector<int64_t> of_call;
  for (int i = 0; i < 8; ++i) {
    calls = 0;
    regression.run(problem, regression.tasks(5), i % 2 ? vmap : copy);
    of_call.push_back(calls);
  }
  const int64_t together = 3, one_by_one = 5 * 3;
  std::vector<int64_t> expected(8, together);
  for (const auto i : {0, 1, 3, 7}) expected[i] += one_by_one;
  EXPECT_EQ(of_call, expected);
  calls = 0;
  regression.run(problem, regression.tasks(5, /*rows=*/6), vmap);  // other shapes
  EXPECT_EQ(calls, together + one_by_one);
}

// Outcomes that rounding makes differ are told from others by which task the closures are given.
TEST(Vmap, takes_what_differs_by_rounding) {
  const auto outcome = [](double gradient, std::vector<int64_t> tasks_off = {}, bool draws = false) {
    const auto losses = torch::ones({20});
    for (const auto task : tasks_off) losses[task] += 0.01 * static_cast<double>(1 + task);
    return TaskBatch::Outcome{{losses}, {torch::tensor({1.F, static_cast<float>(gradient)})}, 1, draws};
  };
  const auto describe = [] { return TaskBatch::Job{1, "Unroll()", 20, {}}; };
  std::vector<int64_t> given;
  const auto remark = [&](const TaskBatch& batch, const std::function<TaskBatch::Outcome(int64_t)>& together) {
    given.clear();
    return batch
        .choose(describe,
                [&](const TaskBatch& candidate, int64_t task) {
                  if (candidate.name() == "Sequential") return outcome(2);
                  given.push_back(task);
                  return together(task);
                })
        .remark;
  };
  const auto expect_taken = [&](const TaskBatch& batch, const TaskBatch::Outcome& together,
                                const std::vector<int64_t>& tasks) {
    EXPECT_EQ(remark(batch, [&](int64_t) { return together; }).rfind("by rounding, tasks", 0), 0u);
    EXPECT_EQ(given, tasks);
  };
  const auto expect_refused = [&](const std::function<TaskBatch::Outcome(int64_t)>& together) {
    expect_error([&] { remark(Vmap(), together); }, "differ from tasks that run one by one");
  };
  EXPECT_EQ(remark(Vmap(), [&](int64_t) { return outcome(2); }), "");
  EXPECT_EQ(given, std::vector<int64_t>{0});
  expect_taken(Vmap(), outcome(2.5), {0, 1, 2, 3, 4, 5, 6, 7, 8});
  expect_taken(Vmap(), outcome(2.5, {6, 13}), {0, 13, 6, 1, 2, 3, 4, 5, 7});
  expect_taken(Vmap(4), outcome(2.5, {6, 13}), {0, 3, 1, 2, 4});
  expect_refused([&](int64_t) { return outcome(2.5, {}, /*draws=*/true); });
  expect_refused([&](int64_t task) { return outcome(task == 4 ? 2.5 : 2.4); });
  expect_refused([&](int64_t task) { return outcome(2.5, {task}); });
}

TEST(Vmap, refuses_another_gradient_of_the_same_loss) {
  torch::manual_seed(1);
  const Regression regression;
  auto problem = regression.problem();
  problem.outer([&](const Regression::Task& task) {
    const auto loss = regression.plain(task);
    return task.number > 2 ? loss.detach() + 0 * loss : loss;
  });
  expect_error([&] { regression.run(problem, regression.tasks(3), Vmap()); }, "differ from tasks that run one by one");
}

TEST(Vmap, runs_one_task) {
  torch::manual_seed(1);
  const Regression regression;
  const auto tasks = regression.tasks(1);
  const auto expected = regression.run(regression.problem(), tasks, Sequential());
  const auto result = regression.run(regression.problem(), tasks, Vmap());
  EXPECT_LE(relative_error(result.gradients, expected.gradients), 1e-12);
  EXPECT_EQ(result.outer_losses.sizes(), at::IntArrayRef({1}));
}

TEST(Vmap, runs_in_parts_on_threads) {
  torch::manual_seed(1);
  const Regression regression;
  const auto problem = regression.problem().keep_final_states(true);
  for (const int count : {1, 2, 5}) {
    const auto tasks = regression.tasks(count);
    const auto expected = regression.run(problem, tasks, Sequential());
    for (const int threads : {1, 2, 3}) {
      const auto result = regression.run(problem, tasks, Vmap(threads));
      EXPECT_EQ(result.cost.task_batch, c10::str("Vmap(", threads, ")"));
      EXPECT_EQ(result.cost.inner_steps, expected.cost.inner_steps);
      EXPECT_EQ(result.auxiliary.size(), tasks.size());
      EXPECT_LE(relative_error(result.gradients, expected.gradients), 1e-12);
      EXPECT_LE(relative_error({result.outer_losses}, {expected.outer_losses}), 1e-12);
      for (int t = 0; t < count; ++t) {
        EXPECT_LE(relative_error(result.final_states[t].parameters, expected.final_states[t].parameters), 1e-12);
      }
    }
  }
}

TEST(Vmap, evaluates_without_gradients) {
  torch::manual_seed(1);
  const Regression regression;
  const auto tasks = regression.tasks(3);
  const auto expected = evaluate(regression.problem(), tasks);
  const torch::NoGradGuard no_gradient;
  const auto result = evaluate(regression.problem(), tasks, Vmap());
  EXPECT_LE(relative_error({result.outer_losses}, {expected.outer_losses}), 1e-12);
}

TEST(Vmap, is_as_it_was_after_an_exception) {
  torch::manual_seed(1);
  const Regression regression;
  int64_t calls = 0, fatal = 0;
  const auto problem = regression.problem([&](const Regression::Task& task) {
    if (++calls == fatal) throw std::runtime_error("interrupted");
    return regression.plain(task);
  });
  const auto tasks = regression.tasks(3);
  const Vmap vmap;
  const auto expected = regression.run(problem, tasks, vmap);
  const auto count = calls;
  const auto parameters = clones(regression.model->parameters());
  for (fatal = 1; fatal <= count; ++fatal) {
    calls = 0;
    EXPECT_THROW(regression.run(problem, tasks, Vmap()), std::runtime_error);
    EXPECT_FALSE(VmapLevel::active());
    EXPECT_FALSE(Substitution::active());
    const VmapLevel level(2);  // libtorch's stack of levels is empty, or this throws
  }
  fatal = 0;
  expect_equal(regression.model->parameters(), parameters);
  expect_equal(regression.run(problem, tasks, vmap).gradients, expected.gradients);
}

TEST(Vmap, runs_in_several_threads_at_once) {
  torch::manual_seed(1);
  const Regression regression;
  const auto problem = regression.problem().seed(1);
  const auto tasks = regression.tasks(4);
  const auto expected = regression.run(problem, tasks, Vmap());
  const Vmap vmap;
  std::vector<Result> results(2);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) result = regression.run(problem, tasks, vmap);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) expect_equal(result.gradients, expected.gradients);
}

TEST(Vmap, keeps_no_memory) {
  torch::manual_seed(1);
  const Regression regression;
  const auto tasks = regression.tasks(3);
  const auto problem = regression.problem();
  const Vmap vmap;
  regression.run(problem, tasks, vmap);
  const MemoryMeter meter;
  for (int i = 0; i < 10; ++i) regression.run(problem, tasks, vmap, i % 2 ? Unroll() : Unroll::first_order());
  EXPECT_EQ(meter.live_bytes(), 0);
}

TEST(Vmap, is_replayed_by_Captured) {
  torch::manual_seed(1);
  const Regression regression;
  const auto problem = regression.problem();
  const Captured captured;
  const Vmap vmap;
  for (int i = 0; i < 6; ++i) {
    const auto tasks = regression.tasks(3);
    const auto expected = regression.run(problem, tasks, Sequential());
    const auto result = regression.run(problem, tasks, vmap, captured);
    EXPECT_EQ(result.cost.capture_remark, "");
    EXPECT_LE(relative_error(result.gradients, expected.gradients), 1e-12);
    EXPECT_LE(relative_error({result.outer_losses}, {expected.outer_losses}), 1e-12);
  }
}

TEST(Auto, measures_once_and_keeps_its_choice) {
  torch::manual_seed(1);
  const Regression regression;
  std::atomic<int64_t> calls = 0;
  const auto problem = regression.problem([&](const Regression::Task& task) {
    ++calls;
    return regression.plain(task);
  });
  const Auto automatic(2);
  const auto tasks = regression.tasks(4);
  const auto expected = regression.run(problem, tasks, Sequential());
  const auto first = regression.run(problem, tasks, automatic);
  EXPECT_NE(first.cost.task_batch_remark.find("Sequential "), std::string::npos) << first.cost.task_batch_remark;
  EXPECT_NE(first.cost.task_batch_remark.find("Threads(2) "), std::string::npos) << first.cost.task_batch_remark;
  EXPECT_NE(first.cost.task_batch_remark.find("Vmap() "), std::string::npos) << first.cost.task_batch_remark;
  calls = 0;
  const auto second = regression.run(problem, tasks, Auto(automatic));
  EXPECT_TRUE(calls == 3 || calls == 2 * 3 || calls == 4 * 3) << calls;  // Vmap(), Vmap(2), or task by task
  EXPECT_EQ(second.cost.task_batch, first.cost.task_batch);
  EXPECT_EQ(second.cost.task_batch.rfind("Auto: ", 0), 0u) << second.cost.task_batch;
  EXPECT_EQ(second.cost.task_batch_remark, first.cost.task_batch_remark);
  for (const auto& result : {first, second}) {
    EXPECT_LE(relative_error(result.gradients, expected.gradients), 1e-12);
  }
}

TEST(Auto, says_why_it_leaves_Vmap_out) {
  torch::manual_seed(1);
  const Regression regression;
  const auto problem =
      regression.problem([&](const Regression::Task& task) { return regression.plain(task) * task.number; });
  const auto tasks = regression.tasks(4);
  const auto result = regression.run(problem, tasks, Auto(1));
  EXPECT_NE(result.cost.task_batch_remark.find("differ from tasks that run one by one"), std::string::npos)
      << result.cost.task_batch_remark;
  expect_equal(result.gradients, regression.run(problem, tasks, Threads(1)).gradients);
  expect_error([] { Auto(-1); }, "Auto: expected at least 1 thread");
}

}  // namespace
}  // namespace gimli
