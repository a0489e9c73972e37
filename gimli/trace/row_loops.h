#pragma once

#include <cmath>
#include <limits>

#include "gimli/trace/functions.h"
#include "gimli/trace/loops.h"

namespace gimli::tracing {
namespace {

/// The elements of a row from the i-th on, as many as a pack has numbers.
template <class P>
struct Part {
  int64_t i;
  GIMLI_INLINE P operator()(const typename P::Number* row) const { return P::load(row + i); }
};

/// Calls visit(part) for the parts of [begin, n), in packs of P and then of half of it.
template <class P, class Visit>
GIMLI_INLINE void for_parts(int64_t n, Visit visit, int64_t begin = 0) {
  for (; begin + P::size <= n; begin += P::size) visit(Part<P>{begin});
  if constexpr (P::size > 1) {
    if (begin < n) for_parts<Pack<typename P::Number, sizeof(typename P::Number) * P::size / 2>>(n, visit, begin);
  }
}

/// result = formula(part), part by part.
template <class P, class T, class Formula>
GIMLI_INLINE void fill_row(T* result, int64_t n, Formula formula) {
  for_parts<P>(
      n, [&](auto part) __attribute__((always_inline)) { formula(part).store(result + part.i); });
}

/// Calls visit(number) for each number of formula(part), part by part.
template <class P, class T, class Formula, class Visit>
GIMLI_INLINE void for_numbers(int64_t n, Formula formula, Visit visit) {
  for_parts<P>(
      n, [&](auto part) __attribute__((always_inline)) {
        const auto numbers = formula(part);
        T lanes[decltype(numbers)::size];
        numbers.store(lanes);
        for (const auto lane : lanes) visit(lane);
      });
}

template <class P, class Formula>
GIMLI_INLINE double sum_of(int64_t n, Formula formula) {
  double sum = 0;
  for_numbers<P, typename P::Number>(
      n, formula, [&](double number) __attribute__((always_inline)) { sum += number; });
  return sum;
}

/// The largest number, or NaN if one is.
template <class P, class T>
GIMLI_INLINE T largest(const T* a, int64_t n) {
  T result = -std::numeric_limits<T>::infinity();
  for_numbers<P, T>(
      n, [&](auto part) __attribute__((always_inline)) { return part(a); },
      [&](T number) __attribute__((always_inline)) { result = number > result || number != number ? number : result; });
  return result;
}

template <Operation operation, class P, class T>
GIMLI_INLINE void row(const T* a, const T* b, T* result, int64_t n) {
  if constexpr (operation == Operation::softmax) {
    const T most = largest<P>(a, n);
    fill_row<P>(result, n, [&](auto part) { return exponential(part(a) - most); });
    const double inverse = 1 / sum_of<P>(n, [&](auto part) { return part(result); });
    fill_row<P>(result, n, [&](auto part) { return inverse * part(result); });
  } else if constexpr (operation == Operation::log_softmax) {
    const T most = largest<P>(a, n);
    const double log = std::log(sum_of<P>(n, [&](auto part) { return exponential(part(a) - most); }));
    fill_row<P>(result, n, [&](auto part) { return part(a) - most - log; });
  } else if constexpr (operation == Operation::softmax_slope) {
    const double sum = sum_of<P>(n, [&](auto part) { return part(a) * part(b); });
    fill_row<P>(result, n, [&](auto part) { return part(b) * (part(a) - sum); });
  } else {
    const double sum = sum_of<P>(n, [&](auto part) { return part(a); });
    fill_row<P>(result, n, [&](auto part) { return part(a) - exponential(part(b)) * sum; });
  }
}

/// A row is what the innermost loop goes through; its elements lie next to one another.
template <class P, Operation operation>
void rows(const Loop& loop) {
  using T = typename P::Number;
  const auto& [to, a, b, unused, unused_too] = loop.at;
  const auto at = [](const Operand& operand, int64_t i, int64_t j) {
    return static_cast<T*>(operand.data) + i * operand.stride[0] + j * operand.stride[1];
  };
  for (int64_t i = 0; i < loop.size[0]; ++i) {
    for (int64_t j = 0; j < loop.size[1]; ++j) {
      row<operation, P, T>(at(a, i, j), at(b, i, j), at(to, i, j), loop.size[2]);
    }
  }
}

}  // namespace
}  // namespace gimli::tracing
