#pragma once

#include <filesystem>

#include "app/figure.h"

namespace gimli::app {

/// Whether gnuplot, which draws, is in the PATH.
bool can_plot();

/// Draws a figure to a file, replaced as a whole. All texts are taken literally. Throws, naming the file, if gnuplot
/// fails.
void draw(const Figure& figure, const std::filesystem::path& png);

}  // namespace gimli::app
