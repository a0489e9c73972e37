#include "app/experiments/learned_loss.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <thread>

#include "app/evaluation.h"
#include "app/metrics.h"
#include "app/preset.h"
#include "app_fixture.h"
#include "expect.h"
#include "gimli/gradcheck.h"
#include "gimli/nn/mlp.h"
#include "omniglot_files.h"

namespace gimli::app {
namespace {

using Integers = std::vector<int64_t>;

// The loss network

double softplus(double x) { return std::log1p(std::exp(x)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

LossNetwork loss_network(const Integers& hidden) {
  torch::manual_seed(4);
  LossNetwork network(hidden);
  network.layers->to(torch::kDouble);
  return network;
}

/// l_phi(u, t) in plain numbers.
double value_by_hand(const LossNetwork& network, double u, double t) {
  std::vector<double> inputs{u, t};
  const auto phi = network.parameters().tensors;
  for (size_t layer = 0; layer < phi.size(); layer += 2) {
    std::vector<double> outputs;
    for (int64_t i = 0; i < phi[layer].size(0); ++i) {
      auto sum = phi[layer + 1][i].item<double>();
      for (size_t j = 0; j < inputs.size(); ++j)
        sum += phi[layer][i][static_cast<int64_t>(j)].item<double>() * inputs[j];
      outputs.push_back(softplus(sum));
    }
    inputs = outputs;
  }
  EXPECT_EQ(inputs.size(), 1u);
  return inputs[0];
}

TEST(LossNetworkTest, IsItsFormula) {
  for (const auto& hidden : {Integers{}, Integers{3}, Integers{5, 4}}) {
    SCOPED_TRACE(hidden.size());
    const auto network = loss_network(hidden);
    EXPECT_EQ(network.parameters().size(), 2 * (hidden.size() + 1));
    const auto outputs = torch::randn({3, 2}, torch::kDouble), targets = torch::randn({3, 2}, torch::kDouble);
    double expected = 0;
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < 2; ++j) {
        const auto value = value_by_hand(network, outputs[i][j].item<double>(), targets[i][j].item<double>());
        EXPECT_NEAR(network.values(outputs, targets)[i][j].item<double>(), value, 1e-12);
        expected += value / 3;
      }
    }
    EXPECT_NEAR(network(outputs, targets).item<double>(), expected, 1e-12);
  }
}

TEST(LossNetworkTest, SeesLogProbabilitiesOfClasses) {
  const auto network = loss_network({4});
  const auto logits = torch::tensor({{1., 2., -1.}, {0.5, 0., 3.}}, torch::kDouble);
  const Integers classes{2, 0};
  double expected = 0;
  for (int64_t i = 0; i < 2; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < 3; ++c) sum += std::exp(logits[i][c].item<double>());
    for (int64_t c = 0; c < 3; ++c) {
      expected += value_by_hand(network, logits[i][c].item<double>() - std::log(sum), c == classes[i]) / 2;
    }
  }
  EXPECT_NEAR(network(logits, torch::tensor(classes)).item<double>(), expected, 1e-12);
}

TEST(LossNetworkTest, DoesNotDependOnTheOrderOfClasses) {
  const auto network = loss_network({6, 6});
  const auto logits = torch::randn({4, 3}, torch::kDouble);
  const auto classes = torch::tensor(Integers{0, 1, 2, 1}), renamed = torch::tensor(Integers{2, 0, 1, 0});
  const auto permuted = logits.index_select(1, torch::tensor(Integers{1, 2, 0}));  // class 0 is now at 2, 1 at 0
  EXPECT_NEAR(network(permuted, renamed).item<double>(), network(logits, classes).item<double>(), 1e-12);
  EXPECT_GT(std::abs((network(permuted, classes) - network(logits, classes)).item<double>()), 1e-6);
}

// The inner loop

/// A data set of a network in float64, without tasks.
Dataset dataset_of(const Integers& sizes, bool classifies) {
  Dataset dataset;
  dataset.new_network = [sizes]() -> Network {
    auto model = nn::mlp(sizes);
    model->to(torch::kDouble);
    return {model.ptr(), [model](const at::Tensor& x, int64_t) mutable { return model->forward(x); }};
  };
  torch::manual_seed(7);
  dataset.network = dataset.new_network();
  dataset.classifies = classifies;
  return dataset;
}

data::Task task_of(int64_t inputs, int64_t classes) {
  const auto examples = [&]() -> torch::data::Example<> {
    return {torch::randn({4, inputs}, torch::kDouble),
            classes > 0 ? torch::randint(classes, {4}, torch::kLong) : torch::randn({4, 1}, torch::kDouble)};
  };
  return {examples(), examples()};
}

TEST(LearnedLossProblemTest, AStepIsThatByHand) {
  constexpr double rate = 0.3;
  const auto dataset = dataset_of({1, 1}, false);  // f(x) = w x + v
  const auto network = loss_network({});           // softplus(a u + b t + c)
  const auto task = task_of(1, 0);
  const auto theta = clones(dataset.network.module->parameters());
  const auto phi = clones(network.parameters().tensors);
  const auto a = phi[0][0][0].item<double>(), b = phi[0][0][1].item<double>(), c = phi[1][0].item<double>();
  auto w = theta[0].item<double>(), v = theta[1].item<double>();
  double dw = 0, dv = 0;
  for (int64_t i = 0; i < 4; ++i) {
    const auto x = task.support.data[i].item<double>(), y = task.support.target[i].item<double>();
    const auto slope = sigmoid(a * (w * x + v) + b * y + c) * a / 4;
    dw += slope * x;
    dv += slope;
  }
  w -= rate * dw;
  v -= rate * dv;
  double expected = 0;
  for (int64_t i = 0; i < 4; ++i) {
    expected += std::pow(w * task.query.data[i].item<double>() + v - task.query.target[i].item<double>(), 2) / 4;
  }
  const auto problem = training_with(network, dataset, rate).steps(1);
  EXPECT_NEAR(evaluate(problem, std::vector{task}).outer_loss.item<double>(), expected, 1e-12);
}

TEST(LearnedLossProblemTest, HasTheGradientOfCentralDifferences) {
  const struct {
    int64_t classes;
    Integers sizes, outer_at;
  } rows[] = {{0, {1, 3, 1}, {3}}, {0, {1, 3, 1}, {1, 2, 3}}, {3, {2, 3, 3}, {3}}, {3, {2, 3, 3}, {1, 2, 3}}};
  for (const auto& row : rows) {
    SCOPED_TRACE(row.classes);
    const auto dataset = dataset_of(row.sizes, row.classes > 0);
    const auto network = loss_network({4, 3});
    const std::vector<data::Task> tasks{task_of(row.sizes[0], row.classes), task_of(row.sizes[0], row.classes)};
    const auto problem =
        from_new_weights(training_with(network, dataset, 0.2), dataset, 9).steps(3).outer_at(row.outer_at).seed(1);
    const auto phi = network.parameters().tensors;
    const auto report = gradcheck(problem, phi, tasks);
    EXPECT_TRUE(report.passed) << report.message;
    for (const auto& gradient : hypergradient(problem, phi, tasks).gradients) {
      EXPECT_GT(gradient.abs().max().item<double>(), 1e-6);
    }
  }
}

TensorList start_of(const Bilevel& problem) { return clones(problem.start(Graph::none).parameters()); }

TEST(LearnedLossProblemTest, NewWeightsAreAFunctionOfTheSeed) {
  const auto dataset = make_dataset(Config(learned_loss().schema, {}));
  const auto problem = training_with(loss_network({2}), dataset, 0.1);
  const auto model = clones(dataset.network.module->parameters());
  torch::manual_seed(1);
  const auto expected_draw = torch::rand({3});
  torch::manual_seed(1);
  const auto weights = start_of(from_new_weights(problem, dataset, 5));
  EXPECT_TRUE(at::equal(torch::rand({3}), expected_draw)) << "it drew from the default generator";
  expect_equal(dataset.network.module->parameters(), model);

  TensorList in_thread;
  std::thread([&] { in_thread = start_of(from_new_weights(problem, dataset, 5)); }).join();
  expect_equal(in_thread, weights);
  const auto others = start_of(from_new_weights(problem, dataset, 6));
  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_FALSE(at::equal(others[i], weights[i])) << i;
    EXPECT_FALSE(at::equal(model[i], weights[i])) << i;
    // As torch::nn::Linear draws them: uniform up to one over the root of its inputs, 1 and 40.
    const auto bound = i < 2 ? 1 : 1 / std::sqrt(40.);
    EXPECT_LE(weights[i].abs().max().item<double>(), bound) << i;
    EXPECT_TRUE(weights[i].numel() == 1 || weights[i].abs().max().item<double>() > 0.8 * bound) << i;
  }
}

// The experiment

class LearnedLossTest : public testing::Test {
 protected:
  Config config(const Values& values) const {
    const Values all{{"shots", int64_t{4}},
                     {"queries", int64_t{6}},
                     {"hidden", int64_t{8}},
                     {"loss_hidden", Integers{6}},
                     {"inner_steps", int64_t{3}},
                     {"inner_lr", 0.02},
                     {"iterations", int64_t{5}},
                     {"tasks", int64_t{2}},
                     {"validation_tasks", int64_t{4}},
                     {"eval_tasks", int64_t{5}},
                     {"eval_steps", Integers{1, 5}},
                     {"rate_powers", Integers{-1, 0, 2}},
                     {"threads", int64_t{2}},
                     {"quiet", true}};
    return Config(learned_loss().schema, merge(all, values));
  }

  /// Needs the files of write_whole_omniglot.
  Values omniglot() const {
    return {{"dataset", std::string("omniglot")},
            {"data_root", folder.path.string()},
            {"ways", int64_t{3}},
            {"shots", int64_t{1}},
            {"queries", int64_t{1}},
            {"inner_steps", int64_t{2}}};
  }

  TemporaryFolder folder;
};

TEST_F(LearnedLossTest, AnIterationIsThatByHand) {
  for (const bool multi_step : {true, false}) {
    for (const double clip : {1e3, 1e-3}) {
      SCOPED_TRACE(testing::Message() << multi_step << " " << clip);
      const auto settings =
          config({{"multi_step", multi_step}, {"outer_clip", clip}, {"inner_lr", 0.1}, {"outer_lr", 0.01}});
      const auto experiment = learned_loss().make(settings);
      const auto phi = experiment->state().tensors.tensors;
      const auto before = clones(phi);
      const auto done = experiment->iterate(0);
      ASSERT_TRUE(done);

      at::NoGradGuard no_grad;
      for (size_t i = 0; i < phi.size(); ++i) {  // Adam's first step
        const auto& gradient = phi[i].grad();
        EXPECT_TRUE(at::allclose(phi[i], before[i] - 0.01 * gradient / (gradient.abs() + 1e-8), 1e-5, 1e-6)) << i;
      }

      const auto dataset = make_dataset(settings);
      const LossNetwork network({6});
      auto copies = network.parameters().tensors;
      for (size_t i = 0; i < copies.size(); ++i) copies[i].copy_(before[i]);
      const auto seed = fork_seed(fork_seed(0, 1), 0);
      const auto problem = from_new_weights(training_with(network, dataset, 0.1), dataset, seed)
                               .steps(3)
                               .outer_at(multi_step ? Integers{1, 2, 3} : Integers{3});
      const auto result = hypergradient(
          problem, copies, std::vector{dataset.training->task(0), dataset.training->task(1)}, Unroll(), Threads(1));
      const double count = multi_step ? 3 : 1;
      EXPECT_NEAR(done->metrics["outer_loss"].get<double>(), result.outer_loss.item<double>() / count, 1e-6);
      const auto gradients = divide(result.gradients, count);
      const auto norm = std::sqrt(inner_product(gradients, gradients));
      EXPECT_NEAR(done->metrics["hypergradient_norm"].get<double>(), norm, 1e-5 * norm);
      for (size_t i = 0; i < phi.size(); ++i) {
        EXPECT_TRUE(at::allclose(phi[i].grad(), gradients[i] * std::min(1., clip / norm), 1e-3, 1e-8)) << i;
      }
    }
  }
}

TEST_F(LearnedLossTest, GoesOnToTheBit) {
  expect_resumes_to_the_bit(learned_loss(), config({}), 2);
  expect_resumes_to_the_bit(learned_loss(), config({{"multi_step", false}, {"seed", int64_t{3}}}), 4);
  data::write_whole_omniglot(folder.path);
  expect_resumes_to_the_bit(learned_loss(), config(merge(omniglot(), {{"iterations", int64_t{2}}})), 1);
}

TEST_F(LearnedLossTest, EveryPresetRuns) {
  data::write_whole_omniglot(folder.path);
  int64_t count = 0;
  for (const auto& preset : presets()) {
    if (preset.experiment != "learned-loss") continue;
    SCOPED_TRACE(preset.name);
    ++count;
    auto values = parse_config(learned_loss().schema, preset.toml, preset.name);
    const bool is_omniglot = preset.name.starts_with("omniglot");
    values = merge(values, {{"iterations", int64_t{2}},
                            {"tasks", int64_t{1}},
                            {"eval_tasks", int64_t{2}},
                            {"eval_steps", Integers{2}},
                            {"validation_tasks", int64_t{2}},
                            {"quiet", true}});
    if (is_omniglot) values = merge(values, {{"queries", int64_t{1}}, {"data_root", folder.path.string()}});
    const Config settings(learned_loss().schema, values);
    const auto experiment = learned_loss().make(settings);
    std::vector<nlohmann::json> metrics;
    for (int64_t i = 0; i < 2; ++i) {
      metrics.push_back(experiment->iterate(i)->metrics);
      EXPECT_TRUE(std::isfinite(metrics.back()["outer_loss"].get<double>()));
      EXPECT_EQ(metrics.back().contains("accuracy"), is_omniglot);
    }
    const auto report = experiment->report(metrics);
    ASSERT_TRUE(report);
    ASSERT_EQ(report->numbers["steps"].size(), 3u);
    EXPECT_EQ(report->numbers["steps"][1]["learned"].contains("accuracy"), is_omniglot);
    ASSERT_EQ(report->figures.size(), 2u);
    EXPECT_EQ(report->figures[0].name, "scores");
    EXPECT_EQ(report->figures[1].name, "learned-loss");
    for (const auto& figure : report->figures) EXPECT_NO_THROW(check_figure(figure, preset.name));
  }
  EXPECT_EQ(count, 4);
}

/// Trains a network in place from the weights of `start`. Returns the loss and the accuracy of the query examples after
/// each number of steps from none on.
std::vector<std::pair<double, double>> train_by_torch(const Dataset& dataset, const TensorList& start,
                                                      const data::Task& task, const Loss& loss, double lr,
                                                      int64_t steps) {
  const auto network = dataset.new_network();
  const auto weights = network.module->parameters();
  for (size_t i = 0; i < weights.size(); ++i) weights[i].data().copy_(start[i]);
  torch::optim::SGD sgd(weights, lr);
  std::vector<std::pair<double, double>> scores;
  for (int64_t step = 0;; ++step) {
    const auto outputs = network.forward(task.query.data, 0).detach();
    if (dataset.classifies) {
      scores.emplace_back(torch::nn::functional::cross_entropy(outputs, task.query.target).item<double>(),
                          outputs.argmax(1).eq(task.query.target).to(torch::kDouble).mean().item<double>());
    } else {
      scores.emplace_back((outputs - task.query.target).square().mean().item<double>(), 0);
    }
    if (step == steps) return scores;
    sgd.zero_grad();
    loss(network.forward(task.support.data, 0), task.support.target).backward();
    sgd.step();
  }
}

TEST_F(LearnedLossTest, TheReportIsThatByHand) {
  data::write_whole_omniglot(folder.path);
  for (const bool classifies : {false, true}) {
    SCOPED_TRACE(classifies);
    const auto settings = config(classifies ? omniglot() : Values{});
    const auto inner_steps = settings.integer("inner_steps");
    const auto lr = settings.number("inner_lr");
    const auto experiment = learned_loss().make(settings);
    const LossNetwork network({6});
    const auto phi = network.parameters().tensors, trained = experiment->state().tensors.tensors;
    for (size_t i = 0; i < phi.size(); ++i) phi[i].data().copy_(trained[i].detach());
    const auto dataset = make_dataset(settings, classifies ? 50 : 0);
    const Loss plain = [&](const at::Tensor& outputs, const at::Tensor& targets) {
      return classifies ? torch::nn::functional::cross_entropy(outputs, targets)
                        : torch::nn::functional::mse_loss(outputs, targets);
    };
    // The mean of the losses, and of the accuracies, after each step.
    const auto means = [&](const data::TaskSource& source, int64_t tasks, uint64_t seed, const Loss& loss,
                           double rate) {
      std::vector<std::pair<double, double>> result(6);
      for (int64_t i = 0; i < tasks; ++i) {
        const auto start = start_of(from_new_weights(training_with(loss, dataset, rate), dataset, fork_seed(seed, i)));
        const auto scores = train_by_torch(dataset, start, source.task(i), loss, rate, 5);
        for (size_t s = 0; s < scores.size(); ++s) {
          result[s].first += scores[s].first / static_cast<double>(tasks);
          result[s].second += scores[s].second / static_cast<double>(tasks);
        }
      }
      return result;
    };
    const auto on_test = [&](const Loss& loss, double rate) {
      return means(*dataset.held_out, 5, kHeldOutSeed, loss, rate);
    };

    const auto report = experiment->report({});
    ASSERT_TRUE(report);
    const auto& steps = report->numbers["steps"];
    ASSERT_EQ(steps.size(), 4u);
    const auto expect_scores = [&](const nlohmann::ordered_json& actual, const std::pair<double, double>& expected) {
      EXPECT_NEAR(actual["loss"]["mean"].get<double>(), expected.first, 1e-4 * (1 + expected.first));
      if (classifies) {
        EXPECT_NEAR(actual["accuracy"]["mean"].get<double>(), expected.second, 1e-6);
      }
    };
    const auto by_learned = on_test(network, lr), by_plain = on_test(plain, lr);
    std::map<double, std::vector<std::pair<double, double>>> validated, tested;
    for (const double rate : {lr / 2, lr, 4 * lr}) {
      validated[rate] = means(*dataset.validation, 4, fork_seed(kHeldOutSeed, 1), plain, rate);
      tested[rate] = on_test(plain, rate);
    }
    const int64_t expected_steps[] = {0, 1, inner_steps, 5};
    for (size_t row = 0; row < 4; ++row) {
      const auto s = static_cast<size_t>(expected_steps[row]);
      EXPECT_EQ(steps[row]["step"], s);
      expect_scores(steps[row]["learned"], by_learned[s]);
      expect_scores(steps[row]["plain"], by_plain[s]);
      const auto rate_of = [&](const char* measure) { return steps[row]["tuned"][measure]["rate"].get<double>(); };
      const auto by_loss = rate_of("loss"), by_accuracy = classifies ? rate_of("accuracy") : by_loss;
      ASSERT_TRUE(tested.contains(by_loss) && tested.contains(by_accuracy));
      expect_scores(steps[row]["tuned"], {tested[by_loss][s].first, tested[by_accuracy][s].second});
      if (s == 0) continue;
      for (const auto& [other, scores] : validated) {
        EXPECT_LE(validated[by_loss][s].first, scores[s].first + 1e-6)
            << "rate " << other << " is better than " << by_loss << " after " << s << " steps";
        if (!classifies) continue;
        EXPECT_GE(validated[by_accuracy][s].second, scores[s].second - 1e-9)
            << "rate " << other << " is better than " << by_accuracy << " after " << s << " steps";
      }
    }

    const auto& claims = report->numbers["claims"];
    ASSERT_EQ(claims.size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
      const auto& row = steps[i < 2 ? 2 : 3];
      EXPECT_EQ(claims[i]["learned"], row["learned"]["loss"]["mean"]);
      EXPECT_EQ(claims[i]["baseline"], row[i % 2 == 0 ? "plain" : "tuned"]["loss"]["mean"]);
      EXPECT_EQ(claims[i]["holds"], claims[i]["learned"].get<double>() < claims[i]["baseline"].get<double>());
    }
  }
}

TEST_F(LearnedLossTest, LearnsToTrainFasterThanThePlainLoss) {
  const auto experiment = learned_loss().make(config({{"shots", int64_t{10}},
                                                      {"queries", int64_t{20}},
                                                      {"hidden", int64_t{20}},
                                                      {"inner_lr", 1e-3},
                                                      {"iterations", int64_t{100}},
                                                      {"tasks", int64_t{4}},
                                                      {"outer_lr", 1e-2},
                                                      {"eval_tasks", int64_t{60}},
                                                      {"rate_powers", Integers{0}}}));
  for (int64_t i = 0; i < experiment->iterations(); ++i) ASSERT_TRUE(experiment->iterate(i));
  const auto report = experiment->report({});
  for (const auto& claim : report->numbers["claims"]) EXPECT_TRUE(claim["holds"].get<bool>()) << claim;
}

TEST_F(LearnedLossTest, ALossThatDivergesIsTheWorst) {
  const auto mean_loss = [](const Report& report, const char* of) {
    return report.numbers["steps"].back()[of]["loss"]["mean"].get<double>();
  };
  // So high a rate diverges, and is not chosen.
  const auto report =
      learned_loss().make(config({{"rate_powers", Integers{-1, 30}}, {"eval_steps", Integers{20}}}))->report({});
  ASSERT_TRUE(report);
  for (const auto& row : report->numbers["steps"]) EXPECT_LE(row["tuned"]["loss"]["rate"].get<double>(), 0.02);

  const auto diverging =
      learned_loss()
          .make(config({{"inner_lr", 1e6}, {"rate_powers", Integers{-30}}, {"eval_steps", Integers{20}}}))
          ->report({});
  ASSERT_TRUE(diverging);
  EXPECT_TRUE(std::isnan(mean_loss(*diverging, "plain")));
  EXPECT_TRUE(std::isfinite(mean_loss(*diverging, "tuned")));
  const auto& claim = diverging->numbers["claims"].back();  // against the plain loss at its best rate
  EXPECT_EQ(claim["holds"], mean_loss(*diverging, "learned") < mean_loss(*diverging, "tuned"));
}

TEST_F(LearnedLossTest, Refuses) {
  const auto out = (folder.path / "run").string();
  const auto train = [&](const Arguments& more) {
    return Arguments{"train", "learned-loss", "--quiet", "--out", out} + more;
  };
  expect_refusal(train({"--inner-steps", "0"}), "inner_steps must be at least 1, got 0");
  expect_refusal(train({"--loss-hidden", "40,0"}), "loss_hidden must be at least 1, got 0");
  expect_refusal(train({"--rate-powers", "31"}), "rate_powers must be -30 to 30, got 31");
  expect_refusal(train({"--ways", "5"}), "ways has no meaning with the dataset sinusoid");
  expect_refusal(train({"--dataset", "omniglot", "--data-root", (folder.path / "nothing").string()}), "load_omniglot:");
  expect_error(
      [&] {
        learned_loss().make(config({{"rate_powers", Integers{}}}));
      },
      "rate_powers: expected at least one");
}

}  // namespace
}  // namespace gimli::app
