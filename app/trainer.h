#pragma once

#include <filesystem>
#include <optional>

#include "app/checkpoint.h"
#include "app/experiment.h"

namespace gimli::app {

/// Makes the experiment's iterations from `from`, or from the beginning, and leaves in `folder` a line of metrics for
/// each and a checkpoint. Returns false if it was interrupted, with a checkpoint to go on from. Reads the settings
/// checkpoint_every and quiet.
bool train(Experiment& experiment, const ExperimentEntry& entry, const Config& config,
           const std::filesystem::path& folder, const std::optional<Checkpoint>& from);

}  // namespace gimli::app
