#include "app/ablation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "app/experiment.h"
#include "app/file.h"
#include "app/interrupt.h"
#include "app/published.h"
#include "app/run.h"
#include "app/table.h"

namespace gimli::app {
namespace {

namespace fs = std::filesystem;
using Integers = std::vector<int64_t>;
using Texts = std::vector<std::string>;

const ExperimentEntry& experiment() { return find_experiment("maml++"); }

Schema make_schema() {
  auto schema = experiment().schema;
  const auto rate = std::find_if(schema.settings.begin(), schema.settings.end(),
                                 [](const auto& setting) { return setting.key == "inner_lr"; });
  auto adam_rate = *rate;
  adam_rate.key = "adam_lr";
  adam_rate.help = "Likewise, of an inner Adam";
  adam_rate.defaults = {0.01};
  schema.settings.insert(rate + 1, adam_rate);
  for (auto& setting : schema.settings) {
    const auto become = [&](const char* key, const char* help, std::vector<Value> defaults) {
      setting.key = key;
      setting.help = help;
      setting.defaults = std::move(defaults);
    };
    if (setting.key == "model") {
      become("models", "The networks", {Texts{"vgg", "resnet-4", "resnet-8", "resnet-12", "densenet-8"}});
    } else if (setting.key == "inner_optimizer") {
      become("inner_optimizers", "Optimizers of the adaptation", {Texts{"sgd", "adam"}});
    } else if (setting.key == "ways") {
      become("ways", "Classes in a task", {Integers{5, 20}, Integers{5}});
    } else if (setting.key == "shots") {
      become("shots", "Support examples of a task, for each class", {Integers{1, 5}});
    } else if (setting.key == "seed") {
      become("seeds", "Of the initial weights and of all that is drawn in training", {Integers{0, 1, 2}});
    }
  }
  return schema;
}

/// A row of the table: its runs differ in their seed.
struct Row {
  int64_t ways, shots;
  std::string model, optimizer;
};

std::vector<Row> rows_of(const Config& config) {
  std::vector<Row> rows;
  for (const auto ways : config.integers("ways")) {
    for (const auto shots : config.integers("shots")) {
      for (const auto& model : config.texts("models")) {
        for (const auto& optimizer : config.texts("inner_optimizers")) rows.push_back({ways, shots, model, optimizer});
      }
    }
  }
  return rows;
}

fs::path folder_of(const fs::path& folder, const Row& row, int64_t seed) {
  return folder / fmt::format("{}-way-{}-shot", row.ways, row.shots) /
         fmt::format("{}-{}-seed-{}", row.model, row.optimizer, seed);
}

Config config_of(const Config& config, const Row& row, int64_t seed, const fs::path& folder) {
  auto values = config.values();
  if (row.optimizer == "adam") values["inner_lr"] = values["adam_lr"];
  for (const auto* key : {"models", "inner_optimizers", "seeds", "adam_lr"}) values.erase(key);
  values["ways"] = row.ways;
  values["shots"] = row.shots;
  values["model"] = row.model;
  values["inner_optimizer"] = row.optimizer;
  values["seed"] = seed;
  values["out"] = folder.string();
  return Config(experiment().schema, values);
}

/// Trains a run up to its report, if it has none. False if interrupted.
bool complete(const Config& config, const fs::path& folder) {
  const FolderLock lock(folder);
  std::optional<Checkpoint> checkpoint;
  if (const auto file = folder / "checkpoint.pt"; fs::exists(file)) {
    checkpoint = load_checkpoint(file);
    const auto saved = parse_config(experiment().schema, checkpoint->state.configuration, file.string());
    check_same_results(experiment().schema, saved, config.values(), file.string());
  }
  return fs::exists(folder / "report.json") || run_training(experiment(), config, folder, checkpoint);
}

/// The accuracy of a run that is done, in percent.
std::optional<double> accuracy_in(const fs::path& folder) {
  const auto file = folder / "report.json";
  if (!fs::exists(file)) return std::nullopt;
  const auto report = nlohmann::json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  TORCH_CHECK(report.is_object() && report.contains("accuracy"), file.string(), " is not a report of MAML++");
  return 100 * report["accuracy"].back()["mean"].get<double>();
}

/// The mean and, of several, the sample's standard deviation.
std::string mean_and_deviation(const std::vector<double>& sample) {
  double mean = 0, squares = 0;
  for (const double x : sample) mean += x / static_cast<double>(sample.size());
  for (const double x : sample) squares += (x - mean) * (x - mean);
  if (sample.size() < 2) return fmt::format("{:.2f}", mean);
  return fmt::format("{:.2f} ± {:.2f}", mean, std::sqrt(squares / static_cast<double>(sample.size() - 1)));
}

void write_table(const Config& config, const fs::path& folder) {
  const auto& dataset = config.text("dataset");
  std::vector<std::vector<std::string>> table{
      {"ways", "shots", "network", "inner optimizer", "seeds", "accuracy (%)", "published (%)"}};
  auto numbers = nlohmann::ordered_json::array();
  for (const auto& row : rows_of(config)) {
    std::vector<double> sample;
    for (const auto seed : config.integers("seeds")) {
      if (const auto accuracy = accuracy_in(folder_of(folder, row, seed))) sample.push_back(*accuracy);
    }
    const auto published = find_published(dataset, row.ways, row.shots, row.model, row.optimizer);
    table.push_back({std::to_string(row.ways), std::to_string(row.shots), row.model, row.optimizer,
                     std::to_string(sample.size()), sample.empty() ? "" : mean_and_deviation(sample),
                     published ? fmt::format("{:.2f} ± {:.2f}", published->accuracy, published->deviation) : ""});
    numbers.push_back({{"ways", row.ways},
                       {"shots", row.shots},
                       {"model", row.model},
                       {"inner_optimizer", row.optimizer},
                       {"accuracies", sample}});
    if (published) numbers.back()["published"] = published->accuracy;
  }
  const auto text =
      markdown_table(table) +
      fmt::format(
          "\nMAML++ on {}: mean and standard deviation over the seeds that are done, of {} test "
          "tasks each, after {} epochs of {} iterations.\n",
          dataset, config.integer("eval_tasks"), config.integer("epochs"), config.integer("epoch_iterations"));
  fmt::print("\n{}\n", text);
  std::fflush(stdout);
  write_file(folder / "ablation.md", text);
  write_file(folder / "ablation.json", numbers.dump(2) + "\n");
}

}  // namespace

const Schema& ablation_schema() {
  static const auto schema = make_schema();
  return schema;
}

bool ablate(const Config& config, const fs::path& folder) {
  for (const auto seed : config.integers("seeds")) {
    for (const auto& row : rows_of(config)) {
      const auto run = folder_of(folder, row, seed);
      if (!complete(config_of(config, row, seed, run), run)) return false;
      write_table(config, folder);
      if (interrupted()) return false;
    }
  }
  return true;
}

}  // namespace gimli::app
