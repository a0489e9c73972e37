#pragma once

#include <torch/torch.h>

#include "data_fixture.h"

namespace gimli::data {

/// The bytes of an IDX file of uint8 `values`, or of what `type` says.
inline std::string idx(const at::Tensor& values, char type = 8) {
  std::string bytes{0, 0, type, static_cast<char>(values.dim())};
  for (const int64_t size : values.sizes()) {
    for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(size >> shift);
  }
  const auto dense = values.contiguous();
  return bytes.append(reinterpret_cast<const char*>(dense.const_data_ptr<uint8_t>()), dense.numel());
}

/// Files of the official layout, of images of 8x8 pixels: a pattern that tells the class, and noise. The images'
/// classes are 0, ..., 9, 0, ... in turn.
inline void write_fashion_mnist(const fs::path& root, int64_t training, int64_t test) {
  torch::manual_seed(11);
  const auto patterns = torch::randint(0, 150, {10, 8, 8});
  const auto write = [&](const std::string& part, int64_t count) {
    const auto labels = torch::arange(count) % 10;
    const auto images = patterns.index_select(0, labels) + torch::randint(0, 100, {count, 8, 8});
    write_file(root / "fashion-mnist" / (part + "-images-idx3-ubyte"), idx(images.to(torch::kByte)));
    write_file(root / "fashion-mnist" / (part + "-labels-idx1-ubyte"), idx(labels.to(torch::kByte)));
  };
  write("train", training);
  write("t10k", test);
}

}  // namespace gimli::data
