#pragma once

#include <functional>

#include "gimli/optim/fused/formulas.h"
#include "gimli/optim/optimizer.h"

namespace gimli::optim::fused {

/// How one parameter is updated.
template <class Formula>
struct Recipe {
  Formula formula;
  std::array<Value, Formula::coefficients> coefficients;  ///< numbers or 0-dimensional
};

/// UpdateRule::update_all in one pass over memory, with at most one node in the graph for all iterates together. The
/// node keeps only inputs of the update, of those only what its derivatives need, and has derivatives of any order that
/// are evaluated in one pass too, up to the second.
///
/// `recipe_for(state, hyperparameters)` describes one iterate's update; iterates with equal hyperparameters and steps
/// share it. What it applies to are dense float and double tensors on the CPU whose hyperparameters are numbers or
/// 0-dimensional; other iterates go through `rule.update`.
template <class Formula>
void update_all(const UpdateRule& rule,
                const std::function<Recipe<Formula>(const ParameterState&, const Values&)>& recipe_for,
                std::vector<Iterate>& iterates, const TensorList& gradients,
                const std::vector<Values>& hyperparameters);

}  // namespace gimli::optim::fused
