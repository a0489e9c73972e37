#include "gimli/hypergradient.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <chrono>
#include <map>
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
              uint64_t seed, int64_t given, Function task_result) {
  const auto begin = std::chrono::steady_clock::now();
  const auto width = batch.together(tasks.size());
  const auto count = (tasks.size() + width - 1) / width;

  // Results wait for those of the tasks before them, so that sums do not depend on who finishes first.
  std::vector<std::optional<Strategy::TaskResult>> waiting(count);
  int64_t next = 0;
  std::mutex mutex;
  Result result;
  TensorList losses;
  const auto take = [&](Strategy::TaskResult& task) {
    TORCH_CHECK(task.gradients.size() == meta_parameters.size(), "hypergradient: the strategy returned ",
                task.gradients.size(), " gradients for ", meta_parameters.size(), " meta-parameters");
    const auto together = width > 1 ? task.outer_loss.numel() : 0;
    losses.push_back(task.outer_loss.reshape({-1}));
    result.gradients = next == 0 ? std::move(task.gradients) : sum(std::move(result.gradients), task.gradients);
    if (problem.keeps_final_states()) task.final_state = apart_from(problem.model(), task.final_state);
    if (together == 0) {
      result.auxiliary.push_back(std::move(task.auxiliary));
      if (problem.keeps_final_states()) result.final_states.push_back(std::move(task.final_state));
    }
    for (int64_t i = 0; i < together; ++i) {
      result.auxiliary.push_back(task.auxiliary.defined() ? task.auxiliary[i] : at::Tensor());
      if (problem.keeps_final_states()) result.final_states.push_back(state_of(task.final_state, i));
    }
    if (!task.solution.empty()) result.solutions.push_back(std::move(task.solution));
    result.cost += task.cost.times(std::max<int64_t>(together, 1));
  };
  batch.run(count, [&](int64_t i) {
    std::vector<TaskRef> some;
    for (int64_t t = i * width; t < std::min((i + 1) * width, tasks.size()); ++t) {
      some.push_back(tasks[t].in_batch(t, seed));
    }
    auto value = task_result(
        width > 1 ? problem.together(some, std::min<int64_t>(given, static_cast<int64_t>(some.size()) - 1)) : some[0]);
    if (!problem.keeps_final_states()) value.final_state = {};
    const std::lock_guard lock(mutex);
    waiting[i] = std::move(value);
    for (; next < count && waiting[next]; ++next) {
      take(*waiting[next]);
      waiting[next].reset();
    }
  });

  result.outer_losses = at::cat(losses);
  result.outer_loss = result.outer_losses.mean();
  result.gradients = divide(std::move(result.gradients), static_cast<double>(tasks.size()));
  result.cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

/// Gathers by the batch that runs this job.
template <class Function>
Result run(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks, const TaskBatch& batch,
           const std::string& strategy, Function task_result) {
  problem.check();
  TORCH_CHECK(tasks.size() > 0, "hypergradient: got an empty list of tasks");
  std::optional<DrawnSeed> drawn;
  if (!problem.seed()) drawn.emplace();
  const auto seed = drawn ? drawn->seed() : *problem.seed();

  const auto describe = [&] {
    TaskBatch::Job job{problem.identity(), strategy, tasks.size(), {}};
    for (const auto& tensor : problem.inputs_of(tasks[0])) {
      job.shapes.push_back(tensor.dim());
      job.shapes.insert(job.shapes.end(), tensor.sizes().begin(), tensor.sizes().end());
    }
    return job;
  };
  std::map<const TaskBatch*, Result> tried;
  const auto trial = [&](const TaskBatch& candidate, int64_t given) -> TaskBatch::Outcome {
    const auto drawn_before = RandomStream::draws();
    const auto& result = tried[&candidate] =
        gather(problem, meta_parameters, tasks, candidate, seed, given, task_result);
    const bool draws = RandomStream::draws() != drawn_before;
    return {{result.outer_losses}, result.gradients, result.cost.seconds, draws};
  };
  const auto [chosen, remark] = batch.choose(describe, trial);
  const auto found = tried.find(&chosen);
  auto result = found != tried.end() ? std::move(found->second)
                                     : gather(problem, meta_parameters, tasks, chosen, seed, 0, task_result);
  result.cost.strategy = strategy;
  result.cost.task_batch = &chosen == &batch ? batch.name() : c10::str(batch.name(), ": ", chosen.name());
  result.cost.task_batch_remark = remark;
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
  auto result = run(problem, meta_parameters, tasks, batch, name, [&](const TaskRef& task) {
    const auto reason = task.together() ? strategy.one_task_because() : "";
    TORCH_CHECK(reason.empty(), "Vmap: ", name, " does not take tasks together: ", reason,
                "; run them with Sequential or Threads");
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
  return result;
}

Result evaluate(const Bilevel& problem, const TaskList& tasks, const TaskBatch& batch) {
  return run(problem, {}, tasks, batch, "", [&](const TaskRef& task) { return run_without_graph(problem, task); });
}

}  // namespace gimli
