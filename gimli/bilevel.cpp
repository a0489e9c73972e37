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

uint64_t seed_of(const TaskRef& task, Streams streams, int64_t step) {
  return fork_seed(fork_seed(task.seed(), streams), step);
}

}  // namespace

TaskRef TaskRef::in_batch(int64_t index, uint64_t seed) const {
  auto result = *this;
  result.index_ = index;
  result.seed_ = fork_seed(seed, index);
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

InnerLoop Bilevel::start(Graph graph, const TaskRef& task) const {
  InnerLoop loop(
      model_, optimizer_,
      InnerLoopOptions().graph(graph).gradient_transforms(transforms_).seed(fork_seed(task.seed(), update_stream)));
  if (start_) loop.set_state(*start_);
  return loop;
}

at::Tensor Bilevel::loss(InnerLoop& loop, const TaskRef& task) const {
  const auto step = loop.state().step;
  if (stops_gradient_before(step)) loop.set_state(apart_from(model_, loop.state()));
  at::AutoGradMode with_gradient(true);
  auto loss = loop.run([&] {
    const RandomStream stream(seed_of(task, inner_stream, step));
    return inner_(task, step);
  });
  if (!has_proximal()) return loss;
  for (size_t i = 0; i < model_.parameters.size(); ++i) {
    if (!loop.adapts(i)) continue;
    const auto& theta = loop.parameters()[i];
    const auto distance = (theta - resolve(model_.parameters.tensors[i])).square().sum();
    loss = optim::add_scaled(loss, proximal_, distance / 2);
  }
  return loss;
}

at::Tensor Bilevel::step(InnerLoop& loop, const TaskRef& task) const { return loop.step(loss(loop, task)); }

OuterValue Bilevel::outer(const InnerLoop& loop, const TaskRef& task) const {
  const auto step = loop.state().step;
  auto branch = loop;
  auto [loss, auxiliary] = branch.run([&] {
    const RandomStream stream(seed_of(task, outer_stream, step));
    auto value = outer_(task, step);
    return std::pair(std::move(value.loss), std::move(value.auxiliary));
  });
  checked_loss(loss, c10::str("Bilevel: the outer loss after step ", step));
  return {std::move(loss), auxiliary.defined() ? auxiliary.detach() : auxiliary};
}

}  // namespace gimli
