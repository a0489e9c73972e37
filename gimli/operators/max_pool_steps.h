#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "gimli/operators/max_pool_kernels.h"
#include "gimli/processor.h"

namespace gimli::operators {
namespace {

/// Pixels of `size` windows, as a vector a position.
template <class T, int size>
struct Windows {
  typedef T Pixels __attribute__((vector_size(size * sizeof(T))));
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Integer Which __attribute__((vector_size(size * sizeof(T))));
  typedef uint8_t Stored __attribute__((vector_size(size)));

  Pixels at[4];
  Pixels pooled;
  Which which;

  template <class Vector>
  GIMLI_INLINE static Vector load(const void* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof(Vector));
    return vector;
  }
  template <class Vector>
  GIMLI_INLINE static void store(void* to, Vector vector) {
    std::memcpy(to, &vector, sizeof(Vector));
  }

  /// Of windows whose pixels of a row are next to one another, or `length` apart.
  GIMLI_INLINE void load_row(const T* row, int64_t length, int first) {
    if (length > 1) {
      at[first] = load<Pixels>(row), at[first + 1] = load<Pixels>(row + length);
    } else {
      split(load<Pixels>(row), load<Pixels>(row + size), first, std::make_integer_sequence<int, size>());
    }
  }
  GIMLI_INLINE void store_row(T* row, int64_t length, int first) const {
    if (length > 1) {
      store(row, at[first]), store(row + length, at[first + 1]);
    } else {
      merge(row, first, std::make_integer_sequence<int, size>());
    }
  }
  GIMLI_INLINE void load_which(const uint8_t* from) { which = __builtin_convertvector(load<Stored>(from), Which); }
  GIMLI_INLINE void store_which(uint8_t* to) const { store(to, __builtin_convertvector(which, Stored)); }

 private:
  template <int... i>
  GIMLI_INLINE void split(Pixels a, Pixels b, int first, std::integer_sequence<int, i...>) {
    at[first] = __builtin_shufflevector(a, b, (2 * i)...);
    at[first + 1] = __builtin_shufflevector(a, b, (2 * i + 1)...);
  }
  template <int... i>
  GIMLI_INLINE void merge(T* row, int first, std::integer_sequence<int, i...>) const {
    const auto a = at[first], b = at[first + 1];
    store<Pixels>(row, __builtin_shufflevector(a, b, (i % 2 * size + i / 2)...));
    store<Pixels>(row + size, __builtin_shufflevector(a, b, ((size + i) % 2 * size + (size + i) / 2)...));
  }
};

// The steps of max_pool_kernels.h.

struct Max {
  static constexpr bool reads_image = true, reads_pooled = false, reads_which = false;
  template <class W>
  GIMLI_INLINE static void take(W& w) {
    w.pooled = w.at[0];
    w.which = typename W::Which{};
    for (int k = 1; k < 4; ++k) {
      const auto larger = (w.at[k] > w.pooled) | (w.at[k] != w.at[k]);
      w.pooled = larger ? w.at[k] : w.pooled;
      w.which = larger ? k - typename W::Which{} : w.which;
    }
  }
};

struct Scatter {
  static constexpr bool reads_image = false, reads_pooled = true, reads_which = true;
  template <class W>
  GIMLI_INLINE static void take(W& w) {
    for (int k = 0; k < 4; ++k) w.at[k] = w.which == k ? w.pooled : typename W::Pixels{};
  }
};

struct Gather {
  static constexpr bool reads_image = true, reads_pooled = false, reads_which = true;
  template <class W>
  GIMLI_INLINE static void take(W& w) {
    w.pooled = w.at[0];
    for (int k = 1; k < 4; ++k) w.pooled = w.which == k ? w.at[k] : w.pooled;
  }
};

/// The first `size` windows of two rows.
template <class Step, class T, int size>
GIMLI_INLINE void take_windows(T* top, T* bottom, T* pooled, uint8_t* which, int64_t length) {
  using W = Windows<T, size>;
  W w;
  if constexpr (Step::reads_image) w.load_row(top, length, 0), w.load_row(bottom, length, 2);
  if constexpr (Step::reads_pooled) w.pooled = W::template load<typename W::Pixels>(pooled);
  if constexpr (Step::reads_which) w.load_which(which);
  Step::take(w);
  if constexpr (!Step::reads_image) w.store_row(top, length, 0), w.store_row(bottom, length, 2);
  if constexpr (!Step::reads_pooled) W::store(pooled, w.pooled);
  if constexpr (!Step::reads_which) w.store_which(which);
}

/// `count` windows of two rows.
template <class Step, class T, int size>
GIMLI_INLINE void take_row(T* top, T* bottom, T* pooled, uint8_t* which, int64_t count, int64_t length) {
  const int64_t step = length > 1 ? 1 : 2;  // from window to window, in the image
  const auto take_at = [&](auto lanes, int64_t i) {
    take_windows<Step, T, lanes>(top + step * i, bottom + step * i, pooled + i, which + i, length);
  };
  if (count < size) {
    for (int64_t i = 0; i < count; ++i) take_at(std::integral_constant<int, 1>(), i);
    return;
  }
  // The last takes some windows again.
  for (int64_t i = 0; i < count; i += size) {
    take_at(std::integral_constant<int, size>(), i + size <= count ? i : count - size);
  }
}

template <class Step, class T, int bytes>
void take_pool(const Images& at, void* image, void* pooled, uint8_t* which, int64_t begin, int64_t end) {
  constexpr int size = bytes / sizeof(T);
  const auto height = at.height / 2, width = at.width / 2, row = at.width * at.length;
  for (auto plane = begin; plane < end; ++plane) {
    auto* const first = static_cast<T*>(image) + plane * at.height * row;
    for (int64_t i = 0; i < height; ++i) {
      auto *top = first + 2 * i * row, *bottom = top + row;
      const auto windows = (plane * height + i) * width * at.length;
      auto* y = static_cast<T*>(pooled) + windows;
      if (at.length == 1) {
        take_row<Step, T, size>(top, bottom, y, which + windows, width, 1);
      } else {
        for (int64_t j = 0; j < width; ++j) {
          const auto column = 2 * j * at.length;
          take_row<Step, T, size>(top + column, bottom + column, y + j * at.length, which + windows + j * at.length,
                                  at.length, at.length);
        }
      }
      if (!Step::reads_image && at.width % 2 != 0) {
        std::memset(top + row - at.length, 0, at.length * sizeof(T));
        std::memset(bottom + row - at.length, 0, at.length * sizeof(T));
      }
    }
    if (!Step::reads_image && at.height % 2 != 0) std::memset(first + 2 * height * row, 0, row * sizeof(T));
  }
}

template <class Step, int bytes>
PoolKernel pool_kernel_of(bool is_double) {
  // A row of a small image has few windows.
  constexpr int most = std::min(bytes, 32);
  return is_double ? &take_pool<Step, double, most> : &take_pool<Step, float, most>;
}

}  // namespace

template <int bytes>
PoolKernel pool_kernel_of_width(PoolStep step, bool is_double) {
  switch (step) {
    case PoolStep::max:
      return pool_kernel_of<Max, bytes>(is_double);
    case PoolStep::scatter:
      return pool_kernel_of<Scatter, bytes>(is_double);
    case PoolStep::gather:
      return pool_kernel_of<Gather, bytes>(is_double);
  }
  __builtin_unreachable();
}

}  // namespace gimli::operators
