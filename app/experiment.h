#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "app/config.h"
#include "app/dataset.h"
#include "gimli/hypergradient.h"

namespace gimli::app {

/// A method to meta-learn with. The trainer owns the loop around it.
class Experiment {
 public:
  virtual ~Experiment() = default;

  virtual const Dataset& dataset() const = 0;

  /// What is learned and saved, with the names under which it is saved.
  virtual NamedTensors meta_parameters() const = 0;

  /// The adaptation to one data::Task; the auxiliary of its outer value is the accuracy, or undefined.
  virtual const Bilevel& problem() const = 0;

  /// The mean outer loss of `tasks` and its gradient in the meta-parameters.
  virtual Result differentiate(const std::vector<data::Task>& tasks, const TaskBatch& batch) const = 0;
};

/// An experiment by the name that `gimli train` knows it by.
struct ExperimentEntry {
  std::string name;
  std::string summary;
  Schema schema;
  std::function<std::unique_ptr<Experiment>(const Config&)> make;
};

const std::vector<ExperimentEntry>& experiments();

/// Throws if there is none of that name.
const ExperimentEntry& find_experiment(const std::string& name);

}  // namespace gimli::app
