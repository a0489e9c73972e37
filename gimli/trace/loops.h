#pragma once

#include <array>
#include <cstdint>

namespace gimli::tracing {

/// What own kernels compute. a, b, c are operands, of numbers there are p and q.
///
///     pointwise               result
///     fill                    p
///     copy                    a
///     scale                   p a
///     add                     a + p b
///     multiply, divide        a b, a / b
///     square, cube            a^2, a^3
///     root, inverse_root      a^(1/2), a^(-1/2)
///     inverse                 1 / a
///     exponential, logarithm  e^a, log(a)
///     sigmoid, tangent        1 / (1 + e^-a), tanh(a)
///     absolute, sign          |a|, sign(a)
///     larger, smaller         max(a, b), min(a, b)
///     rectify                 a where not a <= p, else 0
///     pass_above              a where not b <= p, else 0
///     add_product             a + p b c
///     add_ratio               a + p b / c
///     sigmoid_slope           a (1 - b) b
///     tanh_slope              a (1 - b^2)
///     interpolate             a + p (b - a)
///     scaled_difference       p a (b - c)
///
///     rows, over the innermost loop
///     softmax                 e^a / sum e^a
///     log_softmax             a - log(sum e^a)
///     softmax_slope           b (a - sum a b)
///     log_softmax_slope       a - e^b sum a
///
///     reductions, over the second loop
///     sum                     p sum a
///     sum_of_squares          p sum (a - b)^2
///
///     product                 p a b + q c, of matrices, with an epilogue
enum class Operation {
  fill,
  copy,
  scale,
  add,
  multiply,
  divide,
  square,
  cube,
  root,
  inverse_root,
  inverse,
  exponential,
  logarithm,
  sigmoid,
  tangent,
  absolute,
  sign,
  larger,
  smaller,
  rectify,
  pass_above,
  add_product,
  add_ratio,
  sigmoid_slope,
  tanh_slope,
  interpolate,
  scaled_difference,
  softmax,
  log_softmax,
  softmax_slope,
  log_softmax_slope,
  sum,
  sum_of_squares,
  product
};

/// What becomes of an element x of a product before it is stored, with e that of the last operand: nothing, x where not
/// x <= 0 else 0, or x where not e <= 0 else 0.
enum class Epilogue : int8_t { none, rectify, pass_above };

/// A tensor in a loop: how many elements apart those of its turns are, 0 where it stays.
struct Operand {
  void* data = nullptr;
  std::array<int32_t, 3> stride{};
  bool is_other = false;  ///< one number, in double in a loop of floats or the other way round
};

/// Up to three nested loops over tensors, the result first, or a batch of matrix products.
struct Loop {
  using Kernel = void (*)(const Loop&);
  Kernel kernel = nullptr;
  /// Of the loops, the innermost last. Of products: batch, rows, columns and summands.
  std::array<int32_t, 4> size{1, 1, 1, 1};
  /// Of products: C, A, B, D and E in C = p A B + q D, whose strides are of batch, rows and columns.
  std::array<Operand, 5> at{};
  double p = 0, q = 0;
  Epilogue epilogue = Epilogue::none;

  void run() const { kernel(*this); }
};

/// Whether a product takes rows of A with columns of B as they lie: few, whose summands lie next to one another.
inline bool has_dot_products(const Loop& product) {
  const auto& [c, a, b, d, e] = product.at;
  return product.size[1] <= 2 && a.stride[2] == 1 && b.stride[1] == 1;
}

/// The most bytes of a matrix B, of other products, whose columns do not lie next to one another.
constexpr int64_t kPackedBytes = 1 << 16;

/// The kernel for this processor.
Loop::Kernel loop_kernel(Operation operation, bool is_double);

/// Those for registers of 16, 32 or 64 bytes, see `register_bytes`.
template <int bytes>
Loop::Kernel loop_kernel_of_width(Operation operation, bool is_double);

}  // namespace gimli::tracing
