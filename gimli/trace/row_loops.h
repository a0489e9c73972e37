#pragma once

#include <cmath>
#include <limits>

#include "gimli/trace/functions.h"
#include "gimli/trace/loops.h"

namespace gimli::tracing {
namespace {

/// Calls visit(pack, i) for the elements [begin, n), in packs of Q and then of half of it. The pack has only its type.
template <class Q, class Visit>
GIMLI_INLINE void for_packs(int64_t n, Visit visit, int64_t begin = 0) {
  for (; begin + Q::size <= n; begin += Q::size) visit(Q(), begin);
  if constexpr (Q::size > 1) {
    if (begin < n) for_packs<Pack<typename Q::Number, sizeof(typename Q::Number) * Q::size / 2>>(n, visit, begin);
  }
}

template <class Q>
GIMLI_INLINE double sum_of_lanes(Q x) {
  typename Q::Number lanes[Q::size];
  x.store(lanes);
  double sum = 0;
  for (const auto lane : lanes) sum += lane;
  return sum;
}

/// The largest element, or NaN if one is.
template <class P, class T>
GIMLI_INLINE T largest(const T* a, int64_t n) {
  T result = -std::numeric_limits<T>::infinity();
  for_packs<P>(
      n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
        using Q = decltype(pack);
        T lanes[Q::size];
        Q::load(a + i).store(lanes);
        for (const auto lane : lanes) result = lane > result || lane != lane ? lane : result;
      });
  return result;
}

struct Softmax {
  template <class P, class T>
  GIMLI_INLINE static void row(const T* a, const T*, T* result, int64_t n) {
    const T most = largest<P>(a, n);
    double sum = 0;
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          const Q e = exponential(Q::load(a + i) - Q(most));
          e.store(result + i);
          sum += sum_of_lanes(e);
        });
    const double inverse = 1 / sum;
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          (Q(inverse) * Q::load(result + i)).store(result + i);
        });
  }
};

struct LogSoftmax {
  template <class P, class T>
  GIMLI_INLINE static void row(const T* a, const T*, T* result, int64_t n) {
    const T most = largest<P>(a, n);
    double sum = 0;
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          sum += sum_of_lanes(exponential(Q::load(a + i) - Q(most)));
        });
    const double log = std::log(sum);
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          (Q::load(a + i) - Q(most) - Q(log)).store(result + i);
        });
  }
};

struct SoftmaxSlope {
  template <class P, class T>
  GIMLI_INLINE static void row(const T* a, const T* b, T* result, int64_t n) {
    double sum = 0;
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          sum += sum_of_lanes(Q::load(a + i) * Q::load(b + i));
        });
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          (Q::load(b + i) * (Q::load(a + i) - Q(sum))).store(result + i);
        });
  }
};

struct LogSoftmaxSlope {
  template <class P, class T>
  GIMLI_INLINE static void row(const T* a, const T* b, T* result, int64_t n) {
    double sum = 0;
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          sum += sum_of_lanes(Q::load(a + i));
        });
    for_packs<P>(
        n, [&](auto pack, int64_t i) __attribute__((always_inline)) {
          using Q = decltype(pack);
          (Q::load(a + i) - exponential(Q::load(b + i)) * Q(sum)).store(result + i);
        });
  }
};

/// A row is what the innermost loop goes through; its elements lie next to one another.
template <class P, class F>
void rows(const Loop& loop) {
  using T = typename P::Number;
  const auto& [to, a, b, unused, unused_too] = loop.at;
  const auto at = [](const Operand& operand, int64_t i, int64_t j) {
    return static_cast<T*>(operand.data) + i * operand.stride[0] + j * operand.stride[1];
  };
  for (int64_t i = 0; i < loop.size[0]; ++i) {
    for (int64_t j = 0; j < loop.size[1]; ++j) {
      F::template row<P, T>(at(a, i, j), at(b, i, j), at(to, i, j), loop.size[2]);
    }
  }
}

}  // namespace
}  // namespace gimli::tracing
