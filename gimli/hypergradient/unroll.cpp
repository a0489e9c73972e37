#include "gimli/hypergradient/unroll.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "gimli/hypergradient/adjoint.h"

namespace gimli {

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
  auto loop = problem.start(graph_, task);
  if (cut > 0) loop.set_state(cut_from(loop.state(), run_to(cut, problem, task, name())));

  OuterSum outer;
  for (int64_t k = cut; k <= problem.steps(); ++k) {
    if (k > cut) problem.step(loop, task);
    if (problem.has_outer_at(k)) outer.add(problem.outer(loop, task));
  }

  TORCH_CHECK(outer.total().requires_grad(), name(), ": the outer loss depends on no tensor that requires a gradient");
  TaskResult result;
  result.outer_loss = outer.total().detach();
  result.auxiliary = outer.auxiliary();
  result.gradients = torch::autograd::grad({outer.total()}, meta_parameters, {at::ones_like(outer.total())},
                                           /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
  result.final_state = loop.state().detach();
  result.cost.inner_steps = problem.steps();
  result.cost.gradient_evaluations = problem.steps() + 1;
  result.cost.outer_evaluations = outer.count();
  result.cost.states_stored = problem.steps() - cut + 1;
  return result;
}

}  // namespace gimli
