#include "gimli/hypergradient/reptile.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace gimli {

Strategy::TaskResult Reptile::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                            const TaskRef& task) const {
  TORCH_CHECK(!problem.stops_gradient(), name(),
              ": the gradient is to stop between steps, but nothing is differentiated; leave the stop out");
  auto loop = problem.start(Graph::none, task);
  const auto& parameters = problem.model().parameters;
  std::vector<size_t> positions;
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    const auto& phi = meta_parameters[i];
    const auto found = std::find_if(parameters.tensors.begin(), parameters.tensors.end(),
                                    [&](const at::Tensor& parameter) { return parameter.is_same(phi); });
    const auto p = static_cast<size_t>(found - parameters.tensors.begin());
    TORCH_CHECK(p < parameters.size() && loop.adapts(p), name(), ": meta-parameter ", i, " (shape ", phi.sizes(),
                ") is not an initial weight that the inner loop adapts, for which alone its rule has a meaning; use "
                "Unroll for others");
    TORCH_CHECK(loop.parameters()[p].is_alias_of(phi), name(),
                ": the inner loop starts from a state of its own, not "
                "from meta-parameter '",
                parameters.names[p], "'; leave out start_from");
    positions.push_back(p);
  }

  OuterSum outer;
  for (int64_t k = 0; k <= problem.steps(); ++k) {
    if (k > 0) problem.step(loop, task);
    if (problem.has_outer_at(k)) outer.add(problem.outer(loop, task).detach());
  }

  TaskResult result;
  result.outer_loss = outer.total();
  result.auxiliary = outer.auxiliary();
  result.final_state = loop.state().detach();
  for (size_t i = 0; i < positions.size(); ++i) {
    const auto theta_0 = meta_parameters[i].detach();
    const auto& theta_T = result.final_state.parameters[positions[i]];
    result.gradients.push_back(theta_T.is_alias_of(theta_0) ? at::Tensor() : theta_0 - theta_T);
  }
  result.cost.inner_steps = result.cost.gradient_evaluations = problem.steps();
  result.cost.outer_evaluations = outer.count();
  result.cost.states_stored = 1;
  return result;
}

}  // namespace gimli
