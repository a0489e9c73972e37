#include "gimli/data/image_tasks.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>

#include "data_fixture.h"

using namespace gimli::data;

using gimli::message_of;

namespace {

// Four classes of 3 to 6 images, not next to one another.
ImageClasses some_classes(int64_t channels, int64_t height, int64_t width) {
  return {torch::randint(0, 256, {25, channels, height, width}, torch::kByte),
          {{"a", 1, 3}, {"b", 5, 4}, {"c", 12, 5}, {"d", 19, 6}}};
}

}  // namespace

TEST(ImageTasks, are_the_images_of_the_episode) {
  const auto images = some_classes(3, 7, 7);
  const auto moments = channel_moments(images);
  for (const bool rotations : {false, true}) {
    for (const bool normal : {false, true}) {
      auto options = ImageTasksOptions().rotations(rotations);
      if (normal) options.moments(moments);
      const ImageTasks tasks(images, EpisodeSamplerOptions(3, 1).queries(2).seed(4), options);
      const int64_t turns = rotations ? 4 : 1;
      EXPECT_EQ(tasks.class_count(), 4 * turns);
      const auto pixels = normalize(images.images, normal ? moments : ChannelMoments{{0, 0, 0}, {1, 1, 1}});
      std::set<int64_t> seen;
      for (int64_t i = 0; i < 60; ++i) {
        const auto task = tasks.task(i);
        const auto episode = tasks.episode(i);
        ASSERT_EQ(task.support.data.sizes(), (Ids{3, 3, 7, 7}));
        ASSERT_EQ(task.query.data.sizes(), (Ids{6, 3, 7, 7}));
        EXPECT_TRUE(torch::equal(task.support.target, torch::tensor({0, 1, 2}, torch::kLong)));
        EXPECT_TRUE(torch::equal(task.query.target, torch::tensor({0, 0, 1, 1, 2, 2}, torch::kLong)));
        for (int64_t w = 0; w < 3; ++w) {
          const auto id = episode.classes[w];
          seen.insert(id);
          const auto expected = [&](int64_t example) {
            return pixels[images.classes[id / turns].first + example].rot90(id % turns, {1, 2});
          };
          EXPECT_TRUE(torch::equal(task.support.data[w], expected(episode.support[w])));
          for (int64_t q = 2 * w; q < 2 * w + 2; ++q) {
            EXPECT_TRUE(torch::equal(task.query.data[q], expected(episode.query[q])));
          }
        }
      }
      EXPECT_EQ(static_cast<int64_t>(seen.size()), tasks.class_count());
    }
  }
}

TEST(ImageTasks, are_pure) { expect_pure(ImageTasks(some_classes(3, 5, 6), EpisodeSamplerOptions(2, 1).queries(2))); }

TEST(ImageTasks, any_strides) {
  auto images = some_classes(3, 5, 6);
  const auto episodes = EpisodeSamplerOptions(4, 1).queries(2);
  const auto expected = ImageTasks(images, episodes).task(0);
  images.images = images.images.contiguous(torch::MemoryFormat::ChannelsLast);
  expect_equal(ImageTasks(images, episodes).task(0), expected);
}

TEST(ImageTasks, bad_input) {
  const auto episodes = EpisodeSamplerOptions(4, 1).queries(2);
  const auto make = [&](const ImageClasses& images, const ImageTasksOptions& options = {}) {
    return message_of([&] { ImageTasks(images, episodes, options); });
  };
  auto images = some_classes(3, 5, 6);
  EXPECT_EQ(make(images, ImageTasksOptions().rotations(true)), "ImageTasks: rotations need square images, got 5x6");
  EXPECT_EQ(make(images, ImageTasksOptions().moments(ChannelMoments{{0}, {1}})),
            "ImageTasks: expected moments of 3 channels, as the images have, got 1");
  images.classes[3].count = 7;
  EXPECT_EQ(make(images), "ImageTasks: class d is rows 19 to 25, but there are 25 images");
  images.classes[3].count = 2;
  EXPECT_EQ(make(images),
            "EpisodeSampler: 1 shots and 2 queries need as many examples of every class, but class 3 has 2");
  images.images = images.images.to(torch::kFloat);
  EXPECT_EQ(make(images), "ImageTasks: expected images as uint8 [n, channels, height, width] in the host's memory");
}
