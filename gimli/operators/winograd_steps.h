#pragma once

#include <algorithm>
#include <cstring>

#include "gimli/operators/winograd_kernels.h"
#include "gimli/pack.h"
#include "gimli/trace/product.h"

namespace gimli::operators {
namespace {

using tracing::transpose;

template <class P>
int64_t padded(int64_t channels) {
  return (channels + P::size - 1) / P::size * P::size;
}

template <class P>
GIMLI_INLINE void by_a(const P (&x)[2], P (&y)[4]) {
  y[0] = x[0], y[1] = x[0] + x[1], y[2] = x[0] - x[1], y[3] = -x[1];
}

template <class P>
GIMLI_INLINE void by_a_transposed(const P (&x)[4], P (&y)[2]) {
  y[0] = x[0] + x[1] + x[2], y[1] = x[1] - x[2] - x[3];
}

template <class P>
GIMLI_INLINE void by_b_transposed(const P (&x)[4], P (&y)[4]) {
  y[0] = x[0] - x[2], y[1] = x[1] + x[2], y[2] = x[2] - x[1], y[3] = x[1] - x[3];
}

template <class P>
GIMLI_INLINE void by_g(const P (&x)[3], P (&y)[4]) {
  const auto ends = P(0.5) * (x[0] + x[2]), middle = P(0.5) * x[1];
  y[0] = x[0], y[1] = ends + middle, y[2] = ends - middle, y[3] = x[2];
}

template <class P>
GIMLI_INLINE void by_g_transposed(const P (&x)[4], P (&y)[3]) {
  const auto sum = P(0.5) * (x[1] + x[2]);
  y[0] = x[0] + sum, y[1] = P(0.5) * (x[1] - x[2]), y[2] = sum + x[3];
}

/// Squares of numbers in memory, for as many channels as lie next to one another: from number to number.
struct Strides {
  int64_t row, column;
};

/// y = M x M^T for squares x and y of packs of channels, where `map` is the product of M with a column; plus `bias`.
template <class P, int from, int to, class T, class Map>
GIMLI_INLINE void transform(const T* x, Strides x_strides, T* y, Strides y_strides, Map map, P bias = P(0)) {
  P half[from][to];  // M x, transposed
  for (int j = 0; j < from; ++j) {
    P column[from];
    for (int i = 0; i < from; ++i) column[i] = P::load(x + i * x_strides.row + j * x_strides.column);
    map(column, half[j]);
  }
  for (int i = 0; i < to; ++i) {
    P row[from], result[to];
    for (int j = 0; j < from; ++j) row[j] = half[j][i];
    map(row, result);
    for (int j = 0; j < to; ++j) (result[j] + bias).store(y + i * y_strides.row + j * y_strides.column);
  }
}

/// Rows and columns of an image, from (row, column) on, as [rows, columns, channels] with 0 outside of it.
template <class P, class T = typename P::Number>
void read(const ImageBatch& images, int64_t image, int64_t row, int64_t rows, int64_t column, int64_t columns, T* to) {
  const auto channels = images.channels, length = padded<P>(channels), width = images.width;
  const auto begin = std::max<int64_t>(column, 0), end = std::min(column + columns, width);
  std::memset(to, 0, rows * columns * length * sizeof(T));
  for (auto i = std::max<int64_t>(row, 0); i < std::min(row + rows, images.height); ++i) {
    auto* const pixels = to + ((i - row) * columns + begin - column) * length;
    const auto* const all = static_cast<const T*>(images.data) + image * channels * images.height * width;
    if (images.channels_last) {
      const auto* const from = all + (i * width + begin) * channels;
      for (int64_t j = 0; j < end - begin; ++j) {
        std::memcpy(pixels + j * length, from + j * channels, channels * sizeof(T));
      }
    } else {
      transpose<P>(all + i * width + begin, 1, images.height * width, end - begin, channels, pixels, length);
    }
  }
}

/// The first rows and columns of [rows, columns, channels] to an image, as far as it goes, from a row on.
template <class P, class T = typename P::Number>
void write(const ImageBatch& images, int64_t image, int64_t row, int64_t rows, int64_t columns, const T* from) {
  const auto channels = images.channels, length = padded<P>(channels), width = images.width;
  for (auto i = row; i < std::min(row + rows, images.height); ++i, from += columns * length) {
    auto* const all = static_cast<T*>(images.data) + image * channels * images.height * width;
    if (images.channels_last) {
      for (int64_t j = 0; j < width; ++j) {
        std::memcpy(all + (i * width + j) * channels, from + j * length, channels * sizeof(T));
      }
    } else {
      transpose<P>(from, 1, length, channels, width, all + i * width, images.height * width);
    }
  }
}

/// Rows [begin, end) of tiles of n x n pixels of x or y, with `map` on both sides.
template <class P, int n, class Map, class T = typename P::Number>
void read_tiles(const Winograd& at, const ImageBatch& images, int64_t pad_height, int64_t pad_width, void* memory,
                T* tiles, int64_t begin, int64_t end, Map map) {
  const auto channels = padded<P>(images.channels), across = at.tiles_across(), columns = 2 * across + n - 2;
  const auto component = (end - begin) * across * channels;
  auto* const rows = static_cast<T*>(memory);
  for (auto i = begin; i < end; ++i) {
    read<P>(images, i / at.tiles_down(), i % at.tiles_down() * 2 - pad_height, n, -pad_width, columns, rows);
    for (int64_t j = 0; j < across; ++j, tiles += channels) {
      for (int64_t c = 0; c < channels; c += P::size) {
        transform<P, n, 4>(rows + 2 * j * channels + c, {columns * channels, channels}, tiles + c,
                           {4 * component, component}, map);
      }
    }
  }
}

/// Rows [begin, end) of tiles of x, as B^T x B.
template <class P, class T = typename P::Number>
void read_x(const Winograd& at, const WinogradMemory& memory, int64_t begin, int64_t end) {
  read_tiles<P, 4>(at, at.x, at.pad_height, at.pad_width, memory.rows, static_cast<T*>(memory.x_tiles), begin, end,
                   by_b_transposed<P>);
}

template <class P>
struct WinogradSteps {
  using T = typename P::Number;

  static void filters(const Winograd& at, const void* w, bool turned, void* rows, int64_t begin, int64_t end) {
    const auto inputs = at.x.channels, outputs = at.y.channels, length = padded<P>(outputs);
    const auto component = inputs * length;
    auto* const squares = static_cast<T*>(rows);  // [channels of x, 3, 3, channels of y]
    std::memset(squares, 0, P::size * 9 * length * sizeof(T));
    for (auto first = begin; first < end; first += P::size) {
      const auto count = std::min<int64_t>(P::size, end - first);
      const auto* const from = static_cast<const T*>(w) + first * 9 * (turned ? outputs : 1);
      if (turned) {
        for (int64_t i = 0; i < count; ++i) {
          transpose<P>(from + i * 9 * outputs, 1, 9, 9, outputs, squares + i * 9 * length, length);
        }
      } else {
        transpose<P>(from, 1, 9 * inputs, 9 * count, outputs, squares, length);
      }
      for (int64_t i = 0; i < count; ++i) {
        const auto* const square = squares + (9 * i + (turned ? 8 : 0)) * length;
        const Strides strides{turned ? -3 * length : 3 * length, turned ? -length : length};
        auto* const to = static_cast<T*>(at.filters) + (first + i) * length;
        for (int64_t c = 0; c < length; c += P::size) {
          transform<P, 3, 4>(square + c, strides, to + c, {4 * component, component}, by_g<P>);
        }
      }
    }
  }

  static void convolve(const Winograd& at, const void* bias, const WinogradMemory& memory, int64_t begin, int64_t end) {
    read_x<P>(at, memory, begin, end);
    const auto across = at.tiles_across(), tiles = (end - begin) * across;
    const auto inputs = padded<P>(at.x.channels), outputs = padded<P>(at.y.channels), component = tiles * outputs;
    auto *const rows = static_cast<T*>(memory.rows), *y = static_cast<T*>(memory.y_tiles);
    for (int64_t i = 0; i < 16; ++i) {
      tracing::Matrices<T> product{};
      product.c = y + i * component, product.c_row = outputs;
      product.a = static_cast<const T*>(memory.x_tiles) + i * tiles * inputs;
      product.a_row = inputs, product.a_column = 1;
      product.b = static_cast<const T*>(at.filters) + i * at.x.channels * outputs, product.b_row = outputs;
      product.rows = tiles, product.columns = outputs, product.summands = at.x.channels, product.p = 1;
      tracing::product<P>(product);
    }
    for (auto i = begin; i < end; ++i) {
      for (int64_t j = 0; j < across; ++j, y += outputs) {
        for (int64_t c = 0; c < outputs; c += P::size) {
          transform<P, 4, 2>(y + c, {4 * component, component}, rows + 2 * j * outputs + c,
                             {2 * across * outputs, outputs}, by_a_transposed<P>,
                             bias ? P::load(static_cast<const T*>(bias) + c) : P(0));
        }
      }
      write<P>(at.y, i / at.tiles_down(), i % at.tiles_down() * 2, 2, 2 * across, rows);
    }
  }

  static void correlate(const Winograd& at, bool adds, const WinogradMemory& memory, int64_t begin, int64_t end) {
    read_x<P>(at, memory, begin, end);
    const auto across = at.tiles_across(), tiles = (end - begin) * across;
    const auto inputs = padded<P>(at.x.channels), outputs = padded<P>(at.y.channels), component = tiles * outputs;
    read_tiles<P, 2>(at, at.y, 0, 0, memory.rows, static_cast<T*>(memory.y_tiles), begin, end, by_a<P>);
    for (int64_t i = 0; i < 16; ++i) {
      tracing::Matrices<T> product{};
      product.c = static_cast<T*>(at.filter_sums) + i * at.y.channels * inputs, product.c_row = inputs;
      product.a = static_cast<const T*>(memory.y_tiles) + i * component, product.a_row = 1, product.a_column = outputs;
      product.b = static_cast<const T*>(memory.x_tiles) + i * tiles * inputs, product.b_row = inputs;
      product.rows = at.y.channels, product.columns = inputs, product.summands = tiles, product.p = 1;
      if (adds) product.d = product.c, product.d_row = inputs, product.d_column = 1, product.q = 1;
      tracing::product<P>(product);
    }
  }

  static void weights(const Winograd& at, void* w, void* rows, int64_t begin, int64_t end) {
    const auto inputs = at.x.channels, length = padded<P>(inputs), component = at.y.channels * length;
    auto* const square = static_cast<T*>(rows);  // [3, 3, channels of x]
    for (auto k = begin; k < end; ++k) {
      for (int64_t c = 0; c < length; c += P::size) {
        transform<P, 4, 3>(static_cast<const T*>(at.filter_sums) + k * length + c, {4 * component, component},
                           square + c, {3 * length, length}, by_g_transposed<P>);
      }
      transpose<P>(square, 1, length, inputs, 9, static_cast<T*>(w) + k * inputs * 9, 9);
    }
  }

  static constexpr WinogradKernels all{filters, convolve, correlate, weights};
};

}  // namespace

template <int bytes>
WinogradKernels winograd_kernels_of_width(bool is_double) {
  return is_double ? WinogradSteps<Pack<double, bytes>>::all : WinogradSteps<Pack<float, bytes>>::all;
}

}  // namespace gimli::operators
