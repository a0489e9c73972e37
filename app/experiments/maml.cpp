#include "app/experiments/maml.h"

#include <fmt/format.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

#include "app/evaluation.h"
#include "app/inner_optimizer.h"
#include "app/interrupt.h"
#include "app/task_queue.h"
#include "gimli/hypergradient.h"
#include "gimli/hypergradient/implicit.h"
#include "gimli/hypergradient/reptile.h"
#include "gimli/optim/learned_hyperparameters.h"
#include "gimli/tensor_list.h"

namespace gimli::app {
namespace {

using Steps = std::vector<int64_t>;

/// What tells the methods of this family apart.
struct Method {
  std::string name;
  std::shared_ptr<const Strategy> strategy;
  bool adapts_head_only = false;
  bool learns_rates = false;
  bool is_proximal = false;
};

template <class S>
std::shared_ptr<const Strategy> share(S strategy) {
  return std::make_shared<const S>(std::move(strategy));
}

const std::vector<Method>& methods() {
  static const std::vector<Method> rows{
      {.name = "maml", .strategy = share(Unroll())},
      {.name = "fomaml", .strategy = share(Unroll::first_order())},
      {.name = "anil", .strategy = share(Unroll()), .adapts_head_only = true},
      {.name = "meta-sgd", .strategy = share(Unroll()), .learns_rates = true},
      {.name = "reptile", .strategy = share(Reptile())},
      {.name = "imaml",
       .strategy = share(Implicit(ConjugateGradient(ConjugateGradientOptions().max_iterations(5)))),
       .is_proximal = true},
  };
  return rows;
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const auto& method : methods()) names.push_back(method.name);
  return names;
}

const Method& method_of(const Config& config) {
  return *std::find_if(methods().begin(), methods().end(),
                       [&](const auto& method) { return method.name == config.text("method"); });
}

// clang-format off
Schema make_schema() {
  auto schema = few_shot_schema(/*queries=*/{integer(10), integer(1)}, {
      // key, group, help,                                                sinusoid           omniglot
      {"method", "Inner loop", "maml; fomaml: inner gradients as constants; anil: only the last layer adapts; meta-sgd: "
                               "a learned rate for each weight; reptile; imaml: implicit gradients of a proximal loss",
                                                                         {text("maml")}, true, 0, method_names()},
      {"inner_steps", "Inner loop", "Steps of adaptation to a task",     {integer(1)}, true, 0},
      {"inner_lr", "Inner loop", "Learning rate of the adaptation",      {0.01,              0.4}, true, 0},
      {"inner_optimizer", "Inner loop", "Optimizer of the adaptation; momentum is SGD with momentum 0.9",
                                                                         {text("sgd")}, true, 0, inner_optimizer_names()},
      {"proximal", "Inner loop", "Of imaml: lambda in the inner loss's lambda / 2 |theta - theta_0|^2",
                                                                         {0.5,               2.0}, true, 0},
      {"iterations", "Outer loop", "Steps of the outer optimizer",       {integer(8000),     integer(60000)}, false, 0},
      {"tasks", "Outer loop", "Tasks in an iteration (meta-batch size)", {integer(25),       integer(32)}, true, 1},
      {"outer_lr", "Outer loop", "Learning rate of the outer optimizer", {3e-3,              1e-3}, true, 0},
      {"outer_optimizer", "Outer loop", "adam or sgd (as Reptile's paper)", {text("adam")}, true, 0, {"adam", "sgd"}},
      {"eval_tasks", "Evaluation", "Held-out tasks",                     {integer(600)}, false, 1},
      {"eval_steps", "Evaluation", "Numbers of adaptation steps to evaluate after, besides none",
                                                                         {Steps{1, 5, 10}}, false, 0},
      {"eval_every", "Evaluation", "Evaluate during training too, each so many iterations; 0: only at the end",
                                                                         {integer(0)}, false, 0},
  });
  for (auto& setting : run_settings(200)) schema.settings.push_back(std::move(setting));
  return schema;
}
// clang-format on

/// The parameters of the last linear layer.
TensorList head_of(const torch::nn::Module& model) {
  TensorList head;
  for (const auto& module : model.modules()) {
    if (module->as<torch::nn::LinearImpl>()) head = module->parameters();
  }
  return head;
}

std::unique_ptr<torch::optim::Optimizer> make_outer_optimizer(const Config& config, const TensorList& parameters) {
  const auto lr = config.number("outer_lr");
  if (config.text("outer_optimizer") == "sgd") return std::make_unique<torch::optim::SGD>(parameters, lr);
  return std::make_unique<torch::optim::Adam>(parameters, torch::optim::AdamOptions(lr));
}

std::optional<double> mean_accuracy(const Result& result) {
  if (!result.auxiliary.front().defined()) return std::nullopt;
  double sum = 0;
  for (const auto& accuracy : result.auxiliary) sum += accuracy.item<double>();
  return sum / static_cast<double>(result.auxiliary.size());
}

class Maml final : public Experiment {
 public:
  explicit Maml(const Config& config)
      : config_(config),
        dataset_(make_dataset(config)),
        batch_(make_threads(config)),
        tasks_(dataset_, config.integer("tasks")),
        strategy_(method_of(config).strategy) {
    const auto& method = method_of(config);
    const auto& model = *dataset_.network.module;
    auto optimizer = make_inner_optimizer(config.text("inner_optimizer"), config.number("inner_lr"),
                                          method.adapts_head_only ? head_of(model) : model.parameters());
    meta_parameters_ = ModelTensors(dataset_.network.module).parameters;
    if (method.learns_rates) {
      const auto rates =
          optim::learn(optimizer, {"lr"},
                       optim::LearnOptions().granularity(optim::Granularity::per_element).domain(optim::Domain::real));
      meta_parameters_.names.insert(meta_parameters_.names.end(), rates.names().begin(), rates.names().end());
      meta_parameters_.tensors.insert(meta_parameters_.tensors.end(), rates.tensors().begin(), rates.tensors().end());
    }
    problem_.emplace(dataset_.network.module, optimizer);
    problem_->steps(config.integer("inner_steps"))
        .inner([this](const data::Task& task) { return dataset_.loss(task.support); })
        .outer([this](const data::Task& task) { return dataset_.score(task.query); });
    if (method.is_proximal) problem_->proximal(config.number("proximal"));
    outer_optimizer_ = make_outer_optimizer(config, meta_parameters_.tensors);
  }

  int64_t iterations() const override { return config_.integer("iterations"); }

  TrainingState state() override { return {meta_parameters_, {outer_optimizer_.get()}}; }

  bool is_long(int64_t iteration) const override {
    const auto every = config_.integer("eval_every");
    return every > 0 && (iteration + 1) % every == 0;
  }

  std::optional<Iteration> iterate(int64_t iteration) override {
    const auto tasks = tasks_.take(iteration);
    problem_->seed(fork_seed(config_.integer("seed"), iteration));
    const auto result = hypergradient(*problem_, meta_parameters_.tensors, tasks, *strategy_, batch_);
    assign_gradients(meta_parameters_.tensors, result.gradients);
    outer_optimizer_->step();

    Iteration done;
    done.metrics["outer_loss"] = result.outer_loss.item<double>();
    if (const auto accuracy = mean_accuracy(result)) done.metrics["accuracy"] = *accuracy;
    done.metrics["tasks_per_second"] = static_cast<double>(tasks.size()) / result.cost.seconds;
    if (is_long(iteration)) {
      const auto evaluation =
          evaluate_adaptation(*problem_, dataset_, *dataset_.held_out, config_.integer("eval_tasks"),
                              config_.integers("eval_steps"), batch_, [](int64_t) { return !interrupted(); });
      if (!evaluation) return std::nullopt;
      const auto& last = evaluation->steps.back();
      done.metrics["evaluation_outer_loss"] = last.loss.mean;
      done.note = fmt::format("iteration {}: held-out loss {:.4f}", iteration + 1, last.loss.mean);
      if (dataset_.classifies) {
        done.metrics["evaluation_accuracy"] = last.accuracy->mean;
        done.note += fmt::format(", accuracy {:.2f} %", 100 * last.accuracy->mean);
      }
      done.note += fmt::format(" after {} steps", last.step);
    }
    return done;
  }

  std::optional<Report> report(const std::vector<nlohmann::json>&) override {
    return report_adaptation(*problem_, dataset_, config_, batch_);
  }

 private:
  Config config_;
  Dataset dataset_;
  Threads batch_;
  TaskQueue tasks_;
  std::shared_ptr<const Strategy> strategy_;
  NamedTensors meta_parameters_;
  std::optional<Bilevel> problem_;
  std::unique_ptr<torch::optim::Optimizer> outer_optimizer_;
};

}  // namespace

ExperimentEntry maml() {
  return {"maml", "Initial weights that adapt to a task in a few steps: MAML, FOMAML, ANIL, Meta-SGD, Reptile, iMAML",
          make_schema(), [](const Config& config) { return std::make_unique<Maml>(config); }};
}

}  // namespace gimli::app
