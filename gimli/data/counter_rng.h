#pragma once

#include <ATen/core/PhiloxRNGEngine.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace gimli::data {

/// Random numbers for which (seed, stream) is the whole state to begin with: Philox4x32-10 (Salmon et al. 2011,
/// "Parallel random numbers: as easy as 1, 2, 3"), a block cipher run on a counter. The seed is the key and the stream
/// (say, a task's index) the upper half of the counter, so that streams never overlap, and none has to be drawn to
/// reach another.
///
/// The draws are made here, of integers and of exactly rounded arithmetic, because what the distributions of <random>
/// return is left to each standard library: these are the same bits on every platform.
class CounterRng final {
 public:
  CounterRng(uint64_t seed, uint64_t stream) : engine_(seed, stream) {}

  /// 32 uniform bits.
  uint32_t bits() { return engine_(); }

  /// A uniform integer of [0, bound), 1 <= bound < 2^32, without bias: multiply and reject (Lemire 2019).
  int64_t below(int64_t bound) {
    TORCH_CHECK(bound >= 1 && bound < (int64_t{1} << 32), "below: expected a bound from 1 to 2^32 - 1, got ", bound);
    const auto range = static_cast<uint32_t>(bound);
    const uint32_t rejected = (0u - range) % range;  // 2^32 mod range: so many low parts are one too many
    uint64_t product = 0;
    do {
      product = uint64_t{bits()} * range;
    } while (static_cast<uint32_t>(product) < rejected);
    return static_cast<int64_t>(product >> 32);
  }

  /// A uniform double of [low, high]: 53 random bits, scaled with one rounding.
  double uniform(double low, double high) {
    const uint64_t upper = bits() >> 5;
    const uint64_t lower = bits() >> 6;
    const double unit = static_cast<double>((upper << 26) | lower) * 0x1p-53;
    return std::fma(high - low, unit, low);
  }

  /// `count` distinct integers of [0, size) in random order; every such sequence is equally likely.
  std::vector<int64_t> choose(int64_t size, int64_t count) {
    TORCH_CHECK(count >= 0 && count <= size, "choose: expected a count from 0 to ", size, ", got ", count);
    std::vector<int64_t> items(size);
    std::iota(items.begin(), items.end(), 0);
    for (int64_t i = 0; i < count; ++i) std::swap(items[i], items[i + below(size - i)]);
    items.resize(count);
    return items;
  }

 private:
  at::Philox4_32 engine_;
};

}  // namespace gimli::data
