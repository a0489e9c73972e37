#pragma once

#include <filesystem>
#include <optional>

#include "app/checkpoint.h"
#include "app/experiment.h"

namespace gimli::app {

/// Trains with the outer Adam from `from`, or from the beginning, and leaves in `folder` a line of metrics for each
/// iteration and a checkpoint. Reads the settings iterations, tasks, outer_lr, checkpoint_every, eval_every,
/// eval_tasks, eval_steps and quiet.
///
/// Iteration i trains on the tasks i B to i B + B - 1 of the data set, so what it computes depends on the checkpoint it
/// starts from and on nothing else: neither on how often the run was stopped, nor on the number of threads of a Threads
/// batch. Returns false if it was interrupted, with a checkpoint of the last finished iteration.
bool train(Experiment& experiment, const ExperimentEntry& entry, const Config& config, const TaskBatch& batch,
           const std::filesystem::path& folder, const std::optional<Checkpoint>& from);

}  // namespace gimli::app
