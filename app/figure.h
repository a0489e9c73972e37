#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace gimli::app {

/// How a series is drawn.
enum class Look {
  line,
  dashed,
  truth,  ///< a thick line in gray, to compare the others with
  faint,  ///< a thin line in a light color, behind a line of the same color
  thin,   ///< one of many: colored by its place among the thin ones of its panel, from dark blue to yellow
  points,
  line_points,
  band,        ///< a line, and the area from `low` to `high` behind all lines
  error_bars,  ///< a line through points with bars from `low` to `high`
  bars         ///< from 0; those of several series stand side by side
};

/// Points to draw. Where one of the numbers is not finite, or not positive on a logarithmic axis, there is a gap; a
/// bound that is not positive there is drawn at the least y.
struct Series {
  std::string title{};  ///< none: not in the legend
  Look look = Look::line;
  std::vector<double> x{}, y{};
  std::vector<double> low{}, high{};  ///< as long as y, of `band` and `error_bars` only; what is not finite counts as y
  std::optional<int> color{};         ///< a place in the palette, as kRed; else the next one of the panel
};

/// Places in the palette, which begins anew after the last one.
inline constexpr int kBlue = 0, kOrange = 1, kTeal = 2, kRed = 3, kPurple = 4, kBrown = 5, kPink = 6, kBlack = 7;

/// The ends of an axis, each chosen by what is drawn if it is not given.
struct Range {
  std::optional<double> low{}, high{};
};

/// A small picture.
struct Image {
  std::string title{};
  int64_t height = 0, width = 0;
  std::vector<double> pixels{};  ///< as in a tensor of [height, width], or of [3, height, width]: red, green, blue
};

enum class Legend { none, top_right, top_left, bottom_right, bottom_left };

/// Axes with series, or a grid of images of one size.
struct Panel {
  std::string title{}, x_label{}, y_label{};
  Range x_range{}, y_range{};
  bool log_x = false, log_y = false;
  Legend legend = Legend::top_right;
  std::vector<Series> series{};

  std::vector<Image> images{};
  int64_t image_columns = 0;  ///< 0: as many as fill the panel best
  Range shades{};             ///< what is black and what is white; else the least and the greatest pixel of the panel
  bool heat_map = false;      ///< images of one number a pixel in color, with a scale
};

/// A picture of panels, row by row.
struct Figure {
  std::string name;  ///< of its file, without .png
  int64_t columns = 1;
  std::vector<Panel> panels{};
  bool shared_legend = false;  ///< one legend below all panels, each title once, in place of one in each
};

/// Throws a sentence that starts with `where` and names the figure if it is not one that can be drawn.
void check_figure(const Figure& figure, const std::string& where);

/// Writes figures as JSON: a list of objects with the names of the fields above, without those that are as they are by
/// default; numbers that are not finite are null.
void write_figures(const std::filesystem::path& path, const std::vector<Figure>& figures);

/// Reads what write_figures wrote. Throws, naming file and figure, if it is damaged.
std::vector<Figure> read_figures(const std::filesystem::path& path);

}  // namespace gimli::app
