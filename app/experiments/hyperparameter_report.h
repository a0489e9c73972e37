#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "app/experiment.h"
#include "app/experiments/hyperparameter_problem.h"

namespace gimli::app {

/// Whether what the configuration learns has an implicit hypergradient: it moves the minimum of an inner loss that is
/// the same in every step.
bool has_implicit(const Config& config);

/// Which of a repetition's images are found to be corrupted, those whose learned weight is below 1/2, against the
/// truth.
struct Found {
  double precision;  ///< the part of those found that are corrupted; NaN if none is found
  double recall;     ///< the part of those corrupted that are found
};

Found found_corrupted(const at::Tensor& weight_logits, const at::Tensor& is_corrupted);

/// How near one gradient is to another, each seen as one vector.
struct Agreement {
  double cosine;
  double relative_difference;  ///< |a - b| / |b|
};

Agreement agreement(const TensorList& a, const TensorList& b);

/// Trains with what was learned and with the baselines, and says how they compare on validation and on test images.
/// What a baseline chooses from a grid, it chooses by the validation loss, in each repetition. Nothing if it was
/// `interrupted()`.
std::optional<Report> report_comparison(const Config& config, const std::vector<Repetition>& repetitions,
                                        const std::vector<nlohmann::json>& metrics, const TaskBatch& batch);

/// Adds how near the strategies' hypergradients are to one another where learning begins.
void report_strategies(const Config& config, const Repetition& start, Report& report);

}  // namespace gimli::app
