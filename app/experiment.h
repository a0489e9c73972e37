#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/checkpoint.h"
#include "app/config.h"
#include "app/figure.h"
#include "gimli/task_batch.h"

namespace gimli::app {

/// What an iteration measured.
struct Iteration {
  /// A line of metrics.jsonl by name, besides iteration and seconds. Of these, progress shows outer_loss, accuracy (of
  /// [0, 1]) and tasks_per_second.
  nlohmann::ordered_json metrics;
  /// A line to print, if there is something to say.
  std::string note = {};
};

/// What a training led to.
struct Report {
  std::string markdown;            ///< printed, and report.md
  nlohmann::ordered_json numbers;  ///< report.json
  std::vector<Figure> figures;     ///< figures.json, drawn as <name>.png

  /// Says of two of its numbers whether what is learned is better than a baseline, or the same as it.
  void claim(const std::string& text, double learned, double baseline, bool holds);
};

/// A training that can be stopped between any two iterations. The trainer owns the loop around it, its record, its
/// checkpoints and its progress.
class Experiment {
 public:
  virtual ~Experiment() = default;

  virtual int64_t iterations() const = 0;

  /// All that `iterate` changes: a checkpoint holds it, and a resumed run gets it back.
  virtual TrainingState state() = 0;

  /// Makes one iteration, counted from 0. What it computes is a function of `state` and of `iteration`, not of how
  /// often the run was stopped. Nothing if it was `interrupted()`: it is then made again from the last checkpoint.
  virtual std::optional<Iteration> iterate(int64_t iteration) = 0;

  /// Whether the iteration takes much longer than others: a checkpoint is written before it.
  virtual bool is_long(int64_t /*iteration*/) const { return false; }

  /// Measures what was learned. `metrics` are the lines of metrics.jsonl. Nothing if it was `interrupted()`.
  virtual std::optional<Report> report(const std::vector<nlohmann::json>& metrics) = 0;
};

/// An experiment by the name that `gimli train` knows it by. Its schema ends with `run_settings`.
struct ExperimentEntry {
  std::string name;
  std::string summary;  ///< one line
  Schema schema;
  std::function<std::unique_ptr<Experiment>(const Config&)> make;
};

const std::vector<ExperimentEntry>& experiments();

/// Throws if there is none of that name.
const ExperimentEntry& find_experiment(const std::string& name);

/// The settings of every run, to put at the end of a schema: seed, threads, device, checkpoint_every, out and quiet.
std::vector<Setting> run_settings(int64_t checkpoint_every);

/// Those that the setting `threads` asks for.
Threads make_threads(const Config& config);

}  // namespace gimli::app
