#include "gimli/data/image_batch.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>

#include "data_fixture.h"

using namespace gimli::data;

using gimli::message_of;

namespace {

torch::Tensor some_images(int64_t n, int64_t channels, int64_t height, int64_t width) {
  return torch::randint(0, 256, {n, channels, height, width}, torch::kByte);
}

}  // namespace

TEST(ImageBatch, moments_and_normalization) {
  const auto images = some_images(20, 3, 6, 9);
  const auto moments = channel_moments(images);
  const auto values = images.to(torch::kDouble) / 255;
  const auto near = [](const std::vector<double>& actual, const torch::Tensor& expected) {
    return torch::allclose(torch::tensor(actual, torch::kDouble), expected, 1e-12, 1e-14);
  };
  const auto mean = values.mean({0, 2, 3}), std = values.std({0, 2, 3}, false);
  EXPECT_TRUE(near(moments.mean, mean));
  EXPECT_TRUE(near(moments.std, std));

  const auto normal = normalize(images, moments);
  EXPECT_EQ(normal.scalar_type(), torch::kFloat);
  EXPECT_TRUE(torch::allclose(normal.to(torch::kDouble), (values - mean.view({3, 1, 1})) / std.view({3, 1, 1}), 1e-6));
  EXPECT_LT(normal.mean({0, 2, 3}).abs().max().item<double>(), 1e-6);
  EXPECT_TRUE(torch::equal(normalize(images, {{0, 0, 0}, {1, 1, 1}}), images.to(torch::kFloat).div(255)));
  EXPECT_TRUE(torch::equal(normalize(images.transpose(2, 3), moments), normal.transpose(2, 3)));

  const ImageClasses classes{images, {{"a", 2, 5}, {"b", 11, 4}}};
  const auto some = channel_moments(torch::cat({images.slice(0, 2, 7), images.slice(0, 11, 15)}));
  EXPECT_EQ(channel_moments(classes).mean, some.mean);
  EXPECT_EQ(channel_moments(classes).std, some.std);
}

// Every result is one of the 162 crops of the padded image.
TEST(ImageBatch, crops_and_flips) {
  const auto images = some_images(400, 3, 12, 10) + 1;  // 0 is padding, but for what was 255
  const auto result = crop_and_flip(images, 3);
  ASSERT_EQ(result.sizes(), images.sizes());
  const auto padded = torch::constant_pad_nd(images, {4, 4, 4, 4});
  Ids downs(9), rights(9), flips(2);
  for (int64_t i = 0; i < images.size(0); ++i) {
    int64_t found = 0;
    for (int64_t down = 0; down < 9; ++down) {
      for (int64_t right = 0; right < 9; ++right) {
        const auto crop = padded[i].narrow(1, down, 12).narrow(2, right, 10);
        for (const bool flip : {false, true}) {
          if (!torch::equal(flip ? crop.flip(2) : crop, result[i])) continue;
          ++found, ++downs[down], ++rights[right], ++flips[flip];
        }
      }
    }
    EXPECT_EQ(found, 1);
  }
  EXPECT_LT(chi_square(downs), 26.1);  // the 0.999 quantiles for 8 degrees of freedom and for 1
  EXPECT_LT(chi_square(rights), 26.1);
  EXPECT_LT(chi_square(flips), 10.8);
}

TEST(ImageBatch, crops_are_pure) {
  const auto images = some_images(8, 1, 8, 8);
  EXPECT_TRUE(torch::equal(crop_and_flip(images, 5), crop_and_flip(images, 5)));
  EXPECT_FALSE(torch::equal(crop_and_flip(images, 5), crop_and_flip(images, 6)));
  EXPECT_FALSE(torch::equal(crop_and_flip(images, 5), crop_and_flip(images, 5, CropAndFlipOptions().seed(1))));
  const auto plain = CropAndFlipOptions().padding(0).flip(false);
  EXPECT_TRUE(torch::equal(crop_and_flip(images, 5, plain), images));
  // Without flips the crops are the same ones.
  const auto crops = crop_and_flip(images, 5, CropAndFlipOptions().flip(false)), both = crop_and_flip(images, 5);
  for (int64_t i = 0; i < 8; ++i) {
    EXPECT_TRUE(torch::equal(both[i], crops[i]) || torch::equal(both[i], crops[i].flip(2)));
  }
}

TEST(ImageBatch, bad_input) {
  const auto images = some_images(2, 3, 4, 4);
  expect_parts(message_of([&] { channel_moments(images[0]); }),
               {"channel_moments: expected images as uint8 [n, channels, height, width]", "[3, 4, 4]"});
  expect_parts(message_of([&] {
                 normalize(images.to(torch::kFloat), {{0}, {1}});
               }),
               {"normalize: expected images as uint8", "CPUFloatType"});
  EXPECT_EQ(message_of([&] { channel_moments(images.slice(0, 0, 0)); }),
            "channel_moments: expected at least one pixel, got none");
  EXPECT_EQ(message_of([&] {
              normalize(images, {{0}, {1}});
            }),
            "normalize: expected images of 1 channels, as the moments have, got 3");
  EXPECT_EQ(message_of([] {
              pixel_values({{0, 0}, {1}});
            }),
            "pixel_values: expected as many deviations as means, 2, got 1");
  EXPECT_EQ(message_of([&] {
              normalize(images, channel_moments(torch::zeros({1, 3, 2, 2}, torch::kByte)));
            }),
            "pixel_values: expected a finite mean and a deviation above 0, got 0 and 0 for channel 0");
  EXPECT_EQ(message_of([&] { crop_and_flip(images, -1); }), "crop_and_flip: expected an index of at least 0, got -1");
  EXPECT_EQ(message_of([&] { crop_and_flip(images, 0, CropAndFlipOptions().padding(5)); }),
            "crop_and_flip: expected a padding from 0 to 4, got 5");
}

TEST(ImageBatch, shuffled_draws_go_through_all_images_again_and_again) {
  const auto drawn = shuffled(3, 7, 0, 28);
  for (int64_t pass = 0; pass < 4; ++pass) {
    const std::set<int64_t> seen(drawn.begin() + 7 * pass, drawn.begin() + 7 * (pass + 1));
    EXPECT_EQ(seen.size(), 7u) << "pass " << pass;
  }
  EXPECT_FALSE(std::equal(drawn.begin(), drawn.begin() + 7, drawn.begin() + 7));
  EXPECT_EQ(shuffled(3, 7, 5, 11), std::vector<int64_t>(drawn.begin() + 5, drawn.begin() + 16));
}
