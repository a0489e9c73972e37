#include "app/run.h"

#include <fmt/format.h>

#include "app/file.h"
#include "app/gnuplot.h"
#include "app/metrics.h"
#include "app/plot.h"
#include "app/trainer.h"

namespace gimli::app {
namespace {

namespace fs = std::filesystem;

/// Draws what can be drawn; a failure is no more than a warning.
void draw_run(const fs::path& folder) {
  std::string reason = "gnuplot is not installed";
  if (can_plot()) {
    try {
      for (const auto& file : plot_run(folder)) fmt::print("{}\n", file.string());
      return;
    } catch (const c10::Error& error) {
      reason = error.what_without_backtrace();
    }
  }
  std::fflush(stdout);
  fmt::print(stderr, "gimli: warning: no plots: {}; later: gimli plot {}\n", reason, quoted(folder));
}

/// Removes the files of a run, and nothing else.
void remove_run(const fs::path& folder) {
  const auto figures = folder / "figures.json";
  try {
    if (fs::exists(figures)) {
      for (const auto& figure : read_figures(figures)) fs::remove(folder / (figure.name + ".png"));
    }
  } catch (const c10::Error&) {  // damaged: its pictures are not known
  }
  for (const auto* name :
       {"config.toml", "metrics.jsonl", "checkpoint.pt", "report.md", "report.json", "figures.json", "training.png"}) {
    fs::remove(folder / name);
  }
}

}  // namespace

bool holds_run(const fs::path& folder) {
  return fs::exists(folder / "checkpoint.pt") || fs::exists(folder / "metrics.jsonl");
}

bool run_training(const ExperimentEntry& entry, const Config& config, const fs::path& folder,
                  const std::optional<Checkpoint>& from) {
  const auto experiment = entry.make(config);
  const auto begun = from ? from->state.iteration : 0;
  TORCH_CHECK(experiment->iterations() >= begun, (folder / "checkpoint.pt").string(), " is already at iteration ",
              begun, ", beyond the ", experiment->iterations(), " that are asked for");
  if (!from) remove_run(folder);
  if (!config.flag("quiet")) {
    fmt::print(stderr, "{} on {}: {} iterations, {}, in {}\n", entry.name, config.text("dataset"),
               experiment->iterations(), begun > 0 ? fmt::format("from iteration {}", begun) : "from the start",
               folder.string());
  }
  write_file(folder / "config.toml", fmt::format("# gimli train {}\n{}", entry.name, config.toml()));
  return train(*experiment, entry, config, folder, from) &&
         report_run(*experiment, folder / "metrics.jsonl", experiment->iterations(), folder);
}

bool report_run(Experiment& experiment, const fs::path& metrics, int64_t iteration,
                const std::optional<fs::path>& folder) {
  auto lines = fs::exists(metrics) ? read_metrics(metrics) : std::vector<nlohmann::json>();
  std::erase_if(lines, [&](const auto& line) { return line["iteration"] > iteration; });
  const auto report = experiment.report(lines);
  if (!report) return false;
  fmt::print("\n{}\n", report->markdown);
  std::fflush(stdout);
  if (!folder) return true;
  write_figures(*folder / "figures.json", report->figures);
  write_file(*folder / "report.md", report->markdown);
  write_file(*folder / "report.json", report->numbers.dump(2) + "\n");
  draw_run(*folder);
  return true;
}

std::string quoted(const fs::path& path) {
  constexpr auto kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:@%,";
  const auto text = path.string();
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

}  // namespace gimli::app
