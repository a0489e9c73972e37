#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <vector>

#include "gimli/data/image_classes.h"

namespace gimli::data {

/// Mean and standard deviation of each channel over all pixels, black 0 and white 1.
struct ChannelMoments {
  std::vector<double> mean;
  std::vector<double> std;
};

/// The moments of `images`, uint8 [n, channels, height, width], n >= 1, from how often each value occurs: the order of
/// the images does not matter. The deviation is that of the pixels at hand (divided by their number).
ChannelMoments channel_moments(const at::Tensor& images);
/// Likewise, of all images of the classes.
ChannelMoments channel_moments(const ImageClasses& classes);

/// What a pixel becomes: float32 [channels, 256], entry [c, v] is (v / 255 - mean[c]) / std[c], rounded once. Mean 0
/// and deviation 1 scale to [0, 1]. Throws unless there are as many deviations as means, all of them above 0.
at::Tensor pixel_values(const ChannelMoments& moments);

/// `images`, uint8 [n, channels, height, width], as float32 of the same shape, by `pixel_values`.
at::Tensor normalize(const at::Tensor& images, const ChannelMoments& moments);

struct CropAndFlipOptions {
  /// Black pixels added at each side before the crop.
  TORCH_ARG(int64_t, padding) = 4;
  TORCH_ARG(bool, flip) = true;
  TORCH_ARG(uint64_t, seed) = 0;
};

/// The usual augmentation of CIFAR ("C10+"; He et al. 2016, "Deep residual learning for image recognition", section
/// 4.2): every image is padded, cut back to its size at a random place, and mirrored left to right half of the time.
/// `images` is uint8 [n, channels, height, width], and so is the result.
///
/// A pure function of its arguments: `index`, at least 0, numbers the batches of a run, so that a run resumes where it
/// stopped.
at::Tensor crop_and_flip(const at::Tensor& images, int64_t index, const CropAndFlipOptions& options = {});

/// Draws number `begin` to `begin + count` - 1 of a source that goes through 0, ..., size - 1 again and again, each
/// time in another random order. A function of its arguments.
std::vector<int64_t> shuffled(uint64_t seed, int64_t size, int64_t begin, int64_t count);

}  // namespace gimli::data
