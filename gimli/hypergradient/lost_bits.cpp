#include "gimli/hypergradient/lost_bits.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace gimli {
namespace {

constexpr int64_t block = 128;
constexpr int64_t row_bytes = 16;  // a vector register's

struct Header {
  uint8_t width = 0, exceptions = 0;
};

template <class U>
constexpr int bits = 8 * sizeof(U);

template <class U>
U sign_mask(U x) {
  return U(0) - U(x >> (bits<U> - 1));
}

/// The bits of a float as a two's complement integer in the order of the floats, and back.
template <class U>
U ordered(U x) {
  return x ^ U(sign_mask(x) >> 1);
}

template <class U>
U zigzag(U d) {
  return U(d << 1) ^ sign_mask(d);
}

template <class U>
U unzigzag(U z) {
  return U(z >> 1) ^ U(U(0) - U(z & 1));
}

template <class U>
U low_bits(int width) {
  return width == 0 ? U(0) : U(U(~U(0)) >> (bits<U> - width));
}

/// Up to 128 values of W bits, as rows of a register each. At w bits a value, a column of `rows` values becomes one of
/// ceil(rows w / W) words.
template <class U>
struct Block {
  static constexpr int64_t columns = row_bytes / sizeof(U);
  alignas(row_bytes) U values[block] = {};

  static int64_t packed_bytes(int64_t count, int width) {
    const auto rows = (count + columns - 1) / columns;
    return (rows * width + bits<U> - 1) / bits<U> * row_bytes;
  }

  static int64_t bytes(int64_t count, Header header) {
    return packed_bytes(count, header.width) + header.exceptions * int64_t(1 + sizeof(U));
  }

  void load(const std::byte* actual, const std::byte* predicted, int64_t count) {
    alignas(row_bytes) U other[block] = {};
    std::memcpy(values, actual, count * sizeof(U));
    std::memcpy(other, predicted, count * sizeof(U));
    for (int64_t i = 0; i < block; ++i) values[i] = zigzag(U(ordered(values[i]) - ordered(other[i])));
  }

  void store(std::byte* actual, const std::byte* predicted, int64_t count) {
    alignas(row_bytes) U other[block] = {};
    std::memcpy(other, predicted, count * sizeof(U));
    for (int64_t i = 0; i < block; ++i) values[i] = ordered(U(ordered(other[i]) + unzigzag(values[i])));
    std::memcpy(actual, values, count * sizeof(U));
  }

  /// The header with which `count` values take fewest bytes.
  Header smallest(int64_t count) const {
    std::array<uint8_t, bits<U> + 1> of_width = {};
    for (int64_t i = 0; i < count; ++i) ++of_width[std::bit_width(values[i])];
    Header best{bits<U>, 0};
    auto fewest = bytes(count, best);
    int64_t exceptions = 0;
    for (int width = bits<U>; width > 0; --width) {
      exceptions += of_width[width];
      const Header header{uint8_t(width - 1), uint8_t(exceptions)};
      if (const auto size = bytes(count, header); size <= fewest) best = header, fewest = size;
    }
    return best;
  }

  std::byte* pack(Header header, int64_t count, std::byte* to) const {
    const auto mask = low_bits<U>(header.width);
    const auto size = packed_bytes(count, header.width);
    alignas(row_bytes) U words[block + columns] = {};
    for (int64_t row = 0, bit = 0; row * columns < count; ++row, bit += header.width) {
      const U* from = values + row * columns;
      U* word = words + bit / bits<U> * columns;
      const int shift = bit % bits<U>;
      for (int64_t k = 0; k < columns; ++k) word[k] |= U(from[k] & mask) << shift;
      if (shift + header.width > bits<U>) {
        for (int64_t k = 0; k < columns; ++k) word[columns + k] = U(from[k] & mask) >> (bits<U> - shift);
      }
    }
    std::memcpy(to, words, size);
    to += size;
    for (int64_t i = 0; header.exceptions > 0 && i < count; ++i) {
      if (values[i] <= mask) continue;
      *to++ = std::byte(i);
      std::memcpy(to, values + i, sizeof(U));
      to += sizeof(U);
    }
    return to;
  }

  const std::byte* unpack(Header header, int64_t count, const std::byte* from) {
    const auto mask = low_bits<U>(header.width);
    const auto size = packed_bytes(count, header.width);
    alignas(row_bytes) U words[block + columns] = {};
    std::memcpy(words, from, size);
    from += size;
    for (int64_t row = 0, bit = 0; row * columns < count; ++row, bit += header.width) {
      U* to = values + row * columns;
      const U* word = words + bit / bits<U> * columns;
      const int shift = bit % bits<U>;
      for (int64_t k = 0; k < columns; ++k) to[k] = U(word[k] >> shift) & mask;
      if (shift + header.width > bits<U>) {
        for (int64_t k = 0; k < columns; ++k) to[k] |= U(word[columns + k] << (bits<U> - shift)) & mask;
      }
    }
    for (int n = 0; n < header.exceptions; ++n) {
      const auto i = std::to_integer<int>(*from++);
      std::memcpy(values + i, from, sizeof(U));
      from += sizeof(U);
    }
    return from;
  }
};

/// Calls `function(begin, count)` for every block of `numel` values.
template <class Function>
void for_each_block(int64_t numel, Function function) {
  for (int64_t begin = 0; begin < numel; begin += block) function(begin, std::min(block, numel - begin));
}

const std::byte* bytes_of(const at::Tensor& tensor) { return static_cast<const std::byte*>(tensor.const_data_ptr()); }

std::byte* bytes_of(at::Tensor& tensor) { return static_cast<std::byte*>(tensor.mutable_data_ptr()); }

template <class U>
at::Tensor encode(const at::Tensor& actual, const at::Tensor& predicted) {
  const auto *a = bytes_of(actual), *p = bytes_of(predicted);
  Block<U> values;
  std::vector<Header> headers;
  int64_t size = 0;
  for_each_block(actual.numel(), [&](int64_t begin, int64_t count) {
    values.load(a + begin * sizeof(U), p + begin * sizeof(U), count);
    headers.push_back(values.smallest(count));
    size += sizeof(Header) + Block<U>::bytes(count, headers.back());
  });

  auto packed = at::empty({size}, at::kByte);
  auto* to = std::copy_n(reinterpret_cast<const std::byte*>(headers.data()), headers.size() * sizeof(Header),
                         bytes_of(packed));
  for_each_block(actual.numel(), [&](int64_t begin, int64_t count) {
    values.load(a + begin * sizeof(U), p + begin * sizeof(U), count);
    to = values.pack(headers[begin / block], count, to);
  });
  return packed;
}

template <class U>
at::Tensor decode(const at::Tensor& packed, const at::Tensor& predicted) {
  auto actual = at::empty_like(predicted);
  const auto *headers = bytes_of(packed), *p = bytes_of(predicted);
  const auto blocks = (predicted.numel() + block - 1) / block;
  const auto* from = headers + blocks * sizeof(Header);
  auto* a = bytes_of(actual);
  Block<U> values;
  for_each_block(predicted.numel(), [&](int64_t begin, int64_t count) {
    Header header;
    std::memcpy(&header, headers + begin / block * sizeof(Header), sizeof(Header));
    from = values.unpack(header, count, from);
    values.store(a + begin * sizeof(U), p + begin * sizeof(U), count);
  });
  return actual;
}

/// Calls `function(U())` with U the unsigned integer as wide as a value of `type`.
template <class Function>
at::Tensor with_integer_of(at::ScalarType type, Function function) {
  switch (c10::elementSize(type)) {
    case 2:
      return function(uint16_t());
    case 4:
      return function(uint32_t());
    default:
      return function(uint64_t());
  }
}

at::Tensor in_order(const at::Tensor& tensor) { return tensor.detach().to(at::kCPU).resolve_neg().contiguous(); }

}  // namespace

LostBits::LostBits(std::vector<int64_t> sizes, at::ScalarType type, at::Tensor packed)
    : sizes_(std::move(sizes)), type_(type), packed_(std::move(packed)) {}

LostBits LostBits::between(const at::Tensor& actual, const at::Tensor& predicted) {
  TORCH_CHECK(actual.defined() && predicted.defined(), "LostBits::between: expected two tensors, got an undefined one");
  const auto type = actual.scalar_type();
  TORCH_CHECK(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "LostBits::between: expected tensors of double, float, bfloat16 or half, got ", type);
  TORCH_CHECK(predicted.scalar_type() == type && predicted.sizes() == actual.sizes(),
              "LostBits::between: expected a prediction of ", type, " and shape ", actual.sizes(), ", got ",
              predicted.scalar_type(), " and ", predicted.sizes());
  auto packed = with_integer_of(type, [&]<class U>(U) { return encode<U>(in_order(actual), in_order(predicted)); });
  return LostBits(actual.sizes().vec(), type, std::move(packed));
}

at::Tensor LostBits::correct(const at::Tensor& predicted) const {
  TORCH_CHECK(
      predicted.defined() && predicted.scalar_type() == type_ && predicted.sizes() == sizes_,
      "LostBits::correct: expected the prediction, of ", type_, " and shape ", at::IntArrayRef(sizes_), ", got ",
      predicted.defined() ? c10::str(predicted.scalar_type(), " and ", predicted.sizes()) : "an undefined tensor");
  auto actual = with_integer_of(type_, [&]<class U>(U) { return decode<U>(packed_, in_order(predicted)); });
  return predicted.is_cpu() && predicted.is_contiguous() ? actual : at::empty_like(predicted).copy_(actual);
}

}  // namespace gimli
