#include "gimli/hypergradient.h"

#include <ATen/ATen.h>

#include <chrono>
#include <mutex>

namespace gimli {
namespace {

/// Runs `task_result(i)` for every task and gathers a Result, adding in the order of the tasks.
template <class Function>
Result gather(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks, const TaskBatch& batch,
              Function task_result) {
  problem.check();
  const auto count = tasks.size();
  TORCH_CHECK(count > 0, "hypergradient: got an empty list of tasks");
  const auto begin = std::chrono::steady_clock::now();

  // Results wait for those of the tasks before them, so that sums do not depend on who finishes first.
  std::vector<std::optional<Strategy::TaskResult>> waiting(count);
  int64_t next = 0;
  std::mutex mutex;
  Result result;
  TensorList losses;
  const auto add = [&](Strategy::TaskResult& task) {
    TORCH_CHECK(task.gradients.size() == meta_parameters.size(), "hypergradient: the strategy returned ",
                task.gradients.size(), " gradients for ", meta_parameters.size(), " meta-parameters");
    losses.push_back(task.outer_loss.reshape({}));
    result.auxiliary.push_back(std::move(task.auxiliary));
    result.gradients = next == 0 ? std::move(task.gradients) : sum(std::move(result.gradients), task.gradients);
    if (problem.keeps_final_states()) result.final_states.push_back(std::move(task.final_state));
    result.cost.inner_steps += task.inner_steps;
    result.cost.gradient_evaluations += task.gradient_evaluations;
    result.cost.states_stored = std::max(result.cost.states_stored, task.states_stored);
  };
  batch.run(count, [&](int64_t i) {
    auto value = task_result(tasks[i]);
    const std::lock_guard lock(mutex);
    waiting[i] = std::move(value);
    for (; next < count && waiting[next]; ++next) {
      add(*waiting[next]);
      waiting[next].reset();
    }
  });

  result.outer_losses = at::stack(losses);
  result.outer_loss = result.outer_losses.mean();
  result.gradients = divide(std::move(result.gradients), static_cast<double>(count));
  result.cost.task_batch = batch.name();
  result.cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace

Result hypergradient(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks,
                     const Strategy& strategy, const TaskBatch& batch) {
  TORCH_CHECK(!meta_parameters.empty(), "hypergradient: got no meta-parameters");
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    TORCH_CHECK(meta_parameters[i].defined() && meta_parameters[i].requires_grad(), "hypergradient: meta-parameter ", i,
                " does not require a gradient");
  }
  at::AutoGradMode with_gradient(true);
  auto result = gather(problem, meta_parameters, tasks, batch,
                       [&](const TaskRef& task) { return strategy.differentiate(problem, meta_parameters, task); });
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    auto& gradient = result.gradients[i];
    if (gradient.defined()) continue;
    const auto& own = problem.model().parameters.tensors;
    const bool of_model =
        std::any_of(own.begin(), own.end(), [&](const at::Tensor& p) { return p.is_same(meta_parameters[i]); });
    TORCH_CHECK(of_model, "hypergradient: the outer loss does not depend on meta-parameter ", i, " (shape ",
                meta_parameters[i].sizes(), ") as ", strategy.name(),
                " differentiates it; give the tensor that the problem itself uses, and a strategy that reaches it");
    gradient = at::zeros_like(meta_parameters[i], at::TensorOptions().requires_grad(false));
  }
  result.cost.strategy = strategy.name();
  return result;
}

Result evaluate(const Bilevel& problem, const TaskList& tasks, const TaskBatch& batch) {
  return gather(problem, {}, tasks, batch, [&](const TaskRef& task) {
    Strategy::TaskResult result;
    auto loop = problem.start(Graph::none);
    for (int64_t k = 0; k <= problem.steps(); ++k) {
      if (k > 0) problem.step(loop, task);
      if (!problem.has_outer_at(k)) continue;
      auto value = problem.outer(loop, task);
      const auto loss = value.loss.detach();
      result.outer_loss = result.outer_loss.defined() ? result.outer_loss + loss : loss;
      result.auxiliary = std::move(value.auxiliary);
    }
    if (problem.keeps_final_states()) result.final_state = loop.state();
    result.inner_steps = result.gradient_evaluations = problem.steps();
    result.states_stored = 1;
    return result;
  });
}

}  // namespace gimli
