#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace gimli {

/// What a prediction of a floating-point tensor misses, in few bits: an update undone in floating point misses the
/// state before it by some units in the last place, and with these the state comes back exactly. (Maclaurin et al. 2015
/// keep the bits that a fixed-point update shifts out; here the update is the ordinary one.)
///
/// The bit patterns are mapped to integers in the order of the floats, so that neighbours differ by 1: -0 and 0, the
/// largest float and infinity too. The differences d modulo 2^W, W the width of the type, are coded as 2 |d| (2 |d| - 1
/// if d < 0) and packed in blocks of 128, each with the number of bits a value that makes it smallest; values that need
/// more are stored beside it whole. Any pair is coded without loss, NaNs bit by bit; at worst, 2 bytes a block and 15
/// more are added to the tensor's own.
class LostBits final {
 public:
  /// Both of the same shape and type (double, float, bfloat16 or half), in any layout and on any device; otherwise
  /// throws. Coded on the CPU.
  static LostBits between(const at::Tensor& actual, const at::Tensor& predicted);

  /// `actual`, bit by bit, on the device of `predicted` and in its layout. `predicted` is bit by bit as it was in
  /// `between`; throws if its shape or type is another.
  at::Tensor correct(const at::Tensor& predicted) const;

  int64_t bytes() const { return packed_.numel(); }

 private:
  LostBits(std::vector<int64_t> sizes, at::ScalarType type, at::Tensor packed);

  std::vector<int64_t> sizes_;
  at::ScalarType type_;
  at::Tensor packed_;  // of bytes: (width, number of exceptions) of each block, then the blocks
};

}  // namespace gimli
