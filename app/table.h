#pragma once

#include <string>
#include <vector>

namespace gimli::app {

/// Cells, row by row, as an aligned table of Markdown. The first row is its head; all are of the same length.
std::string markdown_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace gimli::app
