#pragma once

#include <filesystem>
#include <optional>

#include "app/checkpoint.h"
#include "app/experiment.h"

namespace gimli::app {

/// Trains from `from`, or from the beginning, up to the setting `iterations`, and leaves in `folder` a line of metrics
/// for each iteration and a checkpoint. Returns false if it was interrupted, with a checkpoint to go on from. Reads the
/// settings iterations, checkpoint_every and quiet too.
bool train(Experiment& experiment, const ExperimentEntry& entry, const Config& config,
           const std::filesystem::path& folder, const std::optional<Checkpoint>& from);

}  // namespace gimli::app
