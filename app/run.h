#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "app/checkpoint.h"
#include "app/experiment.h"

namespace gimli::app {

/// Whether there is a run in the folder.
bool holds_run(const std::filesystem::path& folder);

/// Trains in `folder` from `from`, or anew in the place of what is there, up to its report and its pictures. Returns
/// false if it was interrupted, with a checkpoint to go on from.
bool run_training(const ExperimentEntry& entry, const Config& config, const std::filesystem::path& folder,
                  const std::optional<Checkpoint>& from);

/// Prints the report of what was learned in the first `iteration` lines of `metrics`, a file that need not be there,
/// and if there is a folder, writes and draws it there. False if interrupted.
bool report_run(Experiment& experiment, const std::filesystem::path& metrics, int64_t iteration,
                const std::optional<std::filesystem::path>& folder);

/// A path as a shell reads it.
std::string quoted(const std::filesystem::path& path);

}  // namespace gimli::app
