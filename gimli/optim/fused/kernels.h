#pragma once

#include <cstdint>

#include "gimli/optim/fused/formulas.h"

namespace gimli::optim::fused {

/// What is evaluated: the formula, its vector-Jacobian product, or the derivative of that product's contraction with a
/// direction w, s = <w, J(x)^T y_bar>.
///
///     order    reads           writes
///     value    x               y
///     first    x, y_bar        x_bar
///     second   x, y_bar, w     ds/dx, ds/dy_bar
enum class Order { value, first, second };

/// One tensor in a pass: where its streams begin, all with the same order of elements. A stream that is read may be
/// nullptr for zeros, one that is written for what is not wanted. A stream may be written over one that is read.
template <class Formula>
struct Pass {
  Formula formula;
  std::array<const void*, 2 * Formula::inputs + Formula::outputs> in{};
  std::array<void*, Formula::inputs + Formula::outputs> out{};
  std::array<double, Formula::coefficients> c{};
  std::array<double, Formula::coefficients> direction{};  ///< w's part for c
};

/// Evaluates elements [begin, end), and adds to `sums`, unless there are none, the coefficients' part of x_bar or
/// ds/dx.
template <class Formula>
using Kernel = void (*)(const Pass<Formula>& pass, int64_t begin, int64_t end, double* sums);

/// The kernel for this processor.
template <class Formula>
Kernel<Formula> kernel_for(Order order, bool is_double, bool summed);

/// The kernel for registers of 16, 32 or 64 bytes: SSE2 or whatever there is, AVX2 with FMA, AVX-512.
template <int bytes, class Formula>
Kernel<Formula> kernel_of_width(Order order, bool is_double, bool summed);

}  // namespace gimli::optim::fused
