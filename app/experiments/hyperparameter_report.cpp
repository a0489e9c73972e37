#include "app/experiments/hyperparameter_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "app/estimate.h"
#include "app/experiments/hyperparameter_comparison.h"
#include "app/interrupt.h"
#include "app/table.h"
#include "gimli/hypergradient.h"
#include "gimli/hypergradient/implicit.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/tensor_list.h"

namespace gimli::app {
namespace {

const std::vector<std::string> kClassNames{"T-shirt", "trouser", "pullover", "dress", "coat",
                                           "sandal",  "shirt",   "sneaker",  "bag",   "boot"};

struct MeasureName {
  std::string key, title;
  int digits;
  double scale;
};

const std::array<MeasureName, kMeasures> kMeasureNames{{{"validation_loss", "validation loss", 4, 1},
                                                        {"validation_accuracy", "validation accuracy (%)", 2, 100},
                                                        {"test_loss", "test loss", 4, 1},
                                                        {"test_accuracy", "test accuracy (%)", 2, 100}}};

// Pictures and numbers of one kind

/// One series through the columns of a sample: a row each repetition.
Series band(const std::string& title, const std::vector<double>& x, const std::vector<std::vector<double>>& sample) {
  Series series{title, Look::band, x};
  for (size_t i = 0; i < x.size(); ++i) {
    std::vector<double> column;
    for (const auto& row : sample) column.push_back(row[i]);
    const auto [mean, interval] = estimate(column);
    series.y.push_back(mean);
    series.low.push_back(mean - interval);
    series.high.push_back(mean + interval);
  }
  return series;
}

std::vector<double> counted(size_t count) {
  std::vector<double> numbers;
  for (size_t i = 1; i <= count; ++i) numbers.push_back(static_cast<double>(i));
  return numbers;
}

at::Tensor mean_over(const std::vector<Repetition>& repetitions, at::Tensor (*value)(const Repetition&)) {
  std::vector<at::Tensor> values;
  for (const auto& repetition : repetitions) values.push_back(value(repetition).detach().to(at::kCPU, at::kDouble));
  return at::stack(values).mean(0);
}

void show_nothing(const std::vector<Repetition>&, const Config&, Report&) {}

void show_step_rates(const std::vector<Repetition>& repetitions, const Config&, Report& report) {
  std::vector<std::vector<double>> rates;
  for (const auto& repetition : repetitions) rates.push_back(to_vector(repetition.recipe.log_rate.exp()));
  Figure figure{"rates"};
  auto& panel = figure.panels.emplace_back();
  panel.x_label = "inner step";
  panel.y_label = "learned rate";
  panel.log_y = true;
  panel.legend = Legend::none;
  panel.series.push_back(band("", counted(rates[0].size()), rates));
  report.numbers["rates"] = rates;
  report.figures.push_back(std::move(figure));
}

/// The logarithm (base 10) of the penalty of each weight of the first layer, [units, pixels].
at::Tensor penalties_of(const Repetition& repetition) { return repetition.recipe.log_penalties[0] / std::log(10.); }

void show_penalties(const std::vector<Repetition>& repetitions, const Config& config, Report& report) {
  const auto penalties = mean_over(repetitions, penalties_of);
  const auto side = std::llround(std::sqrt(static_cast<double>(penalties.size(1))));
  if (side * side != penalties.size(1)) return;
  const auto by_pixel = penalties.mean(0).reshape({side, side});
  const auto rim = std::max<int64_t>(1, side / 7);
  const auto inner = by_pixel.slice(0, rim, side - rim).slice(1, rim, side - rim);
  const auto inner_mean = inner.mean().item<double>();
  const auto border_mean =
      ((by_pixel.sum() - inner.sum()) / static_cast<double>(by_pixel.numel() - inner.numel())).item<double>();
  report.markdown += fmt::format(
      "Penalty of the first layer's weights, geometric means: {:.3g} at the {} outer rows and columns of pixels, "
      "{:.3g} at those within.\n\n",
      std::pow(10, border_mean), rim, std::pow(10, inner_mean));
  report.numbers["penalties"] = {{"border", std::pow(10, border_mean)}, {"within", std::pow(10, inner_mean)}};

  Figure figure{"penalties"};
  const auto picture = [&](const std::string& title, const at::Tensor& pixels) {
    return Image{title, side, side, to_vector(pixels)};
  };
  auto& panel = figure.panels.emplace_back();
  panel.title = "learned penalty of each pixel's weights, as a power of 10";
  panel.heat_map = true;
  panel.images.push_back(picture("mean", by_pixel));
  if (config.integer("hidden") == 0) {
    for (int64_t c = 0; c < kImageClasses; ++c) panel.images.push_back(picture(kClassNames[c], penalties[c]));
  }
  report.figures.push_back(std::move(figure));
}

void show_data_weights(const std::vector<Repetition>& repetitions, const Config& config, Report& report) {
  constexpr int64_t kBins = 20;
  std::vector<double> precision, recall;
  at::Tensor clean = at::zeros({kBins}), wrong = at::zeros({kBins});
  for (const auto& repetition : repetitions) {
    const auto logits = repetition.recipe.weight_logits.detach().cpu();
    const auto found = found_corrupted(logits, repetition.is_corrupted);
    precision.push_back(found.precision);
    recall.push_back(found.recall);
    const auto weights = logits.sigmoid().to(at::kFloat);
    wrong += weights.masked_select(repetition.is_corrupted).histc(kBins, 0, 1);
    clean += weights.masked_select(repetition.is_corrupted.logical_not()).histc(kBins, 0, 1);
  }
  report.numbers["precision"] = to_json(estimate(precision));
  report.numbers["recall"] = to_json(estimate(recall));
  report.markdown += fmt::format(
      "Images whose learned weight is below 1/2, as those with a wrong label: precision {} %, recall {} %.\n\n",
      to_text(estimate(precision), 1, 100), to_text(estimate(recall), 1, 100));
  const auto share = config.number("corrupted");
  report.claim("among the images of low weight, wrong labels are more frequent than among all",
               estimate(precision).mean, share, estimate(precision).mean > share);
  report.claim("more than half of the wrong labels are found", estimate(recall).mean, 0.5, estimate(recall).mean > 0.5);

  Figure figure{"weights", 1, {}, /*shared_legend=*/true};
  auto& panel = figure.panels.emplace_back();
  panel.x_label = "learned weight";
  panel.y_label = "training images, of all repetitions";
  std::vector<double> centers;
  for (int64_t bin = 0; bin < kBins; ++bin) centers.push_back((static_cast<double>(bin) + 0.5) / kBins);
  panel.series.push_back({"right label", Look::bars, centers, to_vector(clean)});
  panel.series.push_back({"wrong label", Look::bars, centers, to_vector(wrong)});
  report.figures.push_back(std::move(figure));
}

void show_images(const std::vector<Repetition>& repetitions, const Config& config, Report& report) {
  const auto& pixels = repetitions[0].recipe.examples.pixels;
  const auto per_class = config.integer("images_per_class");
  const auto side = std::llround(std::sqrt(static_cast<double>(pixels.size(1))));
  if (side * side != pixels.size(1)) return;
  Figure figure{"images"};
  auto& panel = figure.panels.emplace_back();
  panel.image_columns = per_class > 1 ? per_class : kImageClasses / 2;
  for (int64_t i = 0; i < pixels.size(0); ++i) {
    panel.images.push_back({kClassNames[i / per_class], side, side, to_vector(pixels[i])});
  }
  report.figures.push_back(std::move(figure));
}

/// What the report says of one kind.
struct KindReport {
  std::string name;
  Measure tested;  ///< what the claim on test images is about
  void (*show)(const std::vector<Repetition>& repetitions, const Config& config, Report& report);
};

const KindReport& report_of(const std::string& name) {
  static const std::vector<KindReport> rows{
      {"learning-rate", kTestLoss, show_nothing},         {"step-rates", kTestLoss, show_step_rates},
      {"weight-decay", kTestLoss, show_nothing},          {"l2", kTestLoss, show_penalties},
      {"data-weights", kTestAccuracy, show_data_weights}, {"distillation", kTestAccuracy, show_images},
  };
  return *std::find_if(rows.begin(), rows.end(), [&](const auto& row) { return row.name == name; });
}

// What all kinds have

Figure progress_figure(const std::vector<nlohmann::json>& metrics) {
  const auto x = counted(metrics.size());
  const auto panel_of = [&](const char* key, const char* label) {
    std::vector<std::vector<double>> sample(metrics[0][key].size());
    for (const auto& line : metrics) {
      for (size_t i = 0; i < sample.size(); ++i) sample[i].push_back(line[key][i].get<double>());
    }
    Panel panel;
    panel.x_label = "outer iteration";
    panel.y_label = label;
    panel.legend = Legend::none;
    panel.series.push_back(band("", x, sample));
    return panel;
  };
  Figure figure{"progress", 2};
  figure.panels.push_back(panel_of("outer_losses", "validation loss"));
  if (metrics[0].contains("values")) figure.panels.push_back(panel_of("values", "learned value"));
  return figure;
}

/// The validation loss over a grid, and what was learned.
Figure grid_figure(const Contender& grid, const std::vector<Outcome>& grid_outcomes,
                   const std::vector<double>& learned_values, const std::vector<Outcome>& learned_outcomes) {
  std::vector<double> x, losses;
  for (const auto& candidate : grid.grid) x.push_back(candidate.value);
  std::vector<std::vector<double>> sample;
  for (const auto& outcome : grid_outcomes) {
    auto& row = sample.emplace_back();
    for (const auto& scores : outcome.grid) row.push_back(scores[kValidationLoss]);
  }
  for (const auto& outcome : learned_outcomes) losses.push_back(outcome.grid[0][kValidationLoss]);
  Figure figure{"grid"};
  auto& panel = figure.panels.emplace_back();
  panel.x_label = "value";
  panel.y_label = "validation loss";
  panel.log_x = panel.log_y = true;
  panel.series.push_back(band("grid", x, sample));
  panel.series.push_back({"learned", Look::points, learned_values, losses});
  return figure;
}

std::string range_of(const std::vector<double>& values) {
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  if (std::isnan(*least)) return "";
  const auto low = fmt::format("{:.3g}", *least), high = fmt::format("{:.3g}", *greatest);
  return low == high ? low : fmt::format("{} to {}", low, high);
}

}  // namespace

bool has_implicit(const Config& config) {
  for (const auto& kind : hyperparameter_kinds()) {
    if (kind.name == config.text("hyperparameter")) return kind.moves_minimum && config.integer("batch") == 0;
  }
  return false;
}

Found found_corrupted(const at::Tensor& weight_logits, const at::Tensor& is_corrupted) {
  const auto found = weight_logits.lt(0);
  const auto right = static_cast<double>(found.logical_and(is_corrupted).sum().item<int64_t>());
  return {right / static_cast<double>(found.sum().item<int64_t>()),
          right / static_cast<double>(is_corrupted.sum().item<int64_t>())};
}

Agreement agreement(const TensorList& a, const TensorList& b) {
  const auto difference = add_scaled(a, -1, b);
  const auto norm_b = std::sqrt(inner_product(b, b));
  return {inner_product(a, b) / (std::sqrt(inner_product(a, a)) * norm_b),
          std::sqrt(inner_product(difference, difference)) / norm_b};
}

std::optional<Report> report_comparison(const Config& config, const std::vector<Repetition>& repetitions,
                                        const std::vector<nlohmann::json>& metrics, const TaskBatch& batch) {
  const auto& kind = report_of(config.text("hyperparameter"));
  const auto count = static_cast<int64_t>(repetitions.size());
  std::vector<Contenders> contenders(count);
  std::vector<std::vector<Outcome>> outcomes(count);
  batch.run(count, [&](int64_t i) {
    contenders[i] = contenders_of(repetitions[i], config);
    for (const auto& contender : contenders[i]) outcomes[i].push_back(outcome_of(repetitions[i], contender));
  });
  if (interrupted()) return std::nullopt;

  // Over the repetitions.
  const auto sample = [&](size_t contender, Measure measure) {
    std::vector<double> values;
    for (const auto& outcome : outcomes) values.push_back(outcome[contender].grid[outcome[contender].best][measure]);
    return values;
  };
  const auto values = [&](size_t contender) {
    std::vector<double> chosen;
    for (int64_t i = 0; i < count; ++i) {
      chosen.push_back(contenders[i][contender].grid[outcomes[i][contender].best].value);
    }
    return chosen;
  };

  Report report;
  std::vector<std::vector<std::string>> table{{"training", "value"}};
  for (const auto& name : kMeasureNames) table[0].push_back(name.title);
  for (size_t c = 0; c < contenders[0].size(); ++c) {
    const auto& name = contenders[0][c].name;
    table.push_back({name, range_of(values(c))});
    nlohmann::ordered_json numbers{{"training", name}, {"values", values(c)}};
    for (size_t m = 0; m < kMeasures; ++m) {
      const auto& [key, title, digits, scale] = kMeasureNames[m];
      const auto measured = estimate(sample(c, static_cast<Measure>(m)));
      table.back().push_back(to_text(measured, digits, scale));
      numbers[key] = to_json(measured);
    }
    report.numbers["trainings"].push_back(std::move(numbers));
  }
  report.markdown =
      markdown_table(table) +
      fmt::format(
          "\n{} training, {} validation and {} test images; means and 95 % intervals over {} repetitions. "
          "What is the best of a grid of three values a decade is chosen by the validation loss.\n\n",
          config.integer("training_images"), config.integer("validation_images"), repetitions[0].parts.test.size(),
          count);

  const size_t learned = contenders[0].size() - 1, baseline = learned - 1;
  const auto mean = [&](size_t contender, Measure measure) { return estimate(sample(contender, measure)).mean; };
  std::vector<double> gains = sample(learned, kTestAccuracy);
  for (int64_t i = 0; i < count; ++i) gains[i] -= sample(baseline, kTestAccuracy)[i];
  report.numbers["gain"] = to_json(estimate(gains));
  report.markdown +=
      fmt::format("Test accuracy, '{}' minus '{}': {} percentage points.\n\n", contenders[0][learned].name,
                  contenders[0][baseline].name, to_text(estimate(gains), 2, 100));
  report.claim(
      fmt::format("validation loss: {}, at or below {}", contenders[0][learned].name, contenders[0][baseline].name),
      mean(learned, kValidationLoss), mean(baseline, kValidationLoss),
      mean(learned, kValidationLoss) <= mean(baseline, kValidationLoss));
  const auto ours = mean(learned, kind.tested), theirs = mean(baseline, kind.tested);
  const bool is_loss = kind.tested == kTestLoss;
  report.claim(fmt::format("{}: {}, at or {} {}", is_loss ? "test loss" : "test accuracy", contenders[0][learned].name,
                           is_loss ? "below" : "above", contenders[0][baseline].name),
               ours, theirs, is_loss ? ours <= theirs : ours >= theirs);

  if (!metrics.empty()) report.figures.push_back(progress_figure(metrics));
  if (!std::isnan(values(learned)[0])) {
    std::vector<Outcome> grid_outcomes, learned_outcomes;
    for (const auto& outcome : outcomes) {
      grid_outcomes.push_back(outcome[baseline]);
      learned_outcomes.push_back(outcome[learned]);
    }
    report.figures.push_back(grid_figure(contenders[0][baseline], grid_outcomes, values(learned), learned_outcomes));
  }
  report.markdown += "\n";
  kind.show(repetitions, config, report);
  return report;
}

void report_strategies(const Config& config, const Repetition& start, Report& report) {
  const auto problem = start.problem(start.recipe);
  const auto by = [&](const Strategy& strategy) { return hypergradient(problem, start.learned.tensors, {}, strategy); };
  const auto replay = by(Replay()), unroll = by(Unroll());
  const auto exact = agreement(replay.gradients, unroll.gradients);
  report.markdown += "\n";
  report.claim("replay and unroll have the same hypergradient, to 1e-5 of its norm", exact.relative_difference, 1e-5,
               exact.relative_difference <= 1e-5);
  std::vector<std::vector<std::string>> table{{"hypergradient", "against", "cosine", "relative difference"}};
  const auto add = [&](const std::string& name, const std::string& other, const Agreement& found) {
    table.push_back(
        {name, other, fmt::format("{:.6f}", found.cosine), fmt::format("{:.1e}", found.relative_difference)});
    report.numbers["strategies"].push_back(
        {{"of", name}, {"against", other}, {"cosine", found.cosine}, {"relative", found.relative_difference}});
  };
  add("replay", "unroll", exact);
  std::string remark;
  if (has_implicit(config)) {
    const auto implicit = by(Implicit());
    const auto found = agreement(implicit.gradients, replay.gradients);
    add("implicit", "replay", found);
    report.numbers["stationarity"] = implicit.cost.stationarity;
    remark = fmt::format(
        " There, the gradient of the inner loss after the last step has the norm {:.1e}; {} products of the Hessian "
        "solve the linear system to a residual of {:.1e}.",
        implicit.cost.stationarity, implicit.cost.solver_products, implicit.cost.solver_residual);
    report.claim("the implicit hypergradient has that of replay's direction: a cosine above 0.99", found.cosine, 0.99,
                 found.cosine > 0.99);
  }
  report.markdown += "\n" + markdown_table(table) + "\nThe first repetition's, where learning begins." + remark + "\n";
}

}  // namespace gimli::app
