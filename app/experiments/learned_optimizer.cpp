#include "app/experiments/learned_optimizer.h"

#include <fmt/format.h>
#include <torch/optim/adam.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "app/dataset.h"
#include "app/estimate.h"
#include "app/inner_optimizer.h"
#include "app/interrupt.h"
#include "app/progress.h"
#include "app/table.h"
#include "gimli/data/idx.h"
#include "gimli/hypergradient.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/optim/rules/lstm_optimizer.h"
#include "gimli/tensor_list.h"

namespace gimli::app {
namespace {

using Texts = std::vector<std::string>;

// clang-format off
Schema make_schema() {
  Schema schema{{"quadratic", "fashion-mnist"}, {
      {"dataset", "Problems", "Random quadratics, or perceptrons on photographs of clothes",
                                                                         {text("quadratic"), text("fashion-mnist")}, true, 0,
                                                                         {"quadratic", "fashion-mnist"}},
      // key, group, help,                                                quadratic           fashion-mnist
      {"dimensions", "Problems", "Coordinates of a quadratic",           {integer(10),       kNone}, true, 1},
      {"data_root", "Problems", "Folder with Fashion-MNIST's files, or with a folder fashion-mnist that has them",
                                                                         {kNone,             text(data::kFashionMnistRoot)}, false},
      {"image_size", "Problems", "Images are averaged down to so many pixels a side",
                                                                         {kNone,             integer(28)}, true, 1},
      {"units", "Problems", "Hidden units of a perceptron",              {kNone,             integer(20)}, true, 1},
      {"batch", "Problems", "Images that a step sees",                   {kNone,             integer(128)}, true, 1},
      {"layers", "Learned optimizer", "Layers of the LSTM",              {integer(2)}, true, 1},
      {"hidden_size", "Learned optimizer", "Units in each of them",      {integer(20)}, true, 1},
      {"scale", "Learned optimizer", "What its output is multiplied by", {0.1}, true, 0},
      {"iterations", "Meta-training", "Batches of problems",             {integer(10000)}, true, 0},
      {"tasks", "Meta-training", "Problems in a batch",                  {integer(128),      integer(1)}, true, 1},
      {"horizon", "Meta-training", "Steps on each problem",              {integer(100)}, true, 1},
      {"unroll", "Meta-training", "Steps from one meta-update to the next", {integer(20)}, true, 1},
      {"outer_lr", "Meta-training", "Learning rate of the outer Adam",   {1e-3}, true, 0},
      {"anneal", "Meta-training", "Lower that rate to 0 by a cosine over the iterations", {false}},
      {"strategy", "Meta-training", "first-order: the problems' gradients as constants, as in the source; unroll: exact; "
                                    "replay: exact, in less memory and more time",
                                                                         {text("first-order")}, true, 0,
                                                                         {"first-order", "unroll", "replay"}},
      {"baselines", "Evaluation", "Optimizers to compare with; momentum is SGD with momentum 0.9",
                                                                         {Texts{"sgd", "momentum", "adam"}}, false, 0,
                                                                         inner_optimizer_names()},
      {"rates", "Evaluation", "Rates that each of them is tried with",   {integer(13)}, false, 1},
      {"lowest_rate", "Evaluation", "The lowest",                        {1e-4,              1e-3}, false, 1e-12},
      {"highest_rate", "Evaluation", "The highest",                      {1.0,               10.0}, false, 1e-12},
      {"validation_tasks", "Evaluation", "Problems to choose the rates by", {integer(100),   integer(10)}, false, 1},
      {"eval_tasks", "Evaluation", "Held-out problems",                  {integer(500),      integer(20)}, false, 2},
      {"eval_horizon", "Evaluation", "Steps on each of them",            {integer(500),      integer(300)}, false, 1},
  }};
  for (auto& setting : run_settings(100)) schema.settings.push_back(std::move(setting));
  return schema;
}
// clang-format on

/// What random numbers are for, besides the problems.
enum Stream : uint64_t { kWeights };

std::unique_ptr<const Strategy> make_strategy(const std::string& name) {
  if (name == "replay") return std::make_unique<const Replay>();
  return std::make_unique<const Unroll>(name == "unroll" ? Unroll() : Unroll::first_order());
}

/// An optimizer to be tried on optimizees.
struct Candidate {
  std::string name;
  std::optional<double> rate;  ///< of those designed by hand
  std::function<optim::Optimizer(TensorList)> make;
};

Candidate baseline(const std::string& name, double rate) {
  return {name, rate, [=](TensorList parameters) { return make_inner_optimizer(name, rate, std::move(parameters)); }};
}

std::vector<double> column(const at::Tensor& losses, int64_t step) { return to_vector(losses.select(1, step)); }

/// An optimizer on the held-out problems.
struct Trial {
  Candidate optimizer;
  at::Tensor losses;  ///< [problems, steps + 1]

  Estimate after(int64_t step) const { return estimate(column(losses, step)); }
};

/// How one baseline's rate was chosen.
struct Choice {
  size_t best = 0;             ///< a place in the grid
  std::vector<double> losses;  ///< of each rate, the mean over the validation problems
};

/// The mean loss by step, with its interval, and where training ended.
Figure losses_figure(const std::vector<Trial>& trials, int64_t horizon) {
  Figure figure{"losses", 1};
  auto& panel = figure.panels.emplace_back();
  panel.x_label = "step";
  panel.y_label = "loss on held-out problems";
  panel.log_y = true;
  double least = std::numeric_limits<double>::infinity(), greatest = 0;
  for (const auto& trial : trials) {
    auto& series = panel.series.emplace_back(Series{trial.optimizer.name, Look::band});
    for (int64_t step = 0; step < trial.losses.size(1); ++step) {
      const auto [mean, interval] = trial.after(step);
      series.x.push_back(static_cast<double>(step));
      series.y.push_back(mean);
      series.low.push_back(mean - interval);
      series.high.push_back(mean + interval);
      if (mean > 0) least = std::min(least, mean);
      if (std::isfinite(mean)) greatest = std::max(greatest, mean);
    }
  }
  const auto end = static_cast<double>(horizon);
  panel.series.push_back({.title = "end of the training horizon",
                          .look = Look::dashed,
                          .x = {end, end},
                          .y = {least, greatest},
                          .color = kBlack});
  return figure;
}

class LearnedOptimizer final : public Experiment {
 public:
  explicit LearnedOptimizer(const Config& config)
      : config_(config),
        rates_(rate_grid(config.number("lowest_rate"), config.number("highest_rate"), config.integer("rates"))),
        problems_(make_optimizees(config)),
        batch_(make_threads(config)),
        strategy_(make_strategy(config.text("strategy"))) {
    TORCH_CHECK(config.integer("eval_horizon") >= config.integer("horizon"), "eval_horizon: expected at least ",
                config.integer("horizon"), ", the horizon of training, got ", config.integer("eval_horizon"));
    const auto& baselines = config.texts("baselines");
    TORCH_CHECK(!baselines.empty(), "baselines: expected at least one");
    TORCH_CHECK(std::set<std::string>(baselines.begin(), baselines.end()).size() == baselines.size(),
                "baselines: expected each one once");
    torch::manual_seed(fork_seed(config.integer("seed"), kWeights));
    rule_.emplace(optim::LSTMOptimizerOptions(config.number("scale"))
                      .layers(config.integer("layers"))
                      .hidden_size(config.integer("hidden_size")));
    rule_->network()->to(parse_device(config.text("device")));
    adam_ =
        std::make_unique<torch::optim::Adam>(rule_->parameters(), torch::optim::AdamOptions(config.number("outer_lr")));
  }

  int64_t iterations() const override { return config_.integer("iterations"); }

  TrainingState state() override { return {ModelTensors(rule_->network()).parameters, {adam_.get()}}; }

  std::optional<Iteration> iterate(int64_t iteration) override {
    const auto tasks = config_.integer("tasks"), horizon = config_.integer("horizon"),
               unroll = config_.integer("unroll");
    if (config_.flag("anneal")) {
      const auto part = static_cast<double>(iteration) / static_cast<double>(iterations());
      const auto rate = config_.number("outer_lr") * (1 + std::cos(M_PI * part)) / 2;
      for (auto& group : adam_->param_groups()) group.options().set_lr(rate);
    }
    const auto began = Clock::now();
    const auto optimizees = problems_.training->draw(iteration * tasks, tasks);
    std::vector<std::optional<InnerState>> states(optimizees.size());
    double sum = 0, last = 0;
    for (int64_t begin = 0; begin < horizon; begin += unroll) {
      const auto steps = std::min(unroll, horizon - begin);
      const auto results = update(optimizees, states, begin, steps);
      sum += static_cast<double>(steps) * mean(results, [](const Result& r) { return r.outer_loss; });
      last = mean(results, [](const Result& r) { return r.auxiliary[0]; });
    }
    Iteration done;
    done.metrics["outer_loss"] = sum / static_cast<double>(horizon);
    done.metrics["final_loss"] = last;
    done.metrics["tasks_per_second"] =
        static_cast<double>(tasks) / std::chrono::duration<double>(Clock::now() - began).count();
    return done;
  }

  std::optional<Report> report(const std::vector<nlohmann::json>&) override;

 private:
  using Clock = std::chrono::steady_clock;

  template <class Of>
  static double mean(const std::vector<Result>& results, Of of) {
    double sum = 0;
    for (const auto& result : results) sum += of(result).template item<double>();
    return sum / static_cast<double>(results.size());
  }

  optim::Optimizer learned(TensorList parameters) const { return optim::Optimizer(*rule_, std::move(parameters)); }

  /// The meta-update of a segment that goes on from `states`, which are then those at its end.
  std::vector<Result> update(const std::vector<Optimizee>& optimizees, std::vector<std::optional<InnerState>>& states,
                             int64_t begin, int64_t steps) {
    const auto phi = rule_->parameters();
    const auto count = static_cast<int64_t>(optimizees.size());
    std::vector<Result> results(count);
    batch_.run(count, [&](int64_t i) {
      auto problem = segment(optimizees[i], learned(optimizees[i].module->parameters()), begin, steps);
      if (states[i]) problem.start_from(*states[i]);
      results[i] = hypergradient(problem, phi, {}, *strategy_);
      states[i] = std::move(results[i].final_states[0]);
    });
    auto gradients = results[0].gradients;
    for (int64_t i = 1; i < count; ++i) gradients = sum(std::move(gradients), results[i].gradients);
    assign_gradients(phi, divide(std::move(gradients), static_cast<double>(count)));
    adam_->step();
    return results;
  }

  /// What each candidate does to the optimizees: losses [problems, steps + 1]. Nothing if interrupted.
  std::optional<std::vector<at::Tensor>> run(const std::vector<Candidate>& candidates,
                                             const std::vector<Optimizee>& optimizees, int64_t steps) const {
    const auto parts = static_cast<int64_t>(optimizees.size()), count = static_cast<int64_t>(candidates.size()) * parts;
    std::vector<std::optional<at::Tensor>> losses(count);
    batch_.run(count, [&](int64_t i) {
      const auto& optimizee = optimizees[i % parts];
      losses[i] = losses_of(optimizee, candidates[i / parts].make(optimizee.module->parameters()), steps,
                            [] { return !interrupted(); });
    });
    std::vector<at::Tensor> result;
    for (int64_t i = 0; i < count; i += parts) {
      TensorList each;
      for (auto k = i; k < i + parts; ++k) {
        if (!losses[k]) return std::nullopt;
        each.push_back(*losses[k]);
      }
      result.push_back(at::cat(each));
    }
    return result;
  }

  /// Nothing if interrupted.
  std::optional<Choice> choose_rate(const std::string& name, const std::vector<Optimizee>& validation) const {
    const auto horizon = config_.integer("horizon");
    std::vector<Candidate> candidates;
    for (const auto rate : rates_) candidates.push_back(baseline(name, rate));
    const auto losses = run(candidates, validation, horizon);
    if (!losses) return std::nullopt;
    Choice choice;
    for (const auto& of_rate : *losses) choice.losses.push_back(estimate(column(of_rate, horizon)).mean);
    for (size_t k = 1; k < rates_.size(); ++k) {
      const auto best = choice.losses[choice.best];
      if (choice.losses[k] < best || !std::isfinite(best)) choice.best = k;
    }
    return choice;
  }

  Config config_;
  std::vector<double> rates_;
  OptimizeeSplits problems_;
  Threads batch_;
  std::unique_ptr<const Strategy> strategy_;
  std::optional<optim::LSTMOptimizer> rule_;
  std::unique_ptr<torch::optim::Adam> adam_;
};

std::optional<Report> LearnedOptimizer::report(const std::vector<nlohmann::json>&) {
  const auto horizon = config_.integer("horizon"), last = config_.integer("eval_horizon");
  const auto& baselines = config_.texts("baselines");
  ProgressDisplay display("evaluating", 0, static_cast<int64_t>(2 * baselines.size() + 1), config_.flag("quiet"));
  int64_t done = 0;

  Report report;
  std::vector<Candidate> candidates{
      {"learned", std::nullopt, [this](TensorList parameters) { return learned(std::move(parameters)); }}};
  std::string at_the_end;
  const auto validation = problems_.validation->draw(0, config_.integer("validation_tasks"));
  for (const auto& name : baselines) {
    const auto choice = choose_rate(name, validation);
    if (!choice) return std::nullopt;
    display.update(++done);
    candidates.push_back(baseline(name, rates_[choice->best]));
    report.numbers["validation"][name] = {{"rates", rates_}, {"losses", choice->losses}};
    if (choice->best == 0 || choice->best + 1 == rates_.size()) {
      at_the_end += fmt::format("The best rate of {} is at the end of the grid.\n", name);
    }
  }

  std::vector<Trial> trials;
  const auto held_out = problems_.held_out->draw(0, config_.integer("eval_tasks"));
  for (const auto& candidate : candidates) {
    const auto losses = run({candidate}, held_out, last);
    if (!losses) return std::nullopt;
    display.update(++done);
    trials.push_back({candidate, losses->front()});
  }

  std::set<int64_t> steps{horizon, last};
  if (2 * horizon < last) steps.insert(2 * horizon);
  std::vector<std::vector<std::string>> table{{"optimizer", "rate"}};
  for (const auto step : steps) table[0].push_back(fmt::format("loss after {} steps", step));
  for (const auto& trial : trials) {
    const auto& [name, rate, make] = trial.optimizer;
    table.push_back({name, rate ? fmt::format("{:.3g}", *rate) : "none"});
    auto& numbers = report.numbers["optimizers"][name];
    if (rate) numbers["rate"] = *rate;
    for (const auto step : steps) {
      table.back().push_back(to_text(trial.after(step), 4));
      numbers["losses"][std::to_string(step)] = to_json(trial.after(step));
    }
  }
  report.markdown =
      markdown_table(table) +
      fmt::format(
          "\nMean and 95 % interval over {} held-out problems, the same for all. Training had {} steps a problem. Each "
          "baseline has the rate, of {} from {:.3g} to {:.3g}, with the least mean loss after {} steps on {} "
          "validation problems. A loss counts as lower if the 95 % interval of the difference is below 0.\n{}\n",
          config_.integer("eval_tasks"), horizon, rates_.size(), rates_.front(), rates_.back(), horizon,
          config_.integer("validation_tasks"), at_the_end);

  for (const auto step : steps) {
    const auto best = std::min_element(trials.begin() + 1, trials.end(), [&](const Trial& a, const Trial& b) {
      return a.after(step).mean < b.after(step).mean;
    });
    const auto difference = estimate(column(trials[0].losses - best->losses, step));
    report.claim(fmt::format("after {} steps, a lower loss than {}, the best baseline", step, best->optimizer.name),
                 trials[0].after(step).mean, best->after(step).mean, difference.mean + difference.interval < 0);
  }
  report.figures.push_back(losses_figure(trials, horizon));
  return report;
}

}  // namespace

ExperimentEntry learned_optimizer() {
  return {"learned-optimizer",
          "An LSTM learned as an optimizer, against tuned SGD, momentum and Adam, beyond its horizon", make_schema(),
          [](const Config& config) { return std::make_unique<LearnedOptimizer>(config); }};
}

Bilevel segment(const Optimizee& optimizee, optim::Optimizer optimizer, int64_t begin, int64_t steps) {
  std::vector<int64_t> after(steps);
  std::iota(after.begin(), after.end(), 1);
  return Bilevel(optimizee.module, std::move(optimizer))
      .steps(steps)
      .inner([=, losses = optimizee.losses](int64_t step) { return losses(begin + step).sum(); })
      .outer([=, losses = optimizee.losses](int64_t step) {
        const auto mean = losses(begin + step).mean();
        return OuterValue(mean / static_cast<double>(steps), mean);
      })
      .outer_at(after)
      .keep_final_states(true);
}

std::optional<at::Tensor> losses_of(const Optimizee& optimizee, const optim::Optimizer& optimizer, int64_t steps,
                                    const std::function<bool()>& go_on) {
  InnerLoop loop(optimizee.module, optimizer, InnerLoopOptions().graph(Graph::none));
  TensorList losses;
  for (int64_t step = 0;; ++step) {
    if (!go_on()) return std::nullopt;
    at::AutoGradMode with_gradient(true);
    const auto now = loop.run([&] { return optimizee.losses(step); });
    losses.push_back(now.detach());
    if (step == steps) return at::stack(losses, 1).to(at::kCPU, at::kDouble);
    loop.step(at::where(now.isfinite(), now, 0).sum(at::kDouble));
  }
}

std::vector<double> rate_grid(double lowest, double highest, int64_t count) {
  TORCH_CHECK(lowest <= highest, "lowest_rate: expected at most ", highest, ", the highest_rate, got ", lowest);
  std::vector<double> rates{lowest};
  for (int64_t k = 1; k < count; ++k) {
    rates.push_back(lowest * std::pow(highest / lowest, static_cast<double>(k) / static_cast<double>(count - 1)));
  }
  return rates;
}

}  // namespace gimli::app
