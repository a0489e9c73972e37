#include "app/figure.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>

#include "app/command.h"
#include "app/evaluation.h"
#include "app/file.h"
#include "app/gnuplot.h"
#include "app/plot.h"
#include "expect.h"
#include "temporary_folder.h"

namespace gimli::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

void write(const fs::path& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }

/// A figure of one panel with one series.
Figure figure_of(Series series, const std::string& name = "loss") {
  Panel panel;
  panel.series.push_back(std::move(series));
  return {name, 1, {panel}};
}

Figure line() { return figure_of({.title = "a line", .x = {0, 1, 2}, .y = {1, 3, 2}}); }

Image gray(const std::string& title = "") { return {title, 2, 3, {0, 0.5, 1, 1, 0.5, 0}}; }

/// A figure in which nothing is as it is by default.
Figure full_figure() {
  Panel axes;
  axes.title = "it's \"100 %\" of {a_b^c} \\n @x & $y #z `w` λ";
  axes.x_label = "x 'label'";
  axes.y_label = "y\nlabel";
  axes.x_range = {1, 10};
  axes.y_range = {std::nullopt, 100.5};
  axes.log_x = axes.log_y = true;
  axes.legend = Legend::bottom_left;
  const std::vector<double> x{1, 2, 4}, y{1, kNaN, 3};
  for (const auto look :
       {Look::line, Look::dashed, Look::truth, Look::faint, Look::thin, Look::points, Look::line_points, Look::bars}) {
    axes.series.push_back(
        {.title = "it's {" + std::to_string(axes.series.size()) + "}_", .look = look, .x = x, .y = y});
  }
  axes.series.push_back({"band", Look::band, x, y, {0.5, kNaN, -2}, {1.5, kNaN, INFINITY}, kBlack});
  axes.series.push_back({"bars", Look::error_bars, x, {2, 3, 4}, {1, kNaN, 3}, {3, kNaN, 5}, kRed});
  Panel images;
  images.title = "it's images";
  images.images = {gray("'0'"), gray("1"), gray("2")};
  images.images[1].pixels[2] = kNaN;
  images.image_columns = 2;
  images.shades = {0.25, 0.75};
  images.heat_map = true;
  Panel colored;
  colored.images = {{"rgb", 1, 2, {1, 0, 0, 1, kNaN, 0}}};
  return {"it's full", 2, {axes, images, colored}, true};
}

/// The width and the height of a PNG file, and that it is one.
std::pair<int64_t, int64_t> size_of(const fs::path& png) {
  const auto bytes = read_file(png);
  EXPECT_EQ(bytes.substr(1, 3), "PNG") << png;
  const auto number = [&](size_t at) {
    int64_t value = 0;
    for (size_t i = at; i < at + 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes.at(i));
    return value;
  };
  return {number(16), number(20)};
}

TEST(FigureTest, FilesKeepEverything) {
  TemporaryFolder folder;
  const auto path = folder.path / "figures.json", again = folder.path / "again.json";
  write_figures(path, {full_figure(), line()});
  const auto figures = read_figures(path);
  ASSERT_EQ(figures.size(), 2);
  const auto expected = full_figure();
  const auto& figure = figures[0];
  EXPECT_EQ(figure.name, expected.name);
  EXPECT_EQ(figure.columns, 2);
  EXPECT_TRUE(figure.shared_legend);
  ASSERT_EQ(figure.panels.size(), 3);
  const auto &panel = figure.panels[0], &panel0 = expected.panels[0];
  EXPECT_EQ(panel.title, panel0.title);
  EXPECT_EQ(panel.x_label, panel0.x_label);
  EXPECT_EQ(panel.y_label, panel0.y_label);
  EXPECT_EQ(panel.x_range.low, 1);
  EXPECT_EQ(panel.x_range.high, 10);
  EXPECT_EQ(panel.y_range.low, std::nullopt);
  EXPECT_EQ(panel.y_range.high, 100.5);
  EXPECT_TRUE(panel.log_x && panel.log_y);
  EXPECT_EQ(panel.legend, Legend::bottom_left);
  ASSERT_EQ(panel.series.size(), panel0.series.size());
  for (size_t s = 0; s < panel.series.size(); ++s) {
    EXPECT_EQ(panel.series[s].title, panel0.series[s].title);
    EXPECT_EQ(panel.series[s].look, panel0.series[s].look);
    EXPECT_EQ(panel.series[s].color, panel0.series[s].color);
    EXPECT_EQ(panel.series[s].x, panel0.series[s].x);
    EXPECT_EQ(panel.series[s].low.size(), panel0.series[s].low.size());
  }
  EXPECT_TRUE(std::isnan(panel.series[0].y[1]));
  EXPECT_EQ(panel.series[0].y[2], 3);
  EXPECT_TRUE(std::isnan(panel.series[8].high[2])) << "what is not finite is null";
  const auto& images = figure.panels[1];
  ASSERT_EQ(images.images.size(), 3);
  EXPECT_EQ(images.images[0].title, "'0'");
  EXPECT_EQ(images.images[0].height, 2);
  EXPECT_EQ(images.images[0].width, 3);
  EXPECT_EQ(images.images[0].pixels, gray().pixels);
  EXPECT_EQ(images.image_columns, 2);
  EXPECT_EQ(images.shades.high, 0.75);
  EXPECT_TRUE(images.heat_map);
  EXPECT_EQ(figures[1].panels[0].legend, Legend::top_right);
  EXPECT_FALSE(figures[1].shared_legend);
  write_figures(again, figures);
  EXPECT_EQ(read_file(again), read_file(path));

  write_figures(path, {});
  EXPECT_TRUE(read_figures(path).empty());
}

TEST(FigureTest, AFileThatIsNotOfFiguresIsRefused) {
  TemporaryFolder folder;
  const auto path = folder.path / "figures.json";
  const struct {
    const char *content, *words;
  } rows[] = {
      {"[", " is not a JSON list of figures"},
      {"{}", " is not a JSON list of figures"},
      {"[3]", ": figure 1 is not as gimli writes it"},
      {"[{}]", ": figure 1 is not as gimli writes it"},
      {R"([{"name": "a", "panels": [{}]}, {"name": 1}])", ": figure 2 is not as gimli writes it"},
      {R"([{"name": "a", "panels": 1}])", ": the figure 'a' is not as gimli writes it"},
      {R"([{"name": "a", "panels": [{"series": [{"x": ["1"], "y": [1]}]}]}])", "'a' is not as gimli writes it"},
      {R"([{"name": "a", "panels": [{"x_range": [1]}]}])", "the figure 'a' is not as gimli writes it"},
      {R"([{"name": "a", "panels": [{"series": [{"look": "odd"}]}]}])",
       "the figure 'a' is not as gimli writes it: it has the unknown look 'odd'"},
      {R"([{"name": "a", "panels": [{"legend": "odd"}]}])", "it has the unknown legend 'odd'"},
      {R"([{"name": "a"}])", ": the figure 'a' has no panels"},
      {R"([{"name": "../a", "panels": [{}]}])", ": the name of a figure must be that of a file, not '../a'"},
      {R"([{"name": "a", "panels": [{}]}, {"name": "a", "panels": [{}]}])", ": there are two figures 'a'"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.content);
    write(path, row.content);
    const auto message = message_of([&] { read_figures(path); });
    EXPECT_TRUE(message.starts_with(path.string())) << message;
    EXPECT_NE(message.find(row.words), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  expect_error([&] { read_figures(folder.path / "nothing.json"); }, "cannot read");
}

TEST(FigureTest, WhatCannotBeDrawnIsRefused) {
  const auto panel_of = [](const auto& change) {
    auto figure = line();
    change(figure.panels[0]);
    return figure;
  };
  const auto series_of = [](const auto& change) {
    auto figure = line();
    change(figure.panels[0].series[0]);
    return figure;
  };
  const auto images_of = [](std::vector<Image> images) {
    Panel panel;
    panel.images = std::move(images);
    return Figure{"loss", 1, {panel}};
  };
  const struct {
    Figure figure;
    std::string words;
  } rows[] = {
      {figure_of({}, ""), "write_figures: the name of a figure must be that of a file, not ''"},
      {figure_of({}, "a/b"), "not 'a/b'"},
      {figure_of({}, ".."), "not '..'"},
      {{"loss", 0, {Panel()}}, "write_figures: the figure 'loss' has 0 columns"},
      {{"loss", 1, {}}, "the figure 'loss' has no panels"},
      {series_of([](Series& s) { s.y.pop_back(); }), "the figure 'loss', panel 1: the series 'a line' has 3 x and 2 y"},
      {series_of([](Series& s) { s.low = s.high = s.y; }), "with the look 'line' must have no bounds, not 3"},
      {series_of([](Series& s) { s.look = Look::band, s.low = s.y; }), "must have as many bounds as y, not 0"},
      {series_of([](Series& s) { s.color = -1; }), "has the color -1, which must not be negative"},
      {panel_of([](Panel& p) {
         p.x_range = {2, 1};
       }),
       "panel 1: the x axis must ascend, not go from 2 to 1"},
      {panel_of([](Panel& p) { p.y_range.low = kNaN; }), "the y axis ends at nan, not at a finite number"},
      {panel_of([](Panel& p) { p.log_y = true, p.y_range.low = 0; }), "the y axis is logarithmic and must end at pos"},
      {panel_of([](Panel& p) { p.images = {gray()}; }), "has series and images"},
      {images_of({{"", 2, 2, {1, 2, 3}}}), "has an image of 2 by 2 pixels with 3 numbers, not one or three each"},
      {images_of({{"", 0, 2, {}}}), "has an image of 0 by 2 pixels"},
      {images_of({gray(), {"", 3, 2, {0, 0, 0, 0, 0, 0}}}), "has images that differ in size"},
  };
  TemporaryFolder folder;
  for (const auto& row : rows) {
    expect_error([&] { write_figures(folder.path / "figures.json", {row.figure}); }, row.words);
  }
  expect_error([&] { write_figures(folder.path / "figures.json", {line(), line()}); }, "there are two figures 'loss'");
  EXPECT_FALSE(fs::exists(folder.path / "figures.json"));
}

TEST(FigureTest, DrawsWhateverTheNumbers) {
  if (!can_plot()) GTEST_SKIP() << "no gnuplot";
  TemporaryFolder folder;
  const auto png = folder.path / "it's a picture.png";
  auto log = figure_of({.x = {0, -1}, .y = {1, 1}});
  log.panels[0].log_x = log.panels[0].log_y = true;
  auto outside = line();
  outside.panels[0].y_range.high = -5;
  auto many = line();
  for (int i = 0; i < 299; ++i) many.panels[0].series.push_back({.look = Look::thin, .x = {0, 1}, .y = {0, 1. * i}});
  Panel images;
  images.images.assign(30, gray());
  Panel pixel;
  pixel.images = {{"", 1, 1, {0.5}}};
  const std::vector<std::pair<std::string, Figure>> rows{
      {"a line", line()},
      {"everything", full_figure()},
      {"no points", figure_of({})},
      {"no series", {"loss", 1, {Panel()}}},
      {"no finite number", figure_of({.x = {1, 2}, .y = {kNaN, INFINITY}})},
      {"one point", figure_of({.x = {5}, .y = {7}})},
      {"a constant", figure_of({.x = {0, 1}, .y = {3, 3}})},
      {"huge", figure_of({.x = {0, 1}, .y = {-1e300, 1e300}})},
      {"nothing positive", log},
      {"out of range", outside},
      {"many lines", many},
      {"images", {"loss", 3, {images, line().panels[0], Panel(), pixel}}},
  };
  for (const auto& [name, figure] : rows) {
    SCOPED_TRACE(name);
    fs::remove(png);
    ASSERT_EQ(message_of([&] { draw(figure, png); }), "(nothing thrown)");
    EXPECT_GE(size_of(png).first, 1200);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1);
}

TEST(FigureTest, TextIsNoCommand) {
  if (!can_plot()) GTEST_SKIP() << "no gnuplot";
  TemporaryFolder folder;
  const auto made = folder.path / "made";
  for (const std::string before : {"", "'", "\"", "\\\"", "'\n"}) {
    const auto text = before + "`touch " + made.string() + "`" + before + "\nsystem \"touch " + made.string() + "\"";
    auto figure = line();
    auto& panel = figure.panels[0];
    panel.title = panel.x_label = panel.y_label = panel.series[0].title = text;
    EXPECT_EQ(message_of([&] { draw(figure, folder.path / "a.png"); }), "(nothing thrown)") << text;
    EXPECT_FALSE(fs::exists(made)) << text;
  }
}

TEST(FigureTest, APictureIsNotBlank) {
  if (!can_plot()) GTEST_SKIP() << "no gnuplot";
  TemporaryFolder folder;
  const auto bytes = [&](const Figure& figure) {
    draw(figure, folder.path / "a.png");
    return fs::file_size(folder.path / "a.png");
  };
  auto quiet = line(), wave = line();
  quiet.panels[0].series[0].title = wave.panels[0].series[0].title = "";
  wave.panels[0].series[0] = {.x = {}, .y = {}};
  for (int i = 0; i < 400; ++i) {
    wave.panels[0].series[0].x.push_back(i / 200.);
    wave.panels[0].series[0].y.push_back(2 + std::sin(i));
  }
  quiet.panels[0].x_range = wave.panels[0].x_range = {0, 2};
  quiet.panels[0].y_range = wave.panels[0].y_range = {1, 3};
  EXPECT_GT(bytes(wave), bytes(quiet) + 10000) << "a curve of many turns needs no more bytes than two lines";
  auto titled = quiet;
  titled.panels[0].title = "it's {a_b^c}";
  EXPECT_NE(bytes(titled), bytes(quiet)) << "no title";
}

TEST(FigureTest, RowsAndLegendsTakeTheirPlace) {
  if (!can_plot()) GTEST_SKIP() << "no gnuplot";
  TemporaryFolder folder;
  const auto drawn = [&](const Figure& figure) {
    draw(figure, folder.path / "a.png");
    return size_of(folder.path / "a.png");
  };
  const auto panel = line().panels[0];
  const auto two = drawn({"a", 2, {panel, panel}}), four = drawn({"a", 2, {panel, panel, panel, panel}});
  EXPECT_EQ(four.second, 2 * two.second);
  EXPECT_EQ(four.first, two.first);
  EXPECT_GT(drawn({"a", 2, {panel, panel}, true}).second, two.second);
  EXPECT_EQ(drawn({"a", 2, {Panel(), Panel()}, true}), two) << "a legend of nothing";
  EXPECT_GT(drawn({"a", 4, {panel, panel, panel, panel}}).first, two.first);
  Panel images;
  images.images.assign(10, gray());
  images.image_columns = 10;
  EXPECT_LT(drawn({"a", 1, {images}}).second, 200) << "a row of images is as high as the images";
}

TEST(FigureTest, AFailureLeavesNothing) {
  if (!can_plot()) GTEST_SKIP() << "no gnuplot";
  TemporaryFolder folder;
  expect_error([&] { draw(line(), folder.path / "no" / "a.png"); }, "no/a.png: No such file or directory");
  fs::create_directory(folder.path / "a.png");
  expect_error([&] { draw(line(), folder.path / "a.png"); }, "a.png: Is a directory");
  EXPECT_FALSE(fs::exists(folder.path / "a.png.tmp"));
  expect_error([&] { draw({"a", 1, {}}, folder.path / "b.png"); }, "draw: the figure 'a' has no panels");
}

TEST(FigureTest, OfAnEvaluation) {
  const Evaluation evaluation{600, {{0, {1.5, 0.25}, Estimate{0.2, 0.01}}, {10, {0.5, kNaN}, Estimate{0.98, kNaN}}}};
  const auto figure = adaptation_figure(evaluation);
  EXPECT_EQ(figure.name, "adaptation");
  const auto& panel = figure.panels.at(0);
  EXPECT_EQ(panel.y_range.high, 100);
  const auto& series = panel.series.at(0);
  EXPECT_EQ(series.look, Look::error_bars);
  EXPECT_EQ(series.x, (std::vector<double>{0, 10}));
  EXPECT_EQ(series.y, (std::vector<double>{20, 98}));
  EXPECT_DOUBLE_EQ(series.low[0], 19);
  EXPECT_DOUBLE_EQ(series.high[0], 21);
  EXPECT_TRUE(std::isnan(series.low[1]));
  EXPECT_NE(series.title.find("600"), std::string::npos);

  const auto regression = adaptation_figure(Evaluation{3, {{0, {1.5, 0.25}, std::nullopt}}});
  EXPECT_EQ(regression.panels[0].series[0].y, std::vector<double>{1.5});
  EXPECT_EQ(regression.panels[0].y_range.high, std::nullopt);
}

// of training

/// So many lines of metrics.
std::vector<json> metrics(int64_t count, const std::function<void(json& line, int64_t iteration)>& fill) {
  std::vector<json> lines;
  for (int64_t i = 1; i <= count; ++i) {
    lines.push_back({{"iteration", i}, {"seconds", 0.1 * i}, {"tasks_per_second", 3.}});
    fill(lines.back(), i);
  }
  return lines;
}

TEST(TrainingFigureTest, APanelForEachMeasure) {
  const auto figure = training_figure(metrics(80, [](json& line, int64_t i) {
    line["outer_loss"] = 1. / i;
    line["accuracy"] = 0.5;
    line["a_rate"] = -1. * i;
    line["note"] = "text";
    line["nothing"] = nullptr;
    if (i % 20 == 0) line["evaluation_loss"] = 2. / i, line["evaluation_accuracy"] = 0.25, line["evaluation_b"] = 3;
    if (i % 4 == 0) line["sparse"] = 1;
  }));
  EXPECT_EQ(figure.name, "training");
  std::vector<std::string> labels;
  for (const auto& panel : figure.panels) labels.push_back(panel.y_label);
  EXPECT_EQ(labels, (std::vector<std::string>{"outer loss", "accuracy (%)", "a rate", "evaluation b", "sparse"}));

  const auto& loss = figure.panels[0].series;
  ASSERT_EQ(loss.size(), 3);
  EXPECT_EQ(loss[0].look, Look::faint);
  EXPECT_EQ(loss[0].y.size(), 80);
  EXPECT_EQ(loss[1].title, "mean of 3 iterations");
  EXPECT_DOUBLE_EQ(loss[1].y[1], (1 + 1. / 2 + 1. / 3) / 3);
  EXPECT_DOUBLE_EQ(loss[1].y[0], (1 + 1. / 2) / 2);
  EXPECT_EQ(loss[2].look, Look::line_points);
  EXPECT_EQ(loss[2].x, (std::vector<double>{20, 40, 60, 80}));
  EXPECT_EQ(figure.panels[0].y_range.low, 0);

  const auto& accuracy = figure.panels[1];
  EXPECT_EQ(accuracy.y_range.high, 100);
  EXPECT_EQ(accuracy.series[0].y[0], 50);
  EXPECT_EQ(accuracy.series[2].y[0], 25);
  EXPECT_EQ(figure.panels[2].y_range.low, std::nullopt) << "a measure below 0";
  for (const int sparse : {3, 4}) {
    ASSERT_EQ(figure.panels[sparse].series.size(), 1);
    EXPECT_EQ(figure.panels[sparse].series[0].look, Look::line_points);
  }
}

TEST(TrainingFigureTest, AtMostSixPanels) {
  for (const size_t measures : {0, 1, 2, 3, 6, 9}) {
    const auto figure = training_figure(metrics(3, [&](json& line, int64_t) {
      for (size_t m = 0; m < measures; ++m) line["measure" + std::to_string(m)] = m;
    }));
    EXPECT_EQ(figure.panels.size(), std::min<size_t>(measures, 6));
    EXPECT_EQ(figure.columns, measures > 2 ? 2 : 1);
    EXPECT_EQ(figure.shared_legend, measures > 2);
  }
  EXPECT_TRUE(training_figure({}).panels.empty());
}

TEST(TrainingFigureTest, OneFarOffIsNotLookedAt) {
  const auto figure = training_figure(metrics(1000, [](json& line, int64_t i) { line["loss"] = i == 500 ? 1e9 : 1; }));
  EXPECT_DOUBLE_EQ(*figure.panels[0].y_range.high, 1.1);
}

// of a run

/// `gimli plot` of the folder: its exit code.
int plot(const fs::path& folder) {
  std::string words[] = {"gimli", "plot", folder.string()};
  char* argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = run_command(3, argv);
  std::fflush(nullptr);
  testing::internal::GetCapturedStdout();
  testing::internal::GetCapturedStderr();
  return code;
}

TEST(PlotTest, DrawsWhatThereIs) {
  if (!can_plot()) GTEST_SKIP() << "no gnuplot";
  TemporaryFolder folder;
  const auto run = folder.path / "it's a run";
  fs::create_directory(run);
  const auto metrics = run / "metrics.jsonl", figures = run / "figures.json";
  const std::vector<fs::path> training{run / "training.png"};
  const auto plain = "{\"iteration\":1,\"outer_loss\":2.0}\n";

  write(metrics,
        "{\"iteration\":1,\"outer_loss\":2.0,\"accuracy\":0.2}\n"
        "{\"iteration\":2,\"outer_loss\":1.0,\"accuracy\":0.3,\"evaluation_accuracy\":0.4}\n{\"iter");
  EXPECT_EQ(plot_run(run), training);
  write(metrics, "{\"iteration\":1,\"outer_loss\":2.0,\"accuracy\":null}\n");
  EXPECT_EQ(plot_run(run), training);
  write_figures(figures, {full_figure(), line()});
  EXPECT_EQ(plot_run(run), (std::vector<fs::path>{run / "training.png", run / "it's full.png", run / "loss.png"}));
  for (const auto* name : {"training.png", "it's full.png", "loss.png"}) size_of(run / name);
  write(metrics, "{\"iteration\":1}\n");
  EXPECT_EQ(plot_run(run), (std::vector<fs::path>{run / "it's full.png", run / "loss.png"}));
  EXPECT_EQ(plot(run), 0);

  fs::create_directory(run / "loss.png.tmp");
  expect_error([&] { plot_run(run); }, "loss.png: Is a directory");
  EXPECT_EQ(plot(run), 2);
  fs::remove(run / "loss.png.tmp");

  write(metrics, plain);
  write(figures, "[{}]");
  fs::remove(run / "training.png");
  expect_error([&] { plot_run(run); }, "figures.json: figure 1 is not as gimli writes it");
  EXPECT_FALSE(fs::exists(run / "training.png")) << "drawn before all files were read";
  auto clash = line();
  clash.name = "training";
  write_figures(figures, {clash});
  expect_error([&] { plot_run(run); }, "must not have the name 'training'");
  for (const auto* content : {"{\"outer_loss\":1}\n", "{\"iteration\":null}\n", "[1]\n", "nothing\n"}) {
    write(metrics, content);
    expect_error([&] { plot_run(run); }, "metrics.jsonl, line 1, is not a line of metrics");
  }
  fs::remove(metrics);
  fs::remove(figures);
  expect_error([&] { plot_run(run); }, "nothing to draw");
  expect_error([&] { plot_run(folder.path / "nowhere"); }, "there is no folder");
}

}  // namespace
}  // namespace gimli::app
