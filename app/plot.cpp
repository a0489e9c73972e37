#include "app/plot.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "app/gnuplot.h"
#include "app/metrics.h"

namespace gimli::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMostPanels = 6;
constexpr std::string_view kEvaluation = "evaluation_";

struct Values {
  std::vector<double> x, y;
};

/// The mean of the `width` values around each one, of fewer at the ends.
std::vector<double> smoothed(const std::vector<double>& values, size_t width) {
  std::vector<double> sums(values.size() + 1);
  for (size_t i = 0; i < values.size(); ++i) sums[i + 1] = sums[i] + values[i];
  std::vector<double> result;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto begin = i - std::min(i, width / 2);
    const auto end = std::min(i + width / 2 + 1, values.size());
    result.push_back((sums[end] - sums[begin]) / static_cast<double>(end - begin));
  }
  return result;
}

double quantile(std::vector<double> values, double part) {
  const auto place = values.begin() + static_cast<int64_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

bool is_measure(const std::string& key) {
  return key != "iteration" && key != "seconds" && !key.ends_with("_per_second");
}

bool is_accuracy(const std::string& key) { return key == "accuracy" || key.ends_with("_accuracy"); }

std::map<std::string, Values> measures_of(const std::vector<json>& lines) {
  std::map<std::string, Values> measures;
  for (const auto& line : lines) {
    for (const auto& [key, value] : line.items()) {
      if (!value.is_number() || !is_measure(key)) continue;
      auto& values = measures[key];
      values.x.push_back(line["iteration"].get<double>());
      values.y.push_back((is_accuracy(key) ? 100 : 1) * value.get<double>());
    }
  }
  return measures;
}

/// The measure that evaluation_X is drawn over; empty if it has a panel of its own.
std::string below(const std::string& key, const std::map<std::string, Values>& measures) {
  if (!key.starts_with(kEvaluation)) return "";
  const auto measure = key.substr(kEvaluation.size());
  for (const auto& name : {measure, "outer_" + measure}) {
    if (measures.contains(name)) return name;
  }
  return "";
}

/// Where to look: all but the few values that are far off. Of values that are not negative, 0 is in it.
Range looked_at(const std::vector<const Values*>& drawn) {
  double low = 0, high = 0;
  bool negative = false;
  for (const auto* values : drawn) {
    high = std::max(high, quantile(values->y, drawn.front() == values ? 0.995 : 0.9));
    negative |= *std::min_element(values->y.begin(), values->y.end()) < 0;
  }
  if (negative) return {};
  return {low, high > 0 ? 1.1 * high : 1};
}

Panel panel_of(const std::string& key, const Values& values, const Values* evaluated, size_t lines) {
  Panel panel;
  panel.x_label = "iteration";
  panel.y_label = key;
  std::replace(panel.y_label.begin(), panel.y_label.end(), '_', ' ');
  const auto add = [&](const std::string& title, Look look, const Values& points, int color) {
    panel.series.push_back({.title = title, .look = look, .x = points.x, .y = points.y, .color = color});
  };
  if (2 * values.y.size() < lines) {
    add("", Look::line_points, values, key.starts_with(kEvaluation) ? kRed : kBlue);
  } else {
    const auto width = std::max<size_t>(values.y.size() / 40, 1);
    add("each iteration", Look::faint, values, kBlue);
    add(fmt::format("mean of {} iterations", width / 2 * 2 + 1), Look::line, {values.x, smoothed(values.y, width)},
        kBlue);
  }
  std::vector<const Values*> drawn{&values};
  if (evaluated) {
    add("evaluation", Look::line_points, *evaluated, kRed);
    drawn.push_back(evaluated);
  }
  if (is_accuracy(key)) {
    panel.y_label += " (%)";
    panel.y_range.high = 100;
    panel.legend = Legend::bottom_right;
  } else {
    panel.y_range = looked_at(drawn);
  }
  return panel;
}

}  // namespace

Figure training_figure(const std::vector<json>& lines) {
  const auto measures = measures_of(lines);
  std::vector<std::string> keys;
  std::map<std::string, const Values*> evaluated;
  for (const auto& [key, values] : measures) {
    const auto measure = below(key, measures);
    if (measure.empty()) {
      keys.push_back(key);
    } else {
      evaluated[measure] = &values;
    }
  }
  std::sort(keys.begin(), keys.end(), [](const std::string& a, const std::string& b) {
    const auto order = [](const std::string& key) { return std::tuple(key != "outer_loss", key != "accuracy", key); };
    return order(a) < order(b);
  });
  keys.resize(std::min(keys.size(), kMostPanels));

  Figure figure{"training", keys.size() <= 2 ? 1 : 2, {}, keys.size() > 2};
  for (const auto& key : keys) {
    const auto& values = measures.at(key);
    auto& panel = figure.panels.emplace_back(
        panel_of(key, values, evaluated.contains(key) ? evaluated[key] : nullptr, lines.size()));
    panel.x_range = {std::min(1., lines.front()["iteration"].get<double>()),
                     std::max(2., lines.back()["iteration"].get<double>())};
  }
  return figure;
}

std::vector<fs::path> plot_run(const fs::path& folder) {
  TORCH_CHECK(fs::is_directory(folder), "there is no folder ", folder.string());
  std::vector<Figure> figures;
  if (const auto source = folder / "metrics.jsonl"; fs::exists(source)) {
    auto figure = training_figure(read_metrics(source));
    if (!figure.panels.empty()) figures.push_back(std::move(figure));
  }
  if (const auto source = folder / "figures.json"; fs::exists(source)) {
    for (auto& figure : read_figures(source)) {
      TORCH_CHECK(figure.name != "training", source.string(),
                  ": a figure must not have the name 'training', which is that of the metrics");
      figures.push_back(std::move(figure));
    }
  }
  TORCH_CHECK(!figures.empty(), folder.string(), " has nothing to draw: neither metrics.jsonl nor figures.json");
  std::vector<fs::path> drawn;
  for (const auto& figure : figures) {
    drawn.push_back(folder / (figure.name + ".png"));
    draw(figure, drawn.back());
  }
  return drawn;
}

}  // namespace gimli::app
