#include "gimli/data/image_file.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <memory>
#include <vector>

#include <jpeglib.h>  // wants <cstdio> before it

#include <jerror.h>

namespace gimli::data {
namespace {

// PNG

at::Tensor decode_png(std::string_view file, int64_t channels, const std::string& name) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, decltype(&png_image_free)> release(&image, &png_image_free);
  TORCH_CHECK(png_image_begin_read_from_memory(&image, file.data(), file.size()), "decode_image: ", name,
              " is damaged: ", image.message);
  image.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  auto pixels = at::empty({int64_t{image.height}, int64_t{image.width}, channels}, at::kByte);
  const png_color white{255, 255, 255};
  TORCH_CHECK(png_image_finish_read(&image, &white, pixels.mutable_data_ptr<uint8_t>(), 0, nullptr),
              "decode_image: ", name, " is damaged: ", image.message);
  return pixels;
}

// JPEG. libjpeg leaves by longjmp, so what is between setjmp and its calls has no destructors.

struct JpegErrors {
  jpeg_error_mgr manager;  // first: libjpeg knows the address of this one
  std::jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void leave(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  errors->manager.format_message(info, errors->message);
  std::longjmp(errors->escape, 1);
}

// Warnings are about damage, but for a few.
void leave_if_damaged(j_common_ptr info, int level) {
  const int code = info->err->msg_code;
  if (level < 0 && code != JWRN_EXTRANEOUS_DATA && code != JWRN_JFIF_MAJOR && code != JWRN_ADOBE_XFORM) leave(info);
}

class JpegReader final {
 public:
  explicit JpegReader(std::string_view file) : file_(file) {
    info_.err = jpeg_std_error(&errors_.manager);
    errors_.manager.error_exit = leave;
    errors_.manager.emit_message = leave_if_damaged;
  }
  JpegReader(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&info_); }

  // Both are false if libjpeg left, then message() says why.
  bool start(int64_t channels) {
    if (setjmp(errors_.escape)) return false;
    jpeg_create_decompress(&info_);
    jpeg_mem_src(&info_, reinterpret_cast<const unsigned char*>(file_.data()), file_.size());
    jpeg_read_header(&info_, TRUE);
    info_.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    info_.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info_);
    return true;
  }
  bool read(uint8_t* pixels) {
    if (setjmp(errors_.escape)) return false;
    while (info_.output_scanline < info_.output_height) {
      JSAMPROW row = pixels + size_t{info_.output_scanline} * info_.output_width * info_.output_components;
      jpeg_read_scanlines(&info_, &row, 1);
    }
    jpeg_finish_decompress(&info_);
    return true;
  }

  int64_t height() const { return info_.output_height; }
  int64_t width() const { return info_.output_width; }
  const char* message() const { return errors_.message; }

 private:
  std::string_view file_;
  JpegErrors errors_{};
  jpeg_decompress_struct info_{};
};

at::Tensor decode_jpeg(std::string_view file, int64_t channels, const std::string& name) {
  JpegReader reader(file);
  TORCH_CHECK(reader.start(channels), "decode_image: ", name,
              " is damaged or of a kind that is not read: ", reader.message());
  auto pixels = at::empty({reader.height(), reader.width(), channels}, at::kByte);
  TORCH_CHECK(reader.read(pixels.mutable_data_ptr<uint8_t>()), "decode_image: ", name,
              " is damaged: ", reader.message());
  return pixels;
}

// How much of source pixel `from` goes into pixel `to` along one side; the weights of each `to` add up to `total`.
struct Tap {
  int64_t from;
  int64_t to;
  uint32_t weight;
};

struct Side {
  std::vector<Tap> taps;  // ascending in `from`
  uint64_t total;
};

// In units of 1 / to_size of a source pixel, target pixel t covers [t from_size, (t + 1) from_size).
Side average(int64_t from_size, int64_t to_size) {
  Side side{{}, static_cast<uint64_t>(from_size)};
  for (int64_t from = 0, to = 0; from < from_size && to < to_size;) {
    const int64_t begin = std::max(from * to_size, to * from_size);
    const int64_t from_end = (from + 1) * to_size, to_end = (to + 1) * from_size;
    side.taps.push_back({from, to, static_cast<uint32_t>(std::min(from_end, to_end) - begin)});
    from += from_end <= to_end;
    to += to_end <= from_end;
  }
  return side;
}

// In units of 1 / (2 to_size) of a source pixel, the centre of target pixel t is (2 t + 1) from_size - to_size beyond
// that of source pixel 0.
Side interpolation(int64_t from_size, int64_t to_size) {
  const int64_t unit = 2 * to_size;
  Side side{{}, static_cast<uint64_t>(unit)};
  for (int64_t to = 0; to < to_size; ++to) {
    const int64_t place = std::clamp((2 * to + 1) * from_size - to_size, int64_t{0}, (from_size - 1) * unit);
    const int64_t from = place / unit, rest = place % unit;
    side.taps.push_back({from, to, static_cast<uint32_t>(unit - rest)});
    if (rest > 0) side.taps.push_back({from + 1, to, static_cast<uint32_t>(rest)});
  }
  std::stable_sort(side.taps.begin(), side.taps.end(), [](const Tap& a, const Tap& b) { return a.from < b.from; });
  return side;
}

Side make_side(int64_t from_size, int64_t to_size) {
  return from_size >= to_size ? average(from_size, to_size) : interpolation(from_size, to_size);
}

}  // namespace

at::Tensor decode_image(std::string_view file, int64_t channels, const std::string& name) {
  TORCH_CHECK(channels == 1 || channels == 3, "decode_image: expected 1 or 3 channels, got ", channels);
  const bool png = file.starts_with("\x89PNG"), jpeg = file.starts_with("\xff\xd8");
  TORCH_CHECK(png || jpeg, "decode_image: ", name, " is neither a PNG nor a JPEG file");
  return (png ? decode_png : decode_jpeg)(file, channels, name).permute({2, 0, 1}).contiguous();
}

at::Tensor resize_image(const at::Tensor& image, int64_t size) {
  constexpr int64_t kLargest = 1 << 16;  // sums along a row stay below 2^32, and those of an image below 2^64
  TORCH_CHECK(image.dim() == 3 && image.scalar_type() == at::kByte && image.numel() > 0 && image.size(1) <= kLargest &&
                  image.size(2) <= kLargest,
              "resize_image: expected uint8 [channels, height, width] of sides from 1 to ", kLargest, ", got ",
              image.toString(), " ", image.sizes());
  TORCH_CHECK(size >= 1 && size <= kLargest / 4, "resize_image: expected a size from 1 to ", kLargest / 4, ", got ",
              size);
  const int64_t height = image.size(1), width = image.size(2);
  if (height == size && width == size) return image;
  const auto rows = image.contiguous();
  const Side down = make_side(height, size), across = make_side(width, size);
  const uint64_t total = down.total * across.total;
  auto result = at::empty({image.size(0), size, size}, at::kByte);
  const auto* in = rows.const_data_ptr<uint8_t>();
  auto* out = result.mutable_data_ptr<uint8_t>();
  std::vector<uint32_t> line(size);
  std::vector<uint64_t> sums(size * size);
  for (int64_t c = 0; c < image.size(0); ++c) {
    std::fill(sums.begin(), sums.end(), 0);
    for (auto tap = down.taps.begin(); tap != down.taps.end();) {
      const int64_t y = tap->from;
      std::fill(line.begin(), line.end(), 0);
      for (const auto& [from, to, weight] : across.taps) line[to] += weight * in[y * width + from];
      for (; tap != down.taps.end() && tap->from == y; ++tap) {
        for (int64_t x = 0; x < size; ++x) sums[tap->to * size + x] += uint64_t{tap->weight} * line[x];
      }
    }
    for (const uint64_t sum : sums) *out++ = static_cast<uint8_t>((sum + total / 2) / total);
    in += height * width;
  }
  return result;
}

}  // namespace gimli::data
