#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>

namespace gimli::operators {

/// Whether passes over memory may read the tensor: it is dense, on the CPU, and of float or double.
bool is_dense(const at::Tensor& tensor);

/// Whether all are, of one type and none of them empty. Undefined ones do not count, but the first is defined.
bool are_dense(std::initializer_list<at::Tensor> tensors);

std::optional<at::Tensor> if_defined(const at::Tensor& tensor);

/// Numbers [channels] as [1, channels, 1, ...], which broadcasts over x.
at::Tensor over_channels(const at::Tensor& numbers, const at::Tensor& x);

/// The memory format in which passes go over x.
at::MemoryFormat format_of(const at::Tensor& x);

}  // namespace gimli::operators
