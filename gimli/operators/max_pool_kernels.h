#pragma once

#include <cstdint>

namespace gimli::operators {

/// How images lie in memory: [planes, height, width, length]. Windows of 2 x 2 cover them from the first row and column
/// on; a last row or column that is odd is left over.
struct Images {
  int64_t planes, height, width, length;
};

/// What is done to every window, of which `which` has the position of one pixel: 0, 1, 2, 3, row by row.
///
///     step      reads           writes
///     max       image           pooled, which: as libtorch's, the first of equal pixels, but the last NaN
///     scatter   pooled, which   image: 0 but at those positions
///     gather    image, which    pooled
enum class PoolStep { max, scatter, gather };

/// Takes a step on planes [begin, end).
using PoolKernel = void (*)(const Images& at, void* image, void* pooled, uint8_t* which, int64_t begin, int64_t end);

/// The kernel for this processor.
PoolKernel pool_kernel(PoolStep step, bool is_double);

/// The kernel for registers of 16, 32 or 64 bytes, see `register_bytes`.
template <int bytes>
PoolKernel pool_kernel_of_width(PoolStep step, bool is_double);

}  // namespace gimli::operators
