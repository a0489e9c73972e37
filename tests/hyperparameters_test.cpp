#include "app/experiments/hyperparameters.h"

#include <torch/torch.h>

#include <cmath>

#include "app/experiments/hyperparameter_problem.h"
#include "app/experiments/hyperparameter_report.h"
#include "app/file.h"
#include "app/metrics.h"
#include "app/preset.h"
#include "app_fixture.h"
#include "expect.h"
#include "fashion_mnist_files.h"
#include "gimli/data/image_batch.h"
#include "gimli/gradcheck.h"
#include "gimli/hypergradient/implicit.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/optim/learned_hyperparameters.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli::app {
namespace {

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const auto& kind : hyperparameter_kinds()) result.push_back(kind.name);
  return result;
}

class HyperparametersTest : public testing::Test {
 protected:
  HyperparametersTest() { data::write_fashion_mnist(folder.path, 120, 40); }

  static constexpr int64_t kTraining = 80;

  /// What makes any configuration tiny.
  Values tiny() const {
    return {{"data_root", folder.path.string()},
            {"training_images", kTraining},
            {"validation_images", int64_t{30}},
            {"test_images", int64_t{20}},
            {"inner_steps", int64_t{4}},
            {"iterations", int64_t{4}},
            {"seeds", int64_t{2}},
            {"threads", int64_t{1}},
            {"quiet", true}};
  }

  Config config(const std::string& hyperparameter, const Values& more = {}) const {
    auto values = merge(tiny(), {{"hyperparameter", hyperparameter}, {"weight_decay", 0.02}, {"corrupted", 0.5}});
    return Config(hyperparameters().schema, merge(values, more));
  }

  data::MnistData data() const { return data::load_fashion_mnist(folder.path.string()); }

  /// The first repetition, in float64.
  Repetition repetition(const Config& config) const {
    auto made = make_repetition(config, data(), 0);
    made.network->to(torch::kDouble);
    for (auto* part : {&made.parts.training, &made.parts.validation, &made.parts.test}) {
      part->pixels = part->pixels.to(torch::kDouble);
    }
    made.start.examples.pixels = made.start.examples.pixels.to(torch::kDouble);
    made.recipe = made.start;
    for (const auto& kind : hyperparameter_kinds()) {
      if (kind.name == config.text("hyperparameter")) {
        made.learned = kind.learn(made.recipe, config, made.network);
      }
    }
    return made;
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
};

// The problem

TEST_F(HyperparametersTest, TheInnerLossIsThatOfItsFormula) {
  auto made = repetition(config("l2", {{"hidden", int64_t{3}}}));
  torch::manual_seed(2);
  auto recipe = made.recipe;
  recipe.weight_logits = torch::randn({kTraining}, torch::kDouble);
  for (auto& log_penalty : recipe.log_penalties) log_penalty = torch::randn_like(log_penalty);
  const auto log_probabilities = made.network->forward(recipe.examples.pixels).log_softmax(1);
  double penalty = 0;
  const auto parameters = made.network->parameters();
  ASSERT_EQ(parameters.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    penalty += (recipe.log_penalties[i].exp() * parameters[i] * parameters[i]).sum().item<double>() / 2;
  }
  const auto by_hand = [&](const std::vector<int64_t>& rows) {
    double sum = 0;
    for (const auto i : rows) {
      const double weight = 1 / (1 + std::exp(-recipe.weight_logits[i].item<double>()));
      sum -= weight * log_probabilities[i][recipe.examples.labels[i]].item<double>();
    }
    return sum / static_cast<double>(rows.size()) + penalty;
  };
  std::vector<int64_t> all(kTraining);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_NEAR(training_loss(made.network, recipe).item<double>(), by_hand(all), 1e-12);
  const std::vector<int64_t> some{3, 7, 7, 39};
  EXPECT_NEAR(training_loss(made.network, recipe, torch::tensor(some)).item<double>(), by_hand(some), 1e-12);

  recipe.weight_logits = at::Tensor();
  const auto mean = torch::nll_loss(log_probabilities, recipe.examples.labels).item<double>();
  EXPECT_NEAR(training_loss(made.network, recipe).item<double>(), mean + penalty, 1e-12);
  recipe.log_penalties = {torch::tensor(std::log(0.3), torch::kDouble)};
  double squares = 0;
  for (const auto& parameter : parameters) squares += parameter.square().sum().item<double>();
  EXPECT_NEAR(training_loss(made.network, recipe).item<double>(), mean + 0.15 * squares, 1e-12);
  recipe.log_penalties = {};
  EXPECT_NEAR(training_loss(made.network, recipe).item<double>(), mean, 1e-12);
}

/// What libtorch's SGD makes of the network, with a rate for each step.
torch::nn::Sequential trained_by_torch(const Repetition& made, const Recipe& recipe, const std::vector<double>& rates) {
  auto network = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(made.network->clone());
  torch::optim::SGD sgd(network->parameters(), torch::optim::SGDOptions(1).momentum(made.training.momentum));
  const auto batch = made.training.batch;
  for (size_t step = 0; step < rates.size(); ++step) {
    static_cast<torch::optim::SGDOptions&>(sgd.param_groups()[0].options()).lr(rates[step]);
    sgd.zero_grad();
    const auto rows = batch == 0 ? at::Tensor()
                                 : torch::tensor(data::shuffled(made.training.order_seed, recipe.examples.size(),
                                                                static_cast<int64_t>(step) * batch, batch));
    training_loss(network, recipe, rows).backward();
    sgd.step();
  }
  return network;
}

TEST_F(HyperparametersTest, TheInnerLoopIsTrainingByTorch) {
  for (const int64_t batch : {0, 7}) {
    SCOPED_TRACE(batch);
    const auto made = repetition(config("step-rates", {{"batch", batch}, {"hidden", int64_t{3}}}));
    const std::vector<double> rates{0.1, 0.03, 0.2, 0.01};
    auto recipe = made.recipe;
    recipe.log_rate = torch::tensor(rates, torch::kDouble).log();
    const auto before = clones(made.network->parameters());
    const auto result = evaluate(made.problem(recipe));
    const auto expected = score(trained_by_torch(made, recipe, rates), made.parts.validation);
    EXPECT_NEAR(result.outer_loss.item<double>(), expected.loss.item<double>(), 1e-12);
    EXPECT_EQ(result.auxiliary[0].item<double>(), expected.auxiliary.item<double>());
    expect_equal(made.network->parameters(), before);
  }
}

TEST_F(HyperparametersTest, LearnsFromTheValuesOfTheConfiguration) {
  const struct {
    std::string name;
    std::vector<std::vector<int64_t>> shapes;
    double start;
  } rows[] = {{"learning-rate", {{}}, std::log(0.05)}, {"step-rates", {{4}}, std::log(0.05)},
              {"weight-decay", {{}}, std::log(0.02)},  {"l2", {{10, 64}, {10}}, std::log(0.02)},
              {"data-weights", {{kTraining}}, 0},      {"distillation", {{20, 64}, {}}, 0}};
  ASSERT_EQ(std::size(rows), names().size());
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    const auto made = make_repetition(config(row.name, {{"images_per_class", int64_t{2}}}), data(), 0);
    ASSERT_EQ(made.learned.size(), row.shapes.size());
    for (size_t i = 0; i < row.shapes.size(); ++i) {
      EXPECT_EQ(made.learned.tensors[i].sizes().vec(), row.shapes[i]);
      EXPECT_TRUE(made.learned.tensors[i].is_leaf() && made.learned.tensors[i].requires_grad());
    }
    EXPECT_NEAR(made.learned.tensors[0].flatten()[-1].item<double>(), row.start, 1e-6);
  }
  const auto distilled = make_repetition(config("distillation", {{"images_per_class", int64_t{2}}}), data(), 0);
  EXPECT_TRUE(torch::equal(distilled.recipe.examples.labels, torch::arange(10).repeat_interleave(2)));
}

TEST_F(HyperparametersTest, RepetitionsDifferAndAreTheSameAgain) {
  const auto first = make_repetition(config("data-weights"), data(), 0);
  const auto again = make_repetition(config("data-weights"), data(), 0);
  const auto other = make_repetition(config("data-weights"), data(), 1);
  EXPECT_EQ(first.is_corrupted.sum().item<int64_t>(), kTraining / 2);
  EXPECT_TRUE(torch::equal(first.parts.training.pixels, again.parts.training.pixels));
  EXPECT_TRUE(torch::equal(first.parts.training.labels, again.parts.training.labels));
  expect_equal(first.network->parameters(), again.network->parameters());
  EXPECT_FALSE(torch::equal(first.parts.training.pixels, other.parts.training.pixels));
  EXPECT_FALSE(torch::equal(first.is_corrupted, other.is_corrupted));
  EXPECT_FALSE(torch::equal(first.network->parameters()[0], other.network->parameters()[0]));
}

TEST_F(HyperparametersTest, HypergradientsAreThoseOfCentralDifferences) {
  const Replay replay;
  const Unroll unroll;
  for (const auto& name : names()) {
    for (const int64_t hidden : {0, 3}) {
      SCOPED_TRACE(name + " " + std::to_string(hidden));
      const auto made = repetition(config(name, {{"hidden", hidden},
                                                 {"training_images", name == "distillation" ? kTraining : 12},
                                                 {"validation_images", int64_t{9}},
                                                 {"lr", 0.3},
                                                 {"inner_steps", int64_t{3}},
                                                 {"batch", int64_t{hidden == 0 ? 0 : 5}}}));
      {
        at::NoGradGuard no_grad;
        torch::manual_seed(4);
        for (const auto& tensor : made.learned.tensors) tensor.add_(0.1 * torch::randn_like(tensor));
      }
      const auto problem = made.problem(made.recipe);
      for (const Strategy* strategy : {static_cast<const Strategy*>(&replay), static_cast<const Strategy*>(&unroll)}) {
        const auto report = gradcheck(problem, made.learned.tensors, {}, *strategy);
        EXPECT_TRUE(report.passed) << strategy->name() << ": " << report.message;
      }
    }
  }
}

/// The implicit hypergradient against central differences of the outer loss where a long inner loop ends.
TEST_F(HyperparametersTest, ImplicitHypergradientsAreThoseOfTheMinimum) {
  for (const auto& kind : hyperparameter_kinds()) {
    if (!kind.moves_minimum) continue;
    SCOPED_TRACE(kind.name);
    const auto made = repetition(config(kind.name, {{"training_images", int64_t{12}},
                                                    {"validation_images", int64_t{9}},
                                                    {"weight_decay", 0.5},
                                                    {"lr", 0.1},
                                                    {"momentum", 0.5},
                                                    {"inner_steps", int64_t{300}}}));
    const auto problem = made.problem(made.recipe);
    const Implicit implicit(ConjugateGradient(ConjugateGradientOptions().tolerance(1e-12)));
    const auto result = hypergradient(problem, made.learned.tensors, {}, implicit);
    EXPECT_LT(result.cost.stationarity, 1e-9);
    EXPECT_GT(inner_product(result.gradients, result.gradients), 0);
    // Of the penalties' gradients, only one in a hundred elements is looked at.
    for (size_t i = 0; i < made.learned.size(); ++i) {
      const auto learned = made.learned.tensors[i];
      const auto flat = learned.detach().view(-1);
      for (int64_t j = 0; j<flat.numel(); j += flat.numel()> 50 ? 101 : 1) {
        const auto loss_at = [&](double shift) {
          flat[j] += shift;
          const auto loss = evaluate(problem).outer_loss.item<double>();
          flat[j] -= shift;
          return loss;
        };
        const auto numeric = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4;
        EXPECT_NEAR(result.gradients[i].view(-1)[j].item<double>(), numeric, 1e-8 + 1e-5 * std::abs(numeric));
      }
    }
  }
}

TEST_F(HyperparametersTest, ALearnedRateIsThatOfTheLibrary) {
  for (const auto& name : {"learning-rate", "step-rates"}) {
    SCOPED_TRACE(name);
    const auto made = repetition(config(name));
    optim::Optimizer inner(optim::SGD(optim::SGDOptions(0.05).momentum(0.9)), made.network->parameters());
    auto options = optim::LearnOptions();
    if (name == std::string("step-rates")) options.steps(4);
    const auto rates = optim::learn(inner, {"lr"}, options);
    expect_equal(made.learned.tensors, rates.tensors());
    const auto problem =
        Bilevel(made.network, inner).steps(4).inner([&] { return training_loss(made.network, made.start); }).outer([&] {
          return score(made.network, made.parts.validation);
        });
    expect_equal(hypergradient(made.problem(made.recipe), made.learned.tensors).gradients,
                 hypergradient(problem, rates.tensors()).gradients);
  }
}

// The report

TEST(HyperparameterReportTest, FindsByHand) {
  const auto is_corrupted = torch::tensor({true, true, true, false, false, false});
  const auto found = found_corrupted(torch::tensor({-1., -0.1, 2., -3., 0., 1.}), is_corrupted);
  EXPECT_DOUBLE_EQ(found.precision, 2. / 3);
  EXPECT_DOUBLE_EQ(found.recall, 2. / 3);
  const auto none = found_corrupted(torch::ones({6}), is_corrupted);
  EXPECT_TRUE(std::isnan(none.precision));
  EXPECT_EQ(none.recall, 0);
}

TEST(HyperparameterReportTest, AgreesByHand) {
  const TensorList a{torch::tensor({3., 0.}), torch::tensor({0.})}, b{torch::tensor({3., 0.}), torch::tensor({4.})};
  EXPECT_DOUBLE_EQ(agreement(a, b).cosine, 0.6);
  EXPECT_DOUBLE_EQ(agreement(a, b).relative_difference, 0.8);
  EXPECT_DOUBLE_EQ(agreement(b, b).cosine, 1);
  EXPECT_DOUBLE_EQ(agreement(b, b).relative_difference, 0);
}

/// A training to its end, and its report.
struct Trained {
  std::unique_ptr<Experiment> experiment;
  std::vector<nlohmann::json> metrics;
  nlohmann::ordered_json numbers;
};

Trained trained(const Config& config) {
  Trained result{hyperparameters().make(config), {}, {}};
  for (int64_t i = 0; i < result.experiment->iterations(); ++i) {
    result.metrics.push_back(result.experiment->iterate(i)->metrics);
  }
  result.numbers = result.experiment->report(result.metrics)->numbers;
  return result;
}

const nlohmann::ordered_json& training_named(const nlohmann::ordered_json& numbers, const std::string& name) {
  for (const auto& row : numbers["trainings"]) {
    if (row["training"] == name) return row;
  }
  throw std::runtime_error("no training " + name);
}

TEST_F(HyperparametersTest, ReportsTrainingsWithWhatWasLearnedAndWithTheBestOfTheGrid) {
  const auto settings = config("learning-rate", {{"iterations", int64_t{10}}, {"outer_lr", 0.3}});
  const auto done = trained(settings);
  EXPECT_LT(done.metrics.back()["outer_loss"].get<double>(), done.metrics.front()["outer_loss"].get<double>());

  double learned_loss = 0, learned_accuracy = 0, grid_loss = 0, grid_test_loss = 0;
  for (int64_t index = 0; index < 2; ++index) {
    const auto made = make_repetition(settings, data(), index);
    const auto losses = [&](double rate) {
      const auto network = trained_by_torch(made, made.start, std::vector<double>(4, rate));
      return std::make_tuple(score(network, made.parts.validation).loss.item<double>(),
                             score(network, made.parts.test).loss.item<double>(),
                             score(network, made.parts.test).auxiliary.item<double>());
    };
    const auto rate = std::exp(done.experiment->state().tensors.tensors[index].item<double>());
    EXPECT_NEAR(training_named(done.numbers, "learned rate")["values"][index].get<double>(), rate, 1e-12);
    learned_loss += std::get<0>(losses(rate)) / 2;
    learned_accuracy += std::get<2>(losses(rate)) / 2;
    std::pair<double, double> best{1e9, 0};
    for (int k = -12; k <= 3; ++k) {
      const auto [validation, test, accuracy] = losses(std::pow(10, k / 3.));
      best = std::min(best, {validation, test});
    }
    grid_loss += best.first / 2;
    grid_test_loss += best.second / 2;
  }
  const auto& learned = training_named(done.numbers, "learned rate");
  const auto& grid = training_named(done.numbers, "best rate of the grid");
  EXPECT_NEAR(learned["validation_loss"]["mean"].get<double>(), learned_loss, 1e-5);
  EXPECT_NEAR(learned["test_accuracy"]["mean"].get<double>(), learned_accuracy, 1e-9);
  EXPECT_NEAR(grid["validation_loss"]["mean"].get<double>(), grid_loss, 1e-5);
  EXPECT_NEAR(grid["test_loss"]["mean"].get<double>(), grid_test_loss, 1e-5);
  for (const auto& claim : done.numbers["claims"]) {
    if (claim["claim"].get<std::string>().find("loss") == std::string::npos) continue;
    EXPECT_EQ(claim["holds"], claim["learned"] <= claim["baseline"]);
  }
}

TEST_F(HyperparametersTest, ReportsTheWrongLabelsThatItFinds) {
  const auto settings = config(
      "data-weights", {{"iterations", int64_t{20}}, {"inner_steps", int64_t{20}}, {"outer_lr", 0.3}, {"lr", 0.1}});
  const auto done = trained(settings);
  double precision = 0, recall = 0;
  for (int64_t index = 0; index < 2; ++index) {
    const auto logits = done.experiment->state().tensors.tensors[index].detach();
    const auto is_corrupted = make_repetition(settings, data(), index).is_corrupted;
    double found = 0, right = 0;
    for (int64_t i = 0; i < kTraining; ++i) {
      if (logits[i].item<double>() >= 0) continue;
      ++found;
      if (is_corrupted[i].item<bool>()) ++right;
    }
    precision += right / found / 2;
    recall += right / (kTraining / 2) / 2;
  }
  EXPECT_NEAR(done.numbers["precision"]["mean"].get<double>(), precision, 1e-12);
  EXPECT_NEAR(done.numbers["recall"]["mean"].get<double>(), recall, 1e-12);
  EXPECT_GT(precision, 0.65) << "half of the labels are wrong";
  EXPECT_GT(recall, 0.65);
  const auto accuracy = [&](const std::string& name) {
    return training_named(done.numbers, name)["test_accuracy"]["mean"].get<double>();
  };
  EXPECT_NEAR(done.numbers["gain"]["mean"].get<double>(),
              accuracy("all, learned weights") - accuracy("all, equal weights"), 1e-12);
}

TEST_F(HyperparametersTest, ReportsWhetherStrategiesAgree) {
  for (const auto& kind : hyperparameter_kinds()) {
    SCOPED_TRACE(kind.name);
    const auto done = trained(config(kind.name, {{"iterations", int64_t{1}}, {"inner_steps", int64_t{50}}}));
    const auto& rows = done.numbers["strategies"];
    ASSERT_EQ(rows.size(), kind.moves_minimum ? 2u : 1u);
    EXPECT_LT(rows[0]["relative"].get<double>(), 1e-5);
    EXPECT_EQ(done.numbers.contains("stationarity"), kind.moves_minimum);
  }
}

// The experiment

TEST_F(HyperparametersTest, GoesOnToTheBit) {
  for (const auto& name : names()) {
    SCOPED_TRACE(name);
    expect_resumes_to_the_bit(hyperparameters(), config(name), 2);
  }
  const Values rows[] = {{{"strategy", text("implicit")}},
                         {{"strategy", text("unroll")}, {"batch", int64_t{7}}, {"threads", int64_t{2}}}};
  for (const auto& more : rows) expect_resumes_to_the_bit(hyperparameters(), config("weight-decay", more), 3);
}

TEST_F(HyperparametersTest, EveryPresetRuns) {
  int64_t count = 0;
  for (const auto& preset : presets()) {
    if (preset.experiment != "hyperparameters") continue;
    SCOPED_TRACE(preset.name);
    ++count;
    const auto run = folder.path / preset.name;
    const auto outcome = gimli({"train",       "hyperparameters",    "--preset", preset.name,
                                "--data-root", folder.path.string(), "--out",    run.string(),
                                "--quiet",     "--training-images",  "80",       "--validation-images",
                                "30",          "--test-images",      "20",       "--inner-steps",
                                "3",           "--iterations",       "2",        "--seeds",
                                "2",           "--threads",          "1"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(read_metrics(run / "metrics.jsonl").size(), 2u);
    const auto report = nlohmann::json::parse(read_file(run / "report.json"));
    EXPECT_GE(report["claims"].size(), 3u);
    EXPECT_TRUE(fs::exists(run / "figures.json"));
  }
  EXPECT_EQ(count, 2 * static_cast<int64_t>(names().size()));
}

TEST_F(HyperparametersTest, Refuses) {
  const auto training = [&](const Arguments& more) {
    return Arguments{"train",       "hyperparameters",
                     "--data-root", folder.path.string(),
                     "--out",       (folder.path / "run").string(),
                     "--quiet",     "--training-images",
                     "80",          "--validation-images",
                     "30"} +
           more;
  };
  expect_refusal(training({"--hyperparameter", "weight-decai"}), "weight-decai");
  expect_refusal(training({"--hyperparameter", "weight-decay"}),
                 "weight_decay: expected above 0, where learning it begins, got 0");
  expect_refusal(training({"--hyperparameter", "l2"}), "weight_decay: expected above 0");
  expect_refusal(training({"--hyperparameter", "data-weights"}), "corrupted: expected above 0");
  expect_refusal(training({"--lr", "0"}), "lr: expected above 0, got 0");
  expect_refusal(training({"--strategy", "implicit"}),
                 "strategy: implicit is for weight-decay, l2 and data-weights with "
                 "batch = 0, got learning-rate with batch = 0");
  expect_refusal(
      training({"--hyperparameter", "weight-decay", "--weight-decay", "0.1", "--strategy", "implicit", "--batch", "5"}),
      "got weight-decay with batch = 5");
  expect_refusal(training({"--training-images", "91"}),
                 "training_images and validation_images: expected at most 120 together, as there are, got 91 and 30");
  expect_refusal(training({"--test-images", "41"}), "test_images: expected at most 40, as there are, got 41");
  expect_refusal(training({"--hyperparameter", "distillation", "--images-per-class", "100"}),
                 "images_per_class: expected at most");
  expect_refusal(training({"--data-root", (folder.path / "nothing").string()}), "load_mnist: expected");
}

}  // namespace
}  // namespace gimli::app
