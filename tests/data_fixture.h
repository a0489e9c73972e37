#pragma once

#include <gtest/gtest.h>
#include <png.h>
#include <torch/types.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <jpeglib.h>  // wants <cstdio> before it

#include "expect.h"
#include "gimli/data/task.h"

namespace gimli::data {

namespace fs = std::filesystem;

using Ids = std::vector<int64_t>;

inline void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
}

inline double chi_square(const Ids& counts) {
  int64_t total = 0;
  for (const auto count : counts) total += count;
  const double expected = static_cast<double>(total) / static_cast<double>(counts.size());
  double sum = 0;
  for (const auto count : counts) sum += std::pow(static_cast<double>(count) - expected, 2) / expected;
  return sum;
}

inline void expect_equal(const Task& a, const Task& b) {
  EXPECT_TRUE(torch::equal(a.support.data, b.support.data));
  EXPECT_TRUE(torch::equal(a.support.target, b.support.target));
  EXPECT_TRUE(torch::equal(a.query.data, b.query.data));
  EXPECT_TRUE(torch::equal(a.query.target, b.query.target));
}

// The same tasks in any order, again, and from two threads at once.
inline void expect_pure(const TaskSource& source) {
  constexpr int64_t kCount = 24;
  std::vector<Task> forward, backward(kCount), first(kCount), second(kCount);
  for (int64_t i = 0; i < kCount; ++i) forward.push_back(source.task(i));
  for (int64_t i = kCount - 1; i >= 0; --i) backward[i] = source.task(i);
  std::thread other([&] {
    for (int64_t i = 0; i < kCount; ++i) first[i] = source.task(i);
  });
  for (int64_t i = kCount - 1; i >= 0; --i) second[i] = source.task(i);
  other.join();
  for (int64_t i = 0; i < kCount; ++i) {
    expect_equal(forward[i], backward[i]);
    expect_equal(forward[i], first[i]);
    expect_equal(forward[i], second[i]);
    EXPECT_EQ(i > 0 && torch::equal(forward[i].support.data, forward[i - 1].support.data), false);
  }
}

inline void write_file(const fs::path& path, const std::string& bytes) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    auto name = (fs::temp_directory_path() / "gimli-data-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// The whole data sets, where they are at hand.
inline fs::path data_root() {
  const char* variable = std::getenv("GIMLI_DATA_ROOT");
  return variable ? fs::path(variable) : fs::path(GIMLI_SOURCE_DIR) / ".." / "shared" / "data";
}

using Rows = std::vector<std::vector<uint8_t>>;

inline std::string write_png(const Rows& rows, int64_t width, int depth, int color_type) {
  std::string file;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  const auto append = [](png_structp p, png_bytep bytes, png_size_t size) {
    static_cast<std::string*>(png_get_io_ptr(p))->append(reinterpret_cast<char*>(bytes), size);
  };
  png_set_write_fn(png, &file, append, nullptr);
  png_set_IHDR(png, info, width, rows.size(), depth, color_type, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  const png_color palette[] = {{255, 255, 255}, {0, 0, 0}};
  if (color_type == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette, 2);
  png_write_info(png, info);
  for (const auto& row : rows) png_write_row(png, row.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return file;
}

/// `image`, uint8 [1 or 3, height, width].
inline std::string write_jpeg(const at::Tensor& image, int quality) {
  const auto pixels = image.permute({1, 2, 0}).contiguous();
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &bytes, &size);
  info.image_height = static_cast<JDIMENSION>(pixels.size(0));
  info.image_width = static_cast<JDIMENSION>(pixels.size(1));
  info.input_components = static_cast<int>(pixels.size(2));
  info.in_color_space = pixels.size(2) == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, quality, TRUE);
  jpeg_start_compress(&info, TRUE);
  for (int64_t y = 0; y < pixels.size(0); ++y) {
    auto* row = const_cast<uint8_t*>(pixels.const_data_ptr<uint8_t>()) + y * pixels.stride(0);
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  std::string file(reinterpret_cast<char*>(bytes), size);
  jpeg_destroy_compress(&info);
  std::free(bytes);
  return file;
}

}  // namespace gimli::data
