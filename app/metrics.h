#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

namespace gimli::app {

/// The record of a training: one JSON object a line, one line an iteration, counted from 1.
class MetricsFile final {
 public:
  /// Goes on after `iteration`: later lines are cut off, and so is a last line that was not finished.
  MetricsFile(const std::filesystem::path& path, int64_t iteration);

  void append(const nlohmann::ordered_json& line);

  /// Hands all lines to the operating system.
  void flush();

 private:
  std::filesystem::path path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

/// All finished lines of such a file. Throws, naming file and line, if one is not a JSON object with the
/// number iteration.
std::vector<nlohmann::json> read_metrics(const std::filesystem::path& path);

}  // namespace gimli::app
