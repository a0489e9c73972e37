#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "app/estimate.h"
#include "app/experiments/learned_optimizer.h"
#include "app/file.h"
#include "app/inner_optimizer.h"
#include "app/preset.h"
#include "app_fixture.h"
#include "expect.h"
#include "fashion_mnist_files.h"
#include "gimli/gradcheck.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/optim/rules/lstm_optimizer.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli::app {
namespace {

constexpr auto kDouble = at::kDouble;

Optimizee quadratics(int64_t first, int64_t count, int64_t dimensions = 3) {
  return Quadratics(1, dimensions, kDouble).draw(first, count)[0];
}

LabelledImages rows_of_images(int64_t count) {
  torch::manual_seed(4);
  return {torch::rand({count, 6}, kDouble), torch::arange(count) % 10};
}

// The meta-update

optim::LSTMOptimizer small_rule() {
  torch::manual_seed(3);
  optim::LSTMOptimizer rule(optim::LSTMOptimizerOptions(0.1).layers(2).hidden_size(3));
  rule.network()->to(kDouble);
  torch::NoGradGuard no_gradient;
  for (auto& weight : rule.parameters()) weight.copy_(0.5 * torch::randn_like(weight));
  return rule;
}

TEST(LearnedOptimizerTest, SegmentsAreTruncatedBackpropagationByHand) {
  constexpr int64_t kSegments = 2, kUnroll = 3, kProblems = 2, kDimensions = 3;
  const auto problems = quadratics(0, kProblems, kDimensions);
  const auto rule = small_rule();
  auto network = rule.network();
  for (const bool exact : {true, false}) {
    const auto strategy = exact ? Unroll() : Unroll::first_order();
    SCOPED_TRACE(strategy.name());
    std::optional<InnerState> start;
    auto theta = problems.module->parameters()[0].detach().clone();
    TensorList state(4, at::zeros({kProblems * kDimensions, 3}, kDouble));
    for (int64_t s = 0; s < kSegments; ++s) {
      auto problem =
          segment(problems, optim::Optimizer(rule, problems.module->parameters()), s * kUnroll, kUnroll).seed(1);
      if (start) problem.start_from(*start);
      const auto result = hypergradient(problem, rule.parameters(), {}, strategy);
      start = result.final_states[0];

      theta = theta.detach().requires_grad_();
      for (auto& tensor : state) tensor = tensor.detach();
      const auto f = [&](const at::Tensor& at) {
        return substituted(ModelTensors(*problems.module), {at}, {}, [&] { return problems.losses(0); });
      };
      at::Tensor meta_loss = at::zeros({}, kDouble), last;
      for (int64_t k = 0; k < kUnroll; ++k) {
        auto gradient = torch::autograd::grad({f(theta).sum()}, {theta}, {}, true, exact)[0].flatten();
        at::Tensor output;
        std::tie(output, state) = network->forward(optim::log_and_sign(gradient, 10), state);
        theta = theta + 0.1 * output.view_as(theta);
        last = f(theta).mean();
        meta_loss = meta_loss + last / kUnroll;
      }
      EXPECT_NEAR(result.outer_loss.item<double>(), meta_loss.item<double>(), 1e-12);
      EXPECT_NEAR(result.auxiliary[0].item<double>(), last.item<double>(), 1e-12);
      const auto expected = torch::autograd::grad({meta_loss}, rule.parameters());
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_TRUE(at::allclose(result.gradients[i], expected[i], 1e-9, 1e-12)) << i;
        EXPECT_GT(expected[i].abs().max().item<double>(), 1e-6) << i;
      }
    }
  }
}

TEST(LearnedOptimizerTest, MetaGradientsAreThoseOfCentralDifferences) {
  const auto rule = small_rule();
  const auto images = rows_of_images(20);
  const Optimizee rows[] = {quadratics(0, 2, 2), Perceptrons(1, images, 2, 4).draw(0, 1)[0]};
  const Unroll unroll;
  const Replay replay;
  for (const auto& optimizee : rows) {
    for (const Strategy* strategy : std::initializer_list<const Strategy*>{&unroll, &replay}) {
      const auto problem = segment(optimizee, optim::Optimizer(rule, optimizee.module->parameters()), 5, 3).seed(1);
      const auto report = gradcheck(problem, rule.parameters(), {}, *strategy);
      EXPECT_TRUE(report.passed) << strategy->name() << ": " << report.message;
    }
  }
}

TEST(LearnedOptimizerTest, StepsOfASegmentAreThoseOfItsPlace) {
  const auto optimizee = Perceptrons(1, rows_of_images(50), 3, 4).draw(0, 1)[0];
  const optim::Optimizer sgd(optim::SGD(0.5), optimizee.module->parameters());
  const auto whole = evaluate(segment(optimizee, sgd, 0, 5));
  const auto first = evaluate(segment(optimizee, sgd, 0, 2));
  const auto second = evaluate(segment(optimizee, sgd, 2, 3).start_from(first.final_states[0]));
  EXPECT_NEAR(whole.outer_loss.item<double>(),
              (2 * first.outer_loss.item<double>() + 3 * second.outer_loss.item<double>()) / 5, 1e-13);
  const auto losses = *losses_of(optimizee, sgd, 5, [] { return true; });
  EXPECT_NEAR(whole.outer_loss.item<double>(), losses.slice(1, 1).mean().item<double>(), 1e-13);
}

// Trajectories

TEST(LossesTest, AreThoseOfGradientDescentByHand) {
  const auto optimizee = quadratics(0, 3);
  const optim::Optimizer sgd(optim::SGD(0.02), optimizee.module->parameters());
  const auto losses = *losses_of(optimizee, sgd, 4, [] { return true; });
  ASSERT_EQ(losses.sizes(), (std::vector<int64_t>{3, 5}));
  auto theta = optimizee.module->parameters()[0];
  const auto kept = theta.detach().clone();
  for (int64_t step = 0; step < 5; ++step) {
    const auto now = optimizee.losses(0);
    EXPECT_TRUE(at::allclose(now.detach(), losses.select(1, step), 1e-12)) << step;
    const auto gradient = torch::autograd::grad({now.sum()}, {theta})[0];
    torch::NoGradGuard no_gradient;
    theta.sub_(0.02 * gradient);
  }
  torch::NoGradGuard no_gradient;
  theta.copy_(kept);
  int calls = 0;
  EXPECT_FALSE(losses_of(optimizee, sgd, 4, [&] { return ++calls < 3; }));
  EXPECT_EQ(calls, 3);
}

TEST(LossesTest, ADivergingProblemDoesNotDisturbItsNeighbors) {
  constexpr int64_t count = 8, steps = 1500;
  const auto sgd = [](const Optimizee& optimizee) {
    return optim::Optimizer(optim::SGD(0.12), optimizee.module->parameters());
  };
  const auto go_on = [] { return true; };
  const auto together = quadratics(0, count);
  const auto losses = *losses_of(together, sgd(together), steps, go_on);
  int64_t diverged = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto alone = quadratics(i, 1);
    const auto expected = *losses_of(alone, sgd(alone), steps, go_on);
    const bool finite = expected.isfinite().all().item<bool>();
    diverged += !finite;
    EXPECT_EQ(losses[i].isfinite().all().item<bool>(), finite) << i;
    EXPECT_TRUE(!finite || at::allclose(losses[i], expected[0], 1e-6, 1e-12)) << i;
  }
  EXPECT_GT(diverged, 0);
  EXPECT_LT(diverged, count);
}

TEST(LossesTest, AreFiniteAsLongAsTheyCanBe) {
  // In single precision the losses of all 50 are finite for some steps after their sum is not.
  const auto optimizee = Quadratics(1, 3, at::kFloat).draw(0, 50)[0];
  const optim::Optimizer sgd(optim::SGD(10), optimizee.module->parameters());
  const auto losses = *losses_of(optimizee, sgd, 60, [] { return true; });
  EXPECT_TRUE(losses.select(1, 0).isfinite().all().item<bool>());
  EXPECT_FALSE(losses.select(1, 60).isfinite().any().item<bool>());
}

TEST(RateGridTest, IsGeometric) {
  const auto rates = rate_grid(1e-3, 10, 5);
  ASSERT_EQ(rates.size(), 5u);
  for (size_t k = 0; k < 5; ++k) EXPECT_NEAR(rates[k] / std::pow(10, static_cast<double>(k) - 3), 1, 1e-12);
  EXPECT_EQ(rate_grid(0.5, 0.5, 1), std::vector<double>{0.5});
  expect_error([] { rate_grid(2, 1, 3); }, "lowest_rate: expected at most 1, the highest_rate, got 2");
}

// The experiment

class LearnedOptimizerExperimentTest : public testing::Test {
 protected:
  LearnedOptimizerExperimentTest() { data::write_fashion_mnist(folder.path, 60, 40); }

  /// Of a moment, on either kind of problem.
  Values tiny(const std::string& dataset) const {
    Values values{{"dataset", dataset},        {"iterations", int64_t{4}},
                  {"tasks", int64_t{3}},       {"layers", int64_t{1}},
                  {"hidden_size", int64_t{4}}, {"horizon", int64_t{5}},
                  {"unroll", int64_t{2}},      {"outer_lr", 1e-2},
                  {"rates", int64_t{3}},       {"validation_tasks", int64_t{3}},
                  {"eval_tasks", int64_t{4}},  {"eval_horizon", int64_t{12}},
                  {"threads", int64_t{1}},     {"quiet", true}};
    if (dataset == "quadratic") return merge(values, {{"dimensions", int64_t{3}}});
    return merge(values, {{"data_root", folder.path.string()},
                          {"image_size", int64_t{4}},
                          {"units", int64_t{3}},
                          {"batch", int64_t{8}}});
  }

  Config config(const std::string& dataset, const Values& values = {}) const {
    return Config(learned_optimizer().schema, merge(tiny(dataset), values));
  }

  /// On the command line.
  Arguments training(const std::string& dataset, const Arguments& more = {}) const {
    Arguments arguments{"train", "learned-optimizer", "--out", run.string()};
    for (const auto& [key, value] : tiny(dataset)) {
      arguments.push_back(flag_of(key));
      if (key == "quiet") continue;
      const auto* text = std::get_if<std::string>(&value);
      arguments.push_back(text ? *text : to_string(value));
    }
    return arguments + more;
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
  fs::path run = folder.path / "run";
};

const std::string kDatasets[] = {"quadratic", "fashion-mnist"};

TEST_F(LearnedOptimizerExperimentTest, GoesOnToTheBit) {
  for (const auto& dataset : kDatasets) {
    for (const auto* strategy : {"first-order", "unroll", "replay"}) {
      SCOPED_TRACE(dataset + " " + strategy);
      expect_resumes_to_the_bit(learned_optimizer(),
                                config(dataset, {{"strategy", std::string(strategy)}, {"anneal", true}}), 2);
    }
  }
}

TEST_F(LearnedOptimizerExperimentTest, ThreadsDoNotChangeTheNumbers) {
  TensorList ends[2];
  std::string reports[2];
  for (const int64_t threads : {1, 2}) {
    const auto experiment = learned_optimizer().make(config("fashion-mnist", {{"threads", threads}}));
    for (int64_t i = 0; i < 3; ++i) experiment->iterate(i);
    ends[threads - 1] = clones(experiment->state().tensors.tensors);
    reports[threads - 1] = experiment->report({})->numbers.dump();
  }
  expect_equal(ends[0], ends[1]);
  EXPECT_EQ(reports[0], reports[1]);
}

TEST_F(LearnedOptimizerExperimentTest, MetaGradientsAreThoseOfTheStrategy) {
  // In the second iteration: at first the LSTM moves nothing, and its gradients are the same for all.
  const auto gradient = [&](const std::string& strategy) {
    const auto experiment = learned_optimizer().make(
        config("quadratic", {{"strategy", strategy}, {"unroll", int64_t{5}}, {"scale", 1.}, {"outer_lr", 0.1}}));
    for (int64_t i = 0; i < 2; ++i) experiment->iterate(i);
    TensorList flat;
    for (const auto& weight : experiment->state().tensors.tensors) flat.push_back(weight.grad().flatten());
    return at::cat(flat);
  };
  const auto exact = gradient("unroll");
  const auto distance = [&](const std::string& strategy) {
    return ((gradient(strategy) - exact).norm() / exact.norm()).item<double>();
  };
  EXPECT_LT(distance("replay"), 1e-4);
  EXPECT_GT(distance("first-order"), 1e-3);
}

TEST_F(LearnedOptimizerExperimentTest, AnnealsByACosine) {
  const auto rate_after = [&](int64_t iterations, bool anneal) {
    const auto experiment = learned_optimizer().make(config("quadratic", {{"anneal", anneal}}));
    for (int64_t i = 0; i < iterations; ++i) experiment->iterate(i);
    const auto* adam = experiment->state().optimizers[0];
    return adam->param_groups()[0].options().get_lr();
  };
  for (int64_t done = 1; done <= 4; ++done) {  // of 4
    EXPECT_EQ(rate_after(done, false), 1e-2);
    EXPECT_NEAR(rate_after(done, true), 0.5e-2 * (1 + std::cos(M_PI * static_cast<double>(done - 1) / 4)), 1e-12);
  }
}

TEST_F(LearnedOptimizerExperimentTest, Learns) {
  const auto experiment = learned_optimizer().make(config("quadratic", {{"tasks", int64_t{32}},
                                                                        {"hidden_size", int64_t{8}},
                                                                        {"horizon", int64_t{20}},
                                                                        {"unroll", int64_t{10}},
                                                                        {"eval_horizon", int64_t{20}},
                                                                        {"outer_lr", 3e-2}}));
  double first = 0, last = 0;
  for (int64_t i = 0; i < 60; ++i) {
    const auto loss = experiment->iterate(i)->metrics["final_loss"].get<double>();
    if (i == 0) first = loss;
    if (i >= 50) last += loss / 10;
  }
  EXPECT_LT(last, 0.7 * first);
}

TEST_F(LearnedOptimizerExperimentTest, ReportsWhatItsTrajectoriesSay) {
  for (const auto& dataset : kDatasets) {
    SCOPED_TRACE(dataset);
    const auto settings = config(dataset, {{"baselines", std::vector<std::string>{"adam", "sgd"}}});
    const auto experiment = learned_optimizer().make(settings);
    for (int64_t i = 0; i < 4; ++i) experiment->iterate(i);
    const auto report = *experiment->report({});
    const auto& numbers = report.numbers;

    const auto splits = make_optimizees(settings);
    const auto losses_with = [&](const Optimizees& problems, int64_t count, int64_t steps, const auto& make) {
      TensorList each;
      for (int64_t i = 0; i < count; ++i) {
        const auto optimizee = problems.draw(i, 1)[0];
        each.push_back(*losses_of(optimizee, make(optimizee.module->parameters()), steps, [] { return true; }));
      }
      return at::cat(each);
    };
    optim::LSTMOptimizer rule(optim::LSTMOptimizerOptions(0.1).layers(1).hidden_size(4));
    {
      torch::NoGradGuard no_gradient;
      const auto weights = experiment->state().tensors.tensors;
      for (size_t i = 0; i < weights.size(); ++i) rule.parameters()[i].copy_(weights[i]);
    }
    std::map<std::string, at::Tensor> held_out;
    held_out["learned"] = losses_with(*splits.held_out, 4, 12,
                                      [&](const TensorList& parameters) { return optim::Optimizer(rule, parameters); });
    for (const std::string name : {"adam", "sgd"}) {
      const auto rates = numbers["validation"][name]["rates"].get<std::vector<double>>();
      ASSERT_EQ(rates.size(), 3u);
      std::vector<double> means;
      for (const auto rate : rates) {
        const auto losses = losses_with(*splits.validation, 3, 5, [&](const TensorList& parameters) {
          return make_inner_optimizer(name, rate, parameters);
        });
        means.push_back(losses.select(1, 5).mean().item<double>());
      }
      for (size_t k = 0; k < 3; ++k) {
        EXPECT_NEAR(numbers["validation"][name]["losses"][k].get<double>() / means[k], 1, 1e-4);
      }
      const auto rate = rates[std::min_element(means.begin(), means.end()) - means.begin()];
      EXPECT_EQ(numbers["optimizers"][name]["rate"], rate);
      held_out[name] = losses_with(*splits.held_out, 4, 12, [&](const TensorList& parameters) {
        return make_inner_optimizer(name, rate, parameters);
      });
    }
    ASSERT_EQ(numbers["optimizers"].size(), 3u);
    for (const auto& [name, losses] : held_out) {
      for (const int64_t step : {5, 10, 12}) {
        const auto& found = numbers["optimizers"][name]["losses"][std::to_string(step)];
        const auto at_step = losses.select(1, step);
        EXPECT_NEAR(found["mean"].get<double>() / at_step.mean().item<double>(), 1, 1e-4) << name << " " << step;
        EXPECT_NEAR(found["interval"].get<double>() / (1.96 * at_step.std().item<double>() / 2), 1, 1e-3);
      }
    }

    ASSERT_EQ(numbers["claims"].size(), 3u);
    const int64_t steps[] = {5, 10, 12};
    for (size_t c = 0; c < 3; ++c) {
      const auto at_step = [&](const std::string& name) { return held_out[name].select(1, steps[c]); };
      const std::string best = (at_step("adam").mean() < at_step("sgd").mean()).item<bool>() ? "adam" : "sgd";
      const auto difference = at_step("learned") - at_step(best);
      const auto bound = difference.mean().item<double>() + 1.96 * difference.std().item<double>() / 2;
      const auto& claim = numbers["claims"][c];
      EXPECT_NE(claim["claim"].get<std::string>().find(best), std::string::npos);
      EXPECT_NEAR(claim["baseline"].get<double>() / at_step(best).mean().item<double>(), 1, 1e-4);
      EXPECT_NEAR(claim["learned"].get<double>() / at_step("learned").mean().item<double>(), 1, 1e-4);
      EXPECT_EQ(claim["holds"].get<bool>(), bound < 0) << bound;
    }

    ASSERT_EQ(report.figures.size(), 1u);
    const auto& panel = report.figures[0].panels[0];
    ASSERT_EQ(panel.series.size(), 4u);
    EXPECT_EQ(panel.series[0].y.size(), 13u);
    EXPECT_EQ(panel.series[3].x, (std::vector<double>{5, 5}));
    EXPECT_NE(report.markdown.find("loss after 12 steps"), std::string::npos);
  }
}

TEST_F(LearnedOptimizerExperimentTest, TrainsByCommandAndDrawsItsFigure) {
  for (const auto& dataset : kDatasets) {
    fs::remove_all(run);
    const auto outcome = gimli(training(dataset));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find(" learned | "), std::string::npos) << outcome.out;
    const auto report = nlohmann::json::parse(read_file(run / "report.json"));
    EXPECT_EQ(report["optimizers"].size(), 4u);
    EXPECT_EQ(read_figures(run / "figures.json").size(), 1u);
  }
}

TEST_F(LearnedOptimizerExperimentTest, EveryPresetRuns) {
  int64_t count = 0;
  for (const auto& preset : presets()) {
    if (preset.experiment != "learned-optimizer") continue;
    SCOPED_TRACE(preset.name);
    ++count;
    const auto own = parse_config(learned_optimizer().schema, preset.toml, preset.name);
    const auto dataset = std::get<std::string>(own.at("dataset"));
    auto shrunk = tiny(dataset);
    for (const auto* kept : {"layers", "hidden_size", "unroll", "outer_lr"}) shrunk.erase(kept);
    const auto experiment = learned_optimizer().make(Config(learned_optimizer().schema, merge(own, shrunk)));
    for (int64_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(std::isfinite(experiment->iterate(i)->metrics["outer_loss"].get<double>()));
    }
    EXPECT_EQ(experiment->report({})->numbers["claims"].size(), 3u);
  }
  EXPECT_EQ(count, 4);
}

TEST_F(LearnedOptimizerExperimentTest, Refuses) {
  const struct {
    std::string dataset;
    Arguments more;
    std::string words;
  } rows[] = {
      {"quadratic", {"--eval-horizon", "4"}, "eval_horizon: expected at least 5, the horizon of training, got 4"},
      {"quadratic", {"--baselines", "sgd,sgd"}, "baselines: expected each one once"},
      {"quadratic", {"--baselines", "sgd,adma"}, "adma"},
      {"quadratic", {"--lowest-rate", "2"}, "lowest_rate: expected at most 1, the highest_rate, got 2"},
      {"quadratic", {"--batch", "2"}, "batch has no meaning with the dataset quadratic"},
      {"fashion-mnist", {"--image-size", "9"}, "image_size: expected at most 8, as the images have, got 9"},
      {"fashion-mnist", {"--data-root", (folder.path / "nothing").string()}, "load_mnist: expected"},
  };
  for (const auto& row : rows) expect_refusal(training(row.dataset, row.more), row.words);
}

}  // namespace
}  // namespace gimli::app
