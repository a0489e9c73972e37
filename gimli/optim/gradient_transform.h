#pragma once

#include <cstdint>
#include <functional>

#include "gimli/tensor_list.h"

namespace gimli::optim {

/// What happens to the gradients of a step before the optimizer sees them; an undefined gradient belongs to an unused
/// parameter and stays undefined. `parameters` are the fast weights. Differentiated through like the rest of the step.
using GradientTransform = std::function<TensorList(TensorList gradients, const TensorList& parameters, int64_t step)>;

/// Scales all gradients by min(1, max_norm / (norm + 1e-6)), where norm is the 2-norm of all of them together, as
/// torch.nn.utils.clip_grad_norm_ does.
GradientTransform clip_by_norm(double max_norm);

/// Clamps every element to [-max_value, max_value].
GradientTransform clip_by_value(double max_value);

/// Cuts the graph: the update is differentiated as if the gradients were constants (first-order).
GradientTransform stop_gradient();

}  // namespace gimli::optim
