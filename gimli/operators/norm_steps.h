#pragma once

#include <cstring>

#include "gimli/operators/norm_kernels.h"
#include "gimli/processor.h"

namespace gimli::operators {
namespace {

// The steps of norm_kernels.h. N is a number or a register of them.

struct Mean {
  static constexpr int64_t inputs = 1, constants = 1, outputs = 0, sums = 1;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N*, N*, N* sum) {
    sum[0] += in[0];
  }
};

struct Variance {
  static constexpr int64_t inputs = 1, constants = 1, outputs = 0, sums = 1;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N* k, N*, N* sum) {
    const N x = in[0] - k[0];
    sum[0] += x * x;
  }
};

struct Normalize {
  static constexpr int64_t inputs = 1, constants = 3, outputs = 1, sums = 0;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N* k, N* out, N*) {
    out[0] = k[1] * (in[0] - k[0]) + k[2];
  }
};

struct FirstSums {
  static constexpr int64_t inputs = 2, constants = 1, outputs = 0, sums = 2;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N* k, N*, N* sum) {
    const N x = in[0] - k[0], g = in[1];
    sum[0] += g;
    sum[1] += g * x;
  }
};

struct First {
  static constexpr int64_t inputs = 2, constants = 4, outputs = 1, sums = 0;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N* k, N* out, N*) {
    const N x = in[0] - k[0], g = in[1];
    out[0] = k[1] * g + k[2] * x + k[3];
  }
};

struct SecondSums {
  static constexpr int64_t inputs = 3, constants = 1, outputs = 0, sums = 5;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N* k, N*, N* sum) {
    const N x = in[0] - k[0], g = in[1], u = in[2];
    sum[0] += u;
    sum[1] += g;
    sum[2] += u * x;
    sum[3] += g * x;
    sum[4] += u * g;
  }
};

struct Second {
  static constexpr int64_t inputs = 3, constants = 8, outputs = 2, sums = 0;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N* k, N* out, N*) {
    const N x = in[0] - k[0], g = in[1], u = in[2];
    out[0] = k[1] * u + k[2] * x + k[3];
    out[1] = k[4] * u + k[5] * g + k[6] * x + k[7];
  }
};

template <class Step>
struct Rectified {
  static constexpr int64_t inputs = Step::inputs, constants = Step::constants + 2, outputs = Step::outputs,
                           sums = Step::sums;
  template <class N>
  GIMLI_INLINE static void take(const N* in, const N* k, N* out, N* sum) {
    const N y = k[Step::constants] * (in[0] - k[0]) + k[Step::constants + 1];
    N of[inputs];
    for (int64_t s = 0; s < inputs; ++s) of[s] = in[s];
    of[1] = y <= 0 ? N{} : in[1];
    Step::take(of, k, out, sum);
    if constexpr (outputs == 2) out[0] = y <= 0 ? N{} : out[0];
  }
};

/// As many doubles as a register has, and T in memory.
template <class T, int bytes>
struct Lanes {
  typedef double Number __attribute__((vector_size(bytes)));
  static constexpr int64_t size = bytes / sizeof(double);
  typedef T Stored __attribute__((vector_size(size * sizeof(T))));

  GIMLI_INLINE static Number load(const T* from) {
    Stored stored;
    std::memcpy(&stored, from, sizeof(Stored));
    return __builtin_convertvector(stored, Number);
  }
  GIMLI_INLINE static void store(T* to, Number number) {
    const Stored stored = __builtin_convertvector(number, Stored);
    std::memcpy(to, &stored, sizeof(Stored));
  }
  GIMLI_INLINE static Number constant(const double* from) {
    Number number;
    std::memcpy(&number, from, sizeof(Number));
    return number;
  }
};

/// One of them.
template <class T>
struct Lane {
  using Number = double;
  static constexpr int64_t size = 1;
  GIMLI_INLINE static double load(const T* from) { return *from; }
  GIMLI_INLINE static void store(T* to, double number) { *to = static_cast<T>(number); }
  GIMLI_INLINE static double constant(const double* from) { return *from; }
};

template <class Step, class L, class T>
GIMLI_INLINE void take_at(const NormPass& pass, int64_t i, const typename L::Number* k, typename L::Number* sum) {
  typename L::Number in[Step::inputs], out[Step::outputs + 1];
  for (int64_t s = 0; s < Step::inputs; ++s) in[s] = L::load(static_cast<const T*>(pass.in[s]) + i);
  Step::take(in, k, out, sum);
  for (int64_t s = 0; s < Step::outputs; ++s) L::store(static_cast<T*>(pass.out[s]) + i, out[s]);
}

/// Each channel in its planes.
template <class Step, class T, int bytes>
void take_planes(const NormPass& pass, int64_t begin, int64_t end) {
  using L = Lanes<T, bytes>;
  using Number = typename L::Number;
  const auto [rows, channels, length] = pass.at;
  for (auto c = begin; c < end; ++c) {
    Number k[Step::constants], sum[Step::sums + 1] = {};
    double one_k[Step::constants], one_sum[Step::sums + 1] = {};
    for (int64_t s = 0; s < Step::constants; ++s) {
      one_k[s] = pass.k[s] ? pass.k[s][c] : 0;
      k[s] = one_k[s] - Number{};
    }
    for (int64_t row = 0; row < rows; ++row) {
      const auto first = (row * channels + c) * length, last = first + length;
      auto i = first;
      for (; i + L::size <= last; i += L::size) take_at<Step, L, T>(pass, i, k, sum);
      for (; i < last; ++i) take_at<Step, Lane<T>, T>(pass, i, one_k, one_sum);
    }
    for (int64_t s = 0; s < Step::sums; ++s) {
      for (int64_t lane = 0; lane < L::size; ++lane) one_sum[s] += sum[s][lane];
      pass.sums[s][c] = one_sum[s];
    }
  }
}

/// `count` registers of channels, from the c-th on, through all rows.
template <class Step, class L, class T, int64_t count>
GIMLI_INLINE void take_columns(const NormPass& pass, int64_t c) {
  using Number = typename L::Number;
  Number k[count][Step::constants], sum[count][Step::sums + 1] = {};
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t s = 0; s < Step::constants; ++s) {
      k[j][s] = pass.k[s] ? L::constant(pass.k[s] + c + j * L::size) : Number{};
    }
  }
  for (int64_t row = 0; row < pass.at.rows; ++row) {
    const auto i = row * pass.at.channels + c;
    for (int64_t j = 0; j < count; ++j) take_at<Step, L, T>(pass, i + j * L::size, k[j], sum[j]);
  }
  for (int64_t s = 0; s < Step::sums; ++s) {
    for (int64_t j = 0; j < count; ++j) std::memcpy(pass.sums[s] + c + j * L::size, &sum[j][s], sizeof(Number));
  }
}

template <class Step, class T, int bytes>
void take(const NormPass& pass, int64_t begin, int64_t end) {
  if (pass.at.length > 1) return take_planes<Step, T, bytes>(pass, begin, end);
  using L = Lanes<T, bytes>;
  auto c = begin;
  for (; c + 2 * L::size <= end; c += 2 * L::size) take_columns<Step, L, T, 2>(pass, c);
  for (; c < end; ++c) take_columns<Step, Lane<T>, T, 1>(pass, c);
}

template <class Step, int bytes>
NormKernel kernel_of(bool is_double) {
  return is_double ? &take<Step, double, bytes> : &take<Step, float, bytes>;
}

template <class Step, int bytes>
NormKernel kernel_of(bool rectified, bool is_double) {
  return rectified ? kernel_of<Rectified<Step>, bytes>(is_double) : kernel_of<Step, bytes>(is_double);
}

}  // namespace

template <int bytes>
NormKernel norm_kernel_of_width(NormStep step, bool rectified, bool is_double) {
  switch (step) {
    case NormStep::mean:
      return kernel_of<Mean, bytes>(is_double);
    case NormStep::variance:
      return kernel_of<Variance, bytes>(is_double);
    case NormStep::normalize:
      return kernel_of<Normalize, bytes>(is_double);
    case NormStep::first_sums:
      return kernel_of<FirstSums, bytes>(rectified, is_double);
    case NormStep::first:
      return kernel_of<First, bytes>(rectified, is_double);
    case NormStep::second_sums:
      return kernel_of<SecondSums, bytes>(rectified, is_double);
    case NormStep::second:
      return kernel_of<Second, bytes>(rectified, is_double);
  }
  __builtin_unreachable();
}

}  // namespace gimli::operators
