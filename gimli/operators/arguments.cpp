#include "gimli/operators/arguments.h"

#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>

#include <algorithm>

namespace gimli::operators {

bool is_dense(const at::Tensor& tensor) {
  return !at::isTensorSubclassLike(tensor) && tensor.layout() == at::kStrided && tensor.device().is_cpu() &&
         tensor.has_storage() && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble);
}

bool are_dense(std::initializer_list<at::Tensor> tensors) {
  const auto& first = *tensors.begin();
  return first.defined() && std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
           return !tensor.defined() ||
                  (is_dense(tensor) && tensor.scalar_type() == first.scalar_type() && tensor.numel() > 0);
         });
}

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

at::Tensor over_channels(const at::Tensor& numbers, const at::Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape[1] = x.size(1);
  return numbers.view(shape);
}

at::MemoryFormat format_of(const at::Tensor& x) {
  if (x.is_contiguous()) return at::MemoryFormat::Contiguous;
  if (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  if (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)) return at::MemoryFormat::ChannelsLast3d;
  return at::MemoryFormat::Contiguous;
}

}  // namespace gimli::operators
