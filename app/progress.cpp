#include "app/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace gimli::app {
namespace {

using namespace std::chrono_literals;

std::string clock_time(double seconds) {
  const auto s = static_cast<int64_t>(std::lround(seconds));
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string bar(double part, int64_t width) {
  const auto full = static_cast<int64_t>(part * static_cast<double>(width));
  std::string text(full, '=');
  if (full < width) text += '>' + std::string(width - full - 1, ' ');
  return '[' + text + ']';
}

int64_t terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

struct Part {
  std::string text;
  int importance;
};

}  // namespace

std::string progress_line(const std::string& title, int64_t done, int64_t total, double elapsed,
                          std::optional<double> left, const ProgressFields& fields, int64_t width) {
  const double fraction = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  std::vector<Part> parts{{title, 1}, {fmt::format("{}/{}", done, total), 5}};
  if (fields.loss) parts.push_back({fmt::format("loss {:.4f}", *fields.loss), 6});
  if (fields.accuracy) parts.push_back({fmt::format("accuracy {:.1f} %", 100 * *fields.accuracy), 4});
  if (fields.tasks_per_second) parts.push_back({fmt::format("{:.0f} tasks/s", *fields.tasks_per_second), 2});
  auto time = clock_time(elapsed);
  if (left) time += fmt::format(" (left {})", clock_time(*left));
  parts.push_back({time, 3});

  const auto join = [&] {
    std::string line;
    for (const auto& part : parts) line += (line.empty() ? "" : "  ") + part.text;
    return line;
  };
  auto line = join();
  const auto less = [](const auto& a, const auto& b) { return a.importance < b.importance; };
  while (static_cast<int64_t>(line.size()) >= width && parts.size() > 1) {
    parts.erase(std::min_element(parts.begin(), parts.end(), less));
    line = join();
  }
  const auto room = std::min<int64_t>(30, width - static_cast<int64_t>(line.size()) - 5);
  if (room >= 5) line.insert(parts[0].text.size(), "  " + bar(fraction, room));
  return line.substr(0, std::max<int64_t>(width - 1, 0));
}

ProgressDisplay::ProgressDisplay(std::string title, int64_t start, int64_t total, bool quiet)
    : title_(std::move(title)),
      start_(start),
      total_(total),
      done_(start),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressDisplay::~ProgressDisplay() {
  if (quiet_) return;
  if (done_ != last_shown_ && done_ != start_) show();
  if (line_open_) std::fputs("\n", stderr);
}

void ProgressDisplay::update(int64_t done, const ProgressFields& fields) {
  done_ = done;
  fields_ = fields;
  const auto wait = terminal_ ? Clock::duration(100ms) : Clock::duration(10s);
  if (!quiet_ && Clock::now() - std::max(shown_, terminal_ ? shown_ : began_) >= wait) show();
}

void ProgressDisplay::print(const std::string& text) {
  if (quiet_) return;
  fmt::print(stderr, "{}{}\n", line_open_ ? "\r\x1b[K" : "", text);
  line_open_ = false;
}

void ProgressDisplay::show() {
  shown_ = Clock::now();
  last_shown_ = done_;
  const double elapsed = std::chrono::duration<double>(shown_ - began_).count();
  std::optional<double> left;
  if (done_ > start_ && done_ < total_) {
    left = elapsed / static_cast<double>(done_ - start_) * static_cast<double>(total_ - done_);
  }
  if (terminal_) {
    const auto line = progress_line(title_, done_, total_, elapsed, left, fields_, terminal_width());
    fmt::print(stderr, "\r{}\x1b[K", line);
    line_open_ = true;
  } else {
    constexpr int64_t kEnough = 200;
    auto line = progress_line(title_, done_, total_, elapsed, left, fields_, kEnough);
    const auto begin = line.find("  [");
    line.erase(begin, line.find(']') + 1 - begin);
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

}  // namespace gimli::app
