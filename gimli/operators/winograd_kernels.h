#pragma once

#include <cstdint>

namespace gimli::operators {

/// Images in memory: [count, channels, height, width] or, with channels last, [count, height, width, channels].
struct ImageBatch {
  void* data = nullptr;
  int64_t count, channels, height, width;
  bool channels_last;
};

/// A convolution y = x * w of 3x3, by tiles of 4x4 of x and 2x2 of y, which are 2 apart.
struct Winograd {
  ImageBatch x, y;
  int64_t pad_height, pad_width;  ///< rows and columns of 0 on each side of x

  /// [16, channels of x, channels of y] and [16, channels of y, channels of x], the last of each as many as `padded`.
  void *filters = nullptr, *filter_sums = nullptr;

  int64_t tiles_down() const { return (y.height + 1) / 2; }
  int64_t tiles_across() const { return (y.width + 1) / 2; }
  int64_t rows_of_tiles() const { return y.count * tiles_down(); }
};

/// What there is room for, besides.
struct WinogradMemory {
  void *x_tiles, *y_tiles;  ///< [16, tiles, channels], the last as many as `padded`
  void* rows;               ///< [rows, columns, channels] of images or weights
};

/// With the matrices A, B and G of F(2x2, 3x3) by Lavin and Gray (2016), where sums go over channels:
///
///     filters     filters = G w G^T                                  for channels [begin, end) of x
///     convolve    y = A^T (sum filters . (B^T x B)) A + bias         for rows of tiles [begin, end)
///     correlate   filter_sums = [filter_sums +] (A y A^T) . (B^T x B)   summed over rows of tiles [begin, end)
///     weights     w = G^T filter_sums G                              for channels [begin, end) of y
///
/// The last two make the gradient by w, with y the gradient by y.
struct WinogradKernels {
  /// w is [channels of y, channels of x, 3, 3] or, to be turned around, [channels of x, channels of y, 3, 3].
  void (*filters)(const Winograd& at, const void* w, bool turned, void* rows, int64_t begin, int64_t end);
  /// bias is [channels of y], as many as `padded`, or null.
  void (*convolve)(const Winograd& at, const void* bias, const WinogradMemory& memory, int64_t begin, int64_t end);
  void (*correlate)(const Winograd& at, bool adds, const WinogradMemory& memory, int64_t begin, int64_t end);
  void (*weights)(const Winograd& at, void* w, void* rows, int64_t begin, int64_t end);
};

/// The kernels for this processor.
WinogradKernels winograd_kernels(bool is_double);

/// Those for registers of 16, 32 or 64 bytes, see `register_bytes`.
template <int bytes>
WinogradKernels winograd_kernels_of_width(bool is_double);

}  // namespace gimli::operators
