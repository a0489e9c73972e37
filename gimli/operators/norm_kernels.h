#pragma once

#include <array>
#include <cstdint>

namespace gimli::operators {

/// How channels lie in memory: [rows, channels, length]. With a length of 1, channels are next to one another.
struct Channels {
  int64_t rows, channels, length;
  int64_t count() const { return rows * length; }  ///< elements of a channel
};

/// What is done to every element of a channel, in double whatever its type. g is the gradient of the normalized x, and
/// u that of the gradient of x; m is k[0], which of all but `mean` is the channel's mean.
///
/// The last four are also `rectified`, of max(y, 0) in the place of y = s (x - m) + b, with s and b the constants after
/// theirs: g counts as 0, and its gradient is 0, where y <= 0.
///
///     step          reads    writes                                sums
///     mean          x                                              x
///     variance      x                                              (x - m)^2
///     normalize     x        k1 (x - m) + k2
///     first_sums    x, g                                           g, g (x - m)
///     first         x, g     k1 g + k2 (x - m) + k3
///     second_sums   x, g, u                                        u, g, u (x - m), g (x - m), u g
///     second        x, g, u  k1 u + k2 (x - m) + k3,
///                            k4 u + k5 g + k6 (x - m) + k7
enum class NormStep { mean, variance, normalize, first_sums, first, second_sums, second };

/// The tensors of a step, of one type and layout, and a number a channel of each constant and of each sum.
struct NormPass {
  Channels at;
  std::array<const void*, 3> in{};
  std::array<void*, 2> out{};
  std::array<const double*, 10> k{};
  std::array<double*, 5> sums{};
};

/// Takes a step on channels [begin, end).
using NormKernel = void (*)(const NormPass& pass, int64_t begin, int64_t end);

/// The kernel for this processor.
NormKernel norm_kernel(NormStep step, bool rectified, bool is_double);

/// The kernel for registers of 16, 32 or 64 bytes, see `register_bytes`.
template <int bytes>
NormKernel norm_kernel_of_width(NormStep step, bool rectified, bool is_double);

}  // namespace gimli::operators
