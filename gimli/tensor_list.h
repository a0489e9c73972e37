#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace gimli {

/// Tensors that belong together: a model's parameters, their gradients, an optimizer's moments. An undefined tensor in
/// a list of gradients stands for "no gradient".
using TensorList = std::vector<at::Tensor>;

/// a + b, element by element; an undefined tensor counts as 0.
TensorList sum(TensorList a, const TensorList& b);

/// a + factor b, element by element; an undefined tensor counts as 0.
TensorList add_scaled(TensorList a, double factor, const TensorList& b);

/// a^T b, each list seen as one long vector; an undefined tensor counts as 0. Adds in double whatever the lists' type.
double inner_product(const TensorList& a, const TensorList& b);

/// |a - b| / |b|, each list seen as one long vector; 0 where they are equal.
double relative_distance(const TensorList& a, const TensorList& b);

/// `list` divided by a number; undefined tensors stay undefined.
TensorList divide(TensorList list, double divisor);

/// Sets the `.grad()` of each parameter, as a backward pass from zero would, for a torch::optim optimizer to use; an
/// undefined gradient clears it.
void assign_gradients(const TensorList& parameters, const TensorList& gradients);

}  // namespace gimli
