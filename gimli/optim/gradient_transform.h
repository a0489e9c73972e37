#pragma once

#include <cstdint>
#include <functional>

#include "gimli/optim/hyperparameter.h"
#include "gimli/tensor_list.h"

namespace gimli::optim {

/// What happens to the gradients of a step before the optimizer sees them; an undefined gradient belongs to an unused
/// parameter and stays undefined. `parameters` are the fast weights. Differentiated through like the rest of the step.
///
/// What is continuous in the transforms below is a number or, to learn it, a 0-dimensional floating-point tensor: give
/// a leaf, since the graph of a computed one would be freed by the first backward pass. Numbers out of range and
/// tensors of another shape or type are refused.
using GradientTransform = std::function<TensorList(TensorList gradients, const TensorList& parameters, int64_t step)>;

/// Scales all gradients by min(1, max_norm / (norm + 1e-6)), where norm is the 2-norm of all of them together, as
/// torch.nn.utils.clip_grad_norm_ does.
GradientTransform clip_by_norm(Value max_norm);

/// Clamps every element to [-max_value, max_value].
GradientTransform clip_by_value(Value max_value);

/// Adaptive gradient clipping (Brock et al. 2021, equation 3). A unit i with gradient G_i and weights W_i becomes
///
///     clipping max(|W_i|, eps) / |G_i| G_i    where |G_i| > clipping max(|W_i|, eps), else G_i.
///
/// A unit is a row of the first dimension, [out, ...], of a tensor with two or more; a vector or a scalar is one unit.
GradientTransform adaptive_clip(Value clipping, Value eps = 1e-3);

/// Adds factor theta, the gradient of factor |theta|^2 / 2.
GradientTransform weight_decay(Value factor);

/// Adds standard_deviation xi with xi ~ N(0, 1) for every element.
///
/// xi depends on the seed, the step, the position of the gradient in the list, its shape and its dtype, and on nothing
/// else: a loop that is replayed, on whatever thread or device, draws the same numbers.
GradientTransform noise(Value standard_deviation, uint64_t seed);

/// Cuts the graph: the update is differentiated as if the gradients were constants (first-order).
GradientTransform stop_gradient();

}  // namespace gimli::optim
