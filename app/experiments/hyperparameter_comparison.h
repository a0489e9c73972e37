#pragma once

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "app/experiments/hyperparameter_problem.h"

namespace gimli::app {

/// What one training, or the mean of several, leads to.
enum Measure : size_t { kValidationLoss, kValidationAccuracy, kTestLoss, kTestAccuracy, kMeasures };
using Scores = std::array<double, kMeasures>;

struct Candidate {
  Recipe recipe;
  double value = std::numeric_limits<double>::quiet_NaN();  ///< of the one number that tells it from others of its grid
};

/// A way to train: the candidate of the least validation loss.
struct Contender {
  std::string name;
  std::vector<Candidate> grid;
};

/// One contender in one repetition.
struct Outcome {
  std::vector<Scores> grid;
  size_t best = 0;
};

/// The baseline and then what was learned come last.
using Contenders = std::vector<Contender>;

/// Trainings to compare what was learned with.
Contenders contenders_of(const Repetition& repetition, const Config& config);

/// Trains with each candidate from the repetition's initial weights. Where a training diverges, its scores are NaN.
/// Stops early if it is `interrupted()`.
Outcome outcome_of(const Repetition& repetition, const Contender& contender);

}  // namespace gimli::app
