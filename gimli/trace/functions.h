#pragma once

#include <limits>
#include <type_traits>

#include "gimli/pack.h"

namespace gimli::tracing {
namespace {

// Elementary functions of packs, to a few units in the last place, for infinities, NaN and subnormal numbers too.

template <class T>
struct Format;

template <>
struct Format<float> {
  using Bits = int32_t;
  static constexpr Bits mantissa = 23, bias = 127;
  static constexpr float rounding = 0x1.8p23f;  ///< adding it leaves no digits behind the point
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float least = -104, most = 89;  ///< exp is 0 below and infinite above
  static constexpr int exp_terms = 7, log_terms = 5;
};

template <>
struct Format<double> {
  using Bits = int64_t;
  static constexpr Bits mantissa = 52, bias = 1023;
  static constexpr double rounding = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42fefap-1, ln2_low = 0x1.cf79abc9e3b39p-40;
  static constexpr double least = -746, most = 710;
  static constexpr int exp_terms = 13, log_terms = 11;
};

template <class P>
struct BitsOf {
  using T = typename P::Number;
  typedef typename Format<T>::Bits Vector __attribute__((vector_size(sizeof(typename P::Vector))));
};

/// 2^n of whole numbers n whose powers are normal.
template <class P>
GIMLI_INLINE P power_of_two(typename BitsOf<P>::Vector n) {
  using F = Format<typename P::Number>;
  return P((typename P::Vector)((n + F::bias) << F::mantissa));
}

/// e^x = 2^n (1 + q), with n whole and |log(1 + q)| at most ln(2) / 2, in two factors of 2^n. q by its Taylor series.
template <class P>
struct Exponential {
  using T = typename P::Number;
  using F = Format<T>;

  GIMLI_INLINE explicit Exponential(P x) {
    x = P(x.v < F::least ? P(F::least).v : x.v);
    x = P(x.v > F::most ? P(F::most).v : x.v);
    const P shifted = x * P(1.44269504088896340736) + P(F::rounding);
    const P n = shifted - P(F::rounding);
    const P r = (x - n * P(F::ln2_high)) - n * P(F::ln2_low);
    P series(1. / F::exp_terms);
    for (int k = F::exp_terms - 1; k > 0; --k) series = (P(1) + r * series) * P(1. / k);
    q = r * series;
    using Bits = typename BitsOf<P>::Vector;
    const auto whole = (Bits)shifted.v - (Bits)P(F::rounding).v;
    half = power_of_two<P>(whole >> 1);
    rest = power_of_two<P>(whole - (whole >> 1));
  }

  P q, half, rest;
};

template <class P>
GIMLI_INLINE P exponential(P x) {
  const Exponential<P> e(x);
  return (P(1) + e.q) * e.half * e.rest;
}

template <class P>
GIMLI_INLINE P sigmoid(P x) {
  return P(1) / (P(1) + exponential(-x));
}

/// -d / (2 + d) of |x|, with d = e^(-2|x|) - 1.
template <class P>
GIMLI_INLINE P hyperbolic_tangent(P x) {
  const P size(x.v < 0 ? -x.v : x.v);
  const Exponential<P> e(P(-2) * size);
  const P scale = e.half * e.rest, d = scale * e.q + (scale - P(1)), y = -d / (P(2) + d);
  return P(x.v < 0 ? -y.v : y.v);
}

/// n ln(2) + log(m) of x = m 2^n, with m near 1 and log(m) = 2 artanh((m - 1) / (m + 1)) by its Taylor series.
template <class P>
GIMLI_INLINE P logarithm(P x) {
  using T = typename P::Number;
  using F = Format<T>;
  using Vector = typename P::Vector;
  using Bits = typename BitsOf<P>::Vector;
  constexpr T least = std::numeric_limits<T>::min(), infinity = std::numeric_limits<T>::infinity();
  const auto is_small = x.v < least;
  const Vector normal = is_small ? x.v * P(T(typename F::Bits(1) << F::mantissa)).v : x.v;
  const auto root_half = (Bits)P(0.70710678118654752440).v;
  auto bits = (Bits)normal - root_half;
  Bits n = bits >> F::mantissa;
  const P m((Vector)(bits - (n << F::mantissa) + root_half));
  n -= is_small ? Bits{} + F::mantissa : Bits{};
  const P s = (m - P(1)) / (m + P(1)), z = s * s;
  P series(1. / (2 * F::log_terms - 1));
  for (int k = F::log_terms - 1; k > 0; --k) series = P(1. / (2 * k - 1)) + z * series;
  const P whole(__builtin_convertvector(n, Vector));
  const P y = whole * P(F::ln2_high) + (P(2) * s * series + whole * P(F::ln2_low));
  const Vector at_zero = x.v == 0 ? P(-infinity).v : x.v - x.v + P(std::numeric_limits<T>::quiet_NaN()).v;
  return P(x.v > 0 ? (x.v == infinity ? x.v : y.v) : at_zero);
}

}  // namespace
}  // namespace gimli::tracing
