#pragma once

#include <cstdint>

namespace gimli::optim::fused {

/// Finds what autograd has to know about a formula: the formula is evaluated on traces instead of numbers. Inputs are
/// numbered, and a set of them is a mask.
struct Trace {
  Trace(double = 0) {}
  Trace(uint32_t input, bool requires_grad, uint32_t& needed)
      : inputs(input), requires_grad(requires_grad), needed(&needed) {}

  uint32_t inputs = 0;         ///< that the value depends on
  bool requires_grad = false;  ///< whether one of them requires a gradient
  uint32_t* needed = nullptr;  ///< inputs whose values the derivative depends on, of all traces together
};

inline Trace joined(const Trace& a, const Trace& b) {
  Trace result = a.needed ? a : b;
  result.inputs = a.inputs | b.inputs;
  result.requires_grad = a.requires_grad || b.requires_grad;
  return result;
}
inline void need(const Trace& needed, const Trace& when) {
  if (when.requires_grad) *when.needed |= needed.inputs;
}

inline Trace operator+(const Trace& a, const Trace& b) { return joined(a, b); }
inline Trace operator-(const Trace& a, const Trace& b) { return joined(a, b); }
inline Trace operator-(const Trace& a) { return a; }
inline Trace operator*(const Trace& a, const Trace& b) {
  need(a, b);
  need(b, a);
  return joined(a, b);
}
inline Trace operator/(const Trace& a, const Trace& b) {
  need(b, a);
  need(joined(a, b), b);
  return joined(a, b);
}

inline Trace select(bool condition, const Trace& a, const Trace& b) { return condition ? a : b; }
inline bool is_small(const Trace&) { return true; }
inline Trace root(const Trace& x) {
  need(x, x);
  return x;
}
inline Trace half_inverse(const Trace& y) { return root(y); }
inline Trace larger(const Trace& a, const Trace& b) {
  const auto both = joined(a, b);
  need(both, both);
  return both;
}
/// Constant wherever it has a derivative, but it depends on its inputs' values.
inline Trace share_of(const Trace& a, const Trace& b) {
  auto result = joined(a, b);
  result.requires_grad = false;
  return result;
}

}  // namespace gimli::optim::fused
