#include "gimli/data/idx.h"

#include <gtest/gtest.h>
#include <torch/torch.h>
#include <zlib.h>

#include "fashion_mnist_files.h"

using namespace gimli::data;

using gimli::message_of;

namespace {

std::string packed(const std::string& bytes) {
  std::string file(compressBound(bytes.size()) + 64, '\0');
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<unsigned char*>(file.data());
  stream.avail_out = static_cast<uInt>(file.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  file.resize(stream.total_out);
  deflateEnd(&stream);
  return file;
}

class Idx : public testing::Test {
 protected:
  fs::path root() const { return folder_.path(); }
  std::string read(const std::string& bytes) const {
    write_file(root() / "file", bytes);
    return message_of([&] { read_idx(root() / "file"); });
  }
  std::string load() const {
    return message_of([&] { load_mnist(MnistOptions(root().string())); });
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace

TEST_F(Idx, plain_and_packed) {
  for (const auto& shape : {Ids{7}, Ids{300, 5}, Ids{2, 3, 4}, Ids{0, 28, 28}, Ids{100, 70, 90}}) {
    const auto values = torch::randint(0, 256, shape, torch::kByte);
    for (const auto& bytes : {idx(values), packed(idx(values))}) {
      write_file(root() / "file", bytes);
      EXPECT_TRUE(torch::equal(read_idx(root() / "file"), values));
    }
  }
  const auto values = torch::randint(0, 256, {2, 300}, torch::kByte);
  const auto bytes = idx(values);
  write_file(root() / "file", packed(bytes.substr(0, 100)) + packed(bytes.substr(100)));
  EXPECT_TRUE(torch::equal(read_idx(root() / "file"), values)) << "gzip files of two members";
}

TEST_F(Idx, bad_files) {
  const auto good = idx(torch::randint(0, 256, {20, 30}, torch::kByte));
  const auto file = (root() / "file").string();
  expect_parts(message_of([&] { read_idx(root() / "none"); }), {"read_file: cannot open", "none"});
  for (const auto& bytes : {std::string(), std::string("abcd"), std::string("\0\0\x08", 3), std::string(4, '\0')}) {
    expect_parts(read(bytes), {"read_idx: expected an IDX file of 1 to 8 dimensions, got another kind of file", file});
  }
  expect_parts(read(idx(torch::zeros({3}, torch::kByte), 13)),
               {"read_idx: expected values of the type uint8 (8), got the type 13 in ", file});
  expect_parts(read(good.substr(0, 9)), {"read_idx: expected a header of 12 bytes, got 9 in ", file});
  expect_parts(read(good.substr(0, good.size() - 1)),
               {"read_idx: expected as many values as the shape [20, 30] has, got 599 in ", file});
  expect_parts(read(good + "x"), {"got 601 in ", file});
  expect_parts(read({0, 0, 8, 3, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1}), {"got 0 in ", file});

  const auto zip = packed(good);
  for (size_t size = 2; size < zip.size(); size += 37) {
    expect_parts(read(zip.substr(0, size)), {"read_gzip: ", file, "is no gzip file, damaged or cut short"});
  }
  for (const size_t place : {zip.size() / 2, zip.size() - 6, zip.size() - 2}) {  // data, CRC, size
    auto damaged = zip;
    damaged[place] ^= 4;
    expect_parts(read(damaged), {"read_gzip: ", file, "is no gzip file, damaged or cut short"});
  }
  expect_parts(read(zip + "more"), {"read_gzip: ", file});
}

TEST_F(Idx, data_sets) {
  const auto images = torch::randint(0, 256, {6, 5, 4}, torch::kByte);
  const auto labels = torch::tensor({3, 1, 2, 0, 1, 3}, torch::kByte);
  expect_parts(load(), {"load_mnist: expected train-images-idx3-ubyte or train-images-idx3-ubyte.gz in ",
                        root().string(), (root() / "mnist").string()});
  write_file(root() / "train-images-idx3-ubyte", idx(images));
  write_file(root() / "train-labels-idx1-ubyte.gz", packed(idx(labels)));
  write_file(root() / "mnist" / "t10k-images-idx3-ubyte.gz", packed(idx(images.slice(0, 0, 2))));
  expect_parts(load(), {"load_mnist: expected t10k-labels-idx1-ubyte or "});
  write_file(root() / "mnist" / "t10k-labels-idx1-ubyte", idx(labels.slice(0, 0, 2)));
  const auto data = load_mnist(MnistOptions(root().string()));
  EXPECT_TRUE(torch::equal(data.train_images, images.unsqueeze(1)));
  EXPECT_TRUE(torch::equal(data.train_labels, labels.to(torch::kLong)));
  EXPECT_EQ(data.train_labels.scalar_type(), torch::kLong);
  EXPECT_TRUE(torch::equal(data.test_images, images.slice(0, 0, 2).unsqueeze(1)));
  EXPECT_TRUE(torch::equal(data.test_labels, labels.slice(0, 0, 2).to(torch::kLong)));
  EXPECT_EQ(describe(data), "training images  6\ntest images      2\nclasses          4\nimage size       5x4\n");

  write_file(root() / "train-labels-idx1-ubyte.gz", packed(idx(labels.slice(0, 1))));
  expect_parts(load(), {"load_mnist: expected 6 labels, as many as images, got [5] in ", "train-labels-idx1-ubyte.gz"});
  write_file(root() / "train-images-idx3-ubyte", idx(labels));
  expect_parts(load(), {"load_mnist: expected images [n, height, width], got [6] in ", "train-images-idx3-ubyte"});
}

TEST(FashionMnist, whole) {
  if (!fs::exists(kFashionMnistRoot)) GTEST_SKIP() << "install the Debian package dataset-fashion-mnist";
  const auto data = load_fashion_mnist();
  EXPECT_EQ(data.train_images.sizes(), (Ids{60000, 1, 28, 28}));
  EXPECT_EQ(data.test_images.sizes(), (Ids{10000, 1, 28, 28}));
  EXPECT_TRUE(torch::equal(data.train_labels.bincount(), torch::full({10}, 6000, torch::kLong)));
  EXPECT_TRUE(torch::equal(data.test_labels.bincount(), torch::full({10}, 1000, torch::kLong)));
  EXPECT_TRUE(torch::equal(data.train_labels.slice(0, 0, 4), torch::tensor({9, 0, 0, 3}, torch::kLong)));
  EXPECT_NEAR(data.train_images.to(torch::kFloat).mean().item<double>() / 255, 0.2860, 1e-4);  // as is published
}
