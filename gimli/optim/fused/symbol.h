#pragma once

#include <ATen/ATen.h>

#include <limits>

#include "gimli/optim/hyperparameter.h"

namespace gimli::optim::fused {

/// A whole tensor in the place of a number, in libtorch's operators: differentiable to any order.
struct Symbol {
  Symbol(double number = 0) : tensor(at::scalar_tensor(number, at::kDouble)) {}
  Symbol(at::Tensor value) : tensor(std::move(value)) {}

  friend Symbol operator+(const Symbol& a, const Symbol& b) { return a.tensor + b.tensor; }
  friend Symbol operator-(const Symbol& a, const Symbol& b) { return a.tensor - b.tensor; }
  friend Symbol operator-(const Symbol& a) { return -a.tensor; }
  friend Symbol operator*(const Symbol& a, const Symbol& b) { return a.tensor * b.tensor; }
  friend Symbol operator/(const Symbol& a, const Symbol& b) { return a.tensor / b.tensor; }

  friend Symbol select(bool condition, const Symbol& a, const Symbol& b) { return condition ? a : b; }
  friend bool is_small(const Symbol&) { return true; }
  friend Symbol root(const Symbol& x) { return optim::root(x.tensor); }
  friend Symbol half_inverse(const Symbol& y) {
    return 0.5 / y.tensor.masked_fill(y.tensor == 0, std::numeric_limits<double>::infinity());
  }
  friend Symbol larger(const Symbol& a, const Symbol& b) { return at::maximum(a.tensor, b.tensor); }
  friend Symbol share_of(const Symbol& a, const Symbol& b) {
    return a.tensor.gt(b.tensor).to(a.tensor.scalar_type()) + 0.5 * a.tensor.eq(b.tensor);
  }

  at::Tensor tensor;
};

}  // namespace gimli::optim::fused
