#pragma once

#include "gimli/trace/product.h"

namespace gimli::tracing {
namespace {

/// A's rows and B's columns both lie next to one another: dot products.
template <class P, class T>
void dot_products(const Matrices<T>& m, int64_t b_column) {
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t j = 0; j < m.columns; ++j) {
      const T *a = m.a + i * m.a_row, *b = m.b + j * b_column;
      P sum(0);
      int64_t k = 0;
      for (; k + P::size <= m.summands; k += P::size) sum = sum + P::load(a + k) * P::load(b + k);
      T lanes[P::size], total = 0;
      sum.store(lanes);
      for (const auto lane : lanes) total += lane;
      for (; k < m.summands; ++k) total += a[k] * b[k];
      finish(m, Pack<T, sizeof(T)>(total), i, j);
    }
  }
}

template <class P>
void products(const Loop& loop) {
  using T = typename P::Number;
  const auto& [c, a, b, d, e] = loop.at;
  Matrices<T> m{};
  m.rows = loop.size[1], m.columns = loop.size[2], m.summands = loop.size[3];
  m.c_row = c.stride[1], m.a_row = a.stride[1], m.a_column = a.stride[2];
  m.d_row = d.stride[1], m.d_column = d.stride[2], m.e_row = e.stride[1], m.e_column = e.stride[2];
  m.p = static_cast<T>(loop.p), m.q = static_cast<T>(loop.q), m.epilogue = loop.epilogue;
  const bool is_dense = b.stride[2] == 1 || m.columns == 1;
  const bool dots = !is_dense && has_dot_products(loop);
  alignas(64) T packed[kPackedBytes / sizeof(T)];
  for (int64_t i = 0; i < loop.size[0]; ++i) {
    const auto at = [&](const Operand& operand) { return static_cast<const T*>(operand.data) + i * operand.stride[0]; };
    m.c = static_cast<T*>(c.data) + i * c.stride[0];
    m.a = at(a), m.b = at(b), m.b_row = b.stride[1];
    m.d = d.data ? at(d) : nullptr, m.e = e.data ? at(e) : nullptr;
    if (dots) {
      dot_products<P>(m, b.stride[2]);
      continue;
    }
    if (!is_dense) {
      transpose<P>(m.b, b.stride[1], b.stride[2], m.summands, m.columns, packed, m.columns);
      m.b = packed, m.b_row = m.columns;
    }
    product<P>(m);
  }
}

}  // namespace
}  // namespace gimli::tracing
