#pragma once

#include <algorithm>
#include <utility>

#include "gimli/pack.h"
#include "gimli/trace/loops.h"

namespace gimli::tracing {
namespace {

/// Of the block of sums that stays in registers, of which AVX-512 has 32 and others 16.
template <class P>
constexpr int kRows = sizeof(typename P::Vector) == 64 ? 5 : 4;
constexpr int kPacks = 3;

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
  for (; i + kRows<P> <= m.rows; i += kRows<P>) block<P, kRows<P>, packs>(m, i, columns);
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

}  // namespace
}  // namespace gimli::tracing
