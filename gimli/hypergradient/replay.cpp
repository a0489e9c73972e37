#include "gimli/hypergradient/replay.h"

#include <ATen/ATen.h>

#include <map>

#include "gimli/hypergradient/adjoint.h"
#include "gimli/hypergradient/step_record.h"

namespace gimli {
namespace {

/// Sees |theta|^2 after a step, to tell updates apart that come out differently. Only the user's gradient transforms
/// can.
void see_update(StepRecord& updates, int64_t step, const Bilevel& problem, const InnerState& after) {
  if (!problem.has_gradient_transforms()) return;
  const at::NoGradGuard no_gradient;
  at::Tensor squares = at::zeros({});
  for (const auto& parameter : after.parameters) squares = parameter.square().sum() + squares;
  updates.see(step, squares);
}

/// An inner loop without a graph that can be put back to where it has been.
class Rerun final {
 public:
  Rerun(const Bilevel& problem, const TaskRef& task, StepRecord& losses, StepRecord& updates, bool keep_gradients)
      : problem_(problem),
        task_(task),
        losses_(losses),
        updates_(updates),
        keep_gradients_(keep_gradients),
        loop_(problem.start(Graph::none, task)) {}

  const InnerState& state() const { return loop_.state(); }
  void set_state(InnerState state) { loop_.set_state(std::move(state)); }
  int64_t gradient_evaluations() const { return gradient_evaluations_; }

  void step() {
    const auto k = state().step;
    if (k < static_cast<int64_t>(made_.size())) {
      loop_.apply(made_[k].gradients);
      auto after = state();
      after.buffers = made_[k].buffers;
      set_state(std::move(after));
      return;
    }
    auto loss = problem_.loss(loop_, task_);
    auto gradients = loop_.transformed(loop_.gradients(loss));
    losses_.see(k, loss);
    loss = at::Tensor();  // its graph holds the weights, whose memory the update may use again
    loop_.apply(gradients);
    see_update(updates_, k, problem_, state());
    ++gradient_evaluations_;
    if (keep_gradients_) made_.push_back({std::move(gradients), state().buffers});
  }

 private:
  /// What a step needs to be made again without its loss.
  struct Made {
    TensorList gradients, buffers;
  };

  const Bilevel& problem_;
  const TaskRef& task_;
  StepRecord &losses_, &updates_;
  const bool keep_gradients_;
  InnerLoop loop_;
  std::vector<Made> made_;  // of the first steps
  int64_t gradient_evaluations_ = 0;
};

/// A state that is kept, on the host if asked for.
class Kept final {
 public:
  Kept(InnerState state, bool offload) : state_(std::move(state)) {
    if (!offload) return;
    for_each_tensor([&](at::Tensor& tensor) {
      devices_.push_back(tensor.device());
      tensor = tensor.detach().to(at::kCPU);
    });
  }

  /// Where it was.
  InnerState restored() const {
    auto result = *this;
    auto device = devices_.begin();
    if (!devices_.empty()) result.for_each_tensor([&](at::Tensor& tensor) { tensor = tensor.to(*device++); });
    return std::move(result.state_);
  }

 private:
  template <class Function>
  void for_each_tensor(Function function) {
    const auto each = [&](TensorList& list) {
      for (auto& tensor : list) {
        if (tensor.defined()) function(tensor);
      }
    };
    each(state_.parameters);
    each(state_.buffers);
    for (auto& of_parameter : state_.optimizer) each(of_parameter.slots);
  }

  InnerState state_;
  std::vector<c10::Device> devices_;
};

}  // namespace

Replay& Replay::keep_gradients(bool keep) {
  keep_gradients_ = keep;
  return *this;
}

Replay& Replay::offload(bool offload) {
  offload_ = offload;
  return *this;
}

std::string Replay::name() const {
  return c10::str("Replay(", schedule_->name(), ")", keep_gradients_ ? ".keep_gradients(true)" : "",
                  offload_ ? ".offload(true)" : "");
}

Strategy::TaskResult Replay::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                           const TaskRef& task) const {
  using Kind = ReplayAction::Kind;
  const auto plan = schedule_->plan(problem.steps());
  const auto cost = cost_of(plan, problem.steps());

  StepRecord losses(name(), "the loss"), updates(name(), "weights of square norm", /*exact=*/false);
  Rerun rerun(problem, task, losses, updates, keep_gradients_);
  Adjoint adjoint(problem, meta_parameters, task, name());
  std::map<int64_t, Kept> kept;
  const auto reverse = [&](int64_t step) {
    if (step + 1 == problem.steps()) {  // from here, the last state is a step away
      const auto before = rerun.state();
      rerun.step();
      adjoint.add_outer(rerun.state());
      rerun.set_state(before);
    }
    if (adjoint.vanishes_at(step + 1)) return;
    const auto recorded = adjoint.pull_back(rerun.state());
    losses.see(step, recorded.loss);
    see_update(updates, step, problem, recorded.after);
  };
  if (plan.empty()) adjoint.add_outer(rerun.state());
  for (const auto& [kind, step] : plan) {
    switch (kind) {
      case Kind::store:
        kept.emplace(step, Kept(rerun.state(), offload_));
        break;
      case Kind::restore:
        rerun.set_state(kept.at(step).restored());
        break;
      case Kind::drop:
        kept.erase(step);
        break;
      case Kind::advance:
        while (rerun.state().step < step) rerun.step();
        break;
      case Kind::reverse:
        reverse(step);
        break;
    }
  }
  auto result = adjoint.finish();
  result.cost.inner_steps += cost.advanced + !plan.empty();
  result.cost.gradient_evaluations += rerun.gradient_evaluations();
  result.cost.states_stored = cost.kept;
  return result;
}

}  // namespace gimli
