#pragma once

#include <algorithm>
#include <utility>

#include "gimli/trace/functions.h"
#include "gimli/trace/loops.h"

namespace gimli::tracing {
namespace {

constexpr int operands_of(Operation operation) {
  using enum Operation;
  switch (operation) {
    case fill:
      return 0;
    case add:
    case multiply:
    case divide:
    case larger:
    case smaller:
    case pass_above:
    case sigmoid_slope:
    case tanh_slope:
    case interpolate:
    case sum_of_squares:
      return 2;
    case add_product:
    case add_ratio:
    case scaled_difference:
      return 3;
    default:
      return 1;
  }
}

/// What a pointwise operation makes of its operands x, packs of numbers, and a reduction before it adds.
template <Operation operation, class P>
GIMLI_INLINE P value(const P* x, P p) {
  using O = Operation;  // not its names alone: some are those of functions of packs
  const P zero(0), one(1);
  if constexpr (operation == O::fill) return p;
  if constexpr (operation == O::copy || operation == O::sum) return x[0];
  if constexpr (operation == O::scale) return p * x[0];
  if constexpr (operation == O::add) return x[0] + p * x[1];
  if constexpr (operation == O::multiply) return x[0] * x[1];
  if constexpr (operation == O::divide) return x[0] / x[1];
  if constexpr (operation == O::square) return x[0] * x[0];
  if constexpr (operation == O::cube) return x[0] * x[0] * x[0];
  if constexpr (operation == O::root) return root(x[0]);
  if constexpr (operation == O::inverse_root) return one / root(x[0]);
  if constexpr (operation == O::inverse) return one / x[0];
  if constexpr (operation == O::exponential) return exponential(x[0]);
  if constexpr (operation == O::logarithm) return logarithm(x[0]);
  if constexpr (operation == O::sigmoid) return sigmoid(x[0]);
  if constexpr (operation == O::tangent) return hyperbolic_tangent(x[0]);
  if constexpr (operation == O::absolute) return x[0].v < 0 ? -x[0].v : x[0].v + 0;  // + 0: of -0 too
  if constexpr (operation == O::sign) return x[0].v > 0 ? one.v : x[0].v < 0 ? (-one).v : zero.v;
  if constexpr (operation == O::larger) return larger(x[0], x[1]);
  if constexpr (operation == O::smaller) return -larger(-x[0], -x[1]);
  if constexpr (operation == O::rectify) return x[0].v <= p.v ? zero.v : x[0].v;
  if constexpr (operation == O::pass_above) return x[1].v <= p.v ? zero.v : x[0].v;
  if constexpr (operation == O::add_product) return x[0] + p * x[1] * x[2];
  if constexpr (operation == O::add_ratio) return x[0] + p * x[1] / x[2];
  if constexpr (operation == O::sigmoid_slope) return x[0] * (one - x[1]) * x[1];
  if constexpr (operation == O::tanh_slope) return x[0] * (one - x[1] * x[1]);
  if constexpr (operation == O::interpolate) return x[0] + p * (x[1] - x[0]);
  if constexpr (operation == O::scaled_difference) return p * x[0] * (x[1] - x[2]);
  if constexpr (operation == O::sum_of_squares) return (x[0] - x[1]) * (x[0] - x[1]);
}

/// One number of an operand, whatever its type is.
template <class T>
GIMLI_INLINE T number_at(const Operand& operand, const T* at) {
  using Other = std::conditional_t<std::is_same_v<T, float>, double, float>;
  return operand.is_other ? static_cast<T>(*static_cast<const Other*>(operand.data)) : *at;
}

/// The inner loop of some operands from one element of each on. Where an operand stays, a pack of it is read again and
/// again.
template <class P, int count>
struct Streams {
  using T = typename P::Number;

  GIMLI_INLINE Streams(const Operand* operands, const T* const* begin) {
    for (int k = 0; k < count; ++k) {
      const auto& operand = operands[k];
      at[k] = begin[k], stride[k] = operand.stride[2];
      if (stride[k] != 0) continue;
      const T number = number_at(operand, begin[k]);
      for (auto& lane : same[k]) lane = number;
      at[k] = same[k];
    }
  }

  GIMLI_INLINE bool are_dense() const {
    return std::all_of(
        stride, stride + count, [](int64_t s) __attribute__((always_inline)) { return s <= 1; });
  }

  /// Element i and those that follow it. Beyond the first pack of an operand that stays there is nothing to read.
  template <class Q>
  GIMLI_INLINE void load(int64_t i, Q* x) const {
    for (int k = 0; k < count; ++k) x[k] = Q::load(at[k] + i * stride[k]);
  }

  const T* at[std::max(count, 1)];
  int64_t stride[std::max(count, 1)];
  alignas(64) T same[std::max(count, 1)][P::size];
};

template <class T>
using One = Pack<T, sizeof(T)>;

/// result[i] = operation(operands[i]) for i in [begin, n), in packs of Q and then of half of it.
template <class Q, Operation operation, class S, class T>
GIMLI_INLINE void evaluate(const S& streams, T* result, double p, int64_t begin, int64_t n) {
  Q x[std::max(operands_of(operation), 1)];
  for (; begin + Q::size <= n; begin += Q::size) {
    streams.load(begin, x);
    value<operation>(x, Q(p)).store(result + begin);
  }
  if constexpr (Q::size > 1) {
    if (begin < n) evaluate<Pack<T, sizeof(T) * Q::size / 2>, operation>(streams, result, p, begin, n);
  }
}

template <class P, Operation operation>
void pointwise(const Loop& loop) {
  using T = typename P::Number;
  constexpr int count = operands_of(operation);
  const auto& size = loop.size;
  const auto& to = loop.at[0];
  for (int64_t i = 0; i < size[0]; ++i) {
    for (int64_t j = 0; j < size[1]; ++j) {
      const T* begin[std::max(count, 1)];
      for (int k = 0; k < count; ++k) {
        const auto& operand = loop.at[k + 1];
        begin[k] = static_cast<const T*>(operand.data) + i * operand.stride[0] + j * operand.stride[1];
      }
      auto* result = static_cast<T*>(to.data) + i * to.stride[0] + j * to.stride[1];
      const Streams<P, count> streams(&loop.at[1], begin);
      const int64_t n = size[2], stride = to.stride[2];
      if (stride == 1 && streams.are_dense()) {
        evaluate<P, operation>(streams, result, loop.p, 0, n);
        continue;
      }
      One<T> x[std::max(count, 1)];
      for (int64_t l = 0; l < n; ++l) {
        streams.load(l, x);
        value<operation>(x, One<T>(loop.p)).store(result + l * stride);
      }
    }
  }
}

/// Sums of the second loop: of elements that lie next to one another by packs of them, of others by packs of sums.
template <class P, Operation operation>
void reduction(const Loop& loop) {
  using T = typename P::Number;
  constexpr int count = operands_of(operation);
  const auto& size = loop.size;
  const auto& to = loop.at[0];
  const auto element = [&](int64_t i, int64_t j, int64_t l) __attribute__((always_inline)) {
    One<T> x[count];
    for (int k = 0; k < count; ++k) {
      const auto& operand = loop.at[k + 1];
      x[k] = number_at(operand, static_cast<const T*>(operand.data) + i * operand.stride[0] + j * operand.stride[1] +
                                    l * operand.stride[2]);
    }
    return value<operation>(x, One<T>());
  };
  const bool along = std::all_of(&loop.at[1], &loop.at[1 + count], [](const Operand& o) { return o.stride[1] == 1; });
  const bool across = std::all_of(&loop.at[1], &loop.at[1 + count], [](const Operand& o) { return o.stride[2] == 1; });
  for (int64_t i = 0; i < size[0]; ++i) {
    auto* result = static_cast<T*>(to.data) + i * to.stride[0];
    int64_t l = 0;
    if (across && to.stride[2] == 1) {
      for (; l + P::size <= size[2]; l += P::size) {
        P sum(0);
        for (int64_t j = 0; j < size[1]; ++j) {
          P x[count];
          for (int k = 0; k < count; ++k) {
            const auto& operand = loop.at[k + 1];
            x[k] = P::load(static_cast<const T*>(operand.data) + i * operand.stride[0] + j * operand.stride[1] + l);
          }
          sum = sum + value<operation>(x, P());
        }
        (P(loop.p) * sum).store(result + l);
      }
    }
    for (; l < size[2]; ++l) {
      int64_t j = 0;
      double total = 0;
      if (along) {
        P sum(0);
        for (; j + P::size <= size[1]; j += P::size) {
          P x[count];
          for (int k = 0; k < count; ++k) {
            const auto& operand = loop.at[k + 1];
            x[k] = P::load(static_cast<const T*>(operand.data) + i * operand.stride[0] + j + l * operand.stride[2]);
          }
          sum = sum + value<operation>(x, P());
        }
        T lanes[P::size];
        sum.store(lanes);
        for (const auto lane : lanes) total += lane;
      }
      for (; j < size[1]; ++j) total += element(i, j, l).v[0];
      result[l * to.stride[2]] = static_cast<T>(loop.p * total);
    }
  }
}

}  // namespace
}  // namespace gimli::tracing
