#include "gimli/bilevel.h"

#include <algorithm>

namespace gimli {
namespace {

bool contains(const std::vector<int64_t>& list, int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

}  // namespace

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

InnerLoop Bilevel::start(Graph graph) const {
  InnerLoop loop(model_, optimizer_, InnerLoopOptions().graph(graph).gradient_transforms(transforms_));
  if (start_) loop.set_state(*start_);
  return loop;
}

void Bilevel::step(InnerLoop& loop, const TaskRef& task) const {
  const auto step = loop.state().step;
  if (contains(stops_, step)) loop.stop_gradient();
  loop.step([&] { return inner_(task, step); });
}

bool Bilevel::has_outer_at(int64_t step) const {
  return outer_steps_.empty() ? step == steps_ : contains(outer_steps_, step);
}

OuterValue Bilevel::outer(InnerLoop& loop, const TaskRef& task) const {
  const auto step = loop.state().step;
  auto [loss, auxiliary] = loop.run([&] {
    auto value = outer_(task, step);
    return std::pair(std::move(value.loss), std::move(value.auxiliary));
  });
  checked_loss(loss, c10::str("Bilevel: the outer loss after step ", step));
  return {std::move(loss), auxiliary.defined() ? auxiliary.detach() : auxiliary};
}

}  // namespace gimli
