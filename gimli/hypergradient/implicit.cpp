#include "gimli/hypergradient/implicit.h"

#include <ATen/ATen.h>

#include "gimli/hypergradient/adjoint.h"

namespace gimli {

Implicit& Implicit::damping(double damping) {
  TORCH_CHECK(std::isfinite(damping) && damping >= 0, "Implicit::damping: expected at least 0, got ", damping);
  damping_ = damping;
  return *this;
}

Implicit& Implicit::start_from(std::vector<TensorList> solutions) {
  solutions_ = std::move(solutions);
  return *this;
}

std::string Implicit::name() const { return c10::str("Implicit(", solver_->name(), ")"); }

void Implicit::check(const Bilevel& problem) const {
  TORCH_CHECK(problem.has_inner(), name(), ": without an inner loss nothing is stationary");
  TORCH_CHECK(!problem.stops_gradient(), name(),
              ": the gradient is to stop between steps, but this one does not go through steps; leave the stop out");
  for (const auto& group : problem.optimizer().groups()) {
    for (const auto* decay : {"weight_decay", "lambd"}) {
      TORCH_CHECK(!group.has(decay) || (group.value(decay).is_number() && group.value(decay).number() == 0), name(),
                  ": ", group.rule->name(), "'s ", decay,
                  " moves its fixed point away from where the gradient is 0; set it to 0 and put the decay into the "
                  "inner loss, or use the gradient transform weight_decay");
    }
  }
}

Strategy::TaskResult Implicit::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                             const TaskRef& task) const {
  check(problem);
  TORCH_CHECK(solutions_.empty() || task.index() < static_cast<int64_t>(solutions_.size()), name(), ": start_from got ",
              solutions_.size(), " solutions, and there is a task number ", task.index());
  const auto end = run_to(problem.steps(), problem, task, name());
  auto outer = outer_gradient(problem, meta_parameters, task, end);

  auto loop = problem.start(Graph::full, task);
  const auto start = loop.state();
  auto at_end = end;
  at_end.step = std::max<int64_t>(problem.steps() - 1, 0);
  loop.set_state(std::move(at_end));
  const auto loss = problem.loss(loop, task);
  refuse_graph_in_buffers(problem, loop.state(), name());
  const auto gradients = loop.transformed(loop.gradients(loss));

  auto result_gradients = std::move(outer.meta_parameters);
  TensorList w, F, b;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].defined()) {
      w.push_back(loop.parameters()[i]);
      F.push_back(gradients[i]);
      b.push_back(outer.state[i].defined() ? outer.state[i] : at::zeros_like(w.back()));
    } else if (outer.state[i].defined()) {  // the loop leaves it where it starts
      const auto& first = start.parameters[i];
      TORCH_CHECK(end.parameters[i].is_alias_of(first), name(), ": the last step's inner loss does not use parameter '",
                  problem.model().parameters.names[i],
                  "', which earlier steps changed, so where it is stationary is unknown");
      result_gradients =
          sum(std::move(result_gradients), vjp({first}, {outer.state[i]}, meta_parameters, /*keep_graph=*/true));
    }
  }
  const auto product = [&](const TensorList& v) {
    auto result = vjp(F, v, w, /*keep_graph=*/true);
    for (size_t i = 0; i < w.size(); ++i) {
      if (!result[i].defined()) result[i] = at::zeros_like(w[i]);
    }
    return add_scaled(std::move(result), damping_, v);
  };
  auto solution = solver_->solve(product, b, solutions_.empty() ? TensorList() : solutions_[task.index()]);
  result_gradients = add_scaled(std::move(result_gradients), -1, vjp(F, solution.x, meta_parameters));

  TaskResult result{
      outer.value.loss, outer.value.auxiliary, std::move(result_gradients), end, std::move(solution.x), {}};
  result.cost.inner_steps = problem.steps();
  result.cost.gradient_evaluations = problem.steps() + 3 + solution.products;
  result.cost.outer_evaluations = result.cost.states_stored = 1;
  result.cost.solver_products = solution.products;
  result.cost.solver_residual = solution.residual;
  result.cost.solver_remark = std::move(solution.remark);
  result.cost.stationarity = std::sqrt(inner_product(F, F));
  return result;
}

}  // namespace gimli
