#pragma once

#include <filesystem>
#include <vector>

namespace gimli::app {

/// Whether gnuplot, which draws, is in the PATH.
bool can_plot();

/// Draws `training.png` and `adaptation.png` from the files of a run's folder: metrics.jsonl, evaluation.json and, of
/// sine waves, adaptation.json; what has no file is left out. Returns what was drawn. Throws, naming the file, if one
/// is damaged or none is there, or if gnuplot fails.
std::vector<std::filesystem::path> plot_run(const std::filesystem::path& folder);

}  // namespace gimli::app
