#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace gimli::data {

/// The pixels of a PNG or JPEG file held in memory, told apart by their first bytes: uint8 [channels, height, width],
/// black 0 and white 255, where `channels` is 1 for gray or 3 for red, green and blue, whatever the file has. Of a PNG
/// file, any colour type and bit depth will do, and transparent pixels lie on white paper; of a JPEG file, gray and
/// colour, not CMYK. `name` is what to call the file in messages.
///
/// Throws, naming it, if it is another kind of file, damaged or cut short: also where libjpeg would go on with gray
/// pixels for those that are missing.
at::Tensor decode_image(std::string_view file, int64_t channels, const std::string& name);

/// `image`, uint8 [channels, height, width], as uint8 [channels, size, size], each side scaled by itself. A side that
/// shrinks is averaged: a pixel is the mean of the pixels under it, partly covered ones in proportion. One that grows
/// is interpolated linearly between the pixels' centres. It is done in whole numbers with one division at the end,
/// which rounds to nearest and halves up, so the result is the same on every machine.
at::Tensor resize_image(const at::Tensor& image, int64_t size);

}  // namespace gimli::data
