#include <torch/csrc/autograd/autograd.h>

#include "gimli/hypergradient.h"

namespace gimli {
namespace {

/// Refuses initial weights that the inner loop changed, but to which the outer loss does not reach back: the loop's
/// beginning was cut off, or started elsewhere, and their gradient would be 0 in every run.
void check_reach(const InnerLoop& loop, const ModelTensors& model, const TensorList& meta_parameters,
                 const TensorList& gradients, const std::string& name) {
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    if (gradients[i].defined()) continue;
    for (size_t p = 0; p < model.parameters.size(); ++p) {
      const auto& own = model.parameters.tensors[p];
      TORCH_CHECK(!own.is_same(meta_parameters[i]) || loop.parameters()[p].is_same(own), name, ": meta-parameter '",
                  model.parameters.names[p],
                  "' sets the start of the inner loop, which the outer loss does not reach: "
                  "the last steps alone are differentiated, the graph was stopped, or the loop started elsewhere");
    }
  }
}

}  // namespace

Unroll Unroll::last(int64_t steps) {
  TORCH_CHECK(steps >= 0, "Unroll::last: expected at least 0 steps, got ", steps);
  Unroll strategy;
  strategy.last_ = steps;
  return strategy;
}

Unroll Unroll::first_order() {
  Unroll strategy;
  strategy.graph_ = Graph::first_order;
  return strategy;
}

std::string Unroll::name() const {
  if (last_) return c10::str("Unroll::last(", *last_, ")");
  return graph_ == Graph::first_order ? "Unroll::first_order()" : "Unroll()";
}

Strategy::TaskResult Unroll::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                           const TaskRef& task) const {
  const int64_t cut = last_ ? std::max<int64_t>(problem.steps() - *last_, 0) : 0;
  auto loop = problem.start(graph_);
  if (cut > 0) {
    auto unrecorded = problem.start(Graph::none);
    for (int64_t k = 0; k < cut; ++k) {
      TORCH_CHECK(!problem.has_outer_at(k), name(), ": the outer loss after step ", k,
                  " lies before the steps that are differentiated");
      problem.step(unrecorded, task);
    }
    loop.set_state(unrecorded.state().detach());
  }

  TaskResult result;
  at::Tensor total;
  for (int64_t k = cut; k <= problem.steps(); ++k) {
    if (k > cut) problem.step(loop, task);
    if (!problem.has_outer_at(k)) continue;
    auto value = problem.outer(loop, task);
    total = total.defined() ? total + value.loss : value.loss;
    result.auxiliary = std::move(value.auxiliary);
  }

  TORCH_CHECK(total.requires_grad(), name(), ": the outer loss depends on no tensor that requires a gradient");
  result.gradients = torch::autograd::grad({total}, meta_parameters, /*grad_outputs=*/{}, /*retain_graph=*/false,
                                           /*create_graph=*/false, /*allow_unused=*/true);
  check_reach(loop, problem.model(), meta_parameters, result.gradients, name());
  result.outer_loss = total.detach();
  if (problem.keeps_final_states()) result.final_state = loop.state().detach();
  result.inner_steps = problem.steps();
  result.gradient_evaluations = problem.steps() + 1;
  result.states_stored = problem.steps() - cut + 1;
  return result;
}

}  // namespace gimli
