#include "app/experiments/hyperparameters.h"

#include <fmt/format.h>
#include <torch/optim/adam.h>

#include <algorithm>

#include "app/estimate.h"
#include "app/experiments/hyperparameter_problem.h"
#include "app/experiments/hyperparameter_report.h"
#include "app/interrupt.h"
#include "gimli/hypergradient.h"
#include "gimli/hypergradient/implicit.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/tensor_list.h"

namespace gimli::app {
namespace {

std::vector<std::string> kind_names() {
  std::vector<std::string> names;
  for (const auto& kind : hyperparameter_kinds()) names.push_back(kind.name);
  return names;
}

// clang-format off
Schema make_schema() {
  Schema schema{{"fashion-mnist"}, {
      // key, group, help, default
      {"dataset", "Data", "Photographs of ten kinds of clothes",           {text("fashion-mnist")}, true, 0, {"fashion-mnist"}},
      {"data_root", "Data", "Folder with the four files of Fashion-MNIST, or with a folder fashion-mnist that has them",
                                                                           {text(data::kFashionMnistRoot)}, false},
      {"training_images", "Data", "Images of the inner loop; of distillation, those that real images are drawn from",
                                                                           {integer(1000)}, true, 1},
      {"validation_images", "Data", "Other ones, of the outer loss",       {integer(1000)}, true, 1},
      {"test_images", "Data", "Images that nothing is chosen by; 0: all",  {integer(0)}, true, 0},
      {"corrupted", "Data", "Share of the training images whose label is replaced by a wrong one",
                                                                           {0.0}, true, 0, {}, 1},
      {"hyperparameter", "Hyperparameter", "What is learned. learning-rate; step-rates: a rate for each step; "
                                           "weight-decay: an L2 penalty's factor; l2: a penalty for each parameter; "
                                           "data-weights: a weight for each training image; distillation: the images",
                                                                           {text("learning-rate")}, true, 0, kind_names()},
      {"images_per_class", "Hyperparameter", "Of distillation",            {integer(1)}, true, 1},
      {"lr", "Inner loop", "Learning rate; where it begins if it is learned",
                                                                           {0.05}, true, 0},
      {"momentum", "Inner loop", "Of SGD",                                 {0.9}, true, 0, {}, 1},
      {"weight_decay", "Inner loop", "An L2 penalty's factor; where it begins if it is learned",
                                                                           {0.0}, true, 0},
      {"batch", "Inner loop", "Images in a batch; 0: all",                 {integer(0)}, true, 0},
      {"inner_steps", "Inner loop", "Steps",                               {integer(100)}, true, 1},
      {"hidden", "Inner loop", "Width of the network's hidden layer; 0: none (logistic regression)",
                                                                           {integer(0)}, true, 0},
      {"strategy", "Outer loop", "replay: one inner step recorded at a time; unroll: all of them; implicit: at the "
                                 "minimum of the inner loss, by conjugate gradients",
                                                                           {text("replay")}, true, 0,
                                                                           {"replay", "unroll", "implicit"}},
      {"iterations", "Outer loop", "Steps of the outer Adam",              {integer(100)}, false, 0},
      {"outer_lr", "Outer loop", "Its learning rate",                      {0.1}, true, 0},
      {"seeds", "Outer loop", "Repetitions, with other images and initial weights",
                                                                           {integer(3)}, true, 1},
  }};
  for (auto& setting : run_settings(10)) schema.settings.push_back(std::move(setting));
  return schema;
}
// clang-format on

void check(const Config& config) {
  const auto& name = config.text("hyperparameter");
  TORCH_CHECK(config.number("lr") > 0, "lr: expected above 0, got 0");
  if (name == "weight-decay" || name == "l2") {
    TORCH_CHECK(config.number("weight_decay") > 0, "weight_decay: expected above 0, where learning it begins, got 0");
  }
  if (name == "data-weights") {
    TORCH_CHECK(config.number("corrupted") > 0, "corrupted: expected above 0 for data-weights to find, got 0");
  }
  if (config.text("strategy") == "implicit") {
    TORCH_CHECK(has_implicit(config),
                "strategy: implicit is for weight-decay, l2 and data-weights with batch = 0, got ", name,
                " with batch = ", config.integer("batch"));
  }
}

std::unique_ptr<const Strategy> make_strategy(const std::string& name) {
  if (name == "unroll") return std::make_unique<const Unroll>();
  if (name == "implicit") return std::make_unique<const Implicit>();
  return std::make_unique<const Replay>();
}

class Hyperparameters final : public Experiment {
 public:
  explicit Hyperparameters(const Config& config)
      : config_(config), batch_(make_threads(config)), strategy_(make_strategy(config.text("strategy"))) {
    check(config);
    data_ = data::load_fashion_mnist(config.text("data_root"));
    for (int64_t index = 0; index < config.integer("seeds"); ++index) {
      repetitions_.push_back(make_repetition(config, data_, index));
      const auto& learned = repetitions_.back().learned;
      for (size_t i = 0; i < learned.size(); ++i) {
        learned_.names.push_back(fmt::format("{}.{}", index + 1, learned.names[i]));
        learned_.tensors.push_back(learned.tensors[i]);
      }
    }
    outer_ =
        std::make_unique<torch::optim::Adam>(learned_.tensors, torch::optim::AdamOptions(config.number("outer_lr")));
  }

  int64_t iterations() const override { return config_.integer("iterations"); }

  TrainingState state() override { return {learned_, {outer_.get()}}; }

  /// One outer step of every repetition.
  std::optional<Iteration> iterate(int64_t iteration) override {
    const auto count = static_cast<int64_t>(repetitions_.size());
    std::vector<Result> results(count);
    batch_.run(count, [&](int64_t i) {
      if (interrupted()) return;
      const auto& repetition = repetitions_[i];
      results[i] = hypergradient(repetition.problem(repetition.recipe), repetition.learned.tensors, {}, *strategy_);
    });
    if (interrupted()) return std::nullopt;

    Iteration done;
    std::vector<double> losses, accuracies, values;
    double stationarity = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto& learned = repetitions_[i].learned.tensors;
      losses.push_back(results[i].outer_loss.item<double>());
      accuracies.push_back(results[i].auxiliary[0].item<double>());
      stationarity = std::max(stationarity, results[i].cost.stationarity);
      if (learned.size() == 1 && learned[0].dim() == 0) values.push_back(learned[0].exp().item<double>());
      assign_gradients(learned, results[i].gradients);
    }
    outer_->step();
    done.metrics["outer_loss"] = estimate(losses).mean;
    done.metrics["accuracy"] = estimate(accuracies).mean;
    done.metrics["outer_losses"] = losses;
    if (!values.empty()) done.metrics["values"] = values;
    if (config_.text("strategy") == "implicit") done.metrics["stationarity"] = stationarity;
    if ((iteration + 1) % std::max<int64_t>(1, iterations() / 10) == 0) {
      done.note = fmt::format("iteration {}: validation loss {:.4f}, accuracy {:.2f} %", iteration + 1,
                              estimate(losses).mean, 100 * estimate(accuracies).mean);
    }
    return done;
  }

  std::optional<Report> report(const std::vector<nlohmann::json>& metrics) override {
    auto report = report_comparison(config_, repetitions_, metrics, batch_);
    if (report) report_strategies(config_, make_repetition(config_, data_, 0), *report);
    return report;
  }

 private:
  Config config_;
  Threads batch_;
  std::unique_ptr<const Strategy> strategy_;
  data::MnistData data_;
  std::vector<Repetition> repetitions_;
  NamedTensors learned_;  // of all repetitions
  std::unique_ptr<torch::optim::Adam> outer_;
};

}  // namespace

ExperimentEntry hyperparameters() {
  return {"hyperparameters",
          "Rates, penalties, weights of examples or images, learned by the gradient of a validation loss",
          make_schema(), [](const Config& config) { return std::make_unique<Hyperparameters>(config); }};
}

}  // namespace gimli::app
