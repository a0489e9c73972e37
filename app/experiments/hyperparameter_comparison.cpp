#include "app/experiments/hyperparameter_comparison.h"

#include <algorithm>
#include <cmath>

#include "app/evaluation.h"
#include "app/interrupt.h"

namespace gimli::app {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Scores train_and_score(const Repetition& repetition, const Recipe& recipe) {
  const auto problem = repetition.problem(recipe);
  at::NoGradGuard no_grad;
  try {
    auto loop = problem.start(Graph::none);
    for (int64_t step = 0; step < problem.steps(); ++step) problem.step(loop, {});
    const auto measure = [&](const LabelledImages& images) {
      return loop.run([&] {
        const auto value = score(repetition.network, images);
        return std::make_pair(value.loss, value.auxiliary);
      });
    };
    const auto validation = measure(repetition.parts.validation), test = measure(repetition.parts.test);
    return {validation.first.item<double>(), validation.second.item<double>(), test.first.item<double>(),
            test.second.item<double>()};
  } catch (const c10::Error& error) {
    if (!diverged(error)) throw;
  }
  return {kNaN, kNaN, kNaN, kNaN};
}

at::Tensor logarithm(double value) { return at::full({}, std::log(value), at::kDouble); }

/// 10^(first / 3), ..., 10^(last / 3).
std::vector<double> thirds_of_decades(int first, int last) {
  std::vector<double> values;
  for (int k = first; k <= last; ++k) values.push_back(std::pow(10., k / 3.));
  return values;
}

Contender one_rate_of_a_grid(const std::string& name, const Recipe& recipe) {
  Contender contender{name, {}};
  for (const auto rate : thirds_of_decades(-12, 3)) {
    contender.grid.push_back({recipe, rate});
    contender.grid.back().recipe.log_rate = logarithm(rate);
  }
  return contender;
}

Contender one_factor_of_a_grid(const std::string& name, const Recipe& recipe) {
  Contender contender{name, {}};
  for (const auto factor : thirds_of_decades(-15, 0)) {
    contender.grid.push_back({recipe, factor});
    contender.grid.back().recipe.log_penalties = {logarithm(factor)};
  }
  return contender;
}

/// The same training on other examples.
Recipe on(const LabelledImages& examples, Recipe recipe) {
  recipe.examples = examples;
  return recipe;
}

LabelledImages where(const at::Tensor& mask, const LabelledImages& images) {
  return images.at(mask.nonzero().squeeze(1));
}

Contenders compare_rate(const Repetition& r, const Config& config) {
  return {{"rate where learning begins", {{r.start, config.number("lr")}}},
          one_rate_of_a_grid("best rate of the grid", r.start),
          {"learned rate", {{r.recipe, r.recipe.log_rate.exp().item<double>()}}}};
}

Contenders compare_step_rates(const Repetition& r, const Config& config) {
  return {{"one rate, where learning begins", {{r.start, config.number("lr")}}},
          one_rate_of_a_grid("one rate, best of the grid", r.start),
          {"a learned rate for each step", {{r.recipe}}}};
}

Contenders compare_weight_decay(const Repetition& r, const Config& config) {
  return {{"factor where learning begins", {{r.start, config.number("weight_decay")}}},
          one_factor_of_a_grid("best factor of the grid", r.start),
          {"learned factor", {{r.recipe, r.recipe.log_penalties[0].exp().item<double>()}}}};
}

Contenders compare_l2(const Repetition& r, const Config& config) {
  return {{"one factor, where learning begins", {{r.start, config.number("weight_decay")}}},
          {"one factor, on validation images too", {{on(r.parts.training.and_those_of(r.parts.validation), r.start)}}},
          one_factor_of_a_grid("one factor, best of the grid", r.start),
          {"a learned factor for each parameter", {{r.recipe}}}};
}

Contenders compare_data_weights(const Repetition& r, const Config&) {
  const auto& [training, validation, test] = r.parts;
  const auto kept = where(r.recipe.weight_logits.detach().ge(0), training);
  const auto clean = where(r.is_corrupted.to(training.labels.device()).logical_not(), training);
  return {{"validation images alone", {{on(validation, r.start)}}},
          {"all and validation images", {{on(training.and_those_of(validation), r.start)}}},
          {"kept and validation images", {{on(kept.and_those_of(validation), r.start)}}},
          one_factor_of_a_grid("clean ones alone (oracle)", on(clean, r.start)),
          one_factor_of_a_grid("all, equal weights", r.start),
          {"all, learned weights", {{r.recipe}}}};
}

Contenders compare_distillation(const Repetition& r, const Config&) {
  return {one_rate_of_a_grid("all training images", r.start),
          one_rate_of_a_grid("as many real images", on(r.real, r.start)),
          {"learned images", {{r.recipe, r.recipe.log_rate.exp().item<double>()}}}};
}

}  // namespace

Contenders contenders_of(const Repetition& repetition, const Config& config) {
  struct Row {
    std::string name;
    Contenders (*compare)(const Repetition& repetition, const Config& config);
  };
  static const std::vector<Row> rows{{"learning-rate", compare_rate},        {"step-rates", compare_step_rates},
                                     {"weight-decay", compare_weight_decay}, {"l2", compare_l2},
                                     {"data-weights", compare_data_weights}, {"distillation", compare_distillation}};
  const auto row =
      std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return r.name == config.text("hyperparameter"); });
  return row->compare(repetition, config);
}

Outcome outcome_of(const Repetition& repetition, const Contender& contender) {
  Outcome outcome;
  for (const auto& candidate : contender.grid) {
    if (interrupted()) break;
    outcome.grid.push_back(train_and_score(repetition, candidate.recipe));
    const auto loss = outcome.grid.back()[kValidationLoss], best = outcome.grid[outcome.best][kValidationLoss];
    if (loss < best || std::isnan(best)) outcome.best = outcome.grid.size() - 1;
  }
  return outcome;
}

}  // namespace gimli::app
