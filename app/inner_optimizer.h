#pragma once

#include <string>
#include <vector>

#include "gimli/optim/optimizer.h"

namespace gimli::app {

/// The names of the optimizers that an inner loop can be given; momentum is SGD with momentum 0.9,
/// and muon leaves what is not a matrix to AdamW.
const std::vector<std::string>& inner_optimizer_names();

/// An optimizer by its name, with a learning rate and otherwise its own defaults.
optim::Optimizer make_inner_optimizer(const std::string& name, double lr, TensorList parameters);

}  // namespace gimli::app
