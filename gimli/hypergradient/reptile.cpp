#include "gimli/hypergradient/reptile.h"

#include <ATen/ATen.h>

#include "gimli/hypergradient/adjoint.h"

namespace gimli {

Strategy::TaskResult Reptile::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                            const TaskRef& task) const {
  TORCH_CHECK(!problem.stops_gradient(), name(),
              ": the gradient is to stop between steps, but nothing is differentiated; leave the stop out");
  const auto start = problem.start(Graph::none, task);
  std::vector<size_t> positions;
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    const auto& phi = meta_parameters[i];
    const auto p = position_in(problem.model(), phi);
    TORCH_CHECK(p && start.adapts(*p), name(), ": meta-parameter ", i, " (shape ", phi.sizes(),
                ") is not an initial weight that the inner loop adapts, for which alone its rule has a meaning; use "
                "Unroll for others");
    TORCH_CHECK(start.parameters()[*p].is_alias_of(phi), name(),
                ": the inner loop starts from a state of its own, not "
                "from meta-parameter '",
                problem.model().parameters.names[*p], "'; leave out start_from");
    positions.push_back(*p);
  }

  auto result = run_without_graph(problem, task);
  for (size_t i = 0; i < positions.size(); ++i) {
    const auto theta_0 = meta_parameters[i].detach();
    const auto& theta_T = result.final_state.parameters[positions[i]];
    result.gradients.push_back(theta_T.is_alias_of(theta_0) ? at::Tensor() : theta_0 - theta_T);
  }
  return result;
}

}  // namespace gimli
