#pragma once

#include "gimli/optim/fused/group.h"

namespace gimli::optim::fused {

/// Whether the kernels may read the tensor's memory as it is: it is dense, on the CPU, and stands for nothing else.
bool is_plain(const at::Tensor& tensor);

/// Makes `outputs` the results of `group`'s update of `inputs` (its tensors, then its coefficients, undefined where
/// they are numbers) in the graph: those of them that depend on something that requires a gradient.
template <class Formula>
void record(const std::shared_ptr<const Group<Formula>>& group, const TensorList& inputs, const TensorList& outputs);

}  // namespace gimli::optim::fused
