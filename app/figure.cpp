#include "app/figure.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "app/file.h"

namespace gimli::app {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::pair<Look, const char*> kLooks[] = {{Look::line, "line"},
                                                   {Look::dashed, "dashed"},
                                                   {Look::truth, "truth"},
                                                   {Look::faint, "faint"},
                                                   {Look::thin, "thin"},
                                                   {Look::points, "points"},
                                                   {Look::line_points, "line_points"},
                                                   {Look::band, "band"},
                                                   {Look::error_bars, "error_bars"},
                                                   {Look::bars, "bars"}};
constexpr std::pair<Legend, const char*> kLegends[] = {{Legend::none, "none"},
                                                       {Legend::top_right, "top_right"},
                                                       {Legend::top_left, "top_left"},
                                                       {Legend::bottom_right, "bottom_right"},
                                                       {Legend::bottom_left, "bottom_left"}};

template <class Enum, size_t n>
std::string name_of(Enum value, const std::pair<Enum, const char*> (&names)[n]) {
  for (const auto& [each, name] : names) {
    if (each == value) return name;
  }
  TORCH_INTERNAL_ASSERT(false, "an enumerator without a name");
}

// JSON

/// How a number that cannot be in JSON is written.
ordered_json number(double value) { return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr); }

ordered_json numbers(const std::vector<double>& values) {
  auto list = ordered_json::array();
  for (const double value : values) list.push_back(number(value));
  return list;
}

ordered_json to_json(const Range& range) {
  const auto end = [](const std::optional<double>& value) { return value ? number(*value) : ordered_json(nullptr); };
  return ordered_json::array({end(range.low), end(range.high)});
}

template <class T>
void put(ordered_json& object, const char* key, const T& value, const T& usual) {
  if (value != usual) object[key] = value;
}

void put(ordered_json& object, const char* key, const Range& range) {
  if (range.low || range.high) object[key] = to_json(range);
}

ordered_json to_json(const Series& series) {
  ordered_json object;
  put(object, "title", series.title, std::string());
  object["look"] = name_of(series.look, kLooks);
  if (series.color) object["color"] = *series.color;
  object["x"] = numbers(series.x);
  object["y"] = numbers(series.y);
  if (!series.low.empty()) object["low"] = numbers(series.low);
  if (!series.high.empty()) object["high"] = numbers(series.high);
  return object;
}

ordered_json to_json(const Image& image) {
  ordered_json object;
  put(object, "title", image.title, std::string());
  object["height"] = image.height;
  object["width"] = image.width;
  object["pixels"] = numbers(image.pixels);
  return object;
}

ordered_json to_json(const Panel& panel) {
  const Panel usual;
  auto object = ordered_json::object();
  put(object, "title", panel.title, usual.title);
  put(object, "x_label", panel.x_label, usual.x_label);
  put(object, "y_label", panel.y_label, usual.y_label);
  put(object, "x_range", panel.x_range);
  put(object, "y_range", panel.y_range);
  put(object, "log_x", panel.log_x, usual.log_x);
  put(object, "log_y", panel.log_y, usual.log_y);
  put(object, "legend", name_of(panel.legend, kLegends), name_of(usual.legend, kLegends));
  for (const auto& series : panel.series) object["series"].push_back(to_json(series));
  for (const auto& image : panel.images) object["images"].push_back(to_json(image));
  put(object, "image_columns", panel.image_columns, usual.image_columns);
  put(object, "shades", panel.shades);
  put(object, "heat_map", panel.heat_map, usual.heat_map);
  return object;
}

ordered_json to_json(const Figure& figure) {
  ordered_json object{{"name", figure.name}, {"columns", figure.columns}};
  put(object, "shared_legend", figure.shared_legend, false);
  object["panels"] = ordered_json::array();
  for (const auto& panel : figure.panels) object["panels"].push_back(to_json(panel));
  return object;
}

/// The value of a key, if it is there; of another type, it throws.
template <class T>
void take(const json& object, const char* key, T& value) {
  if (const auto found = object.find(key); found != object.end()) found->get_to(value);
}

void take(const json& object, const char* key, std::vector<double>& values) {
  const auto found = object.find(key);
  if (found == object.end()) return;
  for (const auto& item : found->get_ref<const json::array_t&>()) {
    values.push_back(item.is_null() ? std::numeric_limits<double>::quiet_NaN() : item.get<double>());
  }
}

void take(const json& object, const char* key, Range& range) {
  const auto found = object.find(key);
  if (found == object.end()) return;
  if (!found->at(0).is_null()) range.low = found->at(0).get<double>();
  if (!found->at(1).is_null()) range.high = found->at(1).get<double>();
}

template <class Enum, size_t n>
void take(const json& object, const char* key, Enum& value, const std::pair<Enum, const char*> (&names)[n]) {
  std::string name = name_of(value, names);
  take(object, key, name);
  const auto found =
      std::find_if(std::begin(names), std::end(names), [&](const auto& pair) { return pair.second == name; });
  TORCH_CHECK(found != std::end(names), "it has the unknown ", key, " '", name, "'");
  value = found->first;
}

/// The objects of a list, if it is there.
template <class T>
void take(const json& object, const char* key, std::vector<T>& items, T (*read)(const json&)) {
  const auto found = object.find(key);
  if (found == object.end()) return;
  for (const auto& item : found->get_ref<const json::array_t&>()) items.push_back(read(item));
}

Series read_series(const json& object) {
  Series series;
  take(object, "title", series.title);
  take(object, "look", series.look, kLooks);
  if (object.contains("color")) series.color = object.at("color").get<int>();
  take(object, "x", series.x);
  take(object, "y", series.y);
  take(object, "low", series.low);
  take(object, "high", series.high);
  return series;
}

Image read_image(const json& object) {
  Image image;
  take(object, "title", image.title);
  take(object, "height", image.height);
  take(object, "width", image.width);
  take(object, "pixels", image.pixels);
  return image;
}

Panel read_panel(const json& object) {
  Panel panel;
  take(object, "title", panel.title);
  take(object, "x_label", panel.x_label);
  take(object, "y_label", panel.y_label);
  take(object, "x_range", panel.x_range);
  take(object, "y_range", panel.y_range);
  take(object, "log_x", panel.log_x);
  take(object, "log_y", panel.log_y);
  take(object, "legend", panel.legend, kLegends);
  take(object, "series", panel.series, &read_series);
  take(object, "images", panel.images, &read_image);
  take(object, "image_columns", panel.image_columns);
  take(object, "shades", panel.shades);
  take(object, "heat_map", panel.heat_map);
  return panel;
}

Figure read_figure(const json& object) {
  Figure figure;
  figure.name = object.at("name").get<std::string>();
  take(object, "columns", figure.columns);
  take(object, "shared_legend", figure.shared_legend);
  take(object, "panels", figure.panels, &read_panel);
  return figure;
}

// checks

void check_range(const Range& range, bool log, const std::string& of) {
  for (const auto& end : {range.low, range.high}) {
    TORCH_CHECK(!end || std::isfinite(*end), of, " ends at ", *end, ", not at a finite number");
    TORCH_CHECK(!end || !log || *end > 0, of, " is logarithmic and must end at positive numbers, not at ", *end);
  }
  TORCH_CHECK(!range.low || !range.high || *range.low < *range.high, of, " must ascend, not go from ", *range.low,
              " to ", *range.high);
}

void check_series(const Series& series, const std::string& of) {
  const bool bounded = series.look == Look::band || series.look == Look::error_bars;
  TORCH_CHECK(series.x.size() == series.y.size(), of, " has ", series.x.size(), " x and ", series.y.size(), " y");
  for (const auto* bound : {&series.low, &series.high}) {
    TORCH_CHECK(bound->size() == (bounded ? series.y.size() : 0), of, " with the look '", name_of(series.look, kLooks),
                "' must have ", bounded ? "as many bounds as y" : "no bounds", ", not ", bound->size());
  }
  TORCH_CHECK(!series.color || *series.color >= 0, of, " has the color ", *series.color,
              ", which must not be negative");
}

void check_panel(const Panel& panel, const std::string& of) {
  check_range(panel.x_range, panel.log_x, of + ": the x axis");
  check_range(panel.y_range, panel.log_y, of + ": the y axis");
  check_range(panel.shades, false, of + ": the scale of shades");
  for (const auto& series : panel.series) check_series(series, fmt::format("{}: the series '{}'", of, series.title));
  TORCH_CHECK(panel.series.empty() || panel.images.empty(), of,
              " has series and images, and can draw only one of them");
  TORCH_CHECK(panel.image_columns >= 0, of, " has ", panel.image_columns, " columns of images");
  for (const auto& image : panel.images) {
    const auto& first = panel.images.front();
    TORCH_CHECK(image.height > 0 && image.width > 0, of, " has an image of ", image.height, " by ", image.width,
                " pixels");
    const auto pixels = static_cast<size_t>(image.height * image.width);
    TORCH_CHECK(image.pixels.size() == pixels || image.pixels.size() == 3 * pixels, of, " has an image of ",
                image.height, " by ", image.width, " pixels with ", image.pixels.size(),
                " numbers, not one or three each");
    TORCH_CHECK(
        image.height == first.height && image.width == first.width && image.pixels.size() == first.pixels.size(), of,
        " has images that differ in size");
  }
}

}  // namespace

void check_figure(const Figure& figure, const std::string& where) {
  const bool plain = !figure.name.empty() && figure.name.find_first_of("/\\") == std::string::npos &&
                     figure.name.front() != '.' &&
                     std::none_of(figure.name.begin(), figure.name.end(), [](unsigned char c) { return c < ' '; });
  TORCH_CHECK(plain, where, ": the name of a figure must be that of a file, not '", figure.name, "'");
  const auto of = fmt::format("{}: the figure '{}'", where, figure.name);
  TORCH_CHECK(figure.columns >= 1, of, " has ", figure.columns, " columns");
  TORCH_CHECK(!figure.panels.empty(), of, " has no panels");
  for (size_t p = 0; p < figure.panels.size(); ++p)
    check_panel(figure.panels[p], fmt::format("{}, panel {}", of, p + 1));
}

void write_figures(const std::filesystem::path& path, const std::vector<Figure>& figures) {
  std::string text = "[";
  std::set<std::string> names;
  for (const auto& figure : figures) {
    check_figure(figure, "write_figures");
    TORCH_CHECK(names.insert(figure.name).second, "write_figures: there are two figures '", figure.name, "'");
    text += names.size() > 1 ? ",\n" : "\n";
    text += to_json(figure).dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  }
  write_file(path, text + "\n]\n");
}

std::vector<Figure> read_figures(const std::filesystem::path& path) {
  const auto list = json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  TORCH_CHECK(list.is_array(), path.string(), " is not a JSON list of figures");
  std::vector<Figure> figures;
  std::set<std::string> names;
  for (const auto& item : list) {
    const bool named = item.is_object() && item.contains("name") && item["name"].is_string();
    const auto which = named ? fmt::format("the figure '{}'", item["name"].get<std::string>())
                             : fmt::format("figure {}", figures.size() + 1);
    try {
      figures.push_back(read_figure(item));
    } catch (const json::exception&) {
      TORCH_CHECK(false, path.string(), ": ", which, " is not as gimli writes it");
    } catch (const c10::Error& error) {
      TORCH_CHECK(false, path.string(), ": ", which, " is not as gimli writes it: ", error.what_without_backtrace());
    }
    check_figure(figures.back(), path.string());
    TORCH_CHECK(names.insert(figures.back().name).second, path.string(), ": there are two figures '",
                figures.back().name, "'");
  }
  return figures;
}

}  // namespace gimli::app
