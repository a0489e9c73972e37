#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/DimVector.h>

#include <memory>
#include <vector>

#include "gimli/optim/fused/kernels.h"
#include "gimli/tensor_list.h"

namespace gimli::optim::fused {

/// One parameter of a group, and how its tensors lie in memory.
template <class Formula>
struct Member {
  Member(const at::Tensor& parameter, Formula formula, size_t row)
      : formula(formula),
        row(row),
        dtype(parameter.scalar_type()),
        sizes(parameter.sizes()),
        strides(parameter.strides()),
        numel(parameter.numel()) {}

  at::Tensor empty() const;
  /// Whether a tensor of these sizes has its elements in this order.
  bool lies_as(const at::Tensor& tensor) const;
  /// `tensor` in this layout, itself if it has it.
  at::Tensor aligned(const at::Tensor& tensor) const;

  Formula formula;
  size_t row;  ///< of the coefficients
  at::ScalarType dtype;
  c10::DimVector sizes, strides;
  int64_t numel;
};

/// Parameters that are updated together. Lists of their tensors have the inputs (or outputs) of the first, of the
/// second, ..., and then, where there are coefficients, those of the first row, of the second, ...
template <class Formula>
struct Group {
  using Row = std::array<double, Formula::coefficients>;

  size_t x(size_t member, size_t k) const { return member * Formula::inputs + k; }
  size_t c(size_t row, size_t k) const { return members.size() * Formula::inputs + row * Formula::coefficients + k; }
  size_t y(size_t member, size_t k) const { return member * Formula::outputs + k; }
  size_t count_of_inputs() const { return c(rows.size(), 0); }
  size_t count_of_outputs() const { return y(members.size(), 0); }

  std::vector<Member<Formula>> members;
  std::vector<Row> rows;
};

/// Evaluates a group's formula by the kernels. Lists have the tensors of a Group's lists of inputs (x and the
/// coefficients) or outputs (y), and follow one another: those read are x, from the first order on y_bar, then w; those
/// written are y, or x_bar, or ds/dx and ds/dy_bar. Undefined tensors are zero, or not wanted, or coefficients that are
/// numbers. A sum for a coefficient does not depend on the number of threads.
///
/// A gimli::Trace records it as an operator, gimli::update_, whose name in libtorch's dispatcher ends with that of the
/// formula.
template <class Formula>
void evaluate(const std::shared_ptr<const Group<Formula>>& group, Order order, const TensorList& read,
              const TensorList& written);

}  // namespace gimli::optim::fused
