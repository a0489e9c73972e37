#pragma once

#include <torch/torch.h>

#include "data_fixture.h"

namespace gimli::app {

inline void write_idx(const fs::path& path, const at::Tensor& values) {
  std::string bytes{0, 0, 8, static_cast<char>(values.dim())};
  for (const int64_t size : values.sizes()) {
    for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(size >> shift);
  }
  const auto dense = values.to(at::kByte).contiguous();
  bytes.append(reinterpret_cast<const char*>(dense.const_data_ptr<uint8_t>()), dense.numel());
  data::write_file(path, bytes);
}

/// Files of the official layout: images of 8x8 pixels with patterns that tell the class, and noise.
inline void write_fashion_mnist(const fs::path& root, int64_t training, int64_t test) {
  torch::manual_seed(6);
  const auto patterns = torch::randint(0, 200, {10, 8, 8});
  const auto write = [&](const std::string& part, int64_t count) {
    const auto labels = torch::arange(count) % 10;
    write_idx(root / (part + "-images-idx3-ubyte"),
              patterns.index_select(0, labels) + torch::randint(0, 55, {count, 8, 8}));
    write_idx(root / (part + "-labels-idx1-ubyte"), labels);
  };
  write("train", training);
  write("t10k", test);
}

}  // namespace gimli::app
