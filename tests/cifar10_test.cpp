#include "gimli/data/cifar10.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data_fixture.h"
#include "gimli/data/image_batch.h"

using namespace gimli::data;

using gimli::message_of;

namespace {

// Records of the official layout: pixel k of record i is a function of the file's number, i and k.
std::string records(int64_t file, int64_t count) {
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) {
    bytes += static_cast<char>((file + i) % 10);
    for (int64_t k = 0; k < 3072; ++k) bytes += static_cast<char>((17 * file + 5 * i + k / 3) % 256);
  }
  return bytes;
}

class Cifar10 : public testing::Test {
 protected:
  fs::path root() const { return folder_.path(); }
  fs::path batch(int64_t i) const { return root() / ("data_batch_" + std::to_string(i) + ".bin"); }
  std::string load() const {
    return message_of([&] { load_cifar10(root().string()); });
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace

TEST_F(Cifar10, reads_the_batches_that_are_there) {
  write_file(batch(1), records(1, 3));
  write_file(batch(4), records(4, 2));
  write_file(root() / "test_batch.bin", records(9, 4));
  const auto data = load_cifar10(root().string());
  EXPECT_EQ(data.batches, 2);
  ASSERT_EQ(data.train_images.sizes(), (Ids{5, 3, 32, 32}));
  ASSERT_EQ(data.test_images.sizes(), (Ids{4, 3, 32, 32}));
  EXPECT_EQ(data.train_images.scalar_type(), torch::kByte);
  EXPECT_TRUE(torch::equal(data.train_labels, torch::tensor({1, 2, 3, 4, 5}, torch::kLong)));
  EXPECT_TRUE(torch::equal(data.test_labels, torch::tensor({9, 0, 1, 2}, torch::kLong)));
  for (const int64_t k : {0, 31, 32, 1023, 1024, 3071}) {  // plane, row and column
    const auto pixel = [&](const torch::Tensor& image) { return image[k / 1024][k / 32 % 32][k % 32].item<int64_t>(); };
    EXPECT_EQ(pixel(data.train_images[2]), (17 + 5 * 2 + k / 3) % 256);
    EXPECT_EQ(pixel(data.train_images[4]), (17 * 4 + 5 + k / 3) % 256);
    EXPECT_EQ(pixel(data.test_images[3]), (17 * 9 + 5 * 3 + k / 3) % 256);
  }
  expect_parts(describe(data), {"training files   2 of 5\n", "training images  5\n", "test images      4\n",
                                "image size       3x32x32\n", "channel mean     0.", "channel std      0."});

  fs::create_directories(root() / "below" / "cifar-10-batches-bin");
  for (const auto& path : {batch(1), batch(4), root() / "test_batch.bin"}) {
    fs::copy(path, root() / "below" / "cifar-10-batches-bin");
  }
  EXPECT_TRUE(torch::equal(load_cifar10((root() / "below").string()).train_images, data.train_images));
}

TEST_F(Cifar10, bad_files) {
  const auto missing = "load_cifar10: expected test_batch.bin and at least one of data_batch_1.bin to data_batch_5.bin";
  expect_parts(load(), {missing, root().string(), "cifar-10-batches-bin",
                        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"});
  write_file(batch(2), records(2, 3));
  expect_parts(load(), {missing});
  write_file(root() / "test_batch.bin", records(9, 2).substr(0, 2 * 3073 - 1));
  expect_parts(load(), {"load_cifar10: expected whole records of 3073 bytes, got 6145 bytes in ", "test_batch.bin"});
  write_file(root() / "test_batch.bin", "");
  expect_parts(load(), {"load_cifar10: expected whole records of 3073 bytes, got 0 bytes in ", "test_batch.bin"});
  write_file(root() / "test_batch.bin", records(9, 2));
  auto damaged = records(2, 3);
  damaged[3073] = 10;
  write_file(batch(2), damaged);
  expect_parts(load(), {"load_cifar10: expected labels from 0 to 9, got 10 in record 1 of ", batch(2).string()});
}

// The real files where they are at hand; the moments of all 50,000 images are published, the first batch's are near.
TEST(Cifar10Whole, counts_and_moments) {
  const auto root = data_root();
  if (!fs::exists(root / "cifar-10-batches-bin" / "test_batch.bin")) {
    GTEST_SKIP() << "set GIMLI_DATA_ROOT to the folder of cifar-10-batches-bin";
  }
  const auto data = load_cifar10(root.string());
  EXPECT_EQ(data.train_images.size(0), 10000 * data.batches);
  EXPECT_TRUE(torch::equal(data.test_labels.bincount(), torch::full({10}, 1000, torch::kLong)));
  EXPECT_TRUE(torch::equal(data.test_labels.slice(0, 0, 4), torch::tensor({3, 8, 8, 0}, torch::kLong)));
  EXPECT_TRUE(torch::equal(data.train_labels.slice(0, 0, 4), torch::tensor({6, 9, 9, 4}, torch::kLong)));
  const auto moments = channel_moments(data.train_images);
  const std::vector<double> mean = {0.4914, 0.4822, 0.4465}, std = {0.2470, 0.2435, 0.2616};
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_NEAR(moments.mean[c], mean[c], 0.004);
    EXPECT_NEAR(moments.std[c], std[c], 0.004);
  }
}
