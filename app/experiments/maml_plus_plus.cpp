#include "app/experiments/maml_plus_plus.h"

#include <fmt/format.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/optim/adam.h>

#include <map>
#include <numeric>

#include "app/evaluation.h"
#include "app/inner_optimizer.h"
#include "app/interrupt.h"
#include "app/progress.h"
#include "app/published.h"
#include "app/table.h"
#include "app/task_queue.h"
#include "gimli/hypergradient.h"
#include "gimli/nn/step_norm.h"
#include "gimli/optim/learned_hyperparameters.h"
#include "gimli/optim/schedule.h"
#include "gimli/tensor_list.h"

namespace gimli::app {
namespace {

// clang-format off
Schema make_schema() {
  Schema schema{{"omniglot", "mini-imagenet"}, {
      {"dataset", "Data", "Handwritten characters, or photographs", {text("omniglot"), text("mini-imagenet")}, true, 0,
                                                                    {"omniglot", "mini-imagenet"}},
      // key, group, help,                                           omniglot           mini-imagenet
      {"data_root", "Data", "Folder with the data set, or with a folder of its name that has it",
                                                                    {text("data")}, false},
      {"ways", "Data", "Classes in a task",                         {integer(5)}, true, 2},
      {"shots", "Data", "Support examples of a task, for each class", {integer(1)}, true, 1},
      {"queries", "Data", "Query examples of a task, for each class", {integer(1),      integer(15)}, true, 1},
      {"model", "Data", "The network",                              {text("vgg")}, true, 0, network_names()},
      {"hidden", "Data", "Width of vgg and conv4",                  {integer(64),       integer(48)}, true, 1},
      {"per_step_norm", "Data", "A normalization for each inner step, as MAML++ proposes; of vgg", {false}},
      {"inner_steps", "Inner loop", "Steps of adaptation to a task", {integer(5)}, true, 1},
      {"inner_optimizer", "Inner loop", "Optimizer of the adaptation", {text("sgd")}, true, 0, {"sgd", "adam"}},
      {"inner_lr", "Inner loop", "Learning rate of the adaptation, where learning it begins",
                                                                    {0.1,               0.01}, true, 0},
      {"learn_rates", "Inner loop", "Learn rates (sgd: per tensor and step; adam: rates and betas per tensor)", {true}},
      {"adapt_norm", "Inner loop", "Adapt the weights and biases of normalizations too", {false}},
      {"multi_step_epochs", "Outer loop", "Epochs until only the loss after the last step counts; 0: from the start",
                                                                    {integer(10),       integer(15)}, true, 0},
      {"first_order_epochs", "Outer loop", "Epochs with first-order derivatives at the beginning", {integer(0)}, true, 0},
      {"epochs", "Outer loop", "Each is followed by an evaluation on validation classes", {integer(100)}, true, 1},
      {"epoch_iterations", "Outer loop", "Steps of the outer Adam in an epoch", {integer(500)}, true, 1},
      {"tasks", "Outer loop", "Tasks in an iteration (meta-batch size)", {integer(8),   integer(2)}, true, 1},
      {"outer_lr", "Outer loop", "Learning rate of the outer Adam in the first epoch", {1e-3}, true, 0},
      {"outer_lr_end", "Outer loop", "Where its cosine ends after the last epoch", {1e-5}, true, 0},
      {"outer_clip", "Outer loop", "Largest magnitude of an element of the outer gradient; 0: any",
                                                                    {0.0,               10.0}, true, 0},
      {"validation_classes", "Evaluation", "Training classes to set aside", {integer(50), kNone}, true, 1},
      {"validation_tasks", "Evaluation", "Validation tasks after each epoch", {integer(600)}, true, 1},
      {"best_epochs", "Evaluation", "Epochs whose networks vote at the end", {integer(5)}, true, 1},
      {"eval_tasks", "Evaluation", "Test tasks",                    {integer(600)}, false, 1},
  }};
  for (auto& setting : run_settings(100)) schema.settings.push_back(std::move(setting));
  return schema;
}
// clang-format on

/// The parameters that an inner loop adapts.
TensorList adapted_parameters(const torch::nn::Module& model, bool with_norms) {
  TensorList norms;
  for (const auto& module : model.modules()) {
    if (module->as<torch::nn::BatchNorm2dImpl>() || module->as<nn::StepNorm2dImpl>()) {
      for (auto& parameter : module->parameters(/*recurse=*/false)) norms.push_back(std::move(parameter));
    }
  }
  auto parameters = model.parameters();
  std::erase_if(parameters, [&](const auto& parameter) {
    return !with_norms && std::any_of(norms.begin(), norms.end(), [&](const auto& n) { return n.is_same(parameter); });
  });
  return parameters;
}

void append(NamedTensors& list, const std::string& prefix, const NamedTensors& more) {
  for (size_t i = 0; i < more.size(); ++i) {
    list.names.push_back(prefix + more.names[i]);
    list.tensors.push_back(more.tensors[i]);
  }
}

void copy(const TensorList& from, const TensorList& to) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < from.size(); ++i) to[i].copy_(from[i]);
}

TensorList copies(const TensorList& tensors) {
  TensorList result;
  for (const auto& tensor : tensors) result.push_back(tensor.detach().clone());
  return result;
}

class MamlPlusPlus final : public Experiment {
 public:
  explicit MamlPlusPlus(const Config& config)
      : config_(config),
        steps_(config.integer("inner_steps")),
        dataset_(make_dataset(config, config.has("validation_classes") ? config.integer("validation_classes") : 0,
                              config.flag("per_step_norm") ? steps_ : 0)),
        batch_(make_threads(config)),
        tasks_(dataset_, config.integer("tasks")),
        model_(dataset_.network.module),
        adapted_(adapted_parameters(*dataset_.network.module, config.flag("adapt_norm"))),
        inner_(make_inner_optimizer()) {
    learned_ = model_.parameters;
    if (config.flag("learn_rates")) {
      rates_ = starts_from_outer() ? optim::learn(inner_, {"lr", "beta1", "beta2"})
                                   : optim::learn(inner_, {"lr"},
                                                  optim::LearnOptions()
                                                      .granularity(optim::Granularity::per_tensor)
                                                      .steps(steps_)
                                                      .domain(optim::Domain::real));
      append(learned_, "", {rates_.names(), rates_.tensors()});
    }
    outer_ =
        std::make_unique<torch::optim::Adam>(learned_.tensors, torch::optim::AdamOptions(config.number("outer_lr")));

    current_ = learned_;
    if (starts_from_outer()) {
      for (size_t i = 0; i < adapted_.size(); ++i) {
        append(
            current_, "moments." + std::to_string(i) + ".",
            {{"mean", "square", "step"},
             {at::zeros_like(adapted_[i]).detach(), at::zeros_like(adapted_[i]).detach(), at::zeros({}, at::kLong)}});
      }
    }
    for (int64_t k = 0; k < config.integer("best_epochs"); ++k) best_.push_back(copies(current_.tensors));
    best_accuracy_ = at::full({config.integer("best_epochs")}, -1., at::kDouble);
    best_epoch_ = at::full({config.integer("best_epochs")}, -1, at::kLong);
  }

  int64_t iterations() const override { return config_.integer("epochs") * config_.integer("epoch_iterations"); }

  TrainingState state() override {
    auto tensors = current_;
    for (size_t k = 0; k < best_.size(); ++k) append(tensors, fmt::format("best.{}.", k), {current_.names, best_[k]});
    append(tensors, "best.", {{"accuracy", "epoch"}, {best_accuracy_, best_epoch_}});
    return {std::move(tensors), {outer_.get()}};
  }

  bool is_long(int64_t iteration) const override { return ends_epoch(iteration); }

  std::optional<Iteration> iterate(int64_t iteration) override {
    const auto epoch = iteration / config_.integer("epoch_iterations");
    const auto tasks = tasks_.take(iteration);
    auto problem = training_problem(loss_weights(epoch));
    problem.seed(fork_seed(config_.integer("seed"), iteration));
    const bool first_order = epoch < config_.integer("first_order_epochs");
    const auto result =
        hypergradient(problem, learned_.tensors, tasks, first_order ? Unroll::first_order() : Unroll(), batch_);
    step_outer(epoch, result.gradients);

    Iteration done;
    done.metrics["outer_loss"] = result.outer_loss.item<double>();
    done.metrics["accuracy"] = at::stack(result.auxiliary).mean().item<double>();
    done.metrics["tasks_per_second"] = static_cast<double>(tasks.size()) / result.cost.seconds;
    if (ends_epoch(iteration) && !end_epoch(epoch, done)) return std::nullopt;
    return done;
  }

  std::optional<Report> report(const std::vector<nlohmann::json>& metrics) override;

 private:
  bool ends_epoch(int64_t iteration) const { return (iteration + 1) % config_.integer("epoch_iterations") == 0; }
  bool starts_from_outer() const { return config_.text("inner_optimizer") == "adam"; }

  optim::Optimizer make_inner_optimizer() const {
    const auto make = [&](TensorList parameters) {
      return app::make_inner_optimizer(config_.text("inner_optimizer"), config_.number("inner_lr"),
                                       std::move(parameters));
    };
    if (!starts_from_outer()) return make(adapted_);
    // A group for each tensor, so that each has rates and betas of its own.
    std::vector<optim::Optimizer> groups;
    for (const auto& parameter : adapted_) groups.push_back(make({parameter}));
    return optim::Optimizer(groups);
  }

  /// Of the outer losses after 1, ..., K steps.
  std::vector<double> loss_weights(int64_t epoch) const {
    const auto epochs = config_.integer("multi_step_epochs");
    if (epoch < epochs) return step_loss_weights(steps_, epoch, epochs);
    std::vector<double> last(steps_, 0.);
    last.back() = 1;
    return last;
  }

  /// The inner loop from where the outer loop is now.
  Bilevel inner_problem() const {
    auto inner = inner_;
    for (size_t i = 0; starts_from_outer() && i < adapted_.size(); ++i) {
      const auto* moments = &current_.tensors[learned_.size() + 3 * i];
      inner.start_from(adapted_[i], {moments[2].item<int64_t>(), {moments[0], moments[1]}});
    }
    return Bilevel(model_, inner).steps(steps_).inner([this](const data::Task& task, int64_t step) {
      return dataset_.loss(task.support, step);
    });
  }

  /// With the outer losses after 1, ..., K steps, so weighted.
  Bilevel training_problem(const std::vector<double>& weights) const {
    std::vector<int64_t> steps;
    for (int64_t k = 1; k <= steps_; ++k) {
      if (weights[k - 1] > 0) steps.push_back(k);
    }
    return inner_problem().outer_at(steps).outer([this, weights](const data::Task& task, int64_t step) {
      auto value = dataset_.score(task.query, step - 1);
      value.loss = weights[step - 1] * value.loss;
      return value;
    });
  }

  Bilevel evaluation_problem() const {
    return inner_problem().outer([this](const data::Task& task, int64_t step) {
      return dataset_.score(task.query, std::max<int64_t>(step - 1, 0));
    });
  }

  void step_outer(int64_t epoch, TensorList gradients) {
    if (const auto clip = config_.number("outer_clip"); clip > 0) {
      for (auto& gradient : gradients) gradient = gradient.clamp(-clip, clip);
    }
    const auto rate =
        optim::cosine(config_.number("outer_lr"), config_.number("outer_lr_end"), config_.integer("epochs"));
    static_cast<torch::optim::AdamOptions&>(outer_->param_groups()[0].options()).lr(rate(epoch).number());
    assign_gradients(learned_.tensors, gradients);
    outer_->step();
    for (size_t i = 0; starts_from_outer() && i < adapted_.size(); ++i) {
      const auto& state =
          static_cast<const torch::optim::AdamParamState&>(*outer_->state().at(adapted_[i].unsafeGetTensorImpl()));
      auto* moments = &current_.tensors[learned_.size() + 3 * i];
      moments[0].copy_(state.exp_avg());
      moments[1].copy_(state.exp_avg_sq());
      moments[2].fill_(state.step());
    }
  }

  /// Evaluates on the validation classes, and keeps the weights if they are among the best. False if interrupted.
  bool end_epoch(int64_t epoch, Iteration& done) {
    const auto evaluation =
        evaluate_adaptation(evaluation_problem(), dataset_, *dataset_.validation, config_.integer("validation_tasks"),
                            {steps_}, batch_, [](int64_t) { return !interrupted(); });
    if (!evaluation) return false;
    const auto& adapted = evaluation->steps.back();
    const auto worst = best_accuracy_.argmin().item<int64_t>();
    if (adapted.accuracy->mean > best_accuracy_[worst].item<double>()) {
      copy(current_.tensors, best_[worst]);
      best_accuracy_[worst] = adapted.accuracy->mean;
      best_epoch_[worst] = epoch;
    }
    done.metrics["evaluation_outer_loss"] = adapted.loss.mean;
    done.metrics["evaluation_accuracy"] = adapted.accuracy->mean;
    if (config_.flag("learn_rates")) {
      const auto values = rates_.values();
      for (size_t i = 0; i < values.size(); ++i) {
        const auto flat = values.tensors[i].to(at::kDouble).flatten().contiguous();
        done.metrics["learned"][values.names[i]] =
            std::vector<double>(flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel());
      }
    }
    done.note = fmt::format("epoch {}: accuracy {:.2f} % on validation tasks", epoch + 1, 100 * adapted.accuracy->mean);
    return true;
  }

  /// Of a test task's query set, after adaptation.
  at::Tensor adapted_logits(const Bilevel& problem, const data::Task& task) const {
    const auto reference = TaskRef::to(task);
    auto loop = problem.start(Graph::none, reference);
    at::NoGradGuard no_grad;
    for (int64_t k = 0; k < steps_; ++k) problem.step(loop, reference);
    return loop.run([&] { return dataset_.network.forward(task.query.data, steps_ - 1); });
  }

  /// Adds the logits of the test tasks with the weights of one of the best epochs. False if interrupted.
  bool add_logits(const TensorList& weights, TensorList& logits, ProgressDisplay& display, int64_t& done) {
    copy(weights, current_.tensors);
    const auto problem = evaluation_problem();
    constexpr int64_t kChunk = 20;
    const auto tasks = static_cast<int64_t>(logits.size());
    for (int64_t begin = 0; begin < tasks; begin += kChunk) {
      const auto count = std::min(kChunk, tasks - begin);
      batch_.run(count, [&](int64_t i) {
        const auto task = task_on(*dataset_.held_out, begin + i, dataset_.device);
        auto& sum = logits[begin + i];
        const auto found = adapted_logits(problem, task);
        sum = sum.defined() ? sum + found : found;
      });
      display.update(done += count);
      if (interrupted()) return false;
    }
    return true;
  }

  Estimate accuracy_of(const TensorList& logits) const {
    std::vector<double> sample;
    for (size_t i = 0; i < logits.size(); ++i) {
      const auto task = task_on(*dataset_.held_out, static_cast<int64_t>(i), dataset_.device);
      sample.push_back(logits[i].argmax(1).eq(task.query.target).to(at::kDouble).mean().item<double>());
    }
    return estimate(sample);
  }

  Config config_;
  int64_t steps_;
  Dataset dataset_;
  Threads batch_;
  TaskQueue tasks_;
  ModelTensors model_;
  TensorList adapted_;
  optim::Optimizer inner_;
  optim::LearnedHyperparameters rates_;
  NamedTensors learned_;  // the meta-parameters
  std::unique_ptr<torch::optim::Adam> outer_;

  NamedTensors current_;          // the meta-parameters, and where an inner Adam starts
  std::vector<TensorList> best_;  // copies of them from the best epochs
  at::Tensor best_accuracy_, best_epoch_;
};

/// What was learned of the inner optimizer by epoch (Figures 2 and 3 of the paper), a panel for each hyperparameter.
std::optional<Figure> learned_figure(const std::vector<nlohmann::json>& metrics) {
  std::map<std::string, std::vector<Series>> panels;
  double epoch = 0;
  for (const auto& line : metrics) {
    if (!line.contains("learned")) continue;
    ++epoch;
    for (const auto& [name, values] : line["learned"].items()) {
      auto& all = panels[name.substr(0, name.find('.'))];
      for (size_t i = 0; i < values.size(); ++i) {
        const auto title = fmt::format("{} {}", name, i);
        auto found = std::find_if(all.begin(), all.end(), [&](const auto& series) { return series.title == title; });
        if (found == all.end()) found = all.insert(all.end(), {.title = title, .look = Look::thin});
        found->x.push_back(epoch);
        found->y.push_back(values[i].get<double>());
      }
    }
  }
  if (panels.empty()) return std::nullopt;
  Figure figure{"learned"};
  figure.columns = static_cast<int64_t>(panels.size());
  for (auto& [name, series] : panels) {
    auto& panel = figure.panels.emplace_back();
    panel.x_label = "epoch";
    panel.y_label = "learned " + name + (panels.size() == 1 ? ", by tensor and step" : ", by tensor");
    panel.legend = Legend::none;
    panel.series = std::move(series);
  }
  return figure;
}

std::optional<Report> MamlPlusPlus::report(const std::vector<nlohmann::json>& metrics) {
  std::vector<int64_t> best(best_.size());
  std::iota(best.begin(), best.end(), 0);
  const auto accuracy = [&](int64_t k) { return best_accuracy_[k].item<double>(); };
  std::erase_if(best, [&](int64_t k) { return accuracy(k) < 0; });
  std::stable_sort(best.begin(), best.end(), [&](int64_t a, int64_t b) { return accuracy(a) > accuracy(b); });

  const auto tasks = config_.integer("eval_tasks");
  const auto trained = copies(current_.tensors);
  std::vector<std::pair<std::string, Estimate>> rows;
  TensorList sum(tasks);
  {
    ProgressDisplay display("evaluating", 0, tasks * std::max<int64_t>(best.size(), 1), config_.flag("quiet"));
    int64_t done = 0;
    if (best.empty()) {
      if (!add_logits(trained, sum, display, done)) return std::nullopt;
      rows.emplace_back("now", accuracy_of(sum));
    }
    for (const auto k : best) {
      const bool finished = add_logits(best_[k], sum, display, done);
      copy(trained, current_.tensors);
      if (!finished) return std::nullopt;
      if (k == best[0]) {
        rows.emplace_back(fmt::format("the best epoch, {}", best_epoch_[k].item<int64_t>() + 1), accuracy_of(sum));
      }
    }
    if (best.size() > 1) rows.emplace_back(fmt::format("the {} best epochs together", best.size()), accuracy_of(sum));
  }

  Report report;
  std::vector<std::vector<std::string>> table{{"", "accuracy (%)"}};
  for (const auto& [name, value] : rows) {
    table.push_back({name, to_text(value, 2, 100)});
    report.numbers["accuracy"].push_back({{"of", name}, {"mean", value.mean}, {"interval", value.interval}});
  }
  const auto published = find_published(config_.text("dataset"), config_.integer("ways"), config_.integer("shots"),
                                        config_.text("model"), config_.text("inner_optimizer"));
  if (published) {
    table.push_back({"published, 3 seeds", fmt::format("{:.2f} ± {:.2f}", published->accuracy, published->deviation)});
    report.numbers["published"] = {{"mean", published->accuracy / 100}, {"deviation", published->deviation / 100}};
  }
  report.numbers["tasks"] = tasks;
  report.numbers["iterations"] = metrics.empty() ? 0 : metrics.back()["iteration"].get<int64_t>();
  report.markdown =
      markdown_table(table) +
      fmt::format(
          "\n{} + {}, {}-way {}-shot on {}: mean and 95 % interval over {} test tasks, after {} "
          "iterations of {}.\n",
          config_.text("model"), config_.text("inner_optimizer"), config_.integer("ways"), config_.integer("shots"),
          config_.text("dataset"), tasks, report.numbers["iterations"].get<int64_t>(), iterations());
  if (auto figure = learned_figure(metrics)) report.figures.push_back(std::move(*figure));
  return report;
}

}  // namespace

ExperimentEntry maml_plus_plus() {
  return {"maml++", "MAML++: multi-step losses, learned rates for each tensor and step, an ensemble of the best epochs",
          make_schema(), [](const Config& config) { return std::make_unique<MamlPlusPlus>(config); }};
}

std::vector<double> step_loss_weights(int64_t steps, int64_t epoch, int64_t epochs) {
  const double equal = 1. / static_cast<double>(steps);
  const double other = std::max(equal * (1 - static_cast<double>(epoch) / static_cast<double>(epochs)), 0.03 * equal);
  std::vector<double> weights(steps, other);
  weights.back() = 1 - static_cast<double>(steps - 1) * other;
  return weights;
}

}  // namespace gimli::app
