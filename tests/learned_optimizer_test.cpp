#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "expect.h"
#include "gimli/optim/gradient_transform.h"
#include "gimli/optim/rules/lstm_optimizer.h"
#include "gimli/optim/rules/mlp_optimizer.h"
#include "gimli/optim/rules/sgd.h"
#include "gimli/optim/schedule.h"
#include "optim_fixture.h"

namespace {

using namespace gimli;
using namespace gimli::optim;

/// Weights that are not those of a rule that does nothing.
template <class Rule>
Rule with_weights(const Rule& rule) {
  rule.network()->to(at::kDouble);
  torch::NoGradGuard no_gradient;
  int64_t offset = 0;
  for (auto& weight : rule.parameters()) weight.copy_(values(weight.sizes(), offset++));
  return rule;
}

LSTMOptimizer small_lstm() { return with_weights(LSTMOptimizer(LSTMOptimizerOptions(0.1).hidden_size(2))); }

MLPOptimizerOptions small_mlp_options() {
  return MLPOptimizerOptions(0.1).scale(0.5).hidden_size(3).momenta({0.5, 0.9}).second_moment(0.9).timescales({1, 10});
}
MLPOptimizer small_mlp(double eps = 1e-5) { return with_weights(MLPOptimizer(small_mlp_options().eps(eps))); }

template <class Rule>
ModelTensors model_of(const Rule& rule) {
  return ModelTensors(*rule.network());
}

template <class Test>
void for_each_rule(Test test) {
  {
    SCOPED_TRACE("LSTMOptimizer");
    test(small_lstm());
  }
  {
    SCOPED_TRACE("MLPOptimizer");
    test(small_mlp());
  }
}

/// Two parameters, one of them with elements that the loss does not depend on.
struct Pair : torch::nn::Module {
  Pair(const at::Tensor& first, const at::Tensor& second) {
    a = register_parameter("a", first);
    b = register_parameter("b", second);
  }
  at::Tensor loss(double target) const {
    const auto mask = at::tensor({1.0, 0.0, 1.0}, at::kDouble);
    return ((a - target).pow(4) * mask).sum() + ((b - target).square()).sum() * a[0];
  }
  at::Tensor a, b;
};

std::shared_ptr<Pair> pair() { return std::make_shared<Pair>(values({3}, 1), values({2, 1}, 2)); }

template <class Rule>
Bilevel problem_of(const std::shared_ptr<Pair>& model, const Rule& rule, int64_t steps = 3) {
  return Bilevel(model, Optimizer(rule, model->parameters()))
      .steps(steps)
      .inner([=] { return model->loss(1); })
      .outer([=] { return model->loss(0.75); });
}

struct Target {
  double value;
};

// ---------------------------------------------------------------- values

TEST(LogAndSign, has_its_formula) {
  constexpr double p = 10;
  const std::vector<double> g{0, -0.0, 1, -2, 1e-3, std::exp(-p), -std::exp(-p) * 0.999, 1e-300, -1e300};
  const auto rows = log_and_sign(at::tensor(g, at::kDouble), p);
  ASSERT_EQ(rows.sizes(), (std::vector<int64_t>{9, 2}));
  for (size_t i = 0; i < g.size(); ++i) {
    const bool large = std::abs(g[i]) >= std::exp(-p);
    EXPECT_NEAR(rows[i][0].item<double>(), large ? std::log(std::abs(g[i])) / p : -1, 1e-14) << g[i];
    EXPECT_NEAR(rows[i][1].item<double>(), large ? std::copysign(1, g[i]) : std::exp(p) * g[i], 1e-14) << g[i];
  }
  EXPECT_EQ(log_and_sign(at::ones({2, 3}), p).sizes(), (std::vector<int64_t>{2, 3, 2}));
}

TEST(LogAndSign, has_finite_and_right_derivatives) {
  const auto weights = values({4, 2}, 1);
  const auto function = [&](const TensorList& in) { return (log_and_sign(in[0], 2).pow(3) * weights).sum(); };
  const auto g = at::tensor({0.0, 0.05, -0.1, 1.5}, at::kDouble).requires_grad_();
  expect_derivatives(function, {g});
  const auto first = torch::autograd::grad({function({g})}, {g}, {}, true, true)[0];
  const auto second = torch::autograd::grad({first.sum()}, {g}, {}, true, true)[0];
  const auto third = torch::autograd::grad({second.sum()}, {g})[0];
  EXPECT_TRUE(third.isfinite().all().item<bool>());
  const auto zero = at::zeros({}, at::kFloat).requires_grad_();
  EXPECT_FLOAT_EQ(torch::autograd::grad({log_and_sign(zero, 10).sum()}, {zero})[0].item<float>(), std::exp(10.f));
}

TEST(LSTMOptimizer, agrees_with_torch_lstm) {
  constexpr int64_t layers = 3, hidden = 4, steps = 5;
  const auto rule = with_weights(LSTMOptimizer(LSTMOptimizerOptions(0.3).layers(layers).hidden_size(hidden)));
  torch::nn::LSTM lstm(torch::nn::LSTMOptions(2, hidden).num_layers(layers));
  torch::nn::Linear out(hidden, 1);
  lstm->to(at::kDouble);
  out->to(at::kDouble);
  {
    torch::NoGradGuard no_gradient;
    const auto weights = rule.parameters();
    auto theirs = lstm->parameters();
    for (const auto& weight : out->parameters()) theirs.push_back(weight);
    ASSERT_EQ(theirs.size(), weights.size());
    for (size_t i = 0; i < weights.size(); ++i) theirs[i].copy_(weights[i]);
  }

  Course course(Optimizer(rule, {values({3, 2}, 0)}));
  TensorList inputs;
  for (int64_t t = 0; t < steps; ++t) {
    const auto g = values({3, 2}, t) * std::pow(0.01, t % 4);
    course.update({g});
    for (int64_t i = 0; i < 6; ++i) {
      const auto x = g.flatten()[i].item<double>();
      const bool large = std::abs(x) >= std::exp(-10);
      inputs.push_back(at::tensor(
          {large ? std::log(std::abs(x)) / 10 : -1, large ? std::copysign(1, x) : std::exp(10) * x}, at::kDouble));
    }
  }
  const auto [hidden_states, last] = lstm->forward(at::stack(inputs).reshape({steps, 6, 2}));
  const auto sum = out->forward(hidden_states).sum(0).reshape({3, 2});
  expect_near(course.parameters[0], values({3, 2}, 0) + 0.3 * sum, 1e-14);
  for (int64_t layer = 0; layer < layers; ++layer) {
    expect_near(course.states[0].slots[2 * layer], std::get<0>(last)[layer], 1e-14);
    expect_near(course.states[0].slots[2 * layer + 1], std::get<1>(last)[layer], 1e-14);
  }
  EXPECT_EQ(course.states[0].step, steps);
}

// The formula of the header, coordinate by coordinate.
TEST(MLPOptimizer, has_its_formula) {
  const auto rule = small_mlp();
  const auto weights = rule.parameters();
  const double eps = 1e-5;
  const auto theta = values({2, 2}, 0).flatten();
  Course course(Optimizer(rule, {values({2, 2}, 0)}));

  auto m1 = at::zeros({4}, at::kDouble), m2 = m1, v = m1, expected = theta;
  for (int64_t t = 1; t <= 4; ++t) {
    const auto g = values({4}, t) / t;
    course.update({g.reshape({2, 2})});
    m1 = 0.5 * m1 + 0.5 * g;
    m2 = 0.9 * m2 + 0.1 * g;
    v = 0.9 * v + 0.1 * g * g;
    TensorList features{m1, m2, g / (v / (1 - std::pow(0.9, t)) + eps * eps).sqrt(), g, expected};
    for (auto& x : features) x = x / std::sqrt((x * x).sum().item<double>() / 4 + eps * eps);
    auto next = expected.clone();
    for (int64_t i = 0; i < 4; ++i) {
      std::vector<double> row;
      for (const auto& x : features) row.push_back(x[i].item<double>());
      row.push_back(std::tanh(t / 1.0 - 1));
      row.push_back(std::tanh(t / 10.0 - 1));
      auto x = at::tensor(row, at::kDouble);
      for (size_t layer = 0; layer < 3; ++layer) {
        x = weights[2 * layer].detach().mv(x) + weights[2 * layer + 1].detach();
        if (layer < 2) x = x.clamp_min(0);
      }
      next[i] -= 0.1 * x[0] * std::exp(0.5 * x[1].item<double>());
    }
    expected = next;
    expect_near(course.parameters[0].flatten(), expected, 1e-13);
  }
  expect_near(course.states[0].slots[0].flatten(), m1, 1e-14);
  expect_near(course.states[0].slots[1].flatten(), m2, 1e-14);
  expect_near(course.states[0].slots[2].flatten(), v, 1e-14);
}

TEST(LearnedOptimizer, untrained_leaves_the_parameters_and_learns) {
  const auto check = [](const auto& rule) {
    rule.network()->to(at::kDouble);
    const auto model = pair();
    const auto result = hypergradient(problem_of(model, rule).keep_final_states(true), rule.parameters());
    expect_equal(result.final_states[0].parameters, clones(model->parameters()));
    EXPECT_GT(result.gradients.back().abs().max().template item<double>(), 0);
    for (const auto& gradient : result.gradients) EXPECT_TRUE(gradient.isfinite().all().template item<bool>());
  };
  check(LSTMOptimizer());
  check(MLPOptimizer());
}

TEST(LearnedOptimizer, a_group_is_each_alone) {
  for_each_rule([](const auto& rule) {
    const TensorList start{values({3, 2}, 0), values({}, 1), values({4}, 2), values({2, 1, 2}, 3)};
    Course group(Optimizer(rule, start));
    std::vector<Course> alone;
    for (const auto& parameter : start) alone.emplace_back(Optimizer(rule, {parameter}));
    for (int64_t t = 0; t < 4; ++t) {
      TensorList gradients;
      for (size_t i = 0; i < start.size(); ++i) {
        const bool unused = i == 2 && t % 2 == 1;
        gradients.push_back(unused ? at::Tensor() : values(start[i].sizes(), 4 * t + i));
        alone[i].update({gradients[i]});
      }
      group.update(gradients);
    }
    for (size_t i = 0; i < start.size(); ++i) {
      expect_near(group.parameters[i], alone[i].parameters[0], 1e-14);
      EXPECT_EQ(group.states[i].step, i == 2 ? 2 : 4);
      for (size_t s = 0; s < group.states[i].slots.size(); ++s) {
        expect_near(group.states[i].slots[s], alone[i].states[0].slots[s], 1e-13);
      }
    }
    const auto before = clones(group.parameters);
    group.update(TensorList(start.size()));
    expect_equal(group.parameters, before);

    const auto& first = group.optimizer.groups()[0];
    const auto one =
        first.rule->update(start[0], values({3, 2}, 0), first.states[0], first.values_at(0, {0}, {start[0]})[0]);
    Course same(Optimizer(rule, {start[0]}));
    same.update({values({3, 2}, 0)});
    EXPECT_TRUE(at::equal(one.parameter, same.parameters[0]));
  });
}

TEST(LearnedOptimizer, hyperparameters_may_differ_by_parameter_and_element) {
  for_each_rule([](const auto& rule) {
    const TensorList start{values({3}, 0), values({2}, 1)}, gradients{values({3}, 2), values({2}, 3)};
    const auto moved = [&](const Hyperparameter& lr) {
      Course course(Optimizer(Optimizer(rule, start)).set("lr", lr));
      course.update(gradients);
      return TensorList{course.parameters[0] - start[0], course.parameters[1] - start[1]};
    };
    const auto unit = moved(1);
    const auto several = moved(TensorList{values({3}, 5), scalar(0.25)});
    expect_near(several[0], values({3}, 5) * unit[0], 1e-13);
    expect_near(several[1], 0.25 * unit[1], 1e-13);
  });
}

TEST(LearnedOptimizer, keeps_strides) {
  for_each_rule([](const auto& rule) {
    const TensorList start{values({3, 2}, 1).t(), values({1, 2, 2, 3}, 2).contiguous(at::MemoryFormat::ChannelsLast)};
    Course course(Optimizer(rule, start)), plain(Optimizer(rule, {start[0].contiguous(), start[1].contiguous()}));
    for (int64_t t = 0; t < 3; ++t) {
      const TensorList gradients{values({2, 3}, t + 2), values({1, 2, 2, 3}, t + 3)};
      course.update(gradients);
      plain.update(gradients);
    }
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(course.parameters[i].strides(), start[i].strides());
      expect_near(course.parameters[i], plain.parameters[i], 1e-14);
    }
  });
}

// ---------------------------------------------------------------- derivatives

TEST(LearnedOptimizer, derivatives_of_three_updates) {
  for_each_rule([](const auto& rule) {
    const TensorList start{values({2}, 1), values({1}, 2)};
    const Optimizer optimizer(rule, start);
    const auto& group = optimizer.groups()[0];
    auto inputs = start;
    for (int64_t t = 0; t < 3; ++t) {
      for (const auto& parameter : start) inputs.push_back(far_values(parameter.sizes(), inputs.size()));
    }
    for (const auto& state : group.states) {
      for (const auto& slot : state.slots) inputs.push_back(values(slot.sizes(), inputs.size()).abs());
    }
    for (size_t h = 0; h < group.names.size(); ++h) inputs.push_back(scalar(0.5));
    const auto weights = rule.parameters();
    inputs.insert(inputs.end(), weights.begin(), weights.end());
    inputs = requires_grad(inputs);

    const auto model = model_of(rule);
    expect_derivatives(
        [&](const TensorList& in) {
          auto next = in.begin();
          const auto take = [&](size_t count) {
            next += count;
            return TensorList(next - count, next);
          };
          Course course(optimizer);
          course.parameters = take(2);
          const TensorList gradients[] = {take(2), take(2), take(2)};
          for (auto& state : course.states) state = {2, take(state.slots.size())};
          for (const auto& name : group.names) course.optimizer.set(name, take(1)[0]);
          return substituted(model, take(weights.size()), {}, [&] {
            for (const auto& gradient : gradients) course.update(gradient);
            return course.total();
          });
        },
        inputs, GradcheckOptions().step(3e-6));
  });
}

template <class Rule>
TensorList meta_parameters_of(const Rule& rule, const std::shared_ptr<Pair>& model) {
  auto list = rule.parameters();
  for (const auto& parameter : model->parameters()) list.push_back(parameter);
  return list;
}

// The second element of `a` has gradient 0 in every step.
TEST(LearnedOptimizer, hypergradients_agree_with_central_differences) {
  for_each_rule([](const auto& rule) {
    const auto model = pair();
    const auto report = gradcheck(problem_of(model, rule), meta_parameters_of(rule, model), {}, Unroll(),
                                  GradcheckOptions().step(3e-6));
    EXPECT_TRUE(report) << report.message;
  });
}

TEST(LearnedOptimizer, dead_tensors_leave_hypergradients_finite_and_right) {
  const auto check = [](const auto& rule, const char* name) {
    SCOPED_TRACE(name);
    const auto model = std::make_shared<Pair>(values({3}, 1), at::zeros({2}, at::kDouble));
    const auto problem = Bilevel(model, Optimizer(rule, model->parameters()))
                             .steps(3)
                             .inner([=] { return model->a.pow(4).sum() + 0 * model->b.sum(); })
                             .outer([=] { return model->a.square().sum() + model->b.exp().sum(); });
    const auto report =
        gradcheck(problem, meta_parameters_of(rule, model), {}, Unroll(), GradcheckOptions().step(1e-6));
    EXPECT_TRUE(report) << report.message;
  };
  check(small_lstm(), "LSTMOptimizer");
  check(small_mlp(0.1), "MLPOptimizer");

  const auto steep = small_mlp();
  const auto model = std::make_shared<Pair>(at::zeros({3}, at::kDouble), at::zeros({2}, at::kDouble));
  const auto result = hypergradient(problem_of(model, steep), meta_parameters_of(steep, model));
  for (const auto& gradient : result.gradients) EXPECT_TRUE(gradient.isfinite().all().item<bool>());
}

TEST(LearnedOptimizer, first_order_takes_gradients_for_constants) {
  for_each_rule([](const auto& rule) {
    const auto model = pair();
    const auto weights = rule.parameters();
    const auto problem = problem_of(model, rule);
    const auto first_order = hypergradient(problem, weights, {}, Unroll::first_order());
    const auto stopped = hypergradient(Bilevel(problem).gradient_transform(stop_gradient()), weights);
    expect_equal(first_order.gradients, stopped.gradients);
    const auto full = hypergradient(problem, weights);
    EXPECT_FALSE(at::equal(first_order.gradients[0], full.gradients[0]));

    InnerLoop inner(model, Optimizer(rule, model->parameters()), InnerLoopOptions().graph(Graph::first_order));
    for (int k = 0; k < 3; ++k) inner.step([&] { return model->loss(1); });
    const auto direct = torch::autograd::grad({inner.run([&] { return model->loss(0.75); })}, weights);
    expect_equal(direct, first_order.gradients);
  });
}

TEST(LearnedOptimizer, threads_share_the_network) {
  for_each_rule([](const auto& rule) {
    const auto model = pair();
    const std::vector<Target> targets{{0.5}, {0.75}, {1}, {1.25}, {1.5}};
    const auto problem = Bilevel(model, Optimizer(rule, model->parameters()))
                             .steps(3)
                             .inner([=](const Target& target) { return model->loss(target.value); })
                             .outer([=](const Target& target) { return model->loss(target.value + 0.1); });
    const auto weights = rule.parameters();
    const auto expected = hypergradient(problem, weights, targets, Unroll(), Threads(1));
    expect_equal(hypergradient(problem, weights, targets, Unroll(), Threads(3)).gradients, expected.gradients);
  });
}

// ---------------------------------------------------------------- the network

TEST(LearnedOptimizer, copies_share_the_network_and_its_clone_does_not) {
  for_each_rule([](const auto& rule) {
    auto copy = rule;
    EXPECT_EQ(copy.network().get(), rule.network().get());
    const auto clone = rule.network()->clone();
    const auto theirs = clone->parameters(), ours = rule.parameters();
    expect_equal(theirs, ours);
    EXPECT_FALSE(theirs[0].is_alias_of(ours[0]));
  });
}

TEST(LearnedOptimizer, refuses_a_network_of_another_type) {
  const TensorList doubles{values({2, 3}, 0)};
  expect_error([&] { Optimizer(LSTMOptimizer(), doubles); },
               "LSTMOptimizer: the network is Float on cpu, but a parameter of shape [2, 3] is Double on cpu; convert "
               "the network first, with network()->to(...)");
  expect_error([&] { Optimizer(MLPOptimizer(), doubles); }, "MLPOptimizer: the network is Float on cpu, but a");
  for_each_rule([&](const auto& rule) {
    Course course(Optimizer(rule, doubles));
    rule.network()->to(at::kFloat);
    expect_error(
        [&] {
          course.update({values({2, 3}, 1)});
        },
        ": the network is Float on cpu, but a parameter of shape");
    EXPECT_TRUE(at::equal(course.parameters[0], doubles[0]));
  });
}

TEST(LearnedOptimizer, refuses_options_that_make_no_sense) {
  using LSTM = LSTMOptimizerOptions;
  using MLP = MLPOptimizerOptions;
  const auto lstm = [](const LSTM& options) { return [=] { LSTMOptimizer rule(options); }; };
  const auto mlp = [](const MLP& options) { return [=] { MLPOptimizer rule(options); }; };
  expect_error(lstm(LSTM().layers(0)),
               "CoordinateLSTM: expected at least 1 layer and a hidden size of at least 1, got 0");
  expect_error(lstm(LSTM().hidden_size(-1)), "got 2 and -1");
  expect_error(
      [] {
        CoordinateLSTM(2, 3)->forward(at::zeros({4, 2}), TensorList(2));
      },
      "CoordinateLSTM: expected h and c of 2 layers, got 2 tensors");
  expect_error(lstm(LSTM().p(0)), "LSTMOptimizer: expected p above 0, got 0");
  expect_error(mlp(MLP().layers(0)), "MLPOptimizer: expected at least 1 layer and a hidden size of at least 1, got 0");
  expect_error(mlp(MLP().momenta({0.5, 1})), "MLPOptimizer: expected momenta from 0 to below 1, got 0.5 1");
  expect_error(mlp(MLP().second_moment(1)), "MLPOptimizer: expected a second moment from 0 to below 1, got 1");
  expect_error(mlp(MLP().timescales({0})), "MLPOptimizer: expected timescales above 0, got 0");
  expect_error(mlp(MLP().eps(0)), "MLPOptimizer: expected eps above 0, got 0");
}

// ---------------------------------------------------------------- meta-training

/// |W theta - y|^2 with normal W and y (section 3.1 of Andrychowicz et al. 2016), 16 of them at once.
struct Quadratics {
  explicit Quadratics(at::Generator generator)
      : W(at::randn({count, n, n}, generator, at::kFloat)),
        y(at::randn({count, n}, generator, at::kFloat)),
        start(at::randn({count, n}, generator, at::kFloat)) {}

  at::Tensor loss(const at::Tensor& theta) const {
    return (at::matmul(W, theta.unsqueeze(-1)).squeeze(-1) - y).square().sum() / count;
  }

  static constexpr int64_t count = 16, n = 5, steps = 20;
  at::Tensor W, y, start;
};

/// The losses on the way of an inner loop.
at::Tensor losses_of(const Optimizer& optimizer, const std::shared_ptr<Point>& point, const Quadratics& task,
                     Graph graph) {
  {
    torch::NoGradGuard no_gradient;
    point->theta.copy_(task.start);
  }
  InnerLoop inner(point, optimizer, InnerLoopOptions().graph(graph));
  TensorList losses;
  for (int64_t k = 0; k < Quadratics::steps; ++k) {
    const auto loss = inner.step([&] { return task.loss(point->theta); });
    if (k > 0) losses.push_back(loss);
  }
  losses.push_back(inner.run([&] { return task.loss(point->theta); }));
  return at::stack(losses);
}

std::vector<Quadratics> tasks(uint64_t seed, int64_t count) {
  const auto generator = at::detail::createCPUGenerator(seed);
  std::vector<Quadratics> list;
  for (int64_t i = 0; i < count; ++i) list.emplace_back(generator);
  return list;
}

double last_loss(const Optimizer& optimizer, const std::shared_ptr<Point>& point) {
  double total = 0;
  const auto held_out = tasks(/*seed=*/2, 8);
  for (const auto& task : held_out) total += losses_of(optimizer, point, task, Graph::none)[-1].item<double>();
  return total / static_cast<double>(held_out.size());
}

/// The last loss on held-out quadratics falls far below that of the untrained rule, which does nothing, and below that
/// of gradient descent with the learning rate of a grid that is best on them.
template <class Rule>
void expect_to_learn(const Rule& rule) {
  const auto point = std::make_shared<Point>(at::zeros({Quadratics::count, Quadratics::n}));
  const Optimizer optimizer(rule, {point->theta});
  const double before = last_loss(optimizer, point);
  double sgd = before;
  for (double lr = 1e-3; lr < 1; lr *= 1.5) {
    try {
      sgd = std::min(sgd, last_loss(Optimizer(SGD(SGDOptions(lr)), {point->theta}), point));
    } catch (const c10::Error&) {
      break;  // it diverged
    }
  }

  constexpr int64_t updates = 100;
  const auto schedule = cosine(0.02, 0, updates);
  torch::optim::Adam adam(rule.parameters());
  int64_t update = 0;
  for (const auto& task : tasks(/*seed=*/3, updates)) {
    static_cast<torch::optim::AdamOptions&>(adam.param_groups()[0].options()).lr(schedule(update++).number());
    adam.zero_grad();
    losses_of(optimizer, point, task, Graph::first_order).log().mean().backward();
    torch::nn::utils::clip_grad_norm_(rule.parameters(), 1);
    adam.step();
  }
  const double after = last_loss(optimizer, point);
  EXPECT_LT(after, 0.1 * before);
  EXPECT_LT(after, 0.8 * sgd);
}

TEST(LSTMOptimizer, learns_to_beat_gradient_descent) {
  torch::manual_seed(1);
  expect_to_learn(LSTMOptimizer());
}

TEST(MLPOptimizer, learns_to_beat_gradient_descent) {
  torch::manual_seed(1);
  expect_to_learn(MLPOptimizer(MLPOptimizerOptions(0.1)));
}

}  // namespace
