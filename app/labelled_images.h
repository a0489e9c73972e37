#pragma once

#include <ATen/core/Tensor.h>

#include "gimli/data/idx.h"

namespace gimli::app {

/// Images as rows of pixels, and their classes.
struct LabelledImages {
  at::Tensor pixels;  ///< floating point [n, height width], paper 0 and ink 1
  at::Tensor labels;  ///< int64 [n]

  int64_t size() const { return labels.size(0); }
  LabelledImages at(const at::Tensor& rows) const;  ///< int64 indices
  LabelledImages and_those_of(const LabelledImages& others) const;
  LabelledImages to(at::Device device) const { return {pixels.to(device), labels.to(device)}; }
};

struct PartSizes {
  int64_t training, validation;
  int64_t test;  ///< 0: all
};

struct ImageParts {
  LabelledImages training, validation, test;
};

/// Random parts: training and validation images from the data set's training images, no image in both, and test images
/// from its test images. A function of its arguments, as are those below. Throws if there are not so many.
ImageParts draw_parts(const data::MnistData& data, const PartSizes& sizes, uint64_t seed);

struct CorruptedLabels {
  at::Tensor labels;
  at::Tensor is_corrupted;  ///< bool [n]
};

/// Replaces the labels of random images, `share` of them (rounded), each by one of the other classes, equally likely.
CorruptedLabels corrupt(const at::Tensor& labels, double share, int64_t classes, uint64_t seed);

/// `per_class` random images of each class, class by class. Throws if there are not so many.
LabelledImages draw_each_class(const LabelledImages& images, int64_t per_class, int64_t classes, uint64_t seed);

}  // namespace gimli::app
