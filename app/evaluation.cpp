#include "app/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "app/interrupt.h"
#include "app/progress.h"
#include "app/table.h"
#include "gimli/data/sinusoid.h"

namespace gimli::app {
namespace {

/// Tasks between two looks at `on_tasks`.
constexpr int64_t kChunk = 50;

struct Score {
  double loss = 0;
  std::optional<double> accuracy;
};

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Goes on to `step`. False if the task diverges on the way.
bool advance(const Bilevel& problem, InnerLoop& loop, const TaskRef& task, int64_t step) {
  try {
    while (loop.state().step < step) problem.step(loop, task);
    return true;
  } catch (const c10::Error& error) {
    if (!diverged(error)) throw;
    return false;
  }
}

/// The scores of one task after each of `steps`, ascending; NaN from where it diverges.
std::vector<Score> adapt(const Bilevel& problem, const data::Task& task, const std::vector<int64_t>& steps,
                         bool classifies) {
  const auto reference = TaskRef::to(task);
  auto loop = problem.start(Graph::none);
  std::vector<Score> scores;
  at::NoGradGuard no_grad;
  try {
    for (const auto step : steps) {
      if (!advance(problem, loop, reference, step)) break;
      const auto value = problem.outer(loop, reference);
      auto& score = scores.emplace_back();
      score.loss = value.loss.item<double>();
      if (value.auxiliary.defined()) score.accuracy = value.auxiliary.item<double>();
    }
  } catch (const c10::Error& error) {
    if (!diverged(error)) throw;
  }
  scores.resize(steps.size(), {kNaN, classifies ? std::optional(kNaN) : std::nullopt});
  return scores;
}

std::string steps_taken(int64_t steps) {
  if (steps == 0) return "before adaptation";
  return fmt::format("after {} step{}", steps, steps == 1 ? "" : "s");
}

}  // namespace

bool diverged(const c10::Error& error) {
  return std::string_view(error.what_without_backtrace()).find("expected a finite number") != std::string_view::npos;
}

std::optional<Evaluation> evaluate_adaptation(const ProblemOfTask& problem, const Dataset& dataset,
                                              const data::TaskSource& source, int64_t tasks, std::vector<int64_t> steps,
                                              const TaskBatch& batch, const OnTasks& on_tasks) {
  steps.push_back(0);
  std::sort(steps.begin(), steps.end());
  steps.erase(std::unique(steps.begin(), steps.end()), steps.end());

  std::vector<std::vector<Score>> scores(tasks);
  for (int64_t begin = 0; begin < tasks; begin += kChunk) {
    const auto count = std::min(kChunk, tasks - begin);
    batch.run(count, [&](int64_t i) {
      const auto task = task_on(source, begin + i, dataset.device);
      scores[begin + i] = adapt(problem(begin + i), task, steps, dataset.classifies);
    });
    if (on_tasks && !on_tasks(begin + count)) return std::nullopt;
  }

  Evaluation evaluation{tasks, {}};
  for (size_t s = 0; s < steps.size(); ++s) {
    std::vector<double> losses, accuracies;
    for (const auto& task : scores) {
      losses.push_back(task[s].loss);
      if (task[s].accuracy) accuracies.push_back(*task[s].accuracy);
    }
    auto& row = evaluation.steps.emplace_back(StepEvaluation{steps[s], estimate(losses), std::nullopt});
    if (!accuracies.empty()) row.accuracy = estimate(accuracies);
  }
  return evaluation;
}

std::optional<Evaluation> evaluate_adaptation(const Bilevel& problem, const Dataset& dataset,
                                              const data::TaskSource& source, int64_t tasks, std::vector<int64_t> steps,
                                              const TaskBatch& batch, const OnTasks& on_tasks) {
  return evaluate_adaptation([&](int64_t) { return problem; }, dataset, source, tasks, std::move(steps), batch,
                             on_tasks);
}

std::string to_markdown(const Evaluation& evaluation) {
  const bool classifies = evaluation.steps.front().accuracy.has_value();
  std::vector<std::vector<std::string>> rows{{"adaptation steps", "loss"}};
  if (classifies) rows[0].push_back("accuracy (%)");
  for (const auto& row : evaluation.steps) {
    rows.push_back({std::to_string(row.step), to_text(row.loss, 4)});
    if (classifies) rows.back().push_back(to_text(*row.accuracy, 2, 100));
  }
  return markdown_table(rows) + fmt::format("\nMean and 95 % interval over {} held-out tasks.\n", evaluation.tasks);
}

nlohmann::ordered_json to_json(const Evaluation& evaluation) {
  nlohmann::ordered_json steps = nlohmann::ordered_json::array();
  for (const auto& row : evaluation.steps) {
    nlohmann::ordered_json entry{{"step", row.step}, {"loss", to_json(row.loss)}};
    if (row.accuracy) entry["accuracy"] = to_json(*row.accuracy);
    steps.push_back(std::move(entry));
  }
  return {{"tasks", evaluation.tasks}, {"interval", "1.96 s / sqrt(n)"}, {"steps", std::move(steps)}};
}

Figure adaptation_figure(const Evaluation& evaluation) {
  const bool classifies = evaluation.steps.front().accuracy.has_value();
  Series series{fmt::format("mean of {} held-out tasks, 95 % interval", evaluation.tasks), Look::error_bars};
  for (const auto& row : evaluation.steps) {
    const auto& measure = classifies ? *row.accuracy : row.loss;
    const double scale = classifies ? 100 : 1;
    series.x.push_back(static_cast<double>(row.step));
    series.y.push_back(scale * measure.mean);
    series.low.push_back(scale * (measure.mean - measure.interval));
    series.high.push_back(scale * (measure.mean + measure.interval));
  }
  Panel panel;
  panel.x_label = "adaptation steps";
  panel.y_label = classifies ? "accuracy on query sets (%)" : "loss on query sets";
  panel.x_range = {-0.3, series.x.back() + 0.3};
  panel.y_range.low = 0;
  if (classifies) panel.y_range.high = 100;
  panel.legend = classifies ? Legend::bottom_right : Legend::top_right;
  panel.series.push_back(std::move(series));
  return {"adaptation", 1, {std::move(panel)}};
}

std::optional<Figure> adaptation_figure(const Bilevel& problem, const Dataset& dataset,
                                        const std::vector<int64_t>& steps) {
  constexpr int64_t kCurves = 4, kPoints = 201;
  const auto* sinusoid = dynamic_cast<const data::Sinusoid*>(dataset.held_out.get());
  if (!sinusoid) return std::nullopt;
  const auto range = sinusoid->options().x();
  const auto x = at::linspace(range.low, range.high, kPoints, at::kFloat).unsqueeze(1);

  Figure figure{"adaptation", 2, {}, /*shared_legend=*/true};
  for (int64_t index = 0; index < kCurves; ++index) {
    const auto task = task_on(*sinusoid, index, dataset.device);
    const auto reference = TaskRef::to(task);
    const auto curve = sinusoid->curve(index);
    auto& panel = figure.panels.emplace_back();
    panel.title = fmt::format("amplitude {:.2f}, phase {:.2f}", curve.amplitude, curve.phase);
    panel.x_label = "x";
    panel.x_range = {range.low, range.high};
    auto& truth = panel.series.emplace_back(Series{"truth", Look::truth, to_vector(x), to_vector(x)});
    for (auto& value : truth.y) value = curve(value);

    auto loop = problem.start(Graph::none);
    at::NoGradGuard no_grad;
    for (size_t s = 0; s < steps.size(); ++s) {
      const bool finite = advance(problem, loop, reference, steps[s]);
      const auto y = finite ? loop.run([&] { return dataset.network.forward(x.to(dataset.device), steps[s]); })
                            : at::full_like(x, kNaN);
      const bool last = s + 1 == steps.size();
      panel.series.push_back({.title = steps_taken(steps[s]),
                              .look = steps[s] == 0 ? Look::dashed : Look::line,
                              .x = to_vector(x),
                              .y = to_vector(y),
                              .color = steps[s] == 0 ? kTeal
                                       : last        ? kBlue
                                                     : kOrange});
    }
    panel.series.push_back({.title = "support points",
                            .look = Look::points,
                            .x = to_vector(task.support.data),
                            .y = to_vector(task.support.target),
                            .color = kBlack});
  }
  return figure;
}

std::optional<Report> report_adaptation(const Bilevel& problem, const Dataset& dataset, const Config& config,
                                        const TaskBatch& batch) {
  const auto tasks = config.integer("eval_tasks");
  std::optional<Evaluation> evaluation;
  {
    ProgressDisplay display("evaluating", 0, tasks, config.flag("quiet"));
    evaluation = evaluate_adaptation(problem, dataset, *dataset.held_out, tasks, config.integers("eval_steps"), batch,
                                     [&](int64_t done) {
                                       display.update(done);
                                       return !interrupted();
                                     });
  }
  if (!evaluation) return std::nullopt;
  std::vector<int64_t> drawn{0};
  if (evaluation->steps.size() > 1) drawn.push_back(evaluation->steps[1].step);
  if (evaluation->steps.size() > 2) drawn.push_back(evaluation->steps.back().step);
  const auto curves = adaptation_figure(problem, dataset, drawn);
  Report report{to_markdown(*evaluation), to_json(*evaluation), {curves ? *curves : adaptation_figure(*evaluation)}};
  const auto &before = evaluation->steps.front(), &after = evaluation->steps.back();
  if (after.step == 0) return report;
  report.markdown += "\n";
  const auto claim = [&](const char* what, const Estimate& learned, const Estimate& baseline, double sign) {
    report.claim(fmt::format("after {} steps of adaptation, a {} than before", after.step, what), learned.mean,
                 baseline.mean, sign * (learned.mean - baseline.mean) > learned.interval + baseline.interval);
  };
  if (after.accuracy) {
    claim("higher accuracy", *after.accuracy, *before.accuracy, 1);
  } else {
    claim("lower loss", after.loss, before.loss, -1);
  }
  return report;
}

}  // namespace gimli::app
