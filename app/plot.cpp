#include "app/plot.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <optional>
#include <sstream>

#include "app/file.h"
#include "app/metrics.h"

namespace gimli::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kStyle = R"(
set encoding utf8
set rmargin 4
set border 3 linewidth 1 linecolor rgb '#606060'
set tics nomirror out scale 0.6 textcolor rgb '#303030'
set grid linetype 1 linewidth 0.8 linecolor rgb '#dddddd'
set key noenhanced samplen 2.5 spacing 1.2 textcolor rgb '#303030'
set style line 1 linewidth 2.5 linecolor rgb '#2f5f8f'
set style line 2 linewidth 2.5 linecolor rgb '#d07a28'
set style line 3 linewidth 1 linecolor rgb '#c3cfdb'
set style line 4 linewidth 3 linecolor rgb '#a9adb3'
set style line 5 linewidth 2 linecolor rgb '#7da7a0' dashtype 2
set style line 6 linewidth 1.5 linecolor rgb '#303030' pointtype 7 pointsize 1.1
set style line 7 linewidth 1.5 linecolor rgb '#b03a48' pointtype 7 pointsize 0.9
)";

/// An empty plot over the whole width, for a key of one line; one in a panel would be as narrow as the panel.
constexpr const char* kLegend = R"(
set lmargin at screen 0.02
set rmargin at screen 0.98
set bmargin at screen 0
set tmargin at screen 0.06
unset border
unset tics
unset grid
unset xlabel
unset title
set yrange [0:1]
set key inside center center horizontal maxrows 1 samplen 2 width -1
)";

struct Series {
  std::vector<double> x, y;
};

/// Runs gnuplot on a script that draws the file.
void draw(const fs::path& file, const std::string& script) {
  auto temporary = file;
  temporary += ".tmp";
  std::string quoted;
  for (const char c : temporary.string()) quoted += c == '\'' ? std::string(2, c) : std::string(1, c);
  const auto text = fmt::format(
      "set terminal pngcairo size 1200,800 font 'DejaVu Sans,13' background '#ffffff'\n"
      "set output '{}'\n{}{}\nset output\n",
      quoted, kStyle, script);
  // Without a file to write to, gnuplot would send the picture to its standard output and exit with 0.
  TORCH_CHECK(std::ofstream(temporary), "cannot write ", file.string(), ": ", std::strerror(errno));
  std::fflush(nullptr);
  std::FILE* const gnuplot = popen("gnuplot >/dev/null 2>&1", "we");
  TORCH_CHECK(gnuplot, "cannot start gnuplot");
  std::fwrite(text.data(), 1, text.size(), gnuplot);
  const int status = pclose(gnuplot);
  std::error_code error, ignored;
  const bool drawn = status == 0 && fs::file_size(temporary, error) > 0 && !error;
  if (drawn) fs::rename(temporary, file, error);
  if (!drawn || error) fs::remove(temporary, ignored);
  TORCH_CHECK(drawn, "gnuplot failed to draw ", file.string());
  TORCH_CHECK(!error, "cannot write ", file.string(), ": ", error.message());
}

std::string data_block(const std::string& name, const std::vector<std::vector<double>>& columns) {
  std::string text = fmt::format("${} << EOD\n", name);
  for (size_t row = 0; row < columns.front().size(); ++row) {
    for (const auto& column : columns) text += std::isnan(column[row]) ? "NaN " : fmt::format("{:.7g} ", column[row]);
    text += '\n';
  }
  return text + "EOD\n";
}

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

Series series_of(const std::vector<json>& lines, const char* key, double scale) {
  Series series;
  for (const auto& line : lines) {
    if (!line.contains(key) || !line[key].is_number()) continue;
    series.x.push_back(line["iteration"].get<double>());
    series.y.push_back(scale * line[key].get<double>());
  }
  return series;
}

/// One panel: the values of every iteration, their moving average, and evaluations between. Nothing if there are none.
std::string training_panel(const std::vector<json>& lines, const std::string& key, const std::string& evaluation_key,
                           const std::string& label, double scale) {
  const auto raw = series_of(lines, key.c_str(), scale);
  if (raw.x.empty()) return "";
  const auto evaluated = series_of(lines, evaluation_key.c_str(), scale);
  const auto width = std::max<size_t>(raw.y.size() / 40, 1);
  auto text = data_block(key, {raw.x, raw.y, smoothed(raw.y, width)});
  if (!evaluated.x.empty()) text += data_block(evaluation_key, {evaluated.x, evaluated.y});
  const bool percent = scale == 100;
  const double top = percent ? 100 : 1.1 * quantile(raw.y, 0.995);
  text += fmt::format("set ylabel '{}'\nset yrange [{}:{}]\n", label, percent ? "*" : "0", top > 0 ? top : 1);
  text += fmt::format("set xrange [{}:{}]\nset key {} right\n", std::min(1., raw.x.front()), std::max(raw.x.back(), 2.),
                      percent ? "bottom" : "top");
  text += fmt::format(
      "plot ${0} using 1:2 with lines linestyle 3 title 'each iteration', "
      "${0} using 1:3 with lines linestyle 1 title 'mean of {1} iterations'",
      key, width / 2 * 2 + 1);
  if (!evaluated.x.empty()) {
    text += fmt::format(", ${} with linespoints linestyle 7 title 'held-out tasks, adapted'", evaluation_key);
  }
  return text + "\n";
}

std::string training_script(const std::vector<json>& lines) {
  const auto loss = training_panel(lines, "outer_loss", "evaluation_loss", "outer loss", 1);
  const auto accuracy = training_panel(lines, "accuracy", "evaluation_accuracy", "accuracy on query sets (%)", 100);
  const std::string label = "set xlabel 'iteration'\n";
  if (accuracy.empty()) return label + loss;
  return label + "set multiplot layout 2,1 margins 0.08,0.97,0.09,0.97 spacing 0.1,0.11\n" + loss + accuracy +
         "unset multiplot\n";
}

/// A measure by adaptation step, with its interval. Nothing if no step has a number.
std::string steps_script(const json& evaluation) {
  const auto& steps = evaluation.at("steps");
  const bool classifies = steps.at(0).contains("accuracy");
  std::vector<double> x, mean, interval;
  for (const auto& row : steps) {
    const auto& measure = row.at(classifies ? "accuracy" : "loss");
    const auto& half = measure.at("interval");
    if (measure.at("mean").is_null()) continue;
    x.push_back(row.at("step").get<double>());
    mean.push_back((classifies ? 100 : 1) * measure.at("mean").get<double>());
    interval.push_back(half.is_number() ? (classifies ? 100 : 1) * half.get<double>() : 0.);
  }
  if (x.empty()) return "";
  return data_block("steps", {x, mean, interval}) +
         fmt::format(
             "set xlabel 'adaptation steps'\nset ylabel '{}'\nset xrange [-0.3:{}]\nset yrange [{}]\n"
             "set key {} right\n"
             "plot $steps using 1:2 with lines linestyle 1 notitle, $steps using 1:2:3 with yerrorbars "
             "linestyle 6 linecolor rgb '#2f5f8f' title 'mean of {} held-out tasks, 95 % interval'\n",
             classifies ? "accuracy on query sets (%)" : "loss on query sets", x.back() + 0.3,
             classifies ? "0:100" : "0:*", classifies ? "bottom" : "top", evaluation.at("tasks").get<int64_t>());
}

/// The numbers of a list, where null is NaN.
std::vector<double> numbers(const json& list) {
  std::vector<double> values;
  for (const auto& item : list) {
    values.push_back(item.is_null() ? std::numeric_limits<double>::quiet_NaN() : item.get<double>());
  }
  return values;
}

std::string step_name(int64_t step) {
  if (step == 0) return "before adaptation";
  return fmt::format("after {} step{}", step, step == 1 ? "" : "s");
}

/// A grid of sine waves.
std::string curves_script(const json& curves) {
  constexpr int kStyles[] = {5, 2, 1};
  std::string blocks, legend = "plot NaN with lines linestyle 4 title 'truth'";
  std::string plots =
      "set multiplot layout 2,2 margins 0.06,0.98,0.14,0.95 spacing 0.07,0.12\n"
      "set xlabel 'x' offset 0,0.5\nset xrange [-5:5]\n";
  for (size_t c = 0; c < curves.size(); ++c) {
    const auto& curve = curves[c];
    std::vector<std::vector<double>> columns{numbers(curve.at("x")), numbers(curve.at("truth"))};
    for (const auto& prediction : curve.at("predictions")) columns.push_back(numbers(prediction.at("y")));
    for (const auto& column : columns) TORCH_CHECK(column.size() == columns[0].size(), "its columns differ in length");
    const auto& support = curve.at("support");
    blocks += data_block(fmt::format("curve{}", c), columns);
    blocks += data_block(fmt::format("support{}", c), {numbers(support.at("x")), numbers(support.at("y"))});

    plots += fmt::format("set title 'amplitude {:.2f}, phase {:.2f}' offset 0,-0.6\n",
                         curve.at("amplitude").get<double>(), curve.at("phase").get<double>());
    plots += fmt::format("plot $curve{} using 1:2 with lines linestyle 4 notitle", c);
    for (size_t p = 0; p + 2 < columns.size(); ++p) {
      const auto style = kStyles[std::min<size_t>(p, 2)];
      plots += fmt::format(", $curve{} using 1:{} with lines linestyle {} notitle", c, p + 3, style);
      if (c == 0) {
        legend += fmt::format(", NaN with lines linestyle {} title '{}'", style,
                              step_name(curve.at("predictions")[p].at("step").get<int64_t>()));
      }
    }
    plots += fmt::format(", $support{} with points linestyle 6 notitle\n", c);
  }
  return blocks + plots + kLegend + legend + ", NaN with points linestyle 6 title 'support points'\nunset multiplot\n";
}

json read_json(const fs::path& file) {
  const auto text = read_file(file);
  auto value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  TORCH_CHECK(!value.is_discarded(), file.string(), " is not JSON");
  return value;
}

/// Draws with what `script` makes of the JSON in `source`. False if that is nothing.
bool draw_json(const fs::path& file, const fs::path& source, const std::function<std::string(const json&)>& script) {
  std::string text;
  try {
    text = script(read_json(source));
  } catch (const json::exception&) {
    TORCH_CHECK(false, source.string(), " is not as gimli writes it");
  }
  if (!text.empty()) draw(file, text);
  return !text.empty();
}

}  // namespace

bool can_plot() {
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const auto program = fs::path(folder) / "gnuplot";
    if (::access(program.c_str(), X_OK) == 0 && !fs::is_directory(program)) return true;
  }
  return false;
}

std::vector<fs::path> plot_run(const fs::path& folder) {
  TORCH_CHECK(fs::is_directory(folder), "there is no folder ", folder.string());
  std::vector<fs::path> drawn;
  if (const auto source = folder / "metrics.jsonl"; fs::exists(source)) {
    const auto lines = read_metrics(source);
    if (!lines.empty()) {
      drawn.push_back(folder / "training.png");
      draw(drawn.back(), training_script(lines));
    }
  }
  const auto target = folder / "adaptation.png";
  if (const auto source = folder / "adaptation.json"; fs::exists(source)) {
    if (draw_json(target, source, curves_script)) drawn.push_back(target);
  } else if (const auto evaluation = folder / "evaluation.json"; fs::exists(evaluation)) {
    if (draw_json(target, evaluation, steps_script)) drawn.push_back(target);
  }
  TORCH_CHECK(!drawn.empty(), folder.string(), " has nothing to draw: neither metrics.jsonl nor evaluation.json");
  return drawn;
}

}  // namespace gimli::app
