#pragma once

#include <filesystem>

#include "app/config.h"

namespace gimli::app {

inline constexpr const char* kAblationSummary =
    "Tables 1 and 2 of the paper: MAML++ over networks, inner optimizers, ways, shots and seeds";

/// The settings of MAML++, with lists in the place of model, inner_optimizer, ways, shots and seed.
const Schema& ablation_schema();

/// Trains MAML++ for each combination, in a folder of its own in `folder`, and after each prints the table of those
/// that are done beside the paper's figures, and writes it to ablation.md and ablation.json. What is done is not done
/// again, and what was stopped goes on. Returns false if it was interrupted. Throws if a folder holds a run of other
/// settings.
bool ablate(const Config& config, const std::filesystem::path& folder);

}  // namespace gimli::app
