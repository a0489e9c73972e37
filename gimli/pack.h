#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "gimli/processor.h"

namespace gimli {

/// As many numbers as a register of `bytes` bytes has, with what formulas are made of besides + - * /.
template <class T, int bytes>
struct Pack {
  using Number = T;
  typedef T Vector __attribute__((vector_size(bytes)));
  static constexpr int64_t size = bytes / sizeof(T);

  GIMLI_INLINE Pack(double number = 0) : v(static_cast<T>(number) - Vector{}) {}
  GIMLI_INLINE Pack(Vector vector) : v(vector) {}

  GIMLI_INLINE static Pack load(const T* from) {
    Pack pack;
    std::memcpy(&pack.v, from, sizeof(Vector));
    return pack;
  }
  GIMLI_INLINE void store(T* to) const { std::memcpy(to, &v, sizeof(Vector)); }

  friend GIMLI_INLINE Pack operator+(Pack a, Pack b) { return a.v + b.v; }
  friend GIMLI_INLINE Pack operator-(Pack a, Pack b) { return a.v - b.v; }
  friend GIMLI_INLINE Pack operator-(Pack a) { return -a.v; }
  friend GIMLI_INLINE Pack operator*(Pack a, Pack b) { return a.v * b.v; }
  friend GIMLI_INLINE Pack operator/(Pack a, Pack b) { return a.v / b.v; }

  friend GIMLI_INLINE Pack select(bool condition, Pack a, Pack b) {
    if (condition) return a.v;
    return b.v;
  }

  /// Of a pack that holds one number.
  friend GIMLI_INLINE bool is_small(Pack x) { return -0.5 < x.v[0] && x.v[0] < 0.5; }

  friend GIMLI_INLINE Pack root(Pack x) {
    T lanes[size];
    x.store(lanes);
    for (auto& lane : lanes) lane = std::sqrt(lane);
    return load(lanes);
  }

  /// The derivative of the root, from its value y: 1 / 2y, and 0 at 0 as that of gimli::optim::root.
  friend GIMLI_INLINE Pack half_inverse(Pack y) { return y.v == 0 ? Vector{} : Pack(0.5).v / y.v; }

  friend GIMLI_INLINE Pack larger(Pack a, Pack b) { return ((a.v > b.v) | (a.v != a.v)) ? a.v : b.v; }

  /// The derivative of larger(a, b) by a, shared half and half between equals, as that of at::maximum.
  friend GIMLI_INLINE Pack share_of(Pack a, Pack b) {
    return a.v > b.v ? Pack(1).v : a.v < b.v ? Vector{} : Pack(0.5).v;
  }

  Vector v;
};

}  // namespace gimli
