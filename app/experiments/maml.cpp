#include "app/experiments/maml.h"

#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli::app {
namespace {

using Steps = std::vector<int64_t>;
constexpr std::monostate kNone{};

Value integer(int64_t value) { return value; }
Value text(const char* value) { return std::string(value); }

// clang-format off
Schema make_schema() {
  return {{"sinusoid", "omniglot"}, {
      {"dataset", "Data", "Sine waves (regression), or handwritten characters (classification)",
                                                                         {text("sinusoid"),  text("omniglot")}, true, 0,
                                                                         {"sinusoid", "omniglot"}},
      // key, group, help,                                                sinusoid           omniglot
      {"data_root", "Data", "Folder with Omniglot's archives, or with a folder omniglot that has them",
                                                                         {kNone,             text("data")}, false},
      {"ways", "Data", "Classes in a task",                              {kNone,             integer(5)}, true, 2},
      {"shots", "Data", "Support examples of a task, for each class",    {integer(10),       integer(1)}, true, 1},
      {"queries", "Data", "Query examples of a task, for each class",    {integer(10),       integer(1)}, true, 1},
      {"hidden", "Data", "Width of the network's layers",                {integer(40),       integer(64)}, true, 1},
      {"pooling", "Data", "How the network halves images: a max-pool, or convolutions of stride 2",
                                                                         {kNone,             text("stride")}, true, 0,
                                                                         {"max", "stride"}},
      {"inner_steps", "Inner loop", "Steps of adaptation to a task",     {integer(1),        integer(1)}, true, 0},
      {"inner_lr", "Inner loop", "Learning rate of the adaptation",      {0.01,              0.4}, true, 0},
      {"inner_optimizer", "Inner loop", "Optimizer of the adaptation; momentum is SGD with momentum 0.9",
                                                                         {text("sgd"),       text("sgd")}, true, 0,
                                                                         {"sgd", "momentum", "adam", "adamw"}},
      {"first_order", "Inner loop", "Take inner gradients as constants (first-order MAML): faster, not exact",
                                                                         {false,             false}},
      {"iterations", "Outer loop", "Steps of the outer Adam",            {integer(8000),     integer(60000)}, false, 0},
      {"tasks", "Outer loop", "Tasks in an iteration (meta-batch size)", {integer(25),       integer(32)}, true, 1},
      {"outer_lr", "Outer loop", "Learning rate of the outer Adam",      {3e-3,              1e-3}, true, 0},
      {"seed", "Outer loop", "Of the initial weights and the training tasks", {integer(0),   integer(0)}, true, 0},
      {"eval_tasks", "Evaluation", "Held-out tasks",                     {integer(600),      integer(600)}, false, 1},
      {"eval_steps", "Evaluation", "Numbers of adaptation steps to evaluate after, besides none",
                                                                         {Steps{1, 5, 10}, Steps{1, 5, 10}}, false, 0},
      {"eval_every", "Evaluation", "Evaluate during training too, each so many iterations; 0: only at the end",
                                                                         {integer(0),        integer(0)}, false, 0},
      {"threads", "Run", "Threads over tasks, which do not change the numbers; 0: one a core",
                                                                         {integer(0),        integer(0)}, false, 0, {},
                                                                         1024},
      {"device", "Run", "cpu, cuda or cuda:N",                           {text("cpu"),       text("cpu")}},
      {"checkpoint_every", "Run", "Iterations between two checkpoints",  {integer(1000),     integer(200)}, false, 1},
      {"out", "Run", "Folder of the run's files",    {text("runs/maml-sinusoid"), text("runs/maml-omniglot")}, false},
      {"quiet", "Run", "No progress, only results",                      {false,             false}, false},
  }};
}
// clang-format on

optim::Optimizer make_inner_optimizer(const std::string& name, double lr, TensorList parameters) {
  using namespace gimli::optim;
  if (name == "sgd") return Optimizer(SGD(SGDOptions(lr)), std::move(parameters));
  if (name == "momentum") return Optimizer(SGD(SGDOptions(lr).momentum(0.9)), std::move(parameters));
  if (name == "adam") return Optimizer(Adam(AdamOptions(lr)), std::move(parameters));
  return Optimizer(AdamW(AdamOptions(lr).weight_decay(1e-2)), std::move(parameters));
}

class Maml final : public Experiment {
 public:
  explicit Maml(const Config& config)
      : dataset_(make_dataset(config)),
        problem_(dataset_.model, make_inner_optimizer(config.text("inner_optimizer"), config.number("inner_lr"),
                                                      dataset_.model->parameters())),
        strategy_(config.flag("first_order") ? Unroll::first_order() : Unroll()) {
    problem_.steps(config.integer("inner_steps"))
        .inner([this](const data::Task& task) { return dataset_.loss(task.support); })
        .outer([this](const data::Task& task) { return dataset_.score(task.query); });
  }

  const Dataset& dataset() const override { return dataset_; }
  NamedTensors meta_parameters() const override { return problem_.model().parameters; }
  const Bilevel& problem() const override { return problem_; }
  Result differentiate(const std::vector<data::Task>& tasks, const TaskBatch& batch) const override {
    return hypergradient(problem_, meta_parameters().tensors, tasks, strategy_, batch);
  }

 private:
  Dataset dataset_;
  Bilevel problem_;
  Unroll strategy_;
};

}  // namespace

ExperimentEntry maml() {
  return {"maml", "Model-agnostic meta-learning (Finn et al. 2017): learn initial weights that adapt in a few steps",
          make_schema(), [](const Config& config) { return std::make_unique<Maml>(config); }};
}

}  // namespace gimli::app
