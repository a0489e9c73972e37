#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/dataset.h"
#include "app/estimate.h"
#include "app/experiment.h"
#include "app/figure.h"

namespace gimli::app {

/// Held-out tasks after a number of adaptation steps.
struct StepEvaluation {
  int64_t step = 0;
  Estimate loss;
  std::optional<Estimate> accuracy;  ///< of [0, 1]; of classification
};

struct Evaluation {
  int64_t tasks = 0;
  std::vector<StepEvaluation> steps;  ///< ascending, none first
};

/// Whether an error of the library says that a loss, inner or outer, was not finite.
bool diverged(const c10::Error& error);

/// Told how many tasks are done; false stops.
using OnTasks = std::function<bool(int64_t done)>;

/// The problem of a task, for tasks that differ in more than their examples: in their initial weights, say. Called from
/// several threads at once.
using ProblemOfTask = std::function<Bilevel(int64_t task)>;

/// Adapts to tasks 0 to `tasks` - 1 of `source`, one of the data set's, and takes the query loss before and after each
/// of these numbers of steps. A task whose loss is not finite has NaN from there on. No graph is kept. Nothing if
/// `on_tasks` stops it.
std::optional<Evaluation> evaluate_adaptation(const ProblemOfTask& problem, const Dataset& dataset,
                                              const data::TaskSource& source, int64_t tasks, std::vector<int64_t> steps,
                                              const TaskBatch& batch, const OnTasks& on_tasks = {});
/// The same with one problem for all tasks.
std::optional<Evaluation> evaluate_adaptation(const Bilevel& problem, const Dataset& dataset,
                                              const data::TaskSource& source, int64_t tasks, std::vector<int64_t> steps,
                                              const TaskBatch& batch, const OnTasks& on_tasks = {});

/// As a table of Markdown, aligned.
std::string to_markdown(const Evaluation& evaluation);
nlohmann::ordered_json to_json(const Evaluation& evaluation);

/// The accuracy, or else the loss, by adaptation step, with its interval.
Figure adaptation_figure(const Evaluation& evaluation);

/// A few held-out sine waves to look at: the curve, the support points, and what the network says after each of
/// `steps`, ascending; where it diverges, there is a gap. Nothing for other data sets.
std::optional<Figure> adaptation_figure(const Bilevel& problem, const Dataset& dataset,
                                        const std::vector<int64_t>& steps);

/// Evaluates as the settings eval_tasks, eval_steps and quiet say. Nothing if it was `interrupted()`.
std::optional<Report> report_adaptation(const Bilevel& problem, const Dataset& dataset, const Config& config,
                                        const TaskBatch& batch);

}  // namespace gimli::app
