#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "app/figure.h"

namespace gimli::app {

/// How training went, from the lines of metrics.jsonl: a panel for each measure, six at most, the outer loss and the
/// accuracy first. A measure is a key with numbers, except iteration, seconds and *_per_second; evaluation_X is drawn
/// over X, or over outer_X, if there is one. Values of every iteration are drawn with their moving average, those of
/// fewer than half of the lines as points. Accuracies are in percent. No panels if there are no measures.
Figure training_figure(const std::vector<nlohmann::json>& lines);

/// Draws `training.png` from metrics.jsonl in a run's folder, and each figure of figures.json as its name says; what
/// has no file is left out. Returns what was drawn. Throws, naming the file, if one is damaged or none is there, or if
/// gnuplot fails.
std::vector<std::filesystem::path> plot_run(const std::filesystem::path& folder);

}  // namespace gimli::app
