#include "gimli/data/image_batch.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "gimli/data/counter_rng.h"

namespace gimli::data {
namespace {

void check_images(const char* function, const at::Tensor& images) {
  TORCH_CHECK(images.defined() && images.scalar_type() == at::kByte && images.dim() == 4 && images.is_cpu(), function,
              ": expected images as uint8 [n, channels, height, width] in the host's memory, got ",
              images.defined() ? images.toString() : "an undefined tensor", " ",
              images.defined() ? images.sizes() : at::IntArrayRef{});
}

using Histogram = std::array<int64_t, 256>;

void count_pixels(const at::Tensor& images, std::vector<Histogram>& channels) {
  const auto rows = images.contiguous();
  const int64_t area = rows.size(2) * rows.size(3);
  const auto* pixel = rows.const_data_ptr<uint8_t>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    for (auto& histogram : channels) {
      for (int64_t k = 0; k < area; ++k) ++histogram[*pixel++];
    }
  }
}

ChannelMoments moments_of(const std::vector<Histogram>& channels) {
  ChannelMoments moments;
  for (const auto& histogram : channels) {
    int64_t count = 0, sum = 0;
    for (int64_t v = 0; v < 256; ++v) {
      count += histogram[v];
      sum += histogram[v] * v;
    }
    TORCH_CHECK(count > 0, "channel_moments: expected at least one pixel, got none");
    const double mean = static_cast<double>(sum) / static_cast<double>(count);
    double squares = 0;
    for (int v = 0; v < 256; ++v) squares += static_cast<double>(histogram[v]) * (v - mean) * (v - mean);
    moments.mean.push_back(mean / 255);
    moments.std.push_back(std::sqrt(squares / static_cast<double>(count)) / 255);
  }
  return moments;
}

}  // namespace

ChannelMoments channel_moments(const at::Tensor& images) {
  check_images("channel_moments", images);
  std::vector<Histogram> channels(images.size(1));
  count_pixels(images, channels);
  return moments_of(channels);
}

ChannelMoments channel_moments(const ImageClasses& classes) {
  check_images("channel_moments", classes.images);
  std::vector<Histogram> channels(classes.images.size(1));
  for (const auto& c : classes.classes) count_pixels(classes.images.narrow(0, c.first, c.count), channels);
  return moments_of(channels);
}

at::Tensor pixel_values(const ChannelMoments& moments) {
  const auto channels = static_cast<int64_t>(moments.mean.size());
  TORCH_CHECK(moments.std.size() == moments.mean.size(), "pixel_values: expected as many deviations as means, ",
              channels, ", got ", moments.std.size());
  auto values = at::empty({channels, 256}, at::kFloat);
  auto* value = values.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = moments.mean[c], std = moments.std[c];
    TORCH_CHECK(std::isfinite(mean) && std::isfinite(std) && std > 0,
                "pixel_values: expected a finite mean and a deviation above 0, got ", mean, " and ", std,
                " for channel ", c);
    for (int v = 0; v < 256; ++v) *value++ = static_cast<float>((v / 255.0 - mean) / std);
  }
  return values;
}

at::Tensor normalize(const at::Tensor& images, const ChannelMoments& moments) {
  check_images("normalize", images);
  const auto values = pixel_values(moments);
  TORCH_CHECK(values.size(0) == images.size(1), "normalize: expected images of ", values.size(0),
              " channels, as the moments have, got ", images.size(1));
  const auto rows = images.contiguous();
  auto result = at::empty(rows.sizes(), at::kFloat);
  const int64_t area = rows.size(2) * rows.size(3);
  const auto* pixel = rows.const_data_ptr<uint8_t>();
  auto* out = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    for (int64_t c = 0; c < rows.size(1); ++c) {
      const float* value = values.const_data_ptr<float>() + c * 256;
      for (int64_t k = 0; k < area; ++k) *out++ = value[*pixel++];
    }
  }
  return result;
}

at::Tensor crop_and_flip(const at::Tensor& images, int64_t index, const CropAndFlipOptions& options) {
  check_images("crop_and_flip", images);
  TORCH_CHECK(index >= 0, "crop_and_flip: expected an index of at least 0, got ", index);
  const int64_t padding = options.padding(), height = images.size(2), width = images.size(3);
  TORCH_CHECK(padding >= 0 && padding <= std::min(height, width), "crop_and_flip: expected a padding from 0 to ",
              std::min(height, width), ", got ", padding);
  const auto rows = images.contiguous();
  auto result = at::zeros(rows.sizes(), at::kByte);
  const auto* in = rows.const_data_ptr<uint8_t>();
  auto* out = result.mutable_data_ptr<uint8_t>();
  CounterRng rng(options.seed(), static_cast<uint64_t>(index));
  for (int64_t i = 0; i < rows.size(0); ++i) {
    // Pixel (y, x) of the crop is pixel (y + down, x + right) of the image, or padding.
    const int64_t down = rng.below(2 * padding + 1) - padding;
    const int64_t right = rng.below(2 * padding + 1) - padding;
    const bool mirrored = (rng.bits() & 1) && options.flip();
    const int64_t begin = std::max<int64_t>(0, -right), end = std::min(width, width - right);
    for (int64_t c = 0; c < rows.size(1); ++c) {
      for (int64_t y = std::max<int64_t>(0, -down); y < std::min(height, height - down); ++y) {
        const auto* from = in + (y + down) * width + (begin + right);
        auto* to = out + y * width;
        if (mirrored) {
          std::reverse_copy(from, from + (end - begin), to + (width - end));
        } else {
          std::copy_n(from, end - begin, to + begin);
        }
      }
      in += height * width;
      out += height * width;
    }
  }
  return result;
}

std::vector<int64_t> shuffled(uint64_t seed, int64_t size, int64_t begin, int64_t count) {
  std::vector<int64_t> drawn, order;
  for (auto k = begin; k < begin + count; ++k) {
    if (order.empty() || k % size == 0) {
      order = CounterRng(seed, static_cast<uint64_t>(k / size)).choose(size, size);
    }
    drawn.push_back(order[k % size]);
  }
  return drawn;
}

}  // namespace gimli::data
