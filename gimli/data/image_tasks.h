#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "gimli/data/episode_sampler.h"
#include "gimli/data/image_batch.h"
#include "gimli/data/image_classes.h"
#include "gimli/data/task.h"

namespace gimli::data {

struct ImageTasksOptions {
  /// Every class turned by 0, 90, 180 and 270 degrees (counterclockwise) is four classes (Santoro et al. 2016,
  /// "Meta-learning with memory-augmented neural networks"). The images must be square.
  TORCH_ARG(bool, rotations) = false;
  /// What is subtracted and divided by; left open, pixels are scaled to [0, 1].
  TORCH_ARG(std::optional<ChannelMoments>, moments) = std::nullopt;
};

/// N-way, k-shot classification of images. Of a task's tensors, `data` is float32 [ways * shots, channels, height,
/// width] by `pixel_values`, and `target` int64 [ways * shots], the place of the example's class in the episode, class
/// by class; in the query set with `queries` in the place of `shots`.
class ImageTasks final : public TaskSource {
 public:
  /// Throws as EpisodeSampler does, or if `images` do not fit their classes or the options.
  ImageTasks(const ImageClasses& images, EpisodeSamplerOptions episodes, const ImageTasksOptions& options = {});

  Task task(int64_t index) const override;

  int64_t class_count() const { return static_cast<int64_t>(classes_.size()) * turns_; }

  /// The episode behind a task. Class id c is class number c / turns, turned c % turns times, where turns is 4 with
  /// rotations and 1 without.
  Episode episode(int64_t index) const { return sampler_.sample(index); }

 private:
  torch::data::Example<> gather(const std::vector<int64_t>& classes, const std::vector<int64_t>& examples) const;

  at::Tensor images_;
  std::vector<ImageClass> classes_;
  int64_t turns_;
  at::Tensor values_;
  EpisodeSampler sampler_;
};

}  // namespace gimli::data
