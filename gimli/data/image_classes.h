#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace gimli::data {

/// A class: rows `first` to `first + count - 1` of a tensor of images.
struct ImageClass {
  std::string name;
  int64_t first;
  int64_t count;

  bool operator==(const ImageClass&) const = default;
};

/// Classes of images, as many images a class as there are. The splits of a data set share one tensor and have other
/// rows of it.
struct ImageClasses {
  /// uint8 [n, channels, height, width], contiguous.
  at::Tensor images;
  std::vector<ImageClass> classes;
};

}  // namespace gimli::data
