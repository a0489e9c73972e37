#pragma once

#include <torch/torch.h>

#include "data_fixture.h"

namespace gimli::app {

/// Photographs of noise around a color of their class's own, as mini-ImageNet's folders have them.
inline void write_photographs(const fs::path& root) {
  torch::manual_seed(3);
  for (const auto* split : {"train", "val", "test"}) {
    for (int c = 0; c < 4; ++c) {
      const auto color = torch::randint(40, 200, {3, 1, 1});
      for (int i = 0; i < 4; ++i) {
        const auto image = (color + torch::randint(-40, 40, {3, 12, 12})).to(torch::kByte);
        data::write_file(root / split / (split + std::to_string(c)) / (std::to_string(i) + ".jpg"),
                         data::write_jpeg(image.repeat_interleave(7, 1).repeat_interleave(7, 2), 90));
      }
    }
  }
}

}  // namespace gimli::app
