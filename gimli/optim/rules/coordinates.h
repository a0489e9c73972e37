#pragma once

#include <ATen/ops/cat.h>
#include <torch/nn/module.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The updates of a group as a learned optimizer sees them: one long batch with a row a coordinate, of the parameters
/// that have a gradient, one after the other.
class Coordinates final {
 public:
  Coordinates(const std::vector<Iterate>& iterates, const TensorList& gradients);

  /// The positions in the group of the parameters that have a gradient.
  const std::vector<size_t>& used() const { return used_; }

  /// One below the other: what `rows_of(i)` returns for each of them, [elements of parameter i, ...].
  template <class Function>
  at::Tensor join(Function rows_of) const {
    TensorList rows;
    for (const auto i : used_) rows.push_back(rows_of(i));
    return rows.size() == 1 ? rows[0] : at::cat(rows);
  }

  /// The reverse: the rows of each of them.
  TensorList split(const at::Tensor& rows) const;

 private:
  std::vector<size_t> used_;
  std::vector<int64_t> sizes_;
};

/// Refuses a parameter whose type or device is not that of a rule's network.
void check_network(const std::string& rule, const torch::nn::Module& network, const at::Tensor& parameter);

}  // namespace gimli::optim
