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

/// A pass of the kernels over a group: tensors are read and written as streams of kernels.h. Undefined ones are zero or
/// not wanted.
template <class Formula>
class Evaluation final {
 public:
  Evaluation(const Group<Formula>& group, Order order);

  /// The next `width` streams of every member.
  void read(const TensorList& tensors, size_t width);
  void write(const TensorList& tensors, size_t width);
  /// The direction's part for the coefficients, which stands in `tensors` from `first` on.
  void move(const TensorList& tensors, size_t first);

  void run();
  /// Runs with the sums for the coefficients, which do not depend on the number of threads.
  std::vector<typename Group<Formula>::Row> run_with_sums();

 private:
  struct Chunk {
    size_t member;
    int64_t begin, end;
  };

  void run(bool summed, std::vector<typename Group<Formula>::Row>& sums);

  const Group<Formula>& group_;
  Order order_;
  std::vector<Pass<Formula>> passes_;
  std::vector<Chunk> chunks_;
  size_t read_ = 0, written_ = 0;
  int64_t numel_ = 0;
  TensorList kept_;
};

}  // namespace gimli::optim::fused
