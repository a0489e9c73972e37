#include "app/gnuplot.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

extern char** environ;

namespace gimli::app {
namespace {

namespace fs = std::filesystem;

/// A text in double quotes, without what gnuplot knows as special there. (In single quotes it takes no text that starts
/// with one.)
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < ' ') {
      result += ' ';
    } else if (std::string_view("\"\\`@").find(c) != std::string_view::npos) {
      result += fmt::format("\\{:03o}", static_cast<int>(c));
    } else {
      result += c;
    }
  }
  return result + "\"";
}

constexpr const char* kStyle = R"(
set encoding utf8
set border 3 linewidth 1 linecolor rgb '#606060'
set tics nomirror out scale 0.6 textcolor rgb '#303030'
set grid linetype 1 linewidth 0.8 linecolor rgb '#dddddd'
set key noenhanced Left reverse samplen 2.5 spacing 1.2 textcolor rgb '#303030' opaque fillcolor rgb '#50ffffff' nobox
set multiplot
)";

constexpr const char* kPalette[] = {"2f5f8f", "d07a28", "4f9a8b", "b03a48", "7a5c99", "8a7333", "c9719f", "303030"};

/// The colors of thin lines and heat maps, from the least to the greatest.
constexpr int kScale[][3] = {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {240, 215, 40}};

std::string scale_color(double part) {
  constexpr int kLast = std::size(kScale) - 1;
  const int i = std::min(static_cast<int>(part * kLast), kLast - 1);
  const double rest = part * kLast - i;
  std::string color;
  for (int c = 0; c < 3; ++c) {
    color += fmt::format("{:02x}", static_cast<int>(std::lround(kScale[i][c] * (1 - rest) + kScale[i + 1][c] * rest)));
  }
  return color;
}

/// A color as if on white glass.
std::string lightened(const std::string& color) {
  std::string result;
  for (int c = 0; c < 3; ++c)
    result += fmt::format("{:02x}", 179 + std::stoi(color.substr(2 * c, 2), nullptr, 16) * 3 / 10);
  return result;
}

/// The color of each series, as six hexadecimal digits.
std::vector<std::string> colors_of(const Panel& panel) {
  const auto thin = std::count_if(panel.series.begin(), panel.series.end(),
                                  [](const Series& series) { return series.look == Look::thin; });
  int64_t next = 0, next_thin = 0;
  std::vector<std::string> colors;
  for (const auto& series : panel.series) {
    const auto palette = [&] {
      return std::string(kPalette[(series.color ? *series.color : next++) % std::size(kPalette)]);
    };
    switch (series.look) {
      case Look::truth:
        colors.push_back(series.color ? palette() : "a9adb3");
        break;
      case Look::thin:
        colors.push_back(series.color ? palette()
                                      : scale_color(static_cast<double>(next_thin) / std::max<double>(thin - 1, 1)));
        ++next_thin;
        break;
      case Look::faint:
        colors.push_back(lightened(palette()));
        break;
      default:
        colors.push_back(palette());
    }
  }
  return colors;
}

/// The style of a series, without the area of a band.
std::string style(Look look, const std::string& color) {
  const auto with = [&](const char* text) { return fmt::format("with {} linecolor rgb '#{}'", text, color); };
  switch (look) {
    case Look::line:
    case Look::band:
      return with("lines linewidth 2.5");
    case Look::dashed:
      return with("lines linewidth 2 dashtype (12, 8)");
    case Look::truth:
      return with("lines linewidth 3");
    case Look::faint:
    case Look::thin:
      return with("lines linewidth 1");
    case Look::points:
      return with("points pointtype 7 pointsize 1.1");
    case Look::line_points:
    case Look::error_bars:
      return with("linespoints linewidth 1.5 pointtype 7 pointsize 0.9");
    case Look::bars:
      return with("boxes fillstyle solid 0.85 noborder");
  }
  TORCH_INTERNAL_ASSERT(false, "a look without a style");
}

std::string title_of(const Series& series) {
  return series.title.empty() ? "notitle" : fmt::format("title {} noenhanced", quoted(series.title));
}

/// Pixels of a character, about, and of what else there is in an entry of a legend.
constexpr double kCharacter = 8.7, kSample = 74;

/// The width of text in pixels, about.
double text_width(const std::string& text) {
  return kCharacter *
         static_cast<double>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

/// A rectangle in pixels, from the left and the top of the picture.
struct Box {
  double left, right, top, bottom;
};

struct Canvas {
  double width, height;

  std::string margins(const Box& box) const {
    return fmt::format(
        "set lmargin at screen {:.5f}\nset rmargin at screen {:.5f}\nset tmargin at screen {:.5f}\n"
        "set bmargin at screen {:.5f}\n",
        box.left / width, box.right / width, 1 - box.top / height, 1 - box.bottom / height);
  }
};

/// What is drawn of a panel, as far as axes need to know it.
struct Extent {
  double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;

  bool empty() const { return x_low > x_high; }
};

bool within(double value, const Range& range, bool log) {
  return std::isfinite(value) && (!log || value > 0) && (!range.low || value >= *range.low) &&
         (!range.high || value <= *range.high);
}

Extent extent_of(const Panel& panel) {
  Extent extent;
  for (const auto& series : panel.series) {
    for (size_t i = 0; i < series.x.size(); ++i) {
      const double x = series.x[i], y = series.y[i];
      if (!within(x, panel.x_range, panel.log_x) || !within(y, panel.y_range, panel.log_y)) continue;
      extent.x_low = std::min(extent.x_low, x);
      extent.x_high = std::max(extent.x_high, x);
      extent.y_low = std::min(extent.y_low, y);
      extent.y_high = std::max(extent.y_high, y);
    }
  }
  return extent;
}

/// Settings of one axis. Without anything to draw, gnuplot could not choose its range.
std::string axis(const char* name, const std::string& label, const Range& range, bool log, double low, double high) {
  const auto end = [](const std::optional<double>& value) { return value ? fmt::format("{:.17g}", *value) : "*"; };
  auto text = fmt::format("set {0}range [*:*]\n{1}set logscale {0}\n", name, log ? "" : "un");
  if (low > high && !(range.low && range.high)) {
    const double from = range.low ? *range.low : !range.high ? (log ? 1 : 0) : log ? *range.high / 10 : *range.high - 1;
    const double to = range.high ? *range.high : log ? from * 10 : from + 1;
    text += fmt::format("set {}range [{:.17g}:{:.17g}]\n", name, from, to);
  } else {
    text += fmt::format("set {}range [{}:{}]\n", name, end(range.low), end(range.high));
  }
  // Powers of ten where numbers would be long.
  const bool powers = log && low <= high && (low < 1e-4 || high >= 1e5);
  text += fmt::format("set format {} '{}'\n", name, powers ? "10^{%L}" : "%g");
  return text +
         fmt::format("set {}label {} noenhanced offset {}\n", name, quoted(label), *name == 'x' ? "0,0.4" : "0,0");
}

/// The distance of the numbers along an x axis of so many pixels: 1, 2 or 5 times a power of ten.
std::string tics(double low, double high, double pixels) {
  const double least = (high - low) / (pixels / 80);
  if (!(least > 0) || !std::isfinite(least)) return "set xtics autofreq\n";
  const double power = std::pow(10, std::floor(std::log10(least)));
  for (const int factor : {1, 2, 5}) {
    if (factor * power >= least) return fmt::format("set xtics {:.7g}\n", factor * power);
  }
  return fmt::format("set xtics {:.7g}\n", 10 * power);
}

/// The width of one bar and where the bars of each series are, in units of x.
struct Bars {
  double width = 0.8;
  std::vector<double> offsets;
};

Bars bars_of(const Panel& panel) {
  double distance = INFINITY;
  int64_t count = 0;
  for (const auto& series : panel.series) {
    if (series.look != Look::bars) continue;
    ++count;
    std::set<double> places;
    for (const double x : series.x) {
      if (std::isfinite(x)) places.insert(x);
    }
    for (auto place = places.begin(); place != places.end() && std::next(place) != places.end(); ++place) {
      distance = std::min(distance, *std::next(place) - *place);
    }
  }
  Bars bars;
  bars.width = 0.85 * (std::isfinite(distance) ? distance : 1) / static_cast<double>(std::max<int64_t>(count, 1));
  int64_t next = 0;
  for (const auto& series : panel.series) {
    const double place = static_cast<double>(next) - static_cast<double>(count - 1) / 2;
    bars.offsets.push_back(series.look == Look::bars ? place * bars.width : 0);
    if (series.look == Look::bars) ++next;
  }
  return bars;
}

std::string point(double value) { return std::isfinite(value) ? fmt::format("{:.7g} ", value) : "NaN "; }

/// The points of a series, a row each: x, y, low and high, the latter two of what has them, and not below `least`.
std::string data_block(const std::string& name, const Series& series, double offset, double least) {
  auto text = fmt::format("{} << EOD\n", name);
  for (size_t i = 0; i < series.x.size(); ++i) {
    text += point(series.x[i] + offset) + point(series.y[i]);
    for (const auto* bound : {&series.low, &series.high}) {
      if (!bound->empty()) text += point(std::isfinite((*bound)[i]) ? std::max((*bound)[i], least) : series.y[i]);
    }
    text += '\n';
  }
  return text + "EOD\n";
}

constexpr const char* legend_place(Legend legend) {
  switch (legend) {
    case Legend::top_left:
      return "top left";
    case Legend::bottom_right:
      return "bottom right";
    case Legend::bottom_left:
      return "bottom left";
    default:
      return "top right";
  }
}

std::string series_script(const Panel& panel, bool legend, double pixels) {
  const auto extent = extent_of(panel);
  auto text = axis("x", panel.x_label, panel.x_range, panel.log_x, extent.x_low, extent.x_high) +
              axis("y", panel.y_label, panel.y_range, panel.log_y, extent.y_low, extent.y_high) +
              fmt::format("set title {} noenhanced offset 0,-0.5\n", quoted(panel.title));
  text += legend && panel.legend != Legend::none ? fmt::format("set key on inside {}\n", legend_place(panel.legend))
                                                 : "unset key\n";
  text += panel.log_x
              ? "set xtics autofreq\n"
              : tics(panel.x_range.low.value_or(extent.x_low), panel.x_range.high.value_or(extent.x_high), pixels);
  const auto colors = colors_of(panel);
  const auto bars = bars_of(panel);
  text += fmt::format("set boxwidth {:.7g} absolute\n", bars.width);

  std::string areas, lines;
  for (size_t s = 0; s < panel.series.size(); ++s) {
    const auto& series = panel.series[s];
    const auto block = fmt::format("$series{}", s);
    text += data_block(block, series, bars.offsets[s], panel.log_y ? extent.y_low : -INFINITY);
    if (series.look == Look::band) {
      areas += fmt::format(
          "{} using 1:3:4 with filledcurves fillstyle transparent solid 0.18 noborder fillcolor rgb '#{}' notitle, ",
          block, colors[s]);
    }
    if (series.look == Look::error_bars) {
      lines += fmt::format(
          "{} using 1:2:3:4 with yerrorbars linewidth 1.5 pointtype 7 pointsize 0 linecolor rgb '#{}' notitle, ", block,
          colors[s]);
    }
    lines += fmt::format("{} using 1:2 {} {}, ", block, style(series.look, colors[s]), title_of(series));
  }
  if (extent.empty()) text += "set label 1 'nothing to draw' at graph 0.5,0.5 center textcolor rgb '#606060'\n";
  return text + "plot " + areas + lines + "NaN notitle\nunset label 1\n";
}

constexpr double kGap = 8, kScaleWidth = 70;

bool is_gray(const Image& image) { return static_cast<int64_t>(image.pixels.size()) == image.height * image.width; }

/// How the images of a panel lie in a box, in pixels.
struct Grid {
  int64_t columns = 1, rows = 1;
  double width = 0, height = 0;  ///< of an image
  double above = 0;              ///< for the title of an image

  double used_width() const { return static_cast<double>(columns) * (width + kGap) - kGap; }
  double used_height() const { return static_cast<double>(rows) * (above + height + kGap) - kGap; }
};

/// The grid with the largest images.
Grid grid_of(const Panel& panel, const Box& box) {
  const auto count = static_cast<int64_t>(panel.images.size());
  const auto height = static_cast<double>(panel.images[0].height), width = static_cast<double>(panel.images[0].width);
  const bool titled =
      std::any_of(panel.images.begin(), panel.images.end(), [](const Image& image) { return !image.title.empty(); });
  const double above = titled ? 24 : 0;
  Grid best;
  for (int64_t columns = 1; columns <= count; ++columns) {
    if (panel.image_columns > 0 && columns != std::min(panel.image_columns, count)) continue;
    const auto rows = (count + columns - 1) / columns;
    const auto across = static_cast<double>(columns), down = static_cast<double>(rows);
    const double scale = std::min(((box.right - box.left + kGap) / across - kGap) / width,
                                  ((box.bottom - box.top + kGap) / down - kGap - above) / height);
    if (best.width > 0 && scale * width <= best.width) continue;
    best = {columns, rows, std::max(scale, 0.01) * width, std::max(scale, 0.01) * height, above};
  }
  return best;
}

/// Where the images of a panel are in its cell.
Box image_box(const Panel& panel, const Box& cell) {
  const bool scale = panel.heat_map && is_gray(panel.images.front());
  return {cell.left + 24, cell.right - 24 - (scale ? kScaleWidth : 0), cell.top + (panel.title.empty() ? 18 : 40),
          cell.bottom - 18};
}

/// Black and white of a panel's images: two different numbers.
std::pair<double, double> shades_of(const Panel& panel) {
  double low = INFINITY, high = -INFINITY;
  for (const auto& image : panel.images) {
    for (const double pixel : image.pixels) {
      if (!std::isfinite(pixel)) continue;
      low = std::min(low, pixel);
      high = std::max(high, pixel);
    }
  }
  if (low > high) low = 0, high = 1;
  low = panel.shades.low.value_or(low);
  high = panel.shades.high.value_or(high);
  return {low, high > low ? high : low + 1};
}

/// How often a pixel stands in a row and in a column: gnuplot draws no images of one row or column.
int64_t repeats(const Image& image) { return std::min(image.height, image.width) < 2 ? 2 : 1; }

/// The rows of a matrix, or of red, green and blue a line each pixel.
std::string image_block(const Image& image, std::pair<double, double> shades) {
  std::string text = "$image << EOD\n";
  const auto size = image.height * image.width, each = repeats(image);
  const bool gray = is_gray(image);
  const auto byte = [&](double value) {
    if (!std::isfinite(value)) return 255L;
    return std::lround(255 * std::clamp((value - shades.first) / (shades.second - shades.first), 0., 1.));
  };
  for (int64_t y = 0; y < each * image.height; ++y) {
    for (int64_t x = 0; x < each * image.width; ++x) {
      const auto i = y / each * image.width + x / each;
      text += gray ? point(image.pixels[i])
                   : fmt::format("{} {} {} {} {}\n", x, y, byte(image.pixels[i]), byte(image.pixels[size + i]),
                                 byte(image.pixels[2 * size + i]));
    }
    if (gray) text += '\n';
  }
  return text + "EOD\n";
}

std::string palette(bool colored) {
  if (!colored) return "set palette gray\n";
  std::string text = "set palette defined (";
  for (size_t i = 0; i < std::size(kScale); ++i) {
    text +=
        fmt::format("{}{} '#{}'", i == 0 ? "" : ", ", i, scale_color(static_cast<double>(i) / (std::size(kScale) - 1)));
  }
  return text + ")\n";
}

std::string images_script(const Panel& panel, const Canvas& canvas, const Box& cell) {
  const auto shades = shades_of(panel);
  const auto& first = panel.images.front();
  const bool gray = is_gray(first), scale = gray && panel.heat_map;
  const auto box = image_box(panel, cell);
  const auto grid = grid_of(panel, box);
  const double left = box.left + (box.right - box.left - grid.used_width()) / 2;

  auto text = fmt::format("set label 1 {} noenhanced at screen {:.5f},{:.5f} center\n", quoted(panel.title),
                          (box.left + box.right) / 2 / canvas.width, 1 - (box.top - 20) / canvas.height);
  text += palette(scale) + fmt::format("set cbrange [{:.17g}:{:.17g}]\n", shades.first, shades.second) +
          "unset key\nunset tics\nunset xlabel\nunset ylabel\nunset grid\nunset logscale\nunset colorbox\n"
          "set border 15 linewidth 0.8 linecolor rgb '#b0b0b0'\n" +
          fmt::format("set xrange [-0.5:{}.5]\nset yrange [{}.5:-0.5]\n", repeats(first) * first.width - 1,
                      repeats(first) * first.height - 1);
  for (size_t i = 0; i < panel.images.size(); ++i) {
    const auto& image = panel.images[i];
    const auto column = static_cast<double>(static_cast<int64_t>(i) % grid.columns);
    const auto row = static_cast<double>(static_cast<int64_t>(i) / grid.columns);
    const double x = left + column * (grid.width + kGap);
    const double y = box.top + grid.above + row * (grid.above + grid.height + kGap);
    if (scale && i + 1 == panel.images.size()) {
      text += fmt::format(
          "set colorbox vertical user origin screen {:.5f},{:.5f} size screen {:.5f},{:.5f} noborder\n"
          "set cbtics out nomirror scale 0.5 textcolor rgb '#303030'\nset format cb '%g'\n",
          (left + grid.used_width() + 14) / canvas.width, 1 - (box.top + grid.used_height()) / canvas.height,
          14 / canvas.width, (grid.used_height() - grid.above) / canvas.height);
    }
    text += image_block(image, shades) + canvas.margins({x, x + grid.width, y, y + grid.height}) +
            fmt::format("set title {} noenhanced offset 0,-0.8\n", quoted(image.title)) +
            (gray ? "plot $image matrix with image\n" : "plot $image using 1:2:3:4:5 with rgbimage\n") +
            "unset label 1\n";
  }
  return text +
         "set border 3 linewidth 1 linecolor rgb '#606060'\nunset colorbox\n"
         "set tics nomirror out scale 0.6 textcolor rgb '#303030'\nset xtics nomirror\nset ytics nomirror\n"
         "set grid linetype 1 linewidth 0.8 linecolor rgb '#dddddd'\n";
}

/// The titles of all panels, each once, with what draws them.
std::vector<std::pair<std::string, std::string>> legend_entries(const Figure& figure) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (const auto& panel : figure.panels) {
    const auto colors = colors_of(panel);
    for (size_t s = 0; s < panel.series.size(); ++s) {
      const auto& title = panel.series[s].title;
      const bool known =
          std::any_of(entries.begin(), entries.end(), [&](const auto& entry) { return entry.first == title; });
      if (!title.empty() && !known) entries.emplace_back(title, style(panel.series[s].look, colors[s]));
    }
  }
  return entries;
}

/// A legend below all panels, as a table whose columns are as wide as its longest title needs.
struct SharedLegend {
  std::vector<std::pair<std::string, std::string>> entries;
  size_t rows = 0;
  double column = 0;

  double height() const { return rows == 0 ? 0 : 26 + 30 * static_cast<double>(rows); }
};

SharedLegend shared_legend(const Figure& figure, double width) {
  SharedLegend legend;
  if (!figure.shared_legend) return legend;
  legend.entries = legend_entries(figure);
  for (const auto& [title, style] : legend.entries)
    legend.column = std::max(legend.column, text_width(title) + kSample);
  const auto columns = std::max<size_t>(static_cast<size_t>((width - 40) / std::max(legend.column, 1.)), 1);
  legend.rows = (legend.entries.size() + columns - 1) / columns;
  return legend;
}

/// An empty plot over the whole width, for a key; one in a panel would be as narrow as the panel.
std::string legend_script(const SharedLegend& legend, const Canvas& canvas) {
  if (legend.rows == 0) return "";
  // gnuplot takes a character for 11 pixels wide, and 55 for the rest.
  const double longest = (legend.column - kSample) / kCharacter;
  auto text = canvas.margins({20, canvas.width - 20, canvas.height - legend.height(), canvas.height - 6}) +
              "unset border\nunset tics\nunset grid\nunset xlabel\nunset ylabel\nunset title\nunset logscale\n"
              "set xrange [0:1]\nset yrange [0:1]\nset boxwidth 1\n" +
              fmt::format("set key on inside center center horizontal maxrows {} samplen 2.2 width {:.2f}\nplot ",
                          legend.rows, (legend.column - 55) / 11 - longest);
  for (const auto& [title, style] : legend.entries) {
    text += fmt::format("NaN {} title {} noenhanced, ", style, quoted(title));
  }
  return text + "NaN notitle\n";
}

/// The cells of a figure's panels, and the size of them all.
struct Layout {
  std::vector<Box> cells;
  double width = 0, height = 0;
};

/// Rows of images are no higher than the images.
Layout layout_of(const Figure& figure) {
  const auto count = figure.panels.size();
  const auto columns = std::min(static_cast<size_t>(figure.columns), count);
  Layout layout;
  layout.width = columns <= 2 ? 1200 : 420 * static_cast<double>(columns);
  const double width = layout.width / static_cast<double>(columns);
  const double most = count == 1 ? 740 : columns == 1 ? 400 : columns == 2 ? 370 : 330;
  for (size_t begin = 0; begin < count; begin += columns) {
    double height = 0;
    for (size_t p = begin; p < std::min(begin + columns, count); ++p) {
      const auto& panel = figure.panels[p];
      const Box cell{0, width, 0, most};
      height = std::max(height, panel.images.empty() ? most
                                                     : image_box(panel, cell).top +
                                                           grid_of(panel, image_box(panel, cell)).used_height() + 18);
    }
    for (size_t p = begin; p < std::min(begin + columns, count); ++p) {
      const double left = width * static_cast<double>(p - begin);
      layout.cells.push_back({left, left + width, layout.height, layout.height + height});
    }
    layout.height += height;
  }
  layout.height = std::ceil(layout.height);
  return layout;
}

std::string figure_script(const Figure& figure, const std::string& output) {
  const auto layout = layout_of(figure);
  const auto legend = shared_legend(figure, layout.width);
  const Canvas canvas{layout.width, layout.height + legend.height()};

  const auto has = [&](std::string Panel::*text) {
    return std::any_of(figure.panels.begin(), figure.panels.end(),
                       [&](const Panel& panel) { return !(panel.*text).empty(); });
  };
  const double left = has(&Panel::y_label) ? 104 : 80, top = has(&Panel::title) ? 40 : 22;
  const double below = has(&Panel::x_label) ? 58 : 38;

  auto text = fmt::format(
      "set terminal pngcairo size {:.0f},{:.0f} font 'DejaVu Sans,13' background '#ffffff'\nset output {}\n{}",
      canvas.width, canvas.height, quoted(output), kStyle);
  for (size_t p = 0; p < figure.panels.size(); ++p) {
    const auto& panel = figure.panels[p];
    const auto& cell = layout.cells[p];
    if (panel.images.empty()) {
      const Box axes{cell.left + left, cell.right - 28, cell.top + top, cell.bottom - below};
      text += canvas.margins(axes) + series_script(panel, !figure.shared_legend, axes.right - axes.left);
    } else {
      text += images_script(panel, canvas, cell);
    }
  }
  return text + legend_script(legend, canvas) + "unset multiplot\nset output\n";
}

/// Runs gnuplot on a script; whether it ended well. The script is a file, since writing to a gnuplot that has stopped
/// reading would be a signal.
bool run_gnuplot(const std::string& script) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
  if (!file || std::fwrite(script.data(), 1, script.size(), file.get()) != script.size()) return false;
  if (std::fflush(file.get()) != 0) return false;
  std::rewind(file.get());
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ::fileno(file.get()), STDIN_FILENO);
  for (const int output : {STDOUT_FILENO, STDERR_FILENO}) {
    posix_spawn_file_actions_addopen(&actions, output, "/dev/null", O_WRONLY, 0);
  }
  char program[] = "gnuplot";
  char* arguments[] = {program, nullptr};
  pid_t process = 0;
  const int error = ::posix_spawnp(&process, program, &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return false;
  int status = 0;
  while (::waitpid(process, &status, 0) < 0) {
    if (errno != EINTR) return false;
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
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

void draw(const Figure& figure, const fs::path& png) {
  check_figure(figure, "draw");
  auto temporary = png;
  temporary += ".tmp";
  // Without a file to write to, gnuplot would send the picture to its standard output and exit with 0.
  TORCH_CHECK(std::ofstream(temporary), "cannot write ", png.string(), ": ", std::strerror(errno));
  std::error_code error, ignored;
  const bool drawn =
      run_gnuplot(figure_script(figure, temporary.string())) && fs::file_size(temporary, error) > 0 && !error;
  if (drawn) fs::rename(temporary, png, error);
  if (!drawn || error) fs::remove(temporary, ignored);
  TORCH_CHECK(drawn, "gnuplot failed to draw ", png.string());
  TORCH_CHECK(!error, "cannot write ", png.string(), ": ", error.message());
}

}  // namespace gimli::app
