#pragma once

#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// Forward mode (Franceschi et al. 2017; real-time recurrent learning, Williams & Zipser 1989), exact: the tangents
/// Z_k = dS_k/dphi of the inner state, one for each element of the meta-parameters phi, go along with the loop,
///
///     Z_{k+1} = dS_{k+1}/dS_k Z_k + dS_{k+1}/dphi,    dL/dphi = sum over outer losses L_k of dL_k/dS_k Z_k + dL_k/dphi
///
/// For few elements and many steps: memory is one recorded step and a state for each element, whatever the number of
/// steps. A step costs what it costs with Unroll, and about as much again for each element.
///
/// Products with a Jacobian J are two backward passes, J v = d<J^T u, v>/du, of which the first is shared by all
/// elements. So whatever Unroll differentiates is differentiated here, by the same formulas of libtorch, as long as
/// their last derivative can be taken once more; an operator where it cannot says so.
class ForwardMode final : public Strategy {
 public:
  /// More elements of meta-parameters than this are refused.
  ForwardMode& max_elements(int64_t count);

  std::string name() const override { return "ForwardMode()"; }
  std::string one_task_because() const override { return {}; }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  int64_t max_elements_ = 1024;
};

}  // namespace gimli
