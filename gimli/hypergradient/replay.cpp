#include "gimli/hypergradient/replay.h"

#include <ATen/ATen.h>

#include <map>

#include "gimli/hypergradient/adjoint.h"
#include "gimli/hypergradient/loss_record.h"

namespace gimli {
namespace {

/// An inner loop without a graph that can be put back to where it has been.
class Rerun final {
 public:
  Rerun(const Bilevel& problem, const TaskRef& task, LossRecord& losses, bool keep_gradients)
      : problem_(problem),
        task_(task),
        losses_(losses),
        keep_gradients_(keep_gradients),
        loop_(problem.start(Graph::none, task)) {}

  const InnerState& state() const { return loop_.state(); }
  void set_state(InnerState state) { loop_.set_state(std::move(state)); }
  int64_t gradient_evaluations() const { return gradient_evaluations_; }

  void step() {
    const auto k = state().step;
    if (k < static_cast<int64_t>(kept_.size())) {
      loop_.apply(kept_[k].gradients);
      auto after = state();
      after.buffers = kept_[k].buffers;
      set_state(std::move(after));
      return;
    }
    auto loss = problem_.loss(loop_, task_);
    auto gradients = loop_.transformed(loop_.gradients(loss));
    losses_.see(k, loss);
    loss = at::Tensor();  // its graph holds the weights, whose memory the update may use again
    loop_.apply(gradients);
    ++gradient_evaluations_;
    if (keep_gradients_) kept_.push_back({std::move(gradients), state().buffers});
  }

 private:
  /// What a step needs to be made again without its loss.
  struct Kept {
    TensorList gradients, buffers;
  };

  const Bilevel& problem_;
  const TaskRef& task_;
  LossRecord& losses_;
  const bool keep_gradients_;
  InnerLoop loop_;
  std::vector<Kept> kept_;  // of the first steps
  int64_t gradient_evaluations_ = 0;
};

InnerState moved(InnerState state, c10::Device device) {
  const auto move = [&](TensorList& list) {
    for (auto& tensor : list) {
      if (tensor.defined()) tensor = tensor.detach().to(device);
    }
  };
  move(state.parameters);
  move(state.buffers);
  for (auto& of_parameter : state.optimizer) move(of_parameter.slots);
  return state;
}

}  // namespace

Replay& Replay::keep_gradients(bool keep) {
  keep_gradients_ = keep;
  return *this;
}

Replay& Replay::offload(bool offload) {
  offload_ = offload;
  return *this;
}

std::string Replay::name() const { return c10::str("Replay(", schedule_->name(), ")"); }

Strategy::TaskResult Replay::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                           const TaskRef& task) const {
  using Kind = ReplayAction::Kind;
  const auto plan = schedule_->plan(problem.steps());
  const auto cost = cost_of(plan, problem.steps());

  LossRecord losses(name());
  Rerun rerun(problem, task, losses, keep_gradients_);
  Adjoint adjoint(problem, meta_parameters, task, name());
  const auto device = rerun.state().parameters.empty() ? c10::Device(at::kCPU) : rerun.state().parameters[0].device();
  std::map<int64_t, InnerState> kept;
  for (const auto& [kind, step] : plan) {
    switch (kind) {
      case Kind::store:
        kept.emplace(step, offload_ ? moved(rerun.state(), at::kCPU) : rerun.state());
        break;
      case Kind::restore:
        rerun.set_state(offload_ ? moved(kept.at(step), device) : kept.at(step));
        break;
      case Kind::drop:
        kept.erase(step);
        break;
      case Kind::advance:
        while (rerun.state().step < step) rerun.step();
        break;
      case Kind::reverse:
        if (step + 1 == problem.steps() || !adjoint.vanishes_at(step + 1)) {
          losses.see(step, adjoint.pull_back(rerun.state()));
        }
        break;
    }
  }
  auto result = adjoint.finish();
  result.cost.inner_steps += cost.advanced;
  result.cost.gradient_evaluations += rerun.gradient_evaluations();
  result.cost.states_stored = cost.kept;
  return result;
}

}  // namespace gimli
