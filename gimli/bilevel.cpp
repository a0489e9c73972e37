#include "gimli/bilevel.h"

#include <algorithm>
#include <atomic>

namespace gimli {
namespace {

bool contains(const std::vector<int64_t>& list, int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// The streams that a task's seed begins; each has one for every step.
enum Streams : uint64_t { inner_stream, outer_stream, update_stream };

std::vector<uint64_t> seeds_of(const TaskRef& task, Streams streams) {
  auto seeds = task.together() ? task.together()->seeds : std::vector<uint64_t>{task.seed()};
  for (auto& seed : seeds) seed = fork_seed(seed, streams);
  return seeds;
}

std::vector<uint64_t> seeds_of(const TaskRef& task, Streams streams, int64_t step) {
  auto seeds = seeds_of(task, streams);
  for (auto& seed : seeds) seed = fork_seed(seed, step);
  return seeds;
}

/// What a closure returned as tasks that run together have it: no operator need have seen it.
at::Tensor of_all_tasks(const VmapLevel& level, const at::Tensor& returned) {
  auto value = resolve(returned);
  TORCH_CHECK(level.allows(value), "Vmap: a closure returns a tensor (", value.scalar_type(), " of shape ",
              value.sizes(),
              ") of which nobody said whether each task has its own; declare it by Bilevel::inputs or "
              "Bilevel::constants");
  return value;
}

OuterValue of_all_tasks(const VmapLevel& level, const OuterValue& returned) {
  return {of_all_tasks(level, returned.loss), of_all_tasks(level, returned.auxiliary)};
}

}  // namespace

TaskRef TaskRef::in_batch(int64_t index, uint64_t seed) const {
  auto result = *this;
  result.index_ = index;
  result.seed_ = fork_seed(seed, index);
  return result;
}

TaskRef TaskRef::with(std::shared_ptr<const Together> together) const {
  auto result = *this;
  result.together_ = std::move(together);
  return result;
}

Bilevel::Bilevel(ModelTensors model, optim::Optimizer optimizer)
    : model_(std::move(model)), optimizer_(std::move(optimizer)) {
  changed();
}

Bilevel& Bilevel::changed() {
  static std::atomic<uint64_t> count = 0;
  identity_ = ++count;
  return *this;
}

Bilevel& Bilevel::constants(TensorList tensors) {
  constants_ = std::move(tensors);
  return changed();
}

Bilevel& Bilevel::steps(int64_t count) {
  TORCH_CHECK(count >= 0, "Bilevel::steps: expected at least 0, got ", count);
  steps_ = count;
  return changed();
}

Bilevel& Bilevel::outer_at(std::vector<int64_t> steps) {
  TORCH_CHECK(!steps.empty(), "Bilevel::outer_at: expected at least one step");
  outer_steps_ = std::move(steps);
  return changed();
}

Bilevel& Bilevel::stop_gradient_before(std::vector<int64_t> steps) {
  stops_ = std::move(steps);
  return changed();
}

Bilevel& Bilevel::gradient_transform(optim::GradientTransform transform) {
  transforms_.push_back(std::move(transform));
  return changed();
}

Bilevel& Bilevel::start_from(InnerState state) {
  start_ = apart_from(model_, state);
  start_->step = 0;
  return changed();
}

Bilevel& Bilevel::proximal(optim::Value strength) {
  TORCH_CHECK(!strength.is_number() || (std::isfinite(strength.number()) && strength.number() >= 0),
              "Bilevel::proximal: expected a strength of at least 0, got ", strength.number());
  TORCH_CHECK(strength.is_number() || (strength.tensor().defined() && strength.tensor().dim() == 0),
              "Bilevel::proximal: expected a number or a 0-dimensional tensor");
  proximal_ = std::move(strength);
  return changed();
}

Bilevel& Bilevel::seed(uint64_t seed) {
  seed_ = seed;
  return *this;
}

Bilevel& Bilevel::keep_final_states(bool keep) {
  keep_final_states_ = keep;
  return changed();
}

InnerState apart_from(const ModelTensors& model, const InnerState& state) {
  auto result = state.detach();
  for (size_t i = 0; i < result.parameters.size(); ++i) {
    auto& parameter = result.parameters[i];
    if (i < model.parameters.size() && parameter.is_alias_of(model.parameters.tensors[i]))
      parameter = parameter.clone();
  }
  return result;
}

void Bilevel::check() const {
  TORCH_CHECK(inner_ || steps_ == 0, "Bilevel: no inner loss; give it with .inner(closure)");
  TORCH_CHECK(outer_, "Bilevel: no outer loss; give it with .outer(closure)");
  for (const auto& group : optimizer_.groups()) {
    for (size_t i = 0; i < group.values.size(); ++i) {
      TORCH_CHECK(
          !group.values[i].is_computed(), "Bilevel: hyperparameter '", group.names[i],
          "' was computed from other tensors once, and would be neither computed anew nor differentiable twice; "
          "give a function, as in [&](int64_t) { return log_lr.exp(); }");
    }
  }
  TORCH_CHECK(
      proximal_.is_number() || !proximal_.tensor().grad_fn(),
      "Bilevel::proximal: the strength was computed from other tensors once, and would not be computed anew; give "
      "a tensor that is a leaf");
  for (const auto step : outer_steps_) {
    TORCH_CHECK(step >= 0 && step <= steps_, "Bilevel::outer_at: step ", step, " is not among the 0 to ", steps_,
                " steps of the inner loop");
  }
  for (const auto step : stops_) {
    TORCH_CHECK(step >= 0 && step < steps_, "Bilevel::stop_gradient_before: step ", step, " is not among the 0 to ",
                steps_ - 1, " of the inner loop");
  }
}

bool Bilevel::has_outer_at(int64_t step) const {
  return outer_steps_.empty() ? step == steps_ : contains(outer_steps_, step);
}

bool Bilevel::stops_gradient_before(int64_t step) const { return contains(stops_, step); }

TensorList Bilevel::tensors() const {
  TensorList result = model_.parameters.tensors;
  const auto add = [&](const at::Tensor& tensor) {
    if (tensor.defined()) result.push_back(tensor);
  };
  const auto add_all = [&](const TensorList& list) { std::for_each(list.begin(), list.end(), add); };
  const auto add_slots = [&](const std::vector<optim::ParameterState>& states) {
    for (const auto& state : states) add_all(state.slots);
  };
  add_all(model_.buffers.tensors);
  for (const auto& group : optimizer_.groups()) {
    add_slots(group.states);
    for (const auto& value : group.values) add_all(value.tensors());
  }
  if (start_) {
    add_all(start_->parameters);
    add_all(start_->buffers);
    add_slots(start_->optimizer);
  }
  if (!proximal_.is_number()) add(proximal_.tensor());
  add_all(constants_);
  return result;
}

TensorList Bilevel::inputs_of(const TaskRef& task) const {
  if (task.together()) return task.together()->stacked;
  return inputs_ ? inputs_(task, 0) : TensorList();
}

TaskRef Bilevel::together(const std::vector<TaskRef>& tasks, int64_t given) const {
  TORCH_CHECK(inputs_,
              "Vmap: the problem does not say what its closures read of a task; declare it by Bilevel::inputs");
  TaskRef::Together together;
  together.given.tensors = inputs_of(tasks[given]);
  together.shared = tensors();
  std::vector<TensorList> of_tasks(together.given.size());
  for (const auto& task : tasks) {
    together.seeds.push_back(task.seed());
    const auto inputs = inputs_of(task);
    TORCH_CHECK(inputs.size() == of_tasks.size(), "Vmap: inputs() returned ", inputs.size(), " tensors for task ",
                task.index(), " and ", of_tasks.size(), " for task ", tasks[given].index());
    for (size_t i = 0; i < inputs.size(); ++i) {
      TORCH_CHECK(inputs[i].defined(), "Vmap: input ", i, " of task ", task.index(), " is undefined");
      const auto& like = together.given.tensors[i];
      TORCH_CHECK(inputs[i].sizes() == like.sizes() && inputs[i].options().type_equal(like.options()),
                  "Vmap: tasks run together only if their tensors have the same shapes and types: input ", i,
                  " of task ", task.index(), " is ", inputs[i].scalar_type(), " of shape ", inputs[i].sizes(),
                  ", that of task ", tasks[given].index(), " ", like.scalar_type(), " of shape ", like.sizes());
      of_tasks[i].push_back(inputs[i]);
    }
  }
  for (size_t i = 0; i < of_tasks.size(); ++i) {
    together.given.names.push_back(c10::str("input ", i, " of the task"));
    together.stacked.push_back(at::stack(of_tasks[i]));
  }
  return tasks[given].with(std::make_shared<const TaskRef::Together>(std::move(together)));
}

template <class Result>
Result Bilevel::call(const Closure<Result>& closure, const TaskRef& task, int64_t step) const {
  if (!task.together()) return closure(task, step);
  const auto& [seeds, given, stacked, shared] = *task.together();
  auto& level = *VmapLevel::current();
  level.allow_only(shared);
  const ModelTensors inputs(given);
  const Substitution all_tasks(inputs, level.wrap(stacked), {});
  return of_all_tasks(level, closure(task, step));
}

InnerLoop Bilevel::start(Graph graph, const TaskRef& task) const {
  auto options = InnerLoopOptions().graph(graph).gradient_transforms(transforms_);
  auto seeds = seeds_of(task, update_stream);
  task.together() ? options.task_seeds(std::move(seeds)) : options.seed(seeds[0]);
  InnerLoop loop(model_, optimizer_, std::move(options));
  if (start_) {
    auto state = *start_;
    if (!state.rules) state.rules = loop.state().rules;
    loop.set_state(task.together() ? expanded(state, task.count()) : state);
  }
  return loop;
}

at::Tensor Bilevel::loss(InnerLoop& loop, const TaskRef& task) const {
  const auto step = loop.state().step;
  if (stops_gradient_before(step)) loop.set_state(apart_from(model_, loop.state()));
  at::AutoGradMode with_gradient(true);
  auto loss = loop.run([&] {
    const RandomStream stream(seeds_of(task, inner_stream, step));
    return call(inner_, task, step);
  });
  if (!has_proximal()) return loss;
  const VmapLevel level(task.count());
  loss = level.wrap(loss);
  for (size_t i = 0; i < model_.parameters.size(); ++i) {
    if (!loop.adapts(i)) continue;
    const auto theta = level.wrap(loop.parameters()[i]);
    const auto distance = (theta - resolve(model_.parameters.tensors[i])).square().sum();
    loss = optim::add_scaled(loss, proximal_, distance / 2);
  }
  return level.unwrap(loss);
}

at::Tensor Bilevel::step(InnerLoop& loop, const TaskRef& task) const { return loop.step(loss(loop, task)); }

OuterValue Bilevel::outer(const InnerLoop& loop, const TaskRef& task) const {
  const auto step = loop.state().step;
  auto branch = loop;
  auto [loss, auxiliary] = branch.run([&] {
    const RandomStream stream(seeds_of(task, outer_stream, step));
    auto value = call(outer_, task, step);
    return std::pair(std::move(value.loss), std::move(value.auxiliary));
  });
  return {checked_loss(loss, task.count(), c10::str("Bilevel: the outer loss after step ", step)),
          auxiliary.defined() ? auxiliary.detach() : auxiliary};
}

}  // namespace gimli
