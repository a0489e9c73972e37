#pragma once

#include "gimli/pack.h"

namespace gimli::optim::fused {

/// value + epsilon e with e^2 = 0. What a function of x + w e has as epsilon is its derivative at x along w.
template <class T>
struct Dual {
  GIMLI_INLINE Dual(T v = 0, T e = 0) : value(v), epsilon(e) {}
  GIMLI_INLINE Dual(double number) : value(number), epsilon(0) {}

  friend GIMLI_INLINE Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.epsilon + b.epsilon}; }
  friend GIMLI_INLINE Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.epsilon - b.epsilon}; }
  friend GIMLI_INLINE Dual operator-(Dual a) { return {-a.value, -a.epsilon}; }
  friend GIMLI_INLINE Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, a.value * b.epsilon + a.epsilon * b.value};
  }
  friend GIMLI_INLINE Dual operator/(Dual a, Dual b) {
    const T ratio = a.value / b.value, inverse = T(1) / b.value;
    return {ratio, (a.epsilon - ratio * b.epsilon) * inverse};
  }

  friend GIMLI_INLINE Dual select(bool condition, Dual a, Dual b) {
    return {select(condition, a.value, b.value), select(condition, a.epsilon, b.epsilon)};
  }
  friend GIMLI_INLINE bool is_small(Dual x) { return is_small(x.value); }
  friend GIMLI_INLINE Dual root(Dual x) {
    const T y = root(x.value);
    return {y, x.epsilon * half_inverse(y)};
  }
  friend GIMLI_INLINE Dual half_inverse(Dual y) {
    const T h = half_inverse(y.value);
    return {h, -(T(2) * h * h * y.epsilon)};
  }
  friend GIMLI_INLINE Dual larger(Dual a, Dual b) {
    const T share = share_of(a.value, b.value);
    return {larger(a.value, b.value), share * a.epsilon + (T(1) - share) * b.epsilon};
  }
  friend GIMLI_INLINE Dual share_of(Dual a, Dual b) { return share_of(a.value, b.value); }

  T value, epsilon;
};

}  // namespace gimli::optim::fused
