#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "gimli/optim/fused/dual.h"
#include "gimli/optim/fused/kernels.h"

namespace gimli::optim::fused {
namespace {

constexpr int64_t block = 512;

template <class T>
alignas(64) constexpr T zeros[block] = {};

template <size_t first, size_t count, class P, class Streams>
GIMLI_INLINE std::array<P, count> load(const Streams& from, int64_t i) {
  return [&]<size_t... k>(std::index_sequence<k...>) __attribute__((always_inline)) {
    return std::array<P, count>{P::load(from[first + k] + i)...};
  }
  (std::make_index_sequence<count>());
}

template <size_t first, class Values, class Streams, class Part>
GIMLI_INLINE void store(const Streams& to, int64_t i, const Values& values, Part part) {
  [&]<size_t... k>(std::index_sequence<k...>) __attribute__((always_inline)) {
    (part(values[k]).store(to[first + k] + i), ...);
  }
  (std::make_index_sequence<std::tuple_size_v<Values>>());
}

template <class P, size_t count>
GIMLI_INLINE std::array<Dual<P>, count> along(const std::array<P, count>& values, const std::array<P, count>& by) {
  return [&]<size_t... k>(std::index_sequence<k...>) __attribute__((always_inline)) {
    return std::array<Dual<P>, count>{Dual<P>(values[k], by[k])...};
  }
  (std::make_index_sequence<count>());
}

/// One pack of elements: those from the i-th on.
template <Order order, bool summed, class P, class Formula, class In, class Out, class Terms>
GIMLI_INLINE void evaluate_pack(const Formula& formula, const In& in, const std::array<P, Formula::coefficients>& c,
                                const std::array<P, Formula::coefficients>& w_c, const Out& out, const Terms& terms,
                                int64_t i) {
  constexpr size_t inputs = Formula::inputs, outputs = Formula::outputs;
  const auto value = [](P x) __attribute__((always_inline)) { return x; };
  const auto epsilon = [](Dual<P> x) __attribute__((always_inline)) { return x.epsilon; };

  const auto x = load<0, inputs, P>(in, i);
  if constexpr (order == Order::value) {
    store<0>(out, i, formula.forward(x, c), value);
  } else if constexpr (order == Order::first) {
    const auto bar = formula.vjp(x, c, load<inputs, outputs, P>(in, i));
    store<0>(out, i, bar.x, value);
    if constexpr (summed) store<0>(terms, i, bar.c, value);
  } else {
    const auto moved = along(x, load<inputs + outputs, inputs, P>(in, i)), moved_c = along(c, w_c);
    const auto bar = formula.vjp(moved, moved_c, along(load<inputs, outputs, P>(in, i), {}));
    store<0>(out, i, bar.x, epsilon);
    store<inputs>(out, i, formula.forward(moved, moved_c), epsilon);
    if constexpr (summed) store<0>(terms, i, bar.c, epsilon);
  }
}

template <class P, size_t count>
GIMLI_INLINE std::array<P, count> packs(const std::array<double, count>& numbers) {
  std::array<P, count> result;
  for (size_t k = 0; k < count; ++k) result[k] = numbers[k];
  return result;
}

template <class P>
GIMLI_INLINE double total(const typename P::Number* x, int64_t n) {
  constexpr int64_t width = P::size;
  double lanes[width] = {}, sum = 0;
  int64_t i = 0;
  for (; i + width <= n; i += width) {
    for (int64_t k = 0; k < width; ++k) lanes[k] += x[i + k];
  }
  for (; i < n; ++i) sum += x[i];
  for (const auto lane : lanes) sum += lane;
  return sum;
}

template <Order order, bool summed, class P, class Formula>
void evaluate(const Pass<Formula>& pass, int64_t begin, int64_t end, double* sums) {
  using T = typename P::Number;
  const Formula formula = pass.formula;
  const auto c = packs<P>(pass.c), w_c = packs<P>(pass.direction);

  constexpr size_t read = std::tuple_size_v<decltype(pass.in)>, written = std::tuple_size_v<decltype(pass.out)>;
  alignas(64) T unwanted[block], summands[Formula::coefficients][block], padded[read + written][P::size] = {};
  std::array<const T*, read> in, in_padded;
  std::array<T*, written> out, out_padded;
  std::array<T*, Formula::coefficients> terms;
  for (size_t k = 0; k < read; ++k) in_padded[k] = padded[k];
  for (size_t k = 0; k < written; ++k) out_padded[k] = padded[read + k];

  for (; begin < end; begin += block) {
    const auto n = std::min(block, end - begin), rest = n % P::size, whole = n - rest;
    for (size_t k = 0; k < read; ++k) in[k] = pass.in[k] ? static_cast<const T*>(pass.in[k]) + begin : zeros<T>;
    for (size_t k = 0; k < written; ++k) out[k] = pass.out[k] ? static_cast<T*>(pass.out[k]) + begin : unwanted;
    for (size_t k = 0; k < terms.size(); ++k) terms[k] = summands[k];

    for (int64_t i = 0; i < whole; i += P::size) evaluate_pack<order, summed>(formula, in, c, w_c, out, terms, i);
    if (rest > 0) {
      for (size_t k = 0; k < read; ++k) std::copy_n(in[k] + whole, rest, padded[k]);
      for (auto& term : terms) term += whole;
      evaluate_pack<order, summed>(formula, in_padded, c, w_c, out_padded, terms, 0);
      for (size_t k = 0; k < written; ++k) std::copy_n(out_padded[k], rest, out[k] + whole);
    }
    if constexpr (summed) {
      for (size_t k = 0; k < terms.size(); ++k) sums[k] += total<P>(summands[k], n);
    }
  }
}

template <int bytes, class T, class Formula>
Kernel<Formula> kernel_of_type(Order order, bool summed) {
  switch (order) {
    case Order::value:
      return evaluate<Order::value, false, Pack<T, bytes>, Formula>;
    case Order::first:
      return summed ? evaluate<Order::first, true, Pack<T, bytes>, Formula>
                    : evaluate<Order::first, false, Pack<T, bytes>, Formula>;
    default:
      return summed ? evaluate<Order::second, true, Pack<T, bytes>, Formula>
                    : evaluate<Order::second, false, Pack<T, bytes>, Formula>;
  }
}

}  // namespace

template <int bytes, class Formula>
Kernel<Formula> kernel_of_width(Order order, bool is_double, bool summed) {
  return is_double ? kernel_of_type<bytes, double, Formula>(order, summed)
                   : kernel_of_type<bytes, float, Formula>(order, summed);
}

}  // namespace gimli::optim::fused
