#include "gimli/data/image_file.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data_fixture.h"
#include "gimli/data/counter_rng.h"

using namespace gimli::data;

using gimli::message_of;

TEST(PngImage, every_colour_type_becomes_gray) {
  Rows ramp(1);
  for (int v = 0; v < 256; ++v) ramp[0].push_back(static_cast<uint8_t>(v));
  const auto identity = torch::arange(256, torch::kLong).to(torch::kByte).unsqueeze(0);
  EXPECT_TRUE(torch::equal(decode_image(write_png(ramp, 256, 8, PNG_COLOR_TYPE_GRAY), 1, "ramp")[0], identity));

  const auto decode = [](const Rows& rows, int64_t width, int depth, int color_type) {
    const auto gray = decode_image(write_png(rows, width, depth, color_type), 1, "png").to(torch::kLong);
    return Ids(gray.const_data_ptr<int64_t>(), gray.const_data_ptr<int64_t>() + gray.numel());
  };
  EXPECT_EQ(decode({{0b10100000}}, 3, 1, PNG_COLOR_TYPE_GRAY), (Ids{255, 0, 255}));
  EXPECT_EQ(decode({{0b10100000}}, 3, 1, PNG_COLOR_TYPE_PALETTE), (Ids{0, 255, 0}));
  EXPECT_EQ(decode({{0, 0, 0, 255, 255, 255, 119, 119, 119}}, 3, 8, PNG_COLOR_TYPE_RGB), (Ids{0, 255, 119}));
  EXPECT_EQ(decode({{0, 0, 0, 255, 0, 0, 0, 0}}, 2, 8, PNG_COLOR_TYPE_RGB_ALPHA), (Ids{0, 255}));
  EXPECT_EQ(decode({{0, 255, 0, 0}}, 2, 8, PNG_COLOR_TYPE_GRAY_ALPHA), (Ids{0, 255}));
  EXPECT_EQ(decode({{0, 0, 255, 255}}, 2, 16, PNG_COLOR_TYPE_GRAY), (Ids{0, 255}));
}

TEST(PngImage, colours_stay) {
  const auto decode = [](const Rows& rows, int64_t width, int depth, int color_type) {
    return decode_image(write_png(rows, width, depth, color_type), 3, "png");
  };
  const auto two = torch::tensor({255, 1, 128, 2, 0, 3}, torch::kByte).view({3, 1, 2});
  EXPECT_TRUE(torch::equal(decode({{255, 128, 0, 1, 2, 3}}, 2, 8, PNG_COLOR_TYPE_RGB), two));
  EXPECT_TRUE(torch::equal(decode({{7, 9}}, 2, 8, PNG_COLOR_TYPE_GRAY),
                           torch::tensor({7, 9, 7, 9, 7, 9}, torch::kByte).view({3, 1, 2})));
  EXPECT_TRUE(torch::equal(decode({{0, 0, 0, 0, 9, 8, 7, 255}}, 2, 8, PNG_COLOR_TYPE_RGB_ALPHA),
                           torch::tensor({255, 9, 255, 8, 255, 7}, torch::kByte).view({3, 1, 2})));
}

TEST(PngImage, bad_input) {
  const auto message = [](const std::string& file) { return message_of([&] { decode_image(file, 1, "x.png"); }); };
  EXPECT_EQ(message("not a png"), "decode_image: x.png is neither a PNG nor a JPEG file");
  EXPECT_EQ(message(""), "decode_image: x.png is neither a PNG nor a JPEG file");
  Rows noise(64, std::vector<uint8_t>(64));
  CounterRng rng(1, 0);
  for (auto& row : noise) {
    for (auto& v : row) v = static_cast<uint8_t>(rng.bits());
  }
  const auto file = write_png(noise, 64, 8, PNG_COLOR_TYPE_GRAY);
  for (size_t size = 8; size < file.size(); size += 97) {
    EXPECT_EQ(message(file.substr(0, size)).find("decode_image: x.png is damaged: "), 0u) << size;
  }
  auto flipped = file;
  flipped[file.size() / 2] ^= 1;
  EXPECT_EQ(message(flipped).find("decode_image: x.png is damaged: "), 0u);
  EXPECT_EQ(message_of([&] { decode_image(file, 2, "x.png"); }), "decode_image: expected 1 or 3 channels, got 2");
}

namespace {

// A smooth picture of known colours, [3, height, width].
torch::Tensor smooth(int64_t height, int64_t width) {
  const auto y = torch::linspace(0, 1, height).view({-1, 1}).expand({height, width});
  const auto x = torch::linspace(0, 1, width).view({1, -1}).expand({height, width});
  return torch::stack({200 * x + 20, 200 * y + 20, 100 * x + 100 * y}).round().to(torch::kByte).contiguous();
}

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kDouble) - b.to(torch::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST(JpegImage, colour_and_gray) {
  const auto image = smooth(40, 56);
  const auto colour = decode_image(write_jpeg(image, 95), 3, "x.jpg");
  ASSERT_EQ(colour.sizes(), image.sizes());
  EXPECT_LE(largest_difference(colour, image), 6);
  const auto luma = 0.299 * image[0].to(torch::kDouble) + 0.587 * image[1] + 0.114 * image[2];
  EXPECT_LE(largest_difference(decode_image(write_jpeg(image, 95), 1, "x.jpg")[0], luma), 4);

  const auto gray = image.narrow(0, 0, 1);
  EXPECT_LE(largest_difference(decode_image(write_jpeg(gray, 95), 1, "x.jpg"), gray), 4);
  const auto spread = decode_image(write_jpeg(gray, 95), 3, "x.jpg");
  EXPECT_TRUE(torch::equal(spread[0], spread[1]) && torch::equal(spread[0], spread[2]));
}

TEST(JpegImage, bad_input) {
  const auto message = [](const std::string& file) { return message_of([&] { decode_image(file, 3, "x.jpg"); }); };
  const auto noise = torch::randint(0, 256, {3, 48, 48}, torch::kByte);
  const auto file = write_jpeg(noise, 90);
  EXPECT_EQ(message(file), "(nothing thrown)");
  for (size_t size = 2; size < file.size() - 2; size += 61) {
    EXPECT_EQ(message(file.substr(0, size)).find("decode_image: x.jpg is damaged"), 0u) << size;
  }
  auto hole = file;
  hole.replace(file.size() / 2, 200, 200, '\xff');
  EXPECT_EQ(message(hole).find("decode_image: x.jpg is damaged"), 0u) << message(hole);
  EXPECT_EQ(message(std::string("\xff\xd8 and no more")).find("decode_image: x.jpg is damaged"), 0u);
}

// With fractions: every source pixel is cut into `size` pieces a side, so that whole pieces lie under a target pixel.
TEST(ResizeImage, shrinking_is_the_mean_of_what_lies_under_a_pixel) {
  const auto expect = [](int64_t height, int64_t width, int64_t size) {
    const auto image = torch::randint(0, 256, {3, height, width}, torch::kByte);
    const auto pieces = image.to(torch::kDouble).repeat_interleave(size, 1).repeat_interleave(size, 2);
    const auto mean = pieces.view({3, size, height, size, width}).mean({2, 4});
    const auto resized = resize_image(image, size);
    ASSERT_EQ(resized.sizes(), (Ids{3, size, size}));
    EXPECT_TRUE(torch::equal(resized, (mean + 0.5 + 1e-9).floor().to(torch::kByte))) << height << ' ' << width;
  };
  expect(105, 105, 28);
  expect(90, 61, 17);
  expect(24, 12, 12);
  expect(5, 7, 1);
  const auto halves = torch::tensor({1, 2}, torch::kByte).view({1, 1, 2}).expand({1, 2, 2});
  EXPECT_EQ(resize_image(halves, 1).item<int>(), 2) << "halves go up";
}

TEST(ResizeImage, growing_is_linear_between_centres) {
  const auto image = torch::randint(0, 256, {3, 9, 13}, torch::kByte);
  const auto options = torch::nn::functional::InterpolateFuncOptions()
                           .size(std::vector<int64_t>{20, 20})
                           .mode(torch::kBilinear)
                           .align_corners(false);
  const auto exact = torch::nn::functional::interpolate(image.unsqueeze(0).to(torch::kDouble), options)[0];
  EXPECT_LE(largest_difference(resize_image(image, 20), exact), 0.5 + 1e-9);
  const auto flat = torch::full({1, 3, 50}, 77, torch::kByte);  // grows down, shrinks across
  EXPECT_TRUE(torch::equal(resize_image(flat, 8), torch::full({1, 8, 8}, 77, torch::kByte)));
  EXPECT_TRUE(torch::equal(resize_image(torch::tensor({0, 100}, torch::kByte).view({1, 2, 1}), 4).select(2, 3)[0],
                           torch::tensor({0, 25, 75, 100}, torch::kByte)));
}

TEST(ResizeImage, keeps_what_has_the_size) {
  const auto image = torch::randint(0, 256, {3, 12, 12}, torch::kByte);
  EXPECT_TRUE(torch::equal(resize_image(image, 12), image));
  EXPECT_EQ(message_of([&] { resize_image(image, 0); }), "resize_image: expected a size from 1 to 16384, got 0");
  expect_parts(message_of([&] { resize_image(image[0], 4); }),
               {"resize_image: expected uint8 [channels, height, width] of sides from 1 to 65536, got ", "[12, 12]"});
}
