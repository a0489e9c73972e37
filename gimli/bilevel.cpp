#include "gimli/bilevel.h"

#include <algorithm>

namespace gimli {
namespace {

bool contains(const std::vector<int64_t>& list, int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// What draws random numbers in one step of an inner loop.
enum class Draws : uint64_t { inner, outer, transforms };

uint64_t seed_of(const TaskRef& task, int64_t step, Draws draws, size_t position = 0) {
  return fork_seed(fork_seed(task.seed(), step), static_cast<uint64_t>(draws) + position);
}

}  // namespace

TaskRef TaskRef::in_batch(int64_t index, uint64_t seed) const {
  auto result = *this;
  result.index_ = index;
  result.seed_ = fork_seed(seed, index);
  return result;
}

Bilevel::Bilevel(ModelTensors model, optim::Optimizer optimizer)
    : model_(std::move(model)), optimizer_(std::move(optimizer)) {}

Bilevel& Bilevel::steps(int64_t count) {
  TORCH_CHECK(count >= 0, "Bilevel::steps: expected at least 0, got ", count);
  steps_ = count;
  return *this;
}

Bilevel& Bilevel::outer_at(std::vector<int64_t> steps) {
  TORCH_CHECK(!steps.empty(), "Bilevel::outer_at: expected at least one step");
  outer_steps_ = std::move(steps);
  return *this;
}

Bilevel& Bilevel::stop_gradient_before(std::vector<int64_t> steps) {
  stops_ = std::move(steps);
  return *this;
}

Bilevel& Bilevel::gradient_transform(optim::GradientTransform transform) {
  transforms_.push_back(std::move(transform));
  return *this;
}

Bilevel& Bilevel::start_from(InnerState state) {
  start_ = state.detach();
  start_->step = 0;
  return *this;
}

Bilevel& Bilevel::proximal(optim::Value strength) {
  TORCH_CHECK(!strength.is_number() || (std::isfinite(strength.number()) && strength.number() >= 0),
              "Bilevel::proximal: expected a strength of at least 0, got ", strength.number());
  TORCH_CHECK(strength.is_number() || (strength.tensor().defined() && strength.tensor().dim() == 0),
              "Bilevel::proximal: expected a number or a 0-dimensional tensor");
  proximal_ = std::move(strength);
  return *this;
}

Bilevel& Bilevel::seed(uint64_t seed) {
  seed_ = seed;
  return *this;
}

Bilevel& Bilevel::keep_final_states(bool keep) {
  keep_final_states_ = keep;
  return *this;
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

InnerLoop Bilevel::start(Graph graph, const TaskRef& task) const {
  std::vector<optim::GradientTransform> transforms;
  for (size_t i = 0; i < transforms_.size(); ++i) {
    transforms.push_back(
        [=, transform = transforms_[i]](TensorList gradients, const TensorList& parameters, int64_t step) {
          const RandomStream stream(seed_of(task, step, Draws::transforms, i));
          return transform(std::move(gradients), parameters, step);
        });
  }
  InnerLoop loop(model_, optimizer_, InnerLoopOptions().graph(graph).gradient_transforms(std::move(transforms)));
  if (start_) loop.set_state(*start_);
  return loop;
}

at::Tensor Bilevel::loss(InnerLoop& loop, const TaskRef& task) const {
  const auto step = loop.state().step;
  if (stops_gradient_before(step)) loop.stop_gradient();
  at::AutoGradMode with_gradient(true);
  auto loss = loop.run([&] {
    const RandomStream stream(seed_of(task, step, Draws::inner));
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
    const RandomStream stream(seed_of(task, step, Draws::outer));
    auto value = outer_(task, step);
    return std::pair(std::move(value.loss), std::move(value.auxiliary));
  });
  checked_loss(loss, c10::str("Bilevel: the outer loss after step ", step));
  return {std::move(loss), auxiliary.defined() ? auxiliary.detach() : auxiliary};
}

}  // namespace gimli
