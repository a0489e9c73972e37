#include "app/experiments/learned_loss.h"

#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adam.h>

#include <array>
#include <cmath>
#include <map>
#include <set>

#include "app/evaluation.h"
#include "app/interrupt.h"
#include "app/progress.h"
#include "app/table.h"
#include "app/task_queue.h"
#include "gimli/hypergradient.h"
#include "gimli/optim/rules/sgd.h"
#include "gimli/tensor_list.h"

namespace gimli::app {
namespace {

using Integers = std::vector<int64_t>;

// clang-format off
Schema make_schema() {
  auto schema = few_shot_schema(/*queries=*/{integer(50), integer(5)}, {
      // key, group, help,                                                sinusoid           omniglot
      {"loss_hidden", "Learned loss", "Widths of the loss network's hidden layers",
                                                                         {Integers{50, 50}}, true, 1},
      {"inner_steps", "Inner loop", "Steps with the learned loss, from new weights",
                                                                         {integer(30),       integer(10)}, true, 1},
      {"inner_lr", "Inner loop", "Their learning rate",                  {0.05,              0.1}, true, 0},
      {"multi_step", "Outer loop", "The plain loss after every inner step, and not after the last alone",
                                                                         {true}},
      {"iterations", "Outer loop", "Steps of the outer Adam",            {integer(10000)}, false, 0},
      {"tasks", "Outer loop", "Tasks in an iteration",                   {integer(4)}, true, 1},
      {"outer_lr", "Outer loop", "Learning rate of the outer Adam",      {1e-3}, true, 0},
      {"outer_clip", "Outer loop", "The greatest norm of a hypergradient, to which longer ones are scaled",
                                                                         {1.0}, true, 1e-9},
      {"eval_tasks", "Evaluation", "Held-out tasks",                     {integer(600)}, false, 1},
      {"eval_steps", "Evaluation", "Numbers of training steps to evaluate after, besides none and inner_steps",
                                                                         {Integers{1, 5, 10, 20, 50, 100}, Integers{1, 5, 20, 50}}, false, 1},
      {"validation_tasks", "Evaluation", "Tasks to choose the plain loss's best rate by",
                                                                         {integer(200)}, false, 1},
      {"rate_powers", "Evaluation", "It is chosen from inner_lr times 2 to the power of each of these",
                                                                         {Integers{-4, -3, -2, -1, 0, 1, 2, 3}}, false, -30, {}, 30},
  });
  for (auto& setting : run_settings(200)) schema.settings.push_back(std::move(setting));
  return schema;
}
// clang-format on

/// What random numbers are for.
enum Stream : uint64_t { kLossNetwork, kTrainingWeights };

/// Classes of Omniglot that are set aside to choose a rate by.
constexpr int64_t kValidationClasses = 50;

bool are_classes(const at::Tensor& targets) { return !targets.is_floating_point(); }

LossNetwork make_loss_network(const Config& config) {
  const RandomStream stream(fork_seed(config.integer("seed"), kLossNetwork));
  return LossNetwork(config.integers("loss_hidden"));
}

Loss plain_loss() {
  return [](const at::Tensor& outputs, const at::Tensor& targets) {
    return are_classes(targets) ? torch::nn::functional::cross_entropy(outputs, targets)
                                : torch::nn::functional::mse_loss(outputs, targets);
  };
}

/// Something that is compared after a number of steps.
struct Measure {
  std::string name, key;
  double sign;  ///< -1 if less is better
  double scale;
  int digits;
  std::function<const Estimate&(const StepEvaluation&)> of;

  /// Whether `a` is better than `b`; what has diverged is the worst.
  bool is_better(const StepEvaluation& a, const StepEvaluation& b) const {
    const auto x = of(a).mean, y = of(b).mean;
    if (std::isnan(x) || std::isnan(y)) return !std::isnan(x);
    return sign * x > sign * y;
  }
};

/// What the loss is learned for, and then the accuracy of classification.
std::vector<Measure> measures(bool classifies) {
  std::vector<Measure> list{{classifies ? "cross-entropy" : "squared error", "loss", -1, 1, 4,
                             [](const StepEvaluation& step) -> const Estimate& { return step.loss; }}};
  if (classifies) {
    list.push_back({"accuracy (%)", "accuracy", 1, 100, 2,
                    [](const StepEvaluation& step) -> const Estimate& { return *step.accuracy; }});
  }
  return list;
}

/// The plain loss at the rate that is the best for this number of steps and one measure, on validation tasks.
struct Tuned {
  double rate;
  StepEvaluation evaluation;
};

/// The held-out tasks after a number of steps.
struct Comparison {
  StepEvaluation learned, plain;
  std::vector<Tuned> tuned;  ///< one a measure
};

using Comparisons = std::vector<Comparison>;

const char* const kMethods[] = {"learned loss", "plain loss, same rate", "plain loss, best rates"};

/// Of each of those methods, by the m-th measure.
std::array<Estimate, 3> scores(const Comparison& row, const Measure& measure, size_t m) {
  return {measure.of(row.learned), measure.of(row.plain), measure.of(row.tuned[m].evaluation)};
}

std::string table(const Comparisons& rows, const Measure& measure, size_t m) {
  std::vector<std::vector<std::string>> cells{{"steps"}};
  for (const auto* method : kMethods) cells[0].push_back(fmt::format("{}: {}", method, measure.name));
  cells[0].push_back("best rate");
  for (const auto& row : rows) {
    auto& line = cells.emplace_back(std::vector{std::to_string(row.learned.step)});
    for (const auto& score : scores(row, measure, m)) line.push_back(to_text(score, measure.digits, measure.scale));
    line.push_back(row.learned.step == 0 ? "-" : fmt::format("{:.4g}", row.tuned[m].rate));
  }
  return markdown_table(cells);
}

Panel panel(const Comparisons& rows, const Measure& measure, size_t m) {
  Panel result;
  result.x_label = "training steps";
  result.y_label = measure.name + " on query examples";
  for (const auto* method : kMethods) result.series.push_back(Series{method, Look::band});
  for (const auto& row : rows) {
    const auto values = scores(row, measure, m);
    for (size_t k = 0; k < values.size(); ++k) {
      const auto [mean, interval] = values[k];
      auto& series = result.series[k];
      series.x.push_back(static_cast<double>(row.learned.step));
      series.y.push_back(measure.scale * mean);
      series.low.push_back(measure.scale * (mean - interval));
      series.high.push_back(measure.scale * (mean + interval));
    }
  }
  return result;
}

/// l_phi beside the plain loss, for some targets, each less its least value.
Figure loss_figure(const LossNetwork& learned, bool classifies, at::Device device) {
  at::NoGradGuard no_grad;
  Figure figure{"learned-loss", 3, {}, /*shared_legend=*/true};
  const auto u = at::linspace(classifies ? -8 : -6, classifies ? 0 : 6, 201, at::TensorOptions(device));
  for (const double target : classifies ? std::vector<double>{1, 0} : std::vector<double>{-3, 0, 3}) {
    const auto t = at::full_like(u, target);
    const auto plain = classifies ? -t * u : (u - t).square();
    auto& panel = figure.panels.emplace_back();
    panel.title = classifies ? (target == 1 ? "right class" : "wrong class") : fmt::format("target {}", target);
    panel.x_label = classifies ? "log-probability" : "prediction";
    panel.y_label = "loss, less its least";
    const auto add = [&](const std::string& title, Look look, const at::Tensor& loss) {
      panel.series.push_back({title, look, to_vector(u), to_vector(loss - loss.min())});
    };
    add(classifies ? "cross-entropy" : "squared error", Look::truth, plain);
    add("learned loss", Look::line, learned.values(u, t));
  }
  return figure;
}

class LearnedLoss final : public Experiment {
 public:
  explicit LearnedLoss(const Config& config)
      : config_(config),
        dataset_(make_dataset(config, config.text("dataset") == "omniglot" ? kValidationClasses : 0)),
        measures_(measures(dataset_.classifies)),
        batch_(make_threads(config)),
        tasks_(dataset_, config.integer("tasks")),
        loss_network_(make_loss_network(config)) {
    TORCH_CHECK(!config.integers("rate_powers").empty(), "rate_powers: expected at least one");
    loss_network_.layers->to(dataset_.device);
    phi_ = loss_network_.parameters();
    adam_ = std::make_unique<torch::optim::Adam>(phi_.tensors, torch::optim::AdamOptions(config.number("outer_lr")));
    const auto steps = config.integer("inner_steps");
    for (auto step = config.flag("multi_step") ? 1 : steps; step <= steps; ++step) outer_steps_.push_back(step);
  }

  int64_t iterations() const override { return config_.integer("iterations"); }

  TrainingState state() override { return {phi_, {adam_.get()}}; }

  std::optional<Iteration> iterate(int64_t iteration) override {
    const auto tasks = tasks_.take(iteration);
    const auto seed = fork_seed(fork_seed(config_.integer("seed"), kTrainingWeights), iteration);
    const auto problem =
        from_new_weights(training_with(loss_network_, dataset_, config_.number("inner_lr")), dataset_, seed)
            .steps(config_.integer("inner_steps"))
            .outer_at(outer_steps_)
            .seed(seed);
    const auto result = hypergradient(problem, phi_.tensors, tasks, Unroll(), batch_);
    const auto count = static_cast<double>(outer_steps_.size());
    assign_gradients(phi_.tensors, divide(result.gradients, count));
    const auto norm = torch::nn::utils::clip_grad_norm_(phi_.tensors, config_.number("outer_clip"));
    adam_->step();

    Iteration done;
    done.metrics["outer_loss"] = result.outer_loss.item<double>() / count;
    if (dataset_.classifies) done.metrics["accuracy"] = at::stack(result.auxiliary).mean().item<double>();
    done.metrics["hypergradient_norm"] = norm;
    done.metrics["tasks_per_second"] = static_cast<double>(tasks.size()) / result.cost.seconds;
    return done;
  }

  std::optional<Report> report(const std::vector<nlohmann::json>&) override {
    const auto rows = compare();
    if (!rows) return std::nullopt;
    Report report;
    report_scores(*rows, report);
    report_claims(*rows, report);
    report.figures.push_back(loss_figure(loss_network_, dataset_.classifies, dataset_.device));
    return report;
  }

 private:
  /// Tasks and the weights to train on them, the same for every loss and rate.
  struct TestSet {
    std::string name;
    const data::TaskSource& source;
    int64_t tasks;
    uint64_t seed;  ///< of the weights
  };

  /// The steps to evaluate after, ascending.
  std::set<int64_t> steps() const {
    std::set<int64_t> steps{0, config_.integer("inner_steps")};
    for (const auto step : config_.integers("eval_steps")) steps.insert(step);
    return steps;
  }

  /// Nothing if interrupted.
  std::optional<Evaluation> evaluate(const Loss& loss, double lr, const TestSet& test) const {
    ProgressDisplay display(fmt::format("{} at rate {:.4g}", test.name, lr), 0, test.tasks, config_.flag("quiet"));
    const auto problem = training_with(loss, dataset_, lr);
    const auto evaluated = steps();
    return evaluate_adaptation(
        [&](int64_t task) { return from_new_weights(problem, dataset_, fork_seed(test.seed, task)); }, dataset_,
        test.source, test.tasks, {evaluated.begin(), evaluated.end()}, batch_,
        [&](int64_t done) {
          display.update(done);
          return !interrupted();
        });
  }

  /// Nothing if interrupted.
  std::optional<Comparisons> compare() const {
    const TestSet validation{"validating the plain loss", *dataset_.validation, config_.integer("validation_tasks"),
                             fork_seed(kHeldOutSeed, 1)};
    const TestSet test{"testing", *dataset_.held_out, config_.integer("eval_tasks"), kHeldOutSeed};
    const auto lr = config_.number("inner_lr");

    std::map<double, Evaluation> validated;
    for (const auto power : config_.integers("rate_powers")) {
      const auto rate = std::ldexp(lr, static_cast<int>(power));
      auto evaluation = evaluate(plain_loss(), rate, validation);
      if (!evaluation) return std::nullopt;
      validated.emplace(rate, std::move(*evaluation));
    }

    std::map<double, Evaluation> plain;  // on the held-out tasks, by rate
    const auto test_plain = [&](double rate) {
      if (plain.contains(rate)) return true;
      auto evaluation = evaluate(plain_loss(), rate, test);
      if (evaluation) plain.emplace(rate, std::move(*evaluation));
      return evaluation.has_value();
    };
    const auto learned = evaluate(loss_network_, lr, test);
    if (!learned || !test_plain(lr)) return std::nullopt;

    Comparisons rows;
    for (size_t s = 0; s < learned->steps.size(); ++s) {
      auto& row = rows.emplace_back(Comparison{learned->steps[s], plain.at(lr).steps[s], {}});
      for (const auto& measure : measures_) {
        auto rate = lr;
        if (learned->steps[s].step > 0) {
          rate = std::min_element(validated.begin(), validated.end(), [&](const auto& a, const auto& b) {
                   return measure.is_better(a.second.steps[s], b.second.steps[s]);
                 })->first;
        }
        if (!test_plain(rate)) return std::nullopt;
        row.tuned.push_back({rate, plain.at(rate).steps[s]});
      }
    }
    return rows;
  }

  void report_scores(const Comparisons& rows, Report& report) const {
    Figure figure{"scores", static_cast<int64_t>(measures_.size()), {}, /*shared_legend=*/true};
    for (size_t m = 0; m < measures_.size(); ++m) {
      report.markdown += (m > 0 ? "\n" : "") + table(rows, measures_[m], m);
      figure.panels.push_back(panel(rows, measures_[m], m));
    }
    report.figures.push_back(std::move(figure));

    const auto& powers = config_.integers("rate_powers");
    const auto [least, greatest] = std::minmax_element(powers.begin(), powers.end());
    const auto lr = config_.number("inner_lr");
    report.markdown += fmt::format(
        "\nMean and 95 % interval over the query examples of {} held-out tasks, each from new weights, the same for "
        "every column. The loss was learned with {} steps at rate {:.4g}, at which it is tested too. The plain loss's "
        "best rate is chosen for each number of steps and each table, on {} validation tasks, out of {} from {:.4g} to "
        "{:.4g}.\n\n",
        config_.integer("eval_tasks"), config_.integer("inner_steps"), lr, config_.integer("validation_tasks"),
        powers.size(), std::ldexp(lr, static_cast<int>(*least)), std::ldexp(lr, static_cast<int>(*greatest)));

    report.numbers["tasks"] = config_.integer("eval_tasks");
    for (const auto& row : rows) {
      auto& step = report.numbers["steps"].emplace_back(nlohmann::ordered_json{{"step", row.learned.step}});
      for (size_t m = 0; m < measures_.size(); ++m) {
        const auto& measure = measures_[m];
        step["learned"][measure.key] = to_json(measure.of(row.learned));
        step["plain"][measure.key] = to_json(measure.of(row.plain));
        step["tuned"][measure.key] = to_json(measure.of(row.tuned[m].evaluation));
        step["tuned"][measure.key]["rate"] = row.tuned[m].rate;
      }
    }
  }

  void report_claims(const Comparisons& rows, Report& report) const {
    const auto& measure = measures_.front();
    for (const auto& row : rows) {
      const auto step = row.learned.step;
      if (step != config_.integer("inner_steps") && step != rows.back().learned.step) continue;
      const auto claim = [&](const char* baseline, const StepEvaluation& other) {
        report.claim(fmt::format("after {} steps, a lower {} than the plain loss at {}", step, measure.name, baseline),
                     measure.of(row.learned).mean, measure.of(other).mean, measure.is_better(row.learned, other));
      };
      claim("the same rate", row.plain);
      claim("its best rate", row.tuned.front().evaluation);
    }
  }

  Config config_;
  Dataset dataset_;
  std::vector<Measure> measures_;
  Threads batch_;
  TaskQueue tasks_;
  LossNetwork loss_network_;
  NamedTensors phi_;
  std::unique_ptr<torch::optim::Adam> adam_;
  Integers outer_steps_;
};

}  // namespace

ExperimentEntry learned_loss() {
  return {"learned-loss", "A loss network that trains new networks on new tasks, against the plain loss (ML3)",
          make_schema(), [](const Config& config) { return std::make_unique<LearnedLoss>(config); }};
}

LossNetwork::LossNetwork(const std::vector<int64_t>& hidden) {
  int64_t inputs = 2;
  for (const auto width : hidden) {
    layers->push_back(torch::nn::Linear(inputs, width));
    layers->push_back(torch::nn::Softplus());
    inputs = width;
  }
  layers->push_back(torch::nn::Linear(inputs, 1));
  layers->push_back(torch::nn::Softplus());
}

at::Tensor LossNetwork::values(const at::Tensor& outputs, const at::Tensor& targets) const {
  auto network = layers;  // a handle: forward is not const
  return network->forward(at::stack({outputs, targets}, -1)).squeeze(-1);
}

at::Tensor LossNetwork::operator()(const at::Tensor& outputs, const at::Tensor& targets) const {
  const auto l = are_classes(targets)
                     ? values(at::log_softmax(outputs, 1), at::one_hot(targets, outputs.size(1)).to(outputs.dtype()))
                     : values(outputs, targets);
  return l.sum(1).mean();
}

NamedTensors LossNetwork::parameters() const { return ModelTensors(layers).parameters; }

Bilevel training_with(Loss loss, const Dataset& dataset, double lr) {
  const auto& module = dataset.network.module;
  return Bilevel(module, optim::Optimizer(optim::SGD(lr), module->parameters()))
      .inner([loss = std::move(loss), &dataset](const data::Task& task) {
        return loss(dataset.network.forward(task.support.data, 0), task.support.target);
      })
      .outer([&dataset](const data::Task& task) { return dataset.score(task.query); });
}

Bilevel from_new_weights(Bilevel problem, const Dataset& dataset, uint64_t seed) {
  const RandomStream stream(seed);
  const auto network = dataset.new_network();
  network.module->to(dataset.device);
  auto state = problem.start(Graph::none).state();
  state.parameters = ModelTensors(network.module).parameters.tensors;
  problem.start_from(std::move(state));
  return problem;
}

}  // namespace gimli::app
