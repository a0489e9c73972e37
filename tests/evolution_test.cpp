#include "gimli/hypergradient/evolution.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <numbers>

#include "expect.h"
#include "gimli/hypergradient.h"
#include "gimli/memory_meter.h"
#include "gimli/optim/learned_hyperparameters.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/mlp_optimizer.h"
#include "gimli/optim/rules/sgd.h"
#include "gimli/optim/schedule.h"

namespace gimli {
namespace {

namespace nn = torch::nn;
using optim::Granularity;
using optim::Hyperparameter;
using optim::LearnOptions;
using torch::Tensor;

const auto f64 = torch::dtype(torch::kDouble);
constexpr uint64_t seed = 11;

Tensor learned(double value, std::vector<int64_t> shape = {}) {
  return torch::full(shape, value, f64).requires_grad_();
}

std::vector<double> numbers(const Tensor& tensor) {
  const auto flat = tensor.contiguous();
  return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
}

struct Regression {
  Tensor x, y;
};

std::vector<Regression> make_tasks(int count) {
  std::vector<Regression> tasks;
  for (int i = 0; i < count; ++i) tasks.push_back({torch::randn({6, 3}, f64), torch::randn({6, 2}, f64)});
  return tasks;
}

struct Network {
  Network() : tasks(make_tasks(1)) { model->to(torch::kDouble); }

  Bilevel problem(optim::Optimizer optimizer, const Tensor& examples = torch::ones({6}, f64)) const {
    return Bilevel(model, std::move(optimizer))
        .steps(5)
        .seed(seed)
        .outer_at({0, 2, 3, 5})
        .inner([model = model, examples](const Regression& task) {
          return ((model.ptr()->forward(task.x) - task.y).pow(2).sum(1) * examples).mean();
        })
        .outer([model = model](const Regression& task) {
          return torch::mse_loss(model.ptr()->forward(task.x.neg()), task.y);
        });
  }
  template <class Rule>
  optim::Optimizer by(Rule rule) const {
    return optim::Optimizer(std::move(rule), model->parameters());
  }

  nn::Sequential model{nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2)};
  std::vector<Regression> tasks;
};

/// Puts other values into tensors for as long as it lives.
class Overwritten final {
 public:
  Overwritten(const TensorList& tensors, const TensorList& values) : tensors_(tensors), saved_(clones(tensors)) {
    assign(values);
  }
  ~Overwritten() { assign(saved_); }

 private:
  void assign(const TensorList& values) {
    torch::NoGradGuard no_gradient;
    for (size_t i = 0; i < tensors_.size(); ++i) tensors_[i].copy_(values[i]);
  }
  TensorList tensors_, saved_;
};

/// What the first pair adds to the meta-parameters in each window of `window` of 5 steps, as a closure sees it.
std::vector<TensorList> perturbations(const TensorList& meta_parameters, const EvolutionOptions& options) {
  nn::Linear m(1, 1);
  m->to(torch::kDouble);
  std::vector<TensorList> seen;
  const auto bilevel = Bilevel(m, optim::Optimizer(optim::SGD(0.1), m->parameters()))
                           .steps(5)
                           .seed(seed)
                           .outer_at({2, 4, 5})
                           .inner([&] { return m->weight.sum(); })
                           .outer([&] {
                             auto& now = seen.emplace_back();
                             for (const auto& phi : meta_parameters) now.push_back((phi * 1).detach());
                             return torch::zeros({}, f64);
                           });
  hypergradient(bilevel, meta_parameters, {}, Evolution(options));
  std::vector<TensorList> result;
  const auto plus = options.window() ? std::vector{3, 5, 7} : std::vector{3};
  for (const size_t position : plus) {
    for (size_t i = 0; i < meta_parameters.size(); ++i) {
      EXPECT_TRUE(torch::allclose(seen[position][i] + seen[position + (options.window() ? 1 : 3)][i],
                                  2 * meta_parameters[i], 1e-14, 1e-15));
      seen[position][i] = seen[position][i] - meta_parameters[i].detach();
    }
    result.push_back(seen[position]);
  }
  return result;
}

// Every place a meta-parameter can have in a problem.

struct Place {
  Bilevel problem;
  TensorList meta_parameters;
  bool acts_at_the_start_only = false;
};

struct NamedPlace {
  const char* name;
  Place (*make)(const Network&);
};

void PrintTo(const NamedPlace& place, std::ostream* stream) { *stream << place.name; }

optim::SGD momentum_sgd() { return optim::SGD(optim::SGDOptions(0.1).momentum(0.9)); }

const NamedPlace places[] = {
    {"InitialWeights",
     [](const Network& net) {
       return Place{net.problem(net.by(momentum_sgd())), net.model->parameters(), true};
     }},
    {"FrozenWeights",
     [](const Network& net) {
       const auto all = net.model->parameters();
       return Place{net.problem(optim::Optimizer(optim::SGD(0.1), {all[0], all[1]})), {all[2], all[3]}};
     }},
    {"RateOfSgd",
     [](const Network& net) {
       const auto lr = learned(0.3);
       return Place{net.problem(net.by(momentum_sgd()).set("lr", lr)), {lr}};
     }},
    {"RateAndDecayOfAdam",
     [](const Network& net) {
       const auto lr = learned(0.3), beta = learned(0.7);
       return Place{net.problem(net.by(optim::Adam(0.1)).set("lr", lr).set("beta1", beta)), {lr, beta}};
     }},
    {"RateOfEachTensor",
     [](const Network& net) {
       const TensorList lr{learned(0.3), learned(0.3), learned(0.2), learned(0.3)};
       return Place{net.problem(net.by(optim::SGD(0.1)).set("lr", lr)), lr};
     }},
    {"RateOfEachElement",
     [](const Network& net) {
       TensorList lr;
       for (const auto& theta : net.model->parameters()) lr.push_back(learned(0.3, theta.sizes().vec()));
       return Place{net.problem(net.by(optim::Adam(0.1)).set("lr", lr)), lr};
     }},
    {"FunctionOfTheStep",
     [](const Network& net) {
       const auto log_lr = learned(-1);
       const auto lr = [=](int64_t step) { return Hyperparameter(log_lr.exp() / (step + 1)); };
       return Place{net.problem(net.by(optim::SGD(0.1)).set("lr", lr)), {log_lr}};
     }},
    {"FunctionThatReturnsItself",
     [](const Network& net) {
       const auto lr = learned(0.3);
       return Place{net.problem(net.by(optim::SGD(0.1)).set("lr", [=](int64_t) { return Hyperparameter(lr); })), {lr}};
     }},
    {"Schedule",
     [](const Network& net) {
       const auto lr = learned(0.3);
       return Place{net.problem(net.by(optim::SGD(0.1)).set("lr", optim::cosine(lr, 0.1, 5))), {lr}};
     }},
    {"LearnedPerStep",
     [](const Network& net) {
       auto optimizer = net.by(momentum_sgd());
       const auto all = optim::learn(optimizer, {"lr", "momentum"}, LearnOptions().steps(3));
       return Place{net.problem(optimizer), all.tensors()};
     }},
    {"LearnedPerTensor",
     [](const Network& net) {
       auto optimizer = net.by(optim::Adam(0.1));
       const auto all = optim::learn(optimizer, {"lr"}, LearnOptions().granularity(Granularity::per_tensor));
       return Place{net.problem(optimizer), all.tensors()};
     }},
    {"InnerClosure",
     [](const Network& net) {
       const auto examples = learned(1, {6});
       return Place{net.problem(net.by(optim::SGD(0.3)), examples), {examples}};
     }},
    {"OuterClosure",
     [](const Network& net) {
       const auto phi = learned(0.5, {2});
       auto problem = net.problem(net.by(optim::SGD(0.1)));
       problem.outer([model = net.model, phi](const Regression& task) {
         return torch::mse_loss(model.ptr()->forward(task.x) * phi, task.y);
       });
       return Place{problem, {phi}};
     }},
    {"ProximalTermAndItsCenter",
     [](const Network& net) {
       auto metas = net.model->parameters();
       metas.push_back(learned(0.5));
       return Place{net.problem(net.by(optim::SGD(0.1))).proximal(metas.back()), metas};
     }},
    {"GradientTransform",
     [](const Network& net) {
       const auto norm = learned(0.5);
       return Place{net.problem(net.by(optim::SGD(0.3))).gradient_transform(optim::clip_by_norm(norm)), {norm}};
     }},
    {"LearnedOptimizer",
     [](const Network& net) {
       const optim::MLPOptimizer rule(optim::MLPOptimizerOptions(0.1).layers(1).hidden_size(3));
       rule.network()->to(torch::kDouble);
       return Place{net.problem(net.by(rule)), rule.parameters()};
     }},
    {"WarmStart",
     [](const Network& net) {
       const auto lr = learned(0.3);
       const auto problem = net.problem(net.by(momentum_sgd()).set("lr", lr));
       auto first = problem;
       auto state = evaluate(first.keep_final_states(true), net.tasks).final_states[0];
       return Place{Bilevel(problem).start_from(state), {lr}};
     }},
};

class EvolutionInPlace : public testing::TestWithParam<NamedPlace> {};

/// The estimate of one pair, from losses of a loop whose meta-parameters are written over.
void check_against_values_written(const EvolutionOptions& options) {
  torch::manual_seed(5);
  const Network net;
  const auto place = EvolutionInPlace::GetParam().make(net);
  const auto& [problem, phi, acts_at_the_start_only] = place;
  const auto result = hypergradient(problem, phi, net.tasks, Evolution(options));
  const auto e = perturbations(phi, options);

  const auto task = TaskRef::to(net.tasks[0]).in_batch(0, seed);
  const auto losses = [&](double sign) {
    std::optional<InnerLoop> loop;
    std::vector<double> each;
    for (size_t w = 0; w < e.size(); ++w) {
      TensorList values;
      for (size_t i = 0; i < phi.size(); ++i) values.push_back(phi[i].detach() + sign * e[w][i]);
      const Overwritten now(phi, values);
      each.push_back(0);
      const auto add = [&] {
        if (problem.has_outer_at(loop->state().step)) each.back() += problem.outer(*loop, task).loss.item<double>();
      };
      if (!loop) {
        loop = problem.start(Graph::none, task);
        add();
      }
      for (int64_t k = 0; k < options.window().value_or(5) && loop->state().step < 5; ++k) {
        problem.step(*loop, task);
        add();
      }
    }
    return each;
  };
  const auto plus = losses(1), minus = losses(-1);
  const double scale = 1 / (2 * options.sigma() * options.sigma());
  for (size_t i = 0; i < phi.size(); ++i) {
    auto xi = torch::zeros_like(e[0][i]), expected = xi;
    for (size_t w = 0; w < e.size(); ++w) {
      if (w == 0 || !acts_at_the_start_only) xi = xi + e[w][i];
      EXPECT_NE(plus[w], minus[w]);
      expected = expected + xi * ((plus[w] - minus[w]) * scale);
    }
    EXPECT_TRUE(torch::allclose(result.gradients[i], expected, 1e-9, 1e-12)) << i << result.gradients[i] << expected;
  }
  const auto center = evaluate(problem, net.tasks);
  EXPECT_TRUE(torch::equal(result.outer_loss, center.outer_loss));
}

TEST_P(EvolutionInPlace, EstimatesFromTheLossesOfItsPerturbations) {
  check_against_values_written(EvolutionOptions().sigma(0.1).pairs(1));
}

TEST_P(EvolutionInPlace, EstimatesPersistentlyFromThoseOfItsWindows) {
  check_against_values_written(EvolutionOptions().sigma(0.1).pairs(1).window(2));
}

INSTANTIATE_TEST_SUITE_P(Places, EvolutionInPlace, testing::ValuesIn(places),
                         [](const auto& info) { return info.param.name; });

// On average.

/// Compares estimates with their exact mean and variance. The interval is narrow enough for a wrong factor to fall out.
void check_moments(const std::vector<double>& estimates, double mean, double variance) {
  const auto sample = torch::tensor(estimates, f64);
  const double error = std::sqrt(variance / static_cast<double>(estimates.size()));
  ASSERT_LT(4 * error, std::abs(mean) / 2);
  EXPECT_NEAR(sample.mean().item<double>(), mean, 4 * error);
  EXPECT_NEAR(sample.var().item<double>() / variance, 1, 0.4);
}

/// Single-pair estimates with different seeds: one list for each element of phi.
std::vector<std::vector<double>> estimates(Bilevel problem, const Tensor& phi, EvolutionOptions options, int count) {
  std::vector<std::vector<double>> result(phi.numel());
  for (int s = 0; s < count; ++s) {
    const auto found = hypergradient(problem.seed(s), {phi}, {}, Evolution(options.pairs(1))).gradients[0];
    const auto elements = numbers(found);
    for (size_t j = 0; j < elements.size(); ++j) result[j].push_back(elements[j]);
  }
  return result;
}

/// An outer loss of phi alone.
template <class Outer>
Bilevel without_steps(Outer outer) {
  const nn::Linear m(1, 1);
  return Bilevel(m, optim::Optimizer(optim::SGD(0.1), m->parameters())).steps(0).outer(outer);
}

TEST(Evolution, IsUnbiasedWithTheVarianceOfLinearLosses) {
  const auto phi = learned(0.3, {3}), slope = torch::tensor({1., -2., 1.5}, f64);
  const auto found = estimates(without_steps([=] { return (phi * slope).sum(); }), phi, EvolutionOptions(), 4000);
  const double total = slope.square().sum().item<double>();
  for (int j = 0; j < 3; ++j) {
    const double g = slope[j].item<double>();
    check_moments(found[j], g, total + g * g);
  }
}

TEST(Evolution, DiffersFromTheGradientByTheCurvatureOfItsSlope) {
  const auto phi = learned(1);
  const double sigma = 0.5;
  const auto options = EvolutionOptions().sigma(sigma);
  // Quadratic: e (L(phi + e) - L(phi - e)) / (2 sigma^2) = e^2 L'(phi) / sigma^2. Cubic: 3 phi^2 + e^2 in place of L'.
  check_moments(estimates(without_steps([=] { return phi.square(); }), phi, options, 2000)[0], 2, 8);
  check_moments(estimates(without_steps([=] { return phi.pow(3); }), phi, options, 4000)[0], 3 + 3 * sigma * sigma,
                18 + 72 * std::pow(sigma, 2) + 96 * std::pow(sigma, 4));
}

TEST(Evolution, SmoothsSteps) {
  const double sigma = 0.2, z = 0.3;
  const auto phi = learned(z * sigma);
  const auto found = estimates(without_steps([=] { return (phi > 0).to(torch::kDouble); }), phi,
                               EvolutionOptions().sigma(sigma), 4000)[0];
  // |e| / (2 sigma^2) where |e| > phi, else 0.
  const double density = std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi);
  const double mean = density / sigma, square = (std::erfc(z / std::sqrt(2)) + 2 * z * density) / (4 * sigma * sigma);
  check_moments(found, mean, square - mean * mean);
}

/// w goes by -phi c_k in step k, and the loss after step t is u_t w.
struct Chain {
  Chain() { m->to(torch::kDouble); }

  Bilevel problem() const {
    return Bilevel(m, optim::Optimizer(optim::SGD(1), m->parameters()))
        .steps(6)
        .outer_at({1, 2, 4, 5, 6})
        .inner([*this](int64_t step) { return (m->weight * phi * c[step]).sum(); })
        .outer([*this](int64_t step) { return (m->weight * u[step]).sum(); });
  }

  /// dL^w/dphi^v: what phi in window v does to the losses of window w.
  double slope(int64_t w, int64_t v, int64_t window) const {
    double result = 0;
    for (int64_t t = w * window + 1; t <= (w + 1) * window; ++t) {
      for (int64_t s = v * window; s < std::min((v + 1) * window, t); ++s) {
        if (t != 3) result -= u[t] * c[s];
      }
    }
    return result;
  }

  nn::Linear m{nn::LinearOptions(1, 1).bias(false)};
  Tensor phi = learned(0.7);
  std::vector<double> c{1, 0.5, 1, 0.5, 1, 0.5}, u{0, 0.5, 1, 0, 1, -0.5, 1};
};

TEST(Evolution, PersistentlyReachesLossesOfLaterWindows) {
  const Chain chain;
  const int64_t windows = 3, window = 2;
  // With e^v = sigma z_v, a pair's estimate is the quadratic form sum_uv a_uv z_u z_v.
  auto a = torch::zeros({windows, windows}, f64);
  double whole = 0, without_persistence = 0;
  for (int64_t u = 0; u < windows; ++u) {
    for (int64_t v = 0; v < windows; ++v) {
      for (int64_t w = std::max(u, v); w < windows; ++w) a[u][v] += chain.slope(w, v, window);
    }
    for (int64_t w = u; w < windows; ++w) whole += chain.slope(w, u, window);
    without_persistence += chain.slope(u, u, window);
  }
  EXPECT_NEAR(hypergradient(chain.problem(), {chain.phi}).gradients[0].item<double>(), whole, 1e-13);
  EXPECT_NEAR(a.trace().item<double>(), whole, 1e-13);
  const double variance = 2 * ((a + a.t()) / 2).square().sum().item<double>();
  const int count = 2000;
  EXPECT_GT(std::abs(whole - without_persistence), 8 * std::sqrt(variance / count));

  const auto options = EvolutionOptions().window(window);
  check_moments(estimates(chain.problem(), chain.phi, options, count)[0], whole, variance);
  check_moments(estimates(chain.problem(), chain.phi, EvolutionOptions(), count)[0], whole, 2 * whole * whole);
}

TEST(Evolution, PersistentlyHasTheVarianceThatItSays) {
  nn::Linear m(1, 1);
  m->to(torch::kDouble);
  const auto phi = learned(0.7);
  const std::vector<double> s{0, 1, 2, 0.5, 1};
  const auto problem = Bilevel(m, optim::Optimizer(optim::SGD(0.1), m->parameters()))
                           .steps(4)
                           .outer_at({1, 2, 3, 4})
                           .inner([=] { return m->weight.sum(); })
                           .outer([=](int64_t step) { return phi * s[step]; });
  double mean = 0, variance = 0;
  for (size_t w = 1; w < s.size(); ++w) {
    mean += s[w];
    variance += static_cast<double>(w + 1) * s[w] * s[w];
  }
  check_moments(estimates(problem, phi, EvolutionOptions().window(1), 1500)[0], mean, variance);
}

TEST(Evolution, OneWindowIsNoWindow) {
  const Network net;
  auto metas = net.model->parameters();
  metas.push_back(learned(0.1));
  const auto problem = net.problem(net.by(momentum_sgd()).set("lr", metas.back()));
  const auto options = EvolutionOptions().pairs(3);
  const auto expected = hypergradient(problem, metas, net.tasks, Evolution(options));
  for (const int64_t window : {int64_t{5}, int64_t{6}, std::numeric_limits<int64_t>::max()}) {
    const auto result = hypergradient(problem, metas, net.tasks, Evolution(EvolutionOptions(options).window(window)));
    expect_equal(result.gradients, expected.gradients);
  }
}

TEST(Evolution, InitialWeightsActInTheFirstWindowAlone) {
  const Network net;
  const auto problem = net.problem(net.by(momentum_sgd()));
  const auto metas = net.model->parameters();
  const auto whole = hypergradient(problem, metas, net.tasks, Evolution());
  const auto windows = hypergradient(problem, metas, net.tasks, Evolution(EvolutionOptions().window(1)));
  for (size_t i = 0; i < metas.size(); ++i) {
    EXPECT_TRUE(torch::allclose(windows.gradients[i], whole.gradients[i], 1e-9, 1e-12)) << i;
  }
}

TEST(Evolution, BothOfAPairDrawTheSameNumbers) {
  torch::manual_seed(5);
  Network net;
  net.model->push_back(nn::Dropout(0.5));
  const auto phi = learned(0.4);
  auto problem = net.problem(net.by(optim::SGD(0.1)));
  problem.outer([model = net.model, phi](const Regression& task) {
    return torch::mse_loss(model.ptr()->forward(task.x), task.y) + torch::randn({}, f64) + phi;
  });
  const auto options = EvolutionOptions().sigma(0.1).pairs(1);
  const auto found = hypergradient(problem, {phi}, net.tasks, Evolution(options)).gradients[0];
  const double e = perturbations({phi}, options)[0][0].item<double>();
  EXPECT_NEAR(found.item<double>(), 4 * e * e / 0.01, 1e-11);  // four outer losses
}

TEST(Evolution, ThreadsChangeNoBit) {
  torch::manual_seed(5);
  Network net;
  net.model->push_back(nn::Dropout(0.3));
  net.tasks = make_tasks(5);
  auto metas = net.model->parameters();
  metas.push_back(learned(0.1));
  const auto problem = net.problem(net.by(optim::Adam(0.1)).set("lr", metas.back())).keep_final_states(true);
  const Evolution strategy(EvolutionOptions().pairs(3).window(2));
  const auto expected = hypergradient(problem, metas, net.tasks, strategy);
  const auto result = hypergradient(problem, metas, net.tasks, strategy, Threads(2));
  expect_equal(result.gradients, expected.gradients);
  EXPECT_TRUE(torch::equal(result.outer_losses, expected.outer_losses));
  expect_equal(result.final_states[4].parameters, expected.final_states[4].parameters);

  const auto center = evaluate(problem, net.tasks);
  EXPECT_TRUE(torch::equal(center.outer_losses, expected.outer_losses));
  expect_equal(center.final_states[4].parameters, expected.final_states[4].parameters);
  EXPECT_EQ(expected.cost.inner_steps, 5 * 7 * 5);
  EXPECT_EQ(expected.cost.gradient_evaluations, 5 * 7 * 5);
  EXPECT_EQ(expected.cost.outer_evaluations, 5 * 7 * 4);
  EXPECT_EQ(expected.cost.strategy, "Evolution(sigma 0.01, pairs 3, window 2)");
}

TEST(Evolution, AnExceptionLeavesEverythingAsItWas) {
  const Network net;
  auto metas = net.model->parameters();
  const auto examples = learned(1, {6});
  metas.push_back(examples);
  const auto before = clones(metas);
  const Evolution strategy(EvolutionOptions().pairs(1).window(2));
  int thrown = 0, calls = 0;
  for (int at = 0; thrown == at; ++at) {
    auto problem = net.problem(net.by(optim::SGD(0.1)));
    calls = 0;
    problem.inner([&](const Regression& task) {
      if (calls++ == at) throw std::runtime_error("here");
      return ((net.model.ptr()->forward(task.x) - task.y).pow(2).sum(1) * examples).mean();
    });
    try {
      hypergradient(problem, metas, net.tasks, strategy);
    } catch (const std::runtime_error&) {
      ++thrown;
    }
    expect_equal(clones(metas), before);
    EXPECT_FALSE(Substitution::active());
  }
  EXPECT_EQ(thrown, 15);
}

TEST(Evolution, MemoryDoesNotGrowWithTheSteps) {
  const Network net;
  auto metas = net.model->parameters();
  metas.push_back(learned(0.01));
  const auto peak = [&](int64_t steps) {
    const auto problem = net.problem(net.by(optim::Adam(0.1)).set("lr", metas.back())).steps(steps).outer_at({steps});
    const MemoryMeter meter;
    hypergradient(problem, metas, net.tasks, Evolution(EvolutionOptions().pairs(2).window(3)));
    return meter.peak_bytes();
  };
  peak(6);
  EXPECT_EQ(peak(60), peak(6));
}

// Noise must not pass for a gradient.
TEST(Evolution, WhatNoLossReadsHasNoGradient) {
  Network net;
  const auto unused = net.model->register_parameter("unused", torch::ones({2, 2}, f64));
  const auto outer_only = net.model->register_parameter("outer_only", torch::ones({2}, f64));
  const auto lr = learned(0.1), copy = learned(0.1);
  auto problem = net.problem(net.by(optim::SGD(0.1)).set("lr", lr));
  problem.outer([=, model = net.model](const Regression& task) {
    return torch::mse_loss(model.ptr()->forward(task.x) * outer_only, task.y);
  });
  const Evolution strategy(EvolutionOptions().pairs(2).window(2));
  for (const int64_t first : {0, 5}) {
    const auto result = hypergradient(problem.outer_at({first, 5}), {lr, unused, outer_only}, net.tasks, strategy);
    EXPECT_TRUE(torch::equal(result.gradients[1], torch::zeros({2, 2}, f64)));
    EXPECT_TRUE((result.gradients[2] != 0).all().item<bool>());
  }
  expect_error(
      [&] {
        hypergradient(problem, {lr, copy}, net.tasks, strategy);
      },
      "the outer loss does not depend on meta-parameter 1 (shape []) as Evolution(sigma 0.01, pairs 2, "
      "window 2) differentiates it");
  const auto state = evaluate(problem.keep_final_states(true), net.tasks).final_states[0];
  expect_error(
      [&] {
        hypergradient(Bilevel(problem).start_from(state), {net.model->named_parameters()["0.weight"]}, net.tasks,
                      strategy);
      },
      "meta-parameter '0.weight' sets the start of the inner loop, which the outer loss does not reach");
}

TEST(Evolution, BadInputGetsOneSentence) {
  const Network net;
  const auto examples = learned(1, {6}), view = examples.detach(), lr = learned(0.1);
  const auto problem = net.problem(net.by(optim::SGD(0.1)), examples);
  expect_error([&] { hypergradient(net.problem(net.by(optim::SGD(0.1)), view), {examples}, net.tasks, Evolution()); },
               "reads 'meta-parameter 0' of the model through an alias that bypasses its fast value");
  expect_error([&] { hypergradient(Bilevel(problem).stop_gradient_before({3}), {examples}, net.tasks, Evolution()); },
               "Evolution(sigma 0.01, pairs 16): the gradient is to stop before step 3, but perturbations pass");
  expect_error(
      [&] {
        hypergradient(problem, {examples, lr, examples}, net.tasks, Evolution());
      },
      "meta-parameters 0 and 2 are the same tensor");
  expect_error([] { Evolution(EvolutionOptions().sigma(0)); }, "expected sigma to be finite and above 0, got 0");
  expect_error([] { Evolution(EvolutionOptions().sigma(NAN)); }, "expected sigma to be finite and above 0, got nan");
  expect_error([] { Evolution(EvolutionOptions().pairs(0)); }, "expected at least 1 pair, got 0");
  expect_error([] { Evolution(EvolutionOptions().window(0)); }, "expected a window of at least 1 step, got 0");
}

}  // namespace
}  // namespace gimli
