#include "gimli/data/image_tasks.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <utility>

namespace gimli::data {
namespace {

void check_images(const ImageClasses& images, bool rotations) {
  const auto& tensor = images.images;
  TORCH_CHECK(tensor.defined() && tensor.scalar_type() == at::kByte && tensor.dim() == 4 && tensor.is_cpu(),
              "ImageTasks: expected images as uint8 [n, channels, height, width] in the host's memory");
  for (const auto& c : images.classes) {
    TORCH_CHECK(c.first >= 0 && c.count >= 0 && c.first + c.count <= tensor.size(0), "ImageTasks: class ", c.name,
                " is rows ", c.first, " to ", c.first + c.count - 1, ", but there are ", tensor.size(0), " images");
  }
  TORCH_CHECK(!rotations || tensor.size(2) == tensor.size(3), "ImageTasks: rotations need square images, got ",
              tensor.size(2), "x", tensor.size(3));
}

at::Tensor values_of(const ImageClasses& images, const std::optional<ChannelMoments>& moments) {
  const int64_t channels = images.images.size(1);
  const auto values = pixel_values(moments.value_or(ChannelMoments{std::vector<double>(channels, 0.0),  //
                                                                   std::vector<double>(channels, 1.0)}));
  TORCH_CHECK(values.size(0) == channels, "ImageTasks: expected moments of ", channels,
              " channels, as the images have, got ", values.size(0));
  return values;
}

std::vector<int64_t> sizes_of(const std::vector<ImageClass>& classes, int64_t turns) {
  std::vector<int64_t> sizes;
  for (const auto& c : classes) sizes.insert(sizes.end(), turns, c.count);
  return sizes;
}

// Where the pixel that comes to (y, x) is in its channel: start + y * down + x * right.
struct Walk {
  int64_t start, down, right;
};

Walk turned(int64_t turn, int64_t height, int64_t width) {
  switch (turn) {
    case 1:
      return {width - 1, -1, width};
    case 2:
      return {height * width - 1, -width, -1};
    case 3:
      return {(height - 1) * width, 1, -width};
    default:
      return {0, width, 1};
  }
}

}  // namespace

ImageTasks::ImageTasks(const ImageClasses& images, EpisodeSamplerOptions episodes, const ImageTasksOptions& options)
    : images_((check_images(images, options.rotations()), images.images.contiguous())),
      classes_(images.classes),
      turns_(options.rotations() ? 4 : 1),
      values_(values_of(images, options.moments())),
      sampler_(sizes_of(classes_, turns_), episodes) {}

Task ImageTasks::task(int64_t index) const {
  const auto episode = sampler_.sample(index);
  return {gather(episode.classes, episode.support), gather(episode.classes, episode.query)};
}

torch::data::Example<> ImageTasks::gather(const std::vector<int64_t>& classes,
                                          const std::vector<int64_t>& examples) const {
  const auto ways = static_cast<int64_t>(classes.size());
  const auto count = static_cast<int64_t>(examples.size()), each = count / ways;
  const int64_t channels = images_.size(1), height = images_.size(2), width = images_.size(3);
  auto data = at::empty({count, channels, height, width}, at::kFloat);
  auto* out = data.mutable_data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = classes[i / each];
    const auto [start, down, right] = turned(id % turns_, height, width);
    const auto* in =
        images_.const_data_ptr<uint8_t>() + (classes_[id / turns_].first + examples[i]) * images_.stride(0);
    for (int64_t c = 0; c < channels; ++c, in += height * width) {
      const float* value = values_.const_data_ptr<float>() + c * 256;
      for (int64_t y = 0; y < height; ++y) {
        const auto* pixel = in + start + y * down;
        for (int64_t x = 0; x < width; ++x) *out++ = value[pixel[x * right]];
      }
    }
  }
  auto target = at::arange(ways, at::kLong).repeat_interleave(each);
  return {std::move(data), std::move(target)};
}

}  // namespace gimli::data
