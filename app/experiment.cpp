#include "app/experiment.h"

#include "app/experiments/maml.h"

namespace gimli::app {

const std::vector<ExperimentEntry>& experiments() {
  static const std::vector<ExperimentEntry> entries{maml()};
  return entries;
}

const ExperimentEntry& find_experiment(const std::string& name) {
  for (const auto& entry : experiments()) {
    if (entry.name == name) return entry;
  }
  TORCH_CHECK(false, "this gimli has no experiment '", name, "'");
}

}  // namespace gimli::app
