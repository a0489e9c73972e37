#pragma once

#include <torch/torch.h>

#include "data_fixture.h"

namespace gimli::app {

/// Files of the official layout: colors that tell the class, and noise.
inline void write_cifar10(const fs::path& root, int64_t training, int64_t test) {
  torch::manual_seed(5);
  const auto colors = torch::randint(0, 200, {10, 3, 1});
  const auto records = [&](int64_t count) {
    std::string bytes;
    for (int64_t i = 0; i < count; ++i) {
      const auto pixels = (colors[i % 10] + torch::randint(0, 55, {3, 1024})).to(torch::kByte).contiguous();
      bytes += static_cast<char>(i % 10);
      bytes.append(reinterpret_cast<const char*>(pixels.const_data_ptr<uint8_t>()), 3072);
    }
    return bytes;
  };
  data::write_file(root / "cifar-10-batches-bin" / "data_batch_2.bin", records(training));
  data::write_file(root / "cifar-10-batches-bin" / "test_batch.bin", records(test));
}

}  // namespace gimli::app
