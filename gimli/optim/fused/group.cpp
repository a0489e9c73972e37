#include "gimli/optim/fused/group.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

namespace gimli::optim::fused {
namespace {

constexpr int64_t chunk_size = 1 << 15;

}  // namespace

template <class Formula>
at::Tensor Member<Formula>::empty() const {
  return at::detail::empty_strided_cpu(sizes, strides, dtype);
}

template <class Formula>
bool Member<Formula>::lies_as(const at::Tensor& tensor) const {
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && tensor.stride(d) != strides[d]) return false;
  }
  return true;
}

template <class Formula>
at::Tensor Member<Formula>::aligned(const at::Tensor& tensor) const {
  if (lies_as(tensor) && !tensor.is_neg() && !tensor._is_zerotensor()) return tensor;
  at::NoGradGuard no_gradient;
  return empty().copy_(tensor);
}

template <class Formula>
Evaluation<Formula>::Evaluation(const Group<Formula>& group, Order order)
    : group_(group), order_(order), passes_(group.members.size()) {
  for (size_t i = 0; i < passes_.size(); ++i) {
    const auto& member = group.members[i];
    passes_[i].formula = member.formula;
    passes_[i].c = group.rows[member.row];
    for (int64_t begin = 0; begin < member.numel; begin += chunk_size) {
      chunks_.push_back({i, begin, std::min(begin + chunk_size, member.numel)});
    }
    numel_ += member.numel;
  }
}

template <class Formula>
void Evaluation<Formula>::read(const TensorList& tensors, size_t width) {
  for (size_t i = 0; i < passes_.size(); ++i) {
    for (size_t k = 0; k < width; ++k) {
      const auto& tensor = tensors[i * width + k];
      if (!tensor.defined()) continue;
      auto aligned = group_.members[i].aligned(tensor);
      passes_[i].in[read_ + k] = aligned.const_data_ptr();
      if (!aligned.is_same(tensor)) kept_.push_back(std::move(aligned));
    }
  }
  read_ += width;
}

template <class Formula>
void Evaluation<Formula>::write(const TensorList& tensors, size_t width) {
  for (size_t i = 0; i < passes_.size(); ++i) {
    for (size_t k = 0; k < width; ++k) {
      const auto& tensor = tensors[i * width + k];
      if (tensor.defined()) passes_[i].out[written_ + k] = tensor.mutable_data_ptr();
    }
  }
  written_ += width;
}

template <class Formula>
void Evaluation<Formula>::move(const TensorList& tensors, size_t first) {
  for (size_t i = 0; i < passes_.size(); ++i) {
    const auto row = first + group_.members[i].row * Formula::coefficients;
    for (size_t k = 0; k < Formula::coefficients; ++k) {
      if (tensors[row + k].defined()) passes_[i].direction[k] = tensors[row + k].template item<double>();
    }
  }
}

template <class Formula>
void Evaluation<Formula>::run(bool summed, std::vector<typename Group<Formula>::Row>& sums) {
  if (chunks_.empty()) return;
  const auto kernel_f = kernel_for<Formula>(order_, false, summed),
             kernel_d = kernel_for<Formula>(order_, true, summed);
  const auto count = static_cast<int64_t>(chunks_.size());
  const auto chunks_a_thread = (count * chunk_size + numel_ - 1) / numel_;
  at::parallel_for(0, count, chunks_a_thread, [&](int64_t first, int64_t last) {
    for (auto i = first; i < last; ++i) {
      const auto& [member, begin, end] = chunks_[i];
      const auto kernel = group_.members[member].dtype == at::kDouble ? kernel_d : kernel_f;
      kernel(passes_[member], begin, end, summed ? sums[i].data() : nullptr);
    }
  });
}

template <class Formula>
void Evaluation<Formula>::run() {
  std::vector<typename Group<Formula>::Row> none;
  run(false, none);
}

template <class Formula>
std::vector<typename Group<Formula>::Row> Evaluation<Formula>::run_with_sums() {
  std::vector<typename Group<Formula>::Row> sums(chunks_.size()), totals(group_.rows.size());
  run(true, sums);
  for (size_t i = 0; i < chunks_.size(); ++i) {
    auto& total = totals[group_.members[chunks_[i].member].row];
    for (size_t k = 0; k < total.size(); ++k) total[k] += sums[i][k];
  }
  return totals;
}

template struct Member<SgdFormula>;
template struct Member<AdamFormula>;
template class Evaluation<SgdFormula>;
template class Evaluation<AdamFormula>;

}  // namespace gimli::optim::fused
