#include "app/table.h"

#include <fmt/format.h>

#include <algorithm>

namespace gimli::app {
namespace {

/// Columns a terminal needs for UTF-8 text.
size_t columns(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

}  // namespace

std::string markdown_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t c = 0; c < widths.size(); ++c) widths[c] = std::max(widths[c], columns(row[c]));
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t c = 0; c < widths.size(); ++c) {
      text += fmt::format("| {}{} ", std::string(widths[c] - columns(rows[r][c]), ' '), rows[r][c]);
    }
    text += "|\n";
    for (size_t c = 0; r == 0 && c < widths.size(); ++c) text += fmt::format("|{}:", std::string(widths[c] + 1, '-'));
    if (r == 0) text += "|\n";
  }
  return text;
}

}  // namespace gimli::app
