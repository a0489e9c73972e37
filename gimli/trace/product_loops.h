#pragma once

#include <algorithm>
#include <utility>

#include "gimli/pack.h"
#include "gimli/trace/loops.h"

namespace gimli::tracing {
namespace {

constexpr int kRows = 5, kPacks = 3;  ///< of the block of sums that stays in registers

/// One matrix of each operand of a product.
template <class T>
struct Matrices {
  T* c;
  const T *a, *b, *d, *e;
  int64_t rows, columns, summands;
  int64_t c_row, a_row, a_column, b_row, d_row, d_column, e_row, e_column;
  T p, q;
  Epilogue epilogue;
};

/// A pack of row i from column j on.
template <class P, class T>
GIMLI_INLINE P pack_of(const T* x, int64_t row, int64_t column, int64_t i, int64_t j) {
  x += i * row + j * column;
  if (column == 1) return P::load(x);
  if (column == 0) return P(*x);
  T lanes[P::size];
  for (int64_t l = 0; l < P::size; ++l) lanes[l] = x[l * column];
  return P::load(lanes);
}

template <class P, class T>
GIMLI_INLINE void finish(const Matrices<T>& m, P sum, int64_t i, int64_t j) {
  if (m.p != 1) sum = P(m.p) * sum;
  if (m.d) sum = sum + P(m.q) * pack_of<P>(m.d, m.d_row, m.d_column, i, j);
  if (m.epilogue == Epilogue::rectify) sum = sum.v <= 0 ? P(0).v : sum.v;
  if (m.epilogue == Epilogue::pass_above) {
    sum = pack_of<P>(m.e, m.e_row, m.e_column, i, j).v <= 0 ? P(0).v : sum.v;
  }
  sum.store(m.c + i * m.c_row + j);
}

/// Rows [i, i + rows) of the packs that begin at these columns.
template <class P, int rows, int packs, class T>
GIMLI_INLINE void block(const Matrices<T>& m, int64_t i, const int64_t* columns) {
  P sum[rows][packs];
  const T* a = m.a + i * m.a_row;
  const T* b = m.b;
  for (int64_t k = 0; k < m.summands; ++k, a += m.a_column, b += m.b_row) {
    P y[packs];
    for (int v = 0; v < packs; ++v) y[v] = P::load(b + columns[v]);
    for (int r = 0; r < rows; ++r) {
      const P x(a[r * m.a_row]);
      for (int v = 0; v < packs; ++v) sum[r][v] = sum[r][v] + x * y[v];
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < packs; ++v) finish(m, sum[r][v], i + r, columns[v]);
  }
}

template <class P, int packs, class T>
void all_rows(const Matrices<T>& m, const int64_t* columns) {
  int64_t i = 0;
  for (; i + kRows <= m.rows; i += kRows) block<P, kRows, packs>(m, i, columns);
  switch (m.rows - i) {
    case 4:
      return block<P, 4, packs>(m, i, columns);
    case 3:
      return block<P, 3, packs>(m, i, columns);
    case 2:
      return block<P, 2, packs>(m, i, columns);
    case 1:
      return block<P, 1, packs>(m, i, columns);
  }
}

/// B's columns lie next to one another. The last pack of columns ends with the last column, whatever it begins with.
template <class P, class T>
void product(const Matrices<T>& m) {
  if constexpr (P::size > 1) {
    if (m.columns < P::size) return product<Pack<T, sizeof(T) * P::size / 2>>(m);
  }
  for (int64_t j = 0; j < m.columns; j += kPacks * P::size) {
    int64_t columns[kPacks];
    int packs = 0;
    for (; packs < kPacks && j + packs * P::size < m.columns; ++packs) {
      columns[packs] = std::min(j + packs * P::size, m.columns - P::size);
    }
    if (packs == 3) all_rows<P, 3>(m, columns);
    if (packs == 2) all_rows<P, 2>(m, columns);
    if (packs == 1) all_rows<P, 1>(m, columns);
  }
}

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

/// The rows of `to` are the columns of a square of as many packs as a pack has numbers, in as many rounds as it takes
/// to interleave them all.
template <class P, class T>
GIMLI_INLINE void transpose_square(const T* from, int64_t stride, T* to, int64_t to_stride) {
  constexpr int n = P::size;
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Indices __attribute__((vector_size(sizeof(typename P::Vector))));
  Indices low, high;
  for (int l = 0; l < n; ++l) {
    low[l] = l / 2 + (l % 2) * n;
    high[l] = low[l] + n / 2;
  }
  typename P::Vector x[n], y[n];
  for (int r = 0; r < n; ++r) x[r] = P::load(from + r * stride).v;
  for (int width = 1; width < n; width *= 2) {
    for (int r = 0; r < n / 2; ++r) {
      y[2 * r] = __builtin_shuffle(x[r], x[r + n / 2], low);
      y[2 * r + 1] = __builtin_shuffle(x[r], x[r + n / 2], high);
    }
    for (int r = 0; r < n; ++r) x[r] = y[r];
  }
  for (int r = 0; r < n; ++r) P(x[r]).store(to + r * to_stride);
}

/// to[k, j] = from[k row + j column]. If rows lie next to one another, by squares of packs, then of halves of them.
template <class P, class T>
void transpose(const T* from, int64_t row, int64_t column, int64_t rows, int64_t columns, T* to, int64_t to_row) {
  constexpr int64_t n = P::size;
  if constexpr (n > 1) {
    int64_t whole_rows = 0, whole_columns = 0;
    if (row == 1) {
      whole_rows = rows / n * n, whole_columns = columns / n * n;
      for (int64_t j = 0; j < whole_columns; j += n) {
        for (int64_t k = 0; k < whole_rows; k += n) {
          transpose_square<P>(from + k + j * column, column, to + k * to_row + j, to_row);
        }
      }
    }
    using Half = Pack<T, sizeof(T) * n / 2>;
    if (whole_columns < columns) {
      transpose<Half>(from + whole_columns * column, row, column, whole_rows, columns - whole_columns,
                      to + whole_columns, to_row);
    }
    if (whole_rows < rows) {
      transpose<Half>(from + whole_rows * row, row, column, rows - whole_rows, columns, to + whole_rows * to_row,
                      to_row);
    }
  } else {
    for (int64_t k = 0; k < rows; ++k) {
      for (int64_t j = 0; j < columns; ++j) to[k * to_row + j] = from[k * row + j * column];
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
