#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace gimli::app {

/// What is shown of a work under way; what is missing is left out.
struct ProgressFields {
  std::optional<double> loss;
  std::optional<double> accuracy;  ///< of [0, 1]
  std::optional<double> tasks_per_second;
};

/// One line for a terminal of `width` columns, shorter than that: the less important parts go first when there is no
/// room.
std::string progress_line(const std::string& title, int64_t done, int64_t total, double elapsed,
                          std::optional<double> left, const ProgressFields& fields, int64_t width);

/// Shows how far a work is, on standard error: a line that is redrawn on a terminal, at most ten times a second;
/// elsewhere a plain line every ten seconds.
class ProgressDisplay final {
 public:
  /// The work is at `start` of `total`.
  ProgressDisplay(std::string title, int64_t start, int64_t total, bool quiet);
  /// Ends the line.
  ~ProgressDisplay();
  ProgressDisplay(const ProgressDisplay&) = delete;
  ProgressDisplay& operator=(const ProgressDisplay&) = delete;

  void update(int64_t done, const ProgressFields& fields = {});

  /// Prints a line of text in the place of the display, which comes back below it.
  void print(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;

  void show();

  std::string title_;
  int64_t start_, total_, done_;
  bool quiet_, terminal_;
  ProgressFields fields_;
  Clock::time_point began_ = Clock::now();
  Clock::time_point shown_{};
  bool line_open_ = false;
  int64_t last_shown_ = -1;
};

}  // namespace gimli::app
