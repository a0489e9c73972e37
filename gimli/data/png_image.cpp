#include "gimli/data/png_image.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <png.h>

#include <memory>

namespace gimli::data {

at::Tensor decode_gray_png(std::string_view file, const std::string& name) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, decltype(&png_image_free)> release(&image, &png_image_free);
  TORCH_CHECK(png_image_begin_read_from_memory(&image, file.data(), file.size()), "decode_gray_png: ", name,
              " is not a PNG file or is damaged: ", image.message);
  image.format = PNG_FORMAT_GRAY;
  auto gray = at::empty({static_cast<int64_t>(image.height), static_cast<int64_t>(image.width)}, at::kByte);
  const png_color white{255, 255, 255};
  TORCH_CHECK(png_image_finish_read(&image, &white, gray.mutable_data_ptr<uint8_t>(), 0, nullptr),
              "decode_gray_png: ", name, " is damaged: ", image.message);
  return gray;
}

}  // namespace gimli::data
