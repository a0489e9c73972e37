#include "gimli/hypergradient.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <chrono>
#include <mutex>

#include "gimli/hypergradient/adjoint.h"

namespace gimli {
namespace {

/// A seed from libtorch's default generator, which is put back if what it was drawn for fails.
class DrawnSeed final {
 public:
  DrawnSeed() : saved_(state()), seed_(at::empty({}, at::kLong).random_().item<int64_t>()) {}
  ~DrawnSeed() {
    if (used_) return;
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(generator.mutex());
    generator.set_state(saved_);
  }

  uint64_t seed() const { return seed_; }
  void use() { used_ = true; }

 private:
  static at::Tensor state() {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(generator.mutex());
    return generator.get_state();
  }

  const at::Tensor saved_;
  const uint64_t seed_;
  bool used_ = false;
};

/// Runs `task_result` for every task and gathers a Result, adding in the order of the tasks.
template <class Function>
Result gather(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks, const TaskBatch& batch,
              Function task_result) {
  problem.check();
  const auto count = tasks.size();
  TORCH_CHECK(count > 0, "hypergradient: got an empty list of tasks");
  const auto begin = std::chrono::steady_clock::now();
  std::optional<DrawnSeed> drawn;
  if (!problem.seed()) drawn.emplace();
  const auto seed = drawn ? drawn->seed() : *problem.seed();

  // Results wait for those of the tasks before them, so that sums do not depend on who finishes first.
  std::vector<std::optional<Strategy::TaskResult>> waiting(count);
  int64_t next = 0;
  std::mutex mutex;
  Result result;
  TensorList losses;
  const auto take = [&](Strategy::TaskResult& task) {
    TORCH_CHECK(task.gradients.size() == meta_parameters.size(), "hypergradient: the strategy returned ",
                task.gradients.size(), " gradients for ", meta_parameters.size(), " meta-parameters");
    losses.push_back(task.outer_loss.reshape({}));
    result.auxiliary.push_back(std::move(task.auxiliary));
    result.gradients = next == 0 ? std::move(task.gradients) : sum(std::move(result.gradients), task.gradients);
    if (problem.keeps_final_states()) {
      result.final_states.push_back(apart_from(problem.model(), task.final_state));
    }
    if (!task.solution.empty()) result.solutions.push_back(std::move(task.solution));
    result.cost += task.cost;
  };
  batch.run(count, [&](int64_t i) {
    auto value = task_result(tasks[i].in_batch(i, seed));
    if (!problem.keeps_final_states()) value.final_state = {};
    const std::lock_guard lock(mutex);
    waiting[i] = std::move(value);
    for (; next < count && waiting[next]; ++next) {
      take(*waiting[next]);
      waiting[next].reset();
    }
  });

  result.outer_losses = at::stack(losses);
  result.outer_loss = result.outer_losses.mean();
  result.gradients = divide(std::move(result.gradients), static_cast<double>(count));
  result.cost.task_batch = batch.name();
  result.cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (drawn) drawn->use();
  return result;
}

/// Refuses initial weights that the inner loop changed, but to which the outer loss does not reach back: their gradient
/// would be 0 in every run.
void check_reach(const ModelTensors& model, const TensorList& meta_parameters, const Strategy::TaskResult& result,
                 const std::string& name) {
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    if (result.gradients[i].defined()) continue;
    const auto p = position_in(model, meta_parameters[i]);
    TORCH_CHECK(!p || result.final_state.parameters[*p].is_alias_of(meta_parameters[i]), name, ": meta-parameter '",
                model.parameters.names[*p],
                "' sets the start of the inner loop, which the outer loss does not reach: "
                "this strategy does not go back so far, the graph was stopped, or the loop started elsewhere");
  }
}

}  // namespace

Result hypergradient(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks,
                     const Strategy& strategy, const TaskBatch& batch) {
  TORCH_CHECK(!meta_parameters.empty(), "hypergradient: got no meta-parameters");
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    TORCH_CHECK(meta_parameters[i].defined() && meta_parameters[i].requires_grad(), "hypergradient: meta-parameter ", i,
                " does not require a gradient");
    for (size_t j = 0; j < i; ++j) {
      TORCH_CHECK(!meta_parameters[j].is_same(meta_parameters[i]), "hypergradient: meta-parameters ", j, " and ", i,
                  " are the same tensor; give it once");
    }
  }
  at::AutoGradMode with_gradient(true);
  const auto name = strategy.name();
  auto result = gather(problem, meta_parameters, tasks, batch, [&](const TaskRef& task) {
    auto value = strategy.differentiate(problem, meta_parameters, task);
    check_reach(problem.model(), meta_parameters, value, name);
    return value;
  });
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    auto& gradient = result.gradients[i];
    if (gradient.defined()) continue;
    TORCH_CHECK(position_in(problem.model(), meta_parameters[i]),
                "hypergradient: the outer loss does not depend on meta-parameter ", i, " (shape ",
                meta_parameters[i].sizes(), ") as ", name,
                " differentiates it; give the tensor that the problem itself uses, and a strategy that reaches it");
    gradient = at::zeros_like(meta_parameters[i], at::TensorOptions().requires_grad(false));
  }
  result.cost.strategy = name;
  return result;
}

Result evaluate(const Bilevel& problem, const TaskList& tasks, const TaskBatch& batch) {
  return gather(problem, {}, tasks, batch, [&](const TaskRef& task) { return run_without_graph(problem, task); });
}

}  // namespace gimli
