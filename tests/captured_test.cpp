#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <thread>

#include "expect.h"
<<<<<<< HEAD
=======
#include "gimli/operators/batch_norm.h"
#include "gimli/operators/convolution.h"
#include "gimli/operators/layer_norm.h"
#include "gimli/operators/max_pool.h"
#include "gimli/trace.h"
>>>>>>> 92968ab (Pool in one vector pass forwards, backwards and twice backwards: libtorch looks at one pixel after the other)
#include "problem_table.h"

namespace gimli {
namespace {

using torch::Tensor;

<<<<<<< HEAD
=======
// ---------------------------------------------------------------- Trace

/// A function of its inputs, with its own tensors.
struct Row {
  std::string name;
  std::function<TensorList(const TensorList& inputs)> function;
  std::vector<std::vector<int64_t>> sizes;
};

TensorList second_derivatives(const std::function<Tensor(const TensorList&)>& loss, const TensorList& inputs) {
  TensorList leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().requires_grad_());
  const auto first = torch::autograd::grad({loss(leaves)}, leaves, {}, true, true);
  auto sum = torch::zeros({}, inputs[0].options());
  for (const auto& gradient : first) sum = sum + gradient.square().sum();
  return torch::autograd::grad({sum}, leaves);
}

const std::vector<Row> rows{
    {"pointwise", [](const TensorList& in) { return TensorList{(in[0] * 2 + in[1]).sin().exp()}; }, {{3, 4}, {4}}},
    {"views_and_products",
     [](const TensorList& in) {
       return TensorList{in[0].t().matmul(in[1]).view({2, -1}).select(0, 1), in[0].unsqueeze(0).expand({3, 4, 4})};
     },
     {{4, 4}, {4, 6}}},
    {"in_place",
     [](const TensorList& in) {
       auto sum = torch::zeros({4});
       sum.add_(in[0]).mul_(3);
       auto part = torch::empty({2, 4});
       part[0].copy_(sum);
       part[1].fill_(2);
       return TensorList{part, sum};
     },
     {{4}}},
    {"lists",
     [](const TensorList& in) {
       return TensorList{torch::cat({in[0], in[1], in[0]}), torch::stack({in[0], in[0]}, 1)};
     },
     {{3, 2}, {2, 2}}},
    {"indices",
     [](const TensorList& in) {
       return TensorList{in[0].index({torch::tensor({2, 0})}), in[0].argmax(1), in[0].gt(0)};
     },
     {{3, 5}}},
    {"types",
     [](const TensorList& in) {
       return TensorList{in[0].to(torch::kDouble).sum(), (in[0] > 0).to(torch::kFloat).mean()};
     },
     {{3, 5}}},
    {"factories",
     [](const TensorList& in) { return TensorList{in[0] + torch::arange(4) + torch::ones({4}) * torch::full({}, 3.)}; },
     {{4}}},
    // Of these, forms that write into given memory resize it, or there are none.
    {"losses",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) {
             const auto y = x[0].matmul(x[1]);
             return torch::mse_loss(y, x[2]) + torch::smooth_l1_loss(y, x[2]) +
                    torch::nll_loss(torch::log_softmax(y, 1), torch::arange(4));
           },
           in);
     },
     {{4, 3}, {3, 5}, {4, 5}}},
    {"running_statistics",
     [](const TensorList& in) {
       auto mean = torch::zeros({3}, in[0].options()), variance = torch::ones({3}, in[0].options());
       for (int i = 0; i < 2; ++i) torch::batch_norm(in[0], {}, {}, mean, variance, true, 0.3, 1e-5, false);
       return TensorList{mean, variance};
     },
     {{5, 3, 2}}},
    {"double_backward",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) { return torch::tanh(x[0].matmul(x[1]) + x[2]).square().mean(); }, in);
     },
     {{5, 3}, {3, 4}, {4}}},
    {"convolutions",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) {
             const auto y =
                 torch::batch_norm(torch::conv2d(x[0], x[1], x[2], 1, 1), {}, {}, {}, {}, true, 0.1, 1e-5, false);
             return torch::cross_entropy_loss(torch::max_pool2d(torch::relu(y), 2).flatten(1), torch::arange(3));
           },
           in);
     },
     {{3, 2, 4, 4}, {4, 2, 3, 3}, {4}}},
    {"own_operators",
     [](const TensorList& in) {
       auto mean = torch::zeros({4}, in[0].options()), variance = torch::ones({4}, in[0].options());
       auto list = second_derivatives(
           [&](const TensorList& x) {
             const auto y = operators::convolution({x[0], x[1], x[2], {1, 1}, {1, 1}, {1, 1}, 1});
             const auto z = operators::batch_norm({y, x[3], x[2], mean, variance, 0.3, 1e-5});
             const auto pooled = operators::max_pool({operators::relu(z), {2, 2}, {2, 2}, {0, 0}, {1, 1}, false});
             return operators::layer_norm({pooled, {2, 3}, {}, {}, 1e-5}).pow(3).sum();
           },
           in);
       list.insert(list.end(), {mean, variance});
       return list;
     },
     {{3, 2, 4, 6}, {4, 2, 3, 3}, {4}, {4}}},
    {"attention",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) {
             const auto scores = torch::softmax(x[0].matmul(x[1].transpose(-1, -2)), -1);
             return torch::layer_norm(scores.matmul(x[1]), {4}).pow(3).sum();
           },
           in);
     },
     {{2, 3, 4}, {2, 3, 4}}},
};

class TraceTest : public testing::TestWithParam<Row> {};
INSTANTIATE_TEST_SUITE_P(Table, TraceTest, testing::ValuesIn(rows), [](const auto& info) { return info.param.name; });

TEST_P(TraceTest, ReplaysOnOtherDataWithDifferenceZero) {
  torch::manual_seed(1);
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    const auto inputs = [&] {
      TensorList list;
      for (const auto& sizes : GetParam().sizes) list.push_back(torch::randn(sizes, type));
      return list;
    };
    const auto first = inputs();
    const auto recording = Trace::record([&] { return GetParam().function(first); }, {first, {}});
    ASSERT_TRUE(recording.trace) << recording.refusal;
    expect_equal(recording.outputs, GetParam().function(first));
    const auto memory = recording.trace->allocate();
    for (int round = 0; round < 3; ++round) {
      const auto other = inputs();
      expect_equal(recording.trace->replay(*memory, other), GetParam().function(other));
    }
  }
}

TEST(Trace, reads_shared_tensors_as_they_are) {
  const auto weight = torch::randn({3, 3}), x = torch::randn({2, 3});
  const auto function = [&] { return TensorList{x.matmul(weight)}; };
  const auto recording = Trace::record(function, {{x}, {weight}});
  const auto memory = recording.trace->allocate();
  weight.mul_(2);
  expect_equal(recording.trace->replay(*memory, {x}), function());
}

TEST(Trace, lays_memory_out_once_and_uses_it_again) {
  const auto x = torch::randn({1000});
  const auto recording = Trace::record(
      [&] {
        auto y = x;
        for (int i = 0; i < 100; ++i) y = y.sin();
        return TensorList{y};
      },
      {{x}, {}});
  EXPECT_EQ(recording.trace->size(), 100);
  EXPECT_LE(recording.trace->memory_bytes(), 3 * 4096);
}

TEST(Trace, says_why_there_is_none) {
  const auto x = torch::randn({4}), other = torch::randn({4});
  const auto refusal = [&](const std::function<Tensor()>& function) {
    const auto recording = Trace::record([&] { return TensorList{function()}; }, {{x}, {}});
    EXPECT_FALSE(recording.trace);
    EXPECT_TRUE(recording.outputs[0].defined());
    return recording.refusal;
  };
  const auto contains = [](const std::string& text, const std::string& words) {
    return text.find(words) != std::string::npos;
  };
  EXPECT_PRED2(contains, refusal([&] { return x + other; }),
               "reads a tensor of shape [4] that is not among its inputs");
  EXPECT_PRED2(contains, refusal([&] { return x + torch::rand({4}); }), "random");
  EXPECT_PRED2(contains, refusal([&] { return x * x.sum().item<double>(); }), "looks at values");
  EXPECT_PRED2(contains, refusal([&] { return x.index({x > 0}); }), "looks at values");
  EXPECT_PRED2(contains, refusal([&] { return torch::empty_like(x).resize_({8}).fill_(1); }),
               "changes a tensor's shape");
}

TEST(Trace, throws_what_its_function_throws) {
  const auto x = torch::randn({4});
  expect_error([&] { Trace::record([&]() -> TensorList { TORCH_CHECK(false, "no ", x.dim()); }, {{x}, {}}); }, "no 1");
  EXPECT_FALSE(Trace::is_recording());
  EXPECT_TRUE(Trace::record([&] { return TensorList{x.sin()}; }, {{x}, {}}).trace);
}

// ---------------------------------------------------------------- Captured

>>>>>>> 92968ab (Pool in one vector pass forwards, backwards and twice backwards: libtorch looks at one pixel after the other)
/// With what its closures read declared.
Bilevel declared(Bilevel problem) {
  return problem.inputs([](const Classification& task) {
    return TensorList{task.x, task.y, task.x_query, task.y_query};
  });
}

class OwnOperators final {
 public:
  explicit OwnOperators(bool use) : before_(use_own_operators(use)) {}
  ~OwnOperators() { use_own_operators(before_); }

 private:
  const bool before_;
};

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

class CapturedTest : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Table, CapturedTest, testing::ValuesIn(cases()), [](const auto& info) {
  return info.param.network->name + "_" + info.param.optimizer->name +
         (info.param.dtype == at::kDouble ? "_float64" : "_float32");
});

TEST_P(CapturedTest, AgreesWithTheStrategyItself) {
  torch::manual_seed(11);
  auto learner = GetParam().network->make();
  {
    const torch::NoGradGuard no_gradient;
    learner.lr.fill_(GetParam().optimizer->lr);
  }
  learner.to(GetParam().dtype);
  const auto metas = learner.all_meta_parameters();
  const auto problem = declared(learner.problem(GetParam().optimizer->make(learner.module->parameters())))
                           .outer_at({0, 2, 4})
                           .keep_final_states(true);
  // LBFGS divides by differences of gradients, RMSprop by small ones: that makes more of float32's rounding.
  const bool by_lbfgs = GetParam().optimizer->name == "LBFGS";
  const double rounding = by_lbfgs ? 1e-3 : GetParam().optimizer->name == "RMSprop" ? 1e-4 : 1e-5;
  const double bound = GetParam().dtype == at::kDouble ? 1e-12 : rounding;
  // Dropout draws random numbers, and LBFGS looks at curvatures.
  const auto& network = GetParam().network->name;
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
