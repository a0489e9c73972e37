#include "app/labelled_images.h"

#include <torch/torch.h>

#include <set>

#include "expect.h"

namespace gimli::app {
namespace {

/// Images of two pixels, the first of which is the image's number; of class number % 10.
data::MnistData numbered(int64_t training, int64_t test) {
  const auto images = [](int64_t count) {
    return torch::stack({torch::arange(count), torch::full({count}, 255)}, 1)
        .to(torch::kByte)
        .reshape({count, 1, 1, 2});
  };
  return {images(training), torch::arange(training) % 10, images(test), torch::arange(test) % 10};
}

std::vector<int64_t> numbers_of(const LabelledImages& images) {
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < images.size(); ++i) {
    numbers.push_back(std::llround(images.pixels[i][0].item<double>() * 255));
    EXPECT_EQ(images.labels[i].item<int64_t>(), numbers.back() % 10);
    EXPECT_EQ(images.pixels[i][1].item<float>(), 1.f);
  }
  return numbers;
}

TEST(LabelledImagesTest, PartsHaveNoImageInCommon) {
  const auto data = numbered(60, 25);
  const auto parts = draw_parts(data, {30, 20, 10}, 1);
  const auto training = numbers_of(parts.training), validation = numbers_of(parts.validation);
  EXPECT_EQ(training.size(), 30u);
  EXPECT_EQ(validation.size(), 20u);
  EXPECT_EQ(numbers_of(parts.test).size(), 10u);
  std::set<int64_t> all(training.begin(), training.end());
  all.insert(validation.begin(), validation.end());
  EXPECT_EQ(all.size(), 50u);
  EXPECT_EQ(numbers_of(draw_parts(data, {30, 20, 10}, 1).training), training);
  EXPECT_NE(numbers_of(draw_parts(data, {30, 20, 10}, 2).training), training);
}

TEST(LabelledImagesTest, ZeroIsAllTestImages) {
  const auto test = numbers_of(draw_parts(numbered(60, 25), {30, 30, 0}, 1).test);
  EXPECT_EQ(std::set<int64_t>(test.begin(), test.end()).size(), 25u);
}

TEST(LabelledImagesTest, RefusesMoreThanThereAre) {
  expect_error(
      [] {
        draw_parts(numbered(60, 25), {41, 20, 0}, 1);
      },
      "training_images and validation_images: expected at most 60 together, as there are, got 41 and 20");
  expect_error(
      [] {
        draw_parts(numbered(60, 25), {1, 1, 26}, 1);
      },
      "test_images: expected at most 25, as there are, got 26");
}

TEST(LabelledImagesTest, CorruptedLabelsAreWrongAndAsManyAsAskedFor) {
  const auto labels = torch::arange(1000) % 10;
  for (const auto& [share, count] : {std::pair<double, int64_t>{0, 0}, {0.4, 400}, {0.0126, 13}, {1, 1000}}) {
    SCOPED_TRACE(share);
    const auto corrupted = corrupt(labels, share, 10, 3);
    EXPECT_EQ(corrupted.is_corrupted.sum().item<int64_t>(), count);
    EXPECT_TRUE(torch::equal(corrupted.labels.ne(labels), corrupted.is_corrupted));
    EXPECT_GE(corrupted.labels.min().item<int64_t>(), 0);
    EXPECT_LE(corrupted.labels.max().item<int64_t>(), 9);
  }
  // Of 100 images of a class with wrong labels, some get each of the other nine.
  const auto all = corrupt(labels, 1, 10, 3);
  const auto shifts = ((all.labels - labels + 10) % 10).bincount({}, 10);
  EXPECT_EQ(shifts[0].item<int64_t>(), 0);
  EXPECT_GT(shifts.slice(0, 1).min().item<int64_t>(), 80);
  EXPECT_LT(shifts.slice(0, 1).max().item<int64_t>(), 145);
  EXPECT_FALSE(torch::equal(corrupt(labels, 0.5, 10, 3).labels, corrupt(labels, 0.5, 10, 4).labels));
}

TEST(LabelledImagesTest, DrawsFromEachClass) {
  const auto images = draw_parts(numbered(100, 1), {100, 0, 0}, 1).training;
  const auto drawn = draw_each_class(images, 3, 10, 5);
  EXPECT_TRUE(torch::equal(drawn.labels, torch::arange(10).repeat_interleave(3)));
  const auto numbers = numbers_of(drawn);
  EXPECT_EQ(std::set<int64_t>(numbers.begin(), numbers.end()).size(), 30u);
  EXPECT_NE(numbers_of(draw_each_class(images, 3, 10, 6)), numbers);
  expect_error([&] { draw_each_class(images, 11, 10, 5); },
               "images_per_class: expected at most 10, the training images of class 0, got 11");
}

TEST(LabelledImagesTest, Joins) {
  const auto parts = draw_parts(numbered(60, 25), {3, 2, 1}, 1);
  auto expected = numbers_of(parts.training);
  for (const auto number : numbers_of(parts.validation)) expected.push_back(number);
  EXPECT_EQ(numbers_of(parts.training.and_those_of(parts.validation)), expected);
}

}  // namespace
}  // namespace gimli::app
