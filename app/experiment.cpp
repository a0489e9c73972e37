#include "app/experiment.h"

#include <fmt/format.h>

#include <thread>

#include "app/experiments/hyperparameters.h"
#include "app/experiments/learned_loss.h"
#include "app/experiments/learned_optimizer.h"
#include "app/experiments/learning_rates.h"
#include "app/experiments/maml.h"
#include "app/experiments/maml_plus_plus.h"

namespace gimli::app {

const std::vector<ExperimentEntry>& experiments() {
  static const std::vector<ExperimentEntry> entries{
      maml(), maml_plus_plus(), learning_rates(), learned_optimizer(), learned_loss(), hyperparameters()};
  return entries;
}

const ExperimentEntry& find_experiment(const std::string& name) {
  for (const auto& entry : experiments()) {
    if (entry.name == name) return entry;
  }
  TORCH_CHECK(false, "this gimli has no experiment '", name, "'");
}

void Report::claim(const std::string& text, double learned, double baseline, bool holds) {
  numbers["claims"].push_back({{"claim", text}, {"learned", learned}, {"baseline", baseline}, {"holds", holds}});
  markdown += fmt::format("- {}: {}\n", text, holds ? "yes" : "no");
}

std::vector<Setting> run_settings(int64_t checkpoint_every) {
  return {
      {"seed", "Run", "Of the initial weights and of all that is drawn in training", {int64_t{0}}, true, 0},
      {"threads",
       "Run",
       "Threads over tasks, which do not change the numbers; 0: one a core",
       {int64_t{0}},
       false,
       0,
       {},
       1024},
      {"device", "Run", "cpu, cuda or cuda:N", {std::string("cpu")}},
      {"checkpoint_every", "Run", "Iterations between two checkpoints", {checkpoint_every}, false, 1},
      {"out", "Run", "Folder of the run's files; by default one in runs", {std::string()}, false},
      {"quiet", "Run", "No progress, only results", {false}, false},
  };
}

Threads make_threads(const Config& config) {
  const auto count = config.integer("threads");
  return Threads(count > 0 ? count : std::max<int64_t>(1, std::thread::hardware_concurrency()));
}

}  // namespace gimli::app
