#include "gimli/hypergradient/reversible.h"

#include <ATen/ATen.h>

#include "gimli/hypergradient/adjoint.h"
#include "gimli/hypergradient/lost_bits.h"
#include "gimli/hypergradient/step_record.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli {
namespace {

/// What takes one parameter back over one step. A parameter without a gradient was not moved.
struct Undo {
  std::optional<LostBits> theta, b;
};

/// What takes a state back over one step.
struct UndoStep {
  std::vector<Undo> parameters;
  TensorList buffers;
};

const optim::SGD& sgd_of(const InnerLoop& loop, size_t i) { return dynamic_cast<const optim::SGD&>(loop.rule(i)); }

void check(const InnerLoop& loop, const ModelTensors& model, const std::vector<optim::Values>& hyperparameters) {
  for (size_t i = 0; i < hyperparameters.size(); ++i) {
    if (!loop.adapts(i)) continue;
    const auto* sgd = dynamic_cast<const optim::SGD*>(&loop.rule(i));
    const auto reason = sgd ? sgd->irreversible(hyperparameters[i]) : loop.rule(i).name() + " is not SGD with momentum";
    TORCH_CHECK(reason.empty(), "Reversible(): step ", loop.state().step, " of parameter '", model.parameters.names[i],
                "' cannot be undone: ", reason, "; use Replay");
  }
}

/// Makes the step of `loop` by `gradients`; returns how to undo it.
UndoStep apply(InnerLoop& loop, const TensorList& gradients, const std::vector<optim::Values>& hyperparameters,
               TensorList buffers_before) {
  const auto before = loop.state().detach();
  loop.apply(gradients);
  loop.stop_gradient();

  const at::NoGradGuard no_gradient;
  UndoStep undo{std::vector<Undo>(gradients.size()), std::move(buffers_before)};
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    const auto& sgd = sgd_of(loop, i);
    const auto& theta = before.parameters[i];
    const auto &b = before.optimizer[i].slots[0], &b_after = loop.state().optimizer[i].slots[0];
    undo.parameters[i].theta =
        LostBits::between(theta, sgd.parameter_before(loop.state().parameters[i], b_after, hyperparameters[i]));
    if (b.defined()) {
      undo.parameters[i].b =
          LostBits::between(b, sgd.momentum_before(b_after, gradients[i], theta, hyperparameters[i]));
    }
  }
  return undo;
}

}  // namespace

Strategy::TaskResult Reversible::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                               const TaskRef& task) const {
  StepRecord losses(name(), "the loss");
  std::vector<UndoStep> undo;
  // Its gradients are recorded, like those on the way back: libtorch rounds some in another way if they are not.
  auto loop = problem.start(Graph::full, task);
  loop.stop_gradient();
  for (int64_t k = 0; k < problem.steps(); ++k) {
    const auto hyperparameters = loop.hyperparameters();
    check(loop, problem.model(), hyperparameters);
    auto buffers = loop.state().buffers;
    const auto loss = problem.loss(loop, task);
    losses.see(k, loss);
    undo.push_back(apply(loop, loop.transformed(loop.gradients(loss)), hyperparameters, std::move(buffers)));
  }

  Adjoint adjoint(problem, meta_parameters, task, name());
  auto after = loop.state().detach();
  adjoint.add_outer(after);
  for (int64_t k = problem.steps() - 1; k >= 0 && !adjoint.vanishes_at(k + 1); --k) {
    auto before = after;
    before.step = k;
    before.buffers = undo[k].buffers;
    loop.set_state(before);
    const auto hyperparameters = loop.hyperparameters();
    for (size_t i = 0; i < undo[k].parameters.size(); ++i) {
      if (!undo[k].parameters[i].theta) continue;
      const at::NoGradGuard no_gradient;
      auto& theta = before.parameters[i];
      auto& state = before.optimizer[i];
      --state.step;
      theta = undo[k].parameters[i].theta->correct(
          sgd_of(loop, i).parameter_before(theta, state.slots[0], hyperparameters[i]));
    }
    loop.set_state(as_leaves(before));
    const auto loss = problem.loss(loop, task);
    losses.see(k, loss);
    const auto gradients = loop.transformed(loop.gradients(loss));

    auto at_loss = loop.state();
    for (size_t i = 0; i < undo[k].parameters.size(); ++i) {
      if (!undo[k].parameters[i].theta) continue;
      const at::NoGradGuard no_gradient;
      before.optimizer[i].slots[0] =
          undo[k].parameters[i].b
              ? undo[k].parameters[i].b->correct(sgd_of(loop, i).momentum_before(
                    before.optimizer[i].slots[0], gradients[i], before.parameters[i], hyperparameters[i]))
              : at::Tensor();
    }
    at_loss.optimizer = as_leaves(before).optimizer;
    loop.set_state(std::move(at_loss));
    auto leaves = tensors_of(loop.state());
    if (problem.stops_gradient_before(k)) leaves.assign(leaves.size(), at::Tensor());
    loop.apply(gradients);
    adjoint.pull_back(leaves, loop.state());
    undo.pop_back();
    after = std::move(before);
    adjoint.add_outer(after);
  }

  const auto reversed = problem.steps() - static_cast<int64_t>(undo.size());
  auto result = adjoint.finish();
  result.cost.inner_steps = problem.steps() + reversed;
  result.cost.gradient_evaluations += problem.steps() + 2 * reversed;
  result.cost.states_stored = 1;
  return result;
}

}  // namespace gimli
