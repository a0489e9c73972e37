#pragma once
#include <filesystem>
#include <string>
#include <vector>
namespace gimli::app {
struct Figure {
  std::string name;
};
inline void write_figures(const std::filesystem::path&, const std::vector<Figure>&) {}
}  // namespace gimli::app
