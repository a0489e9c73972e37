#include "app/experiments/learning_rates.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <map>
#include <numeric>
#include <set>

#include "app/file.h"
#include "app/metrics.h"
#include "app/preset.h"
#include "app_fixture.h"
#include "cifar10_files.h"
#include "gimli/gradcheck.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/optim/learned_hyperparameters.h"

namespace gimli::app {
namespace {

// The split

TEST(LearningRatesSplitTest, Is99To1) {
  const std::pair<int64_t, int64_t> rows[] = {{50000, 500}, {10000, 100}, {4000, 40}, {150, 2}, {149, 1}, {3, 1}};
  for (const auto& [images, validation] : rows) {
    SCOPED_TRACE(images);
    EXPECT_EQ(validation_size(images), validation);
    const auto parts = split(7, images);
    EXPECT_EQ(parts.training.size(), static_cast<size_t>(images - validation));
    EXPECT_EQ(parts.validation.size(), static_cast<size_t>(validation));
    std::set<int64_t> all(parts.training.begin(), parts.training.end());
    all.insert(parts.validation.begin(), parts.validation.end());
    EXPECT_EQ(all.size(), static_cast<size_t>(images)) << "an image is in both parts";
    EXPECT_EQ(*all.begin(), 0);
    EXPECT_EQ(*all.rbegin(), images - 1);
  }
  EXPECT_NE(split(7, 1000).validation, split(8, 1000).validation);
}

// The meta-update

class MetaProblemTest : public testing::Test {
 protected:
  static constexpr int64_t kSteps = 3;
  using Rates = std::vector<double>;

  MetaProblemTest() {
    torch::manual_seed(1);
    network = make_network();
    sgd = make_sgd(network, Rates(network->parameters().size(), 0.1));
    const auto example = [] {
      return torch::data::Example<>{torch::randn({4, 3, 8, 8}, torch::kDouble), torch::randint(3, {4}, torch::kLong)};
    };
    for (int64_t k = 0; k < kSteps; ++k) batches.training.push_back(example());
    for (int64_t k = 0; k < 2; ++k) batches.validation.push_back(example());
    train(network, *sgd, example());  // momentum buffers to start from
  }

  static nn::DenseNet make_network() {
    nn::DenseNet result(nn::DenseNetOptions(3).layers({1, 1}).growth(2).bottleneck(2).initial_channels(3));
    result->to(torch::kDouble);
    return result;
  }

  static std::unique_ptr<torch::optim::SGD> make_sgd(const nn::DenseNet& network, const Rates& rates) {
    std::vector<torch::optim::OptimizerParamGroup> groups;
    const auto parameters = network->parameters();
    for (size_t i = 0; i < parameters.size(); ++i) {
      groups.emplace_back(TensorList{parameters[i]},
                          std::make_unique<torch::optim::SGDOptions>(
                              torch::optim::SGDOptions(rates[i]).momentum(0.9).nesterov(true).weight_decay(1e-2)));
    }
    return std::make_unique<torch::optim::SGD>(std::move(groups), torch::optim::SGDOptions(0.1));
  }

  static at::Tensor loss(nn::DenseNet network, const torch::data::Example<>& examples) {
    return torch::nn::functional::cross_entropy(network->forward(examples.data), examples.target);
  }

  static void train(const nn::DenseNet& network, torch::optim::SGD& sgd, const torch::data::Example<>& examples) {
    sgd.zero_grad();
    loss(network, examples).backward();
    sgd.step();
  }

  nn::DenseNet network{nullptr};
  std::unique_ptr<torch::optim::SGD> sgd;
  MetaBatches batches;
};

TEST_F(MetaProblemTest, IsTrainingByTorchFromTheWeightsAndMomentumOfNow) {
  Rates rates(network->parameters().size());
  for (size_t i = 0; i < rates.size(); ++i) rates[i] = 0.02 * static_cast<double>(i + 1);
  const auto other = make_sgd(network, rates);  // as it began, without momentum
  const auto before = clones(network->parameters());
  const auto result = evaluate(meta_problem(network, *other, *sgd, kSteps), std::vector<MetaBatches>{batches});
  expect_equal(network->parameters(), before);

  // The same by hand: the network itself trains on, with the rates in its own optimizer.
  for (size_t i = 0; i < rates.size(); ++i) sgd->param_groups()[i].options().set_lr(rates[i]);
  for (const auto& examples : batches.training) train(network, *sgd, examples);
  const auto expected = (loss(network, batches.validation[0]) + loss(network, batches.validation[1])) / 2;
  EXPECT_NEAR(result.outer_loss.item<double>(), expected.item<double>(), 1e-12);
}

TEST_F(MetaProblemTest, HasTheGradientOfCentralDifferences) {
  optim::Optimizer inner(*sgd);
  const auto rates = optim::learn(inner, {"lr"}, optim::LearnOptions().domain(optim::Domain::real));
  ASSERT_EQ(rates.tensors().size(), network->parameters().size());
  const auto problem = meta_problem(network, inner, *sgd, kSteps).seed(1);
  for (const auto* strategy : std::initializer_list<const Strategy*>{new Replay(), new Unroll()}) {
    const std::unique_ptr<const Strategy> owner(strategy);
    const auto report = gradcheck(problem, rates.tensors(), std::vector<MetaBatches>{batches}, *strategy);
    EXPECT_TRUE(report.passed) << strategy->name() << ": " << report.message;
    const auto result = hypergradient(problem, rates.tensors(), std::vector<MetaBatches>{batches}, *strategy);
    for (size_t i = 0; i < rates.tensors().size(); ++i) {
      EXPECT_NE(result.gradients[i].item<double>(), 0) << rates.names()[i];
    }
  }
}

// The experiment

class LearningRatesTest : public testing::Test {
 protected:
  LearningRatesTest() { write_cifar10(folder.path, 40, 20); }

  Arguments training(const fs::path& out, const Arguments& more = {}) const {
    return Arguments{"train",
                     "learning-rates",
                     "--layers",
                     "1,1",
                     "--growth",
                     "2",
                     "--seeds",
                     "2",
                     "--epochs",
                     "4",
                     "--epoch-iterations",
                     "2",
                     "--batch",
                     "16",
                     "--inner-steps",
                     "3",
                     "--meta-batch",
                     "4",
                     "--meta-batches",
                     "2",
                     "--checkpoint-every",
                     "1",
                     "--quiet",
                     "--data-root",
                     folder.path.string(),
                     "--out",
                     out.string()} +
           more;
  }

  Config config(const Values& values) const {
    Values all{{"data_root", folder.path.string()},
               {"layers", std::vector<int64_t>{1, 1}},
               {"growth", int64_t{2}},
               {"seeds", int64_t{2}},
               {"epochs", int64_t{2}},
               {"epoch_iterations", int64_t{2}},
               {"batch", int64_t{16}},
               {"inner_steps", int64_t{2}},
               {"meta_batch", int64_t{4}},
               {"meta_batches", int64_t{2}},
               {"quiet", true}};
    return Config(learning_rates().schema, merge(all, values));
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
};

TEST_F(LearningRatesTest, EveryMethodTrainsWithItsRates) {
  const auto run = folder.path / "run";
  const auto outcome = gimli(training(run));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto lines = read_metrics(run / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 2u * 3 * 4 * 2);
  std::map<std::string, std::vector<nlohmann::json>> epochs;
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].contains("test_accuracy"), i % 2 == 1);
    if (i % 2 == 1) epochs[lines[i]["method"].get<std::string>()].push_back(lines[i]);
  }
  ASSERT_EQ(epochs.size(), 3u);
  for (const auto& [method, rows] : epochs) {
    ASSERT_EQ(rows.size(), 8u) << method;
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(rows[i]["seed"], i / 4 + 1);
      EXPECT_EQ(rows[i]["epoch"], i % 4 + 1);
      EXPECT_EQ(rows[i].contains("rates"), method == "learned");
    }
  }
  for (size_t i = 0; i < 8; ++i) {
    const double expected[] = {0.1, 0.1, 0.01, 0.001};  // after 1/2 and 3/4 of 4 epochs
    EXPECT_NEAR(epochs["multi-step"][i]["rate"].get<double>(), expected[i % 4], 1e-15);
    EXPECT_EQ(epochs["fixed"][i]["rate"], 0.1);
    for (const auto& rate : epochs["learned"][i]["rates"]) {
      // Adam moves each rate by no more than about its own rate.
      EXPECT_NEAR(rate.get<double>(), 0.1, 1.1e-3 * static_cast<double>(i % 4 + 1));
      EXPECT_TRUE(i % 4 > 0 || rate.get<double>() != 0.1);
    }
    // Up to its first step down, the schedule is the fixed rate, from the same weights.
    const auto &stepped = epochs["multi-step"][i], &fixed = epochs["fixed"][i];
    EXPECT_EQ(stepped["training_loss"] == fixed["training_loss"], i % 4 < 2) << i;
    EXPECT_TRUE(i % 4 >= 2 || stepped["test_accuracy"] == fixed["test_accuracy"]) << i;
  }
  EXPECT_NE(epochs["fixed"][0]["training_loss"], epochs["fixed"][4]["training_loss"]) << "both seeds are the same";

  const auto report = nlohmann::json::parse(read_file(run / "report.json"));
  EXPECT_EQ(report["training_files"], 1);
  EXPECT_EQ(report["training_images"], 40);
  EXPECT_EQ(report["validation_images"], 1);
  ASSERT_EQ(report["claims"].size(), 5u);
  EXPECT_EQ(report["claims"][0]["holds"], report["claims"][0]["learned"] > report["claims"][0]["baseline"]);
  for (const auto& [method, rows] : epochs) {
    EXPECT_NEAR(report["methods"][method]["final_accuracy"]["mean"].get<double>(),
                (rows[3]["test_accuracy"].get<double>() + rows[7]["test_accuracy"].get<double>()) / 2, 1e-12);
  }

  const auto figure = read_figures(run / "figures.json")[0];
  ASSERT_EQ(figure.panels.size(), 2u);
  for (const auto& panel : figure.panels) {
    ASSERT_EQ(panel.series.size(), 3u) << panel.y_label;
    for (const auto& series : panel.series) EXPECT_EQ(series.y.size(), 4u) << panel.y_label;
  }
  const auto& learned = epochs["learned"];
  EXPECT_NEAR(figure.panels[0].series[0].y[3],
              50 * (learned[3]["test_accuracy"].get<double>() + learned[7]["test_accuracy"].get<double>()), 1e-9);
}

TEST_F(LearningRatesTest, GoesOnToTheBit) {
  for (const int64_t stop : {3, 9, 13}) {  // within an epoch of: learned rates; multi-step; learned rates again
    SCOPED_TRACE(stop);
    expect_resumes_to_the_bit(learning_rates(), config({}), stop);
  }
  expect_resumes_to_the_bit(learning_rates(),
                            config({{"strategy", std::string("unroll")},
                                    {"methods", std::vector<std::string>{"learned"}},
                                    {"seeds", int64_t{1}}}),
                            2);
}

TEST_F(LearningRatesTest, HasThePapers299Rates) {
  const auto& preset = find_preset("learning-rates", "cifar-10");
  auto values = parse_config(learning_rates().schema, preset.toml, preset.name);
  values = merge(values, {{"data_root", folder.path.string()},
                          {"training_images", int64_t{6}},
                          {"test_images", int64_t{2}},
                          {"epoch_iterations", int64_t{1}},
                          {"inner_steps", int64_t{1}},
                          {"meta_batch", int64_t{2}},
                          {"meta_batches", int64_t{1}}});
  auto experiment = learning_rates().make(Config(learning_rates().schema, values));
  EXPECT_EQ(experiment->iterations(), 3 * 3 * 300);
  int64_t rates = 0, tensors = 0, parameters = 0;
  const auto state = experiment->state().tensors;
  for (size_t i = 0; i < state.size(); ++i) {
    if (state.names[i].starts_with("lr.")) {
      EXPECT_EQ(state.tensors[i].item<double>(), 0.1);
      ++rates;
    } else if (state.tensors[i].requires_grad()) {
      ++tensors;
      parameters += state.tensors[i].numel();
    }
  }
  EXPECT_EQ(rates, 299);
  EXPECT_EQ(tensors, 299);
  EXPECT_EQ(parameters, 769162);
  EXPECT_EQ(experiment->iterate(0)->metrics["rates"].size(), 299u);
}

TEST_F(LearningRatesTest, Refuses) {
  const auto run = folder.path / "run";
  expect_refusal(training(run, {"--methods", "learned,fixd"}), "fixd");
  expect_refusal(training(run, {"--methods", "fixed,fixed"}), "methods: expected each one once");
  expect_refusal(training(run, {"--training-images", "41"}),
                 "training_images: expected at most 40, as there are, got 41");
  expect_refusal(training(run, {"--epoch-iterations", "4"}),
                 "epoch_iterations: expected at most 3, the batches of an epoch, got 4");
  expect_refusal(training(run, {"--data-root", (folder.path / "nothing").string()}), "load_cifar10: expected");
}

}  // namespace
}  // namespace gimli::app
