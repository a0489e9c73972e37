#pragma once

#include <cstdlib>
#include <filesystem>

namespace gimli::app {

/// A folder that is gone at the end.
class TemporaryFolder final {
 public:
  TemporaryFolder() {
    auto pattern = (std::filesystem::temp_directory_path() / "gimli-app-XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }

  std::filesystem::path path;
};

}  // namespace gimli::app
