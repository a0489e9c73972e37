#pragma once

#include <torch/torch.h>

#include "data_fixture.h"

namespace gimli::app {

inline constexpr int64_t kImageSide = 5;

/// Files of the official layout, of small images: a pattern that tells the class, and noise. The images' classes are
/// 0, ..., 9, 0, ... in turn, and no two images are the same.
inline void write_fashion_mnist(const fs::path& root, int64_t training, int64_t test) {
  torch::manual_seed(11);
  const auto patterns = torch::randint(0, 150, {10, kImageSide, kImageSide});
  const auto write = [&](const std::string& part, int64_t count) {
    const auto big_endian = [](int64_t value) {
      std::string bytes;
      for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(value >> shift);
      return bytes;
    };
    auto images = std::string{0, 0, 8, 3} + big_endian(count) + big_endian(kImageSide) + big_endian(kImageSide);
    auto labels = std::string{0, 0, 8, 1} + big_endian(count);
    for (int64_t i = 0; i < count; ++i) {
      const auto pixels =
          (patterns[i % 10] + torch::randint(0, 100, {kImageSide, kImageSide})).to(torch::kByte).contiguous();
      images.append(reinterpret_cast<const char*>(pixels.const_data_ptr<uint8_t>()), pixels.numel());
      labels += static_cast<char>(i % 10);
    }
    data::write_file(root / "fashion-mnist" / (part + "-images-idx3-ubyte"), images);
    data::write_file(root / "fashion-mnist" / (part + "-labels-idx1-ubyte"), labels);
  };
  write("train", training);
  write("t10k", test);
}

}  // namespace gimli::app
