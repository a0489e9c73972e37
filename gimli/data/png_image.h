#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

namespace gimli::data {

/// The gray values of a PNG file held in memory: uint8 [height, width], black 0 and white 255. Any colour type and bit
/// depth is converted by libpng; transparent pixels lie on white paper. `name` is what to call the file in messages.
/// Throws, naming it, if it is damaged or cut short.
at::Tensor decode_gray_png(std::string_view file, const std::string& name);

}  // namespace gimli::data
