#include "gimli/data/image_folder.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <set>

#include "data_fixture.h"
#include "gimli/data/archive.h"
#include "gimli/data/cache_file.h"
#include "gimli/data/image_file.h"

using namespace gimli::data;
using testing::Test;

using gimli::message_of;

namespace {

// Image number i: a ramp that no other has, of the size that most tests ask for.
torch::Tensor picture(int64_t i, int64_t height = 12, int64_t width = 12) {
  const auto y = torch::arange(height, torch::kDouble).view({-1, 1}) / height;
  const auto x = torch::arange(width, torch::kDouble).view({1, -1}) / width;
  return torch::stack({10. * i + 40 * x + 0 * y, 250 - 9. * i - 40 * y + 0 * x, 60 * x + 60 * y + 5. * i})
      .clamp(0, 255)
      .to(torch::kByte);
}

std::string numbered(const char* name, int64_t i) { return std::string(name).append(std::to_string(i)); }

std::string jpeg(int64_t i) { return write_jpeg(picture(i), 95); }

torch::Tensor decoded(int64_t i) { return decode_image(jpeg(i), 3, "x"); }

class ImageFolder : public Test {
 protected:
  ImageFolderOptions options() const {
    return ImageFolderOptions(root().string()).size(12).cache_dir(cache().string()).threads(3);
  }
  fs::path root() const { return folder_.path() / "data"; }
  fs::path cache() const { return folder_.path() / "cache"; }
  std::string load() const {
    return message_of([&] { load_image_folder(options()); });
  }
  int64_t cache_files() const {
    return fs::exists(cache()) ? std::distance(fs::directory_iterator(cache()), fs::directory_iterator()) : 0;
  }

  // mini-ImageNet's layout: 3, 2 and 1 classes, of 2 and 3 images by turns. Rows are in reverse order.
  void write_csv_layout(bool nested = false) const {
    int64_t c = 0, i = 0;
    for (const auto& [split, count] : {std::pair("train", 3), std::pair("val", 2), std::pair("test", 1)}) {
      std::string rows;
      for (int64_t k = 0; k < count; ++k, ++c) {
        const auto label = numbered("n", c);
        for (int64_t e = 0; e < 2 + c % 2; ++e, ++i) {
          const auto name = label + "_" + std::to_string(e) + ".jpg";
          rows = name + "," + label + "\r\n" + rows;
          write_file(root() / "images" / (nested ? label + "/" + name : name), jpeg(i));
        }
      }
      write_file(root() / (std::string(split) + ".csv"), "filename,label\r\n" + rows);
    }
  }

  // <root>/<class>/<file>, ten classes of one image each.
  void write_plain_layout() const {
    for (int64_t c = 0; c < 10; ++c) write_file(root() / (numbered("c", c)) / "only.jpg", jpeg(c));
  }

 private:
  TemporaryFolder folder_;
};

std::vector<std::string> names(const ImageClasses& split) {
  std::vector<std::string> list;
  for (const auto& c : split.classes) list.push_back(c.name);
  return list;
}

void expect_csv_layout(const ImageFolderData& data) {
  EXPECT_EQ(data.train.classes, (std::vector<ImageClass>{{"n0", 0, 2}, {"n1", 2, 3}, {"n2", 5, 2}}));
  EXPECT_EQ(data.validation.classes, (std::vector<ImageClass>{{"n3", 7, 3}, {"n4", 10, 2}}));
  EXPECT_EQ(data.test.classes, (std::vector<ImageClass>{{"n5", 12, 3}}));
  ASSERT_EQ(data.train.images.sizes(), (Ids{15, 3, 12, 12}));
  EXPECT_EQ(data.train.images.scalar_type(), torch::kByte);
  EXPECT_EQ(data.train.images.const_data_ptr(), data.test.images.const_data_ptr());
  EXPECT_EQ(data.train.images.const_data_ptr(), data.validation.images.const_data_ptr());
  for (int64_t i = 0; i < 15; ++i) EXPECT_TRUE(torch::equal(data.train.images[i], decoded(i))) << i;
}

}  // namespace

TEST_F(ImageFolder, split_files) {
  write_csv_layout();
  expect_csv_layout(load_image_folder(options()));
  EXPECT_EQ(describe(load_image_folder(options())),
            "training    3 classes, 7 images, 2 to 3 a class\nvalidation  2 classes, 5 images, 2 to 3 a class\n"
            "test        1 classes, 3 images, 3 a class\nimage size  3x12x12\n");
  fs::remove_all(root() / "images");
  write_csv_layout(true);
  expect_csv_layout(load_image_folder(options()));
}

TEST_F(ImageFolder, folders_for_splits) {
  write_file(root() / "train" / "b" / "2.PNG", write_png({{1, 2, 3}}, 1, 8, PNG_COLOR_TYPE_RGB));
  write_file(root() / "train" / "b" / "1.JPEG", jpeg(1));
  write_file(root() / "train" / "b" / "notes.txt", "no image");
  write_file(root() / "train" / "b" / "._1.jpg", "no image");
  write_file(root() / "train" / "a" / "x.jpg", jpeg(0));
  write_file(root() / "train" / ".hidden" / "x.jpg", "no image");
  write_file(root() / "val" / "c" / "x.jpg", jpeg(3));
  write_file(root() / "test" / "d" / "x.jpg", jpeg(4));
  write_file(root() / "README.md", "text");
  const auto data = load_image_folder(options());
  EXPECT_EQ(data.train.classes, (std::vector<ImageClass>{{"a", 0, 1}, {"b", 1, 2}}));
  EXPECT_EQ(data.validation.classes, (std::vector<ImageClass>{{"c", 3, 1}}));
  EXPECT_EQ(data.test.classes, (std::vector<ImageClass>{{"d", 4, 1}}));
  for (const int64_t i : {0, 1, 3, 4}) EXPECT_TRUE(torch::equal(data.train.images[i], decoded(i)));
  EXPECT_TRUE(
      torch::equal(data.train.images[2], torch::tensor({1, 2, 3}, torch::kByte).view({3, 1, 1}).expand({3, 12, 12})));
}

TEST_F(ImageFolder, random_split) {
  write_plain_layout();
  const auto data = load_image_folder(options());
  EXPECT_EQ(data.train.classes.size(), 6u);
  EXPECT_EQ(data.validation.classes.size(), 2u);
  EXPECT_EQ(data.test.classes.size(), 2u);
  std::set<std::string> all;
  for (const auto* split : {&data.train, &data.validation, &data.test}) {
    for (const auto& c : split->classes) {
      all.insert(c.name);
      const auto number = std::stoll(c.name.substr(1));
      EXPECT_EQ(c.first, number);
      EXPECT_TRUE(torch::equal(split->images[c.first], decoded(number)));
    }
    EXPECT_TRUE(std::is_sorted(split->classes.begin(), split->classes.end(),
                               [](const auto& a, const auto& b) { return a.name < b.name; }));
  }
  EXPECT_EQ(all.size(), 10u);
  EXPECT_EQ(names(load_image_folder(options()).test), names(data.test));
  std::set<std::vector<std::string>> tests;
  for (uint64_t seed = 0; seed < 5; ++seed) tests.insert(names(load_image_folder(options().split_seed(seed)).test));
  EXPECT_GT(tests.size(), 1u);
  EXPECT_EQ(cache_files(), 1) << "the split is no part of the cache";
  const auto two = load_image_folder(options().validation_share(0).test_share(0.5));
  EXPECT_EQ(two.train.classes.size(), 5u);
  EXPECT_TRUE(two.validation.classes.empty());
}

TEST_F(ImageFolder, scales_and_converts) {
  write_plain_layout();
  write_file(root() / "c3" / "only.jpg", write_jpeg(picture(3, 30, 40), 95));
  const auto data = load_image_folder(options().size(9));
  const auto big = decode_image(write_jpeg(picture(3, 30, 40), 95), 3, "x");
  EXPECT_TRUE(torch::equal(data.train.images[3], resize_image(big, 9)));
  EXPECT_TRUE(torch::equal(data.train.images[4], resize_image(decoded(4), 9)));
  const auto gray = load_image_folder(options().channels(1));
  ASSERT_EQ(gray.train.images.sizes(), (Ids{10, 1, 12, 12}));
  EXPECT_TRUE(torch::equal(gray.train.images[4], decode_image(jpeg(4), 1, "x")));
  EXPECT_EQ(cache_files(), 2);
}

TEST_F(ImageFolder, any_number_of_threads) {
  write_plain_layout();
  const auto one = load_image_folder(options().cache(false).threads(1));
  for (const int64_t threads : {0, 2, 50}) {
    EXPECT_TRUE(
        torch::equal(load_image_folder(options().cache(false).threads(threads)).train.images, one.train.images));
  }
  EXPECT_EQ(cache_files(), 0);
}

TEST_F(ImageFolder, cache) {
  write_csv_layout();
  const auto made = load_image_folder(options());
  ASSERT_EQ(cache_files(), 1);
  const auto file = fs::directory_iterator(cache())->path();
  const auto good = read_file(file);
  auto content = read_cache_file(file);
  ASSERT_TRUE(content);
  content->back() = '\x2a';
  ASSERT_TRUE(write_cache_file(file, *content));
  EXPECT_EQ(load_image_folder(options()).test.images[-1][-1][-1][-1].item<int>(), 42) << "the cache was not read";

  for (const auto& bytes : {std::string("x"), good.substr(0, good.size() - 1), good + "x"}) {
    write_file(file, bytes);
    expect_csv_layout(load_image_folder(options()));
    EXPECT_EQ(read_file(file), good);
  }
  ASSERT_TRUE(write_cache_file(file, "whole, but not of this many images"));
  expect_csv_layout(load_image_folder(options()));

  write_file(root() / "images" / "n0_0.jpg", jpeg(9));
  EXPECT_TRUE(torch::equal(load_image_folder(options()).train.images[0], decoded(9))) << "a changed file";
  EXPECT_EQ(cache_files(), 2);
  fs::remove_all(cache());
  write_file(cache(), "a file where the folder should be");
  EXPECT_EQ(load(), "(nothing thrown)");
}

TEST_F(ImageFolder, bad_split_files) {
  const auto edited = [&](const char* file, const std::string& text) {
    write_csv_layout();
    write_file(root() / file, text);
    return load();
  };
  const auto path = [&](const char* file) { return (root() / file).string(); };
  expect_parts(edited("val.csv", "filename,label\nn3_0.jpg,n3\n\nn3_9.jpg,n3\n"),
               {"load_image_folder: line 4 of ", path("val.csv"), " lists n3_9.jpg, but there is neither ",
                path("images/n3_9.jpg"), path("images/n3/n3_9.jpg")});
  for (const std::string line : {"n3_0.jpg", "n3_0.jpg,", ",n3", "n3_0.jpg,n3,2"}) {
    expect_parts(edited("val.csv", "filename,label\n" + line + "\n"),
                 {"load_image_folder: expected `filename,label` in line 2 of ", path("val.csv"), "got `" + line + "`"});
  }
  expect_parts(edited("test.csv", "n5_0.jpg,n5\n"),
               {"load_image_folder: expected `filename,label` in line 1 of ", path("test.csv"), "got `n5_0.jpg,n5`"});
  expect_parts(edited("test.csv", "filename,label\n"),
               {"load_image_folder: expected lines `filename,label` after the first of ", path("test.csv")});
  expect_parts(edited("test.csv", "filename,label\nn0_0.jpg,n0\n"),
               {"load_image_folder: class n0 is in train and in test"});
  expect_parts(edited("test.csv", "filename,label\nn5_0.jpg,n5\nn5_1.jpg,n5\nn5_0.jpg,n5\n"),
               {"load_image_folder: ", path("test.csv"), " lists ", path("images/n5_0.jpg"), " twice"});
  write_csv_layout();
  fs::remove(root() / "val.csv");
  expect_parts(load(), {"load_image_folder: cannot open ", path("val.csv")});
  EXPECT_EQ(cache_files(), 0);
}

TEST_F(ImageFolder, bad_folders) {
  expect_parts(load(), {"load_image_folder: there is no folder ", root().string()});
  fs::create_directories(root());
  expect_parts(load(), {"load_image_folder: expected a folder of images for each class in ", root().string()});
  write_plain_layout();
  fs::create_directories(root() / "c99");
  expect_parts(load(), {"load_image_folder: expected .png, .jpg or .jpeg files in ", (root() / "c99").string()});
  fs::remove(root() / "c99");
  const auto shares = [&](double validation, double test) {
    return message_of([&] { load_image_folder(options().validation_share(validation).test_share(test)); });
  };
  expect_parts(shares(0.01, 0.2), {"load_image_folder: the shares of 10 classes in ", root().string(),
                                   "come to 8 for training, 0 for validation and 2 for testing"});
  expect_parts(shares(0.6, 0.4), {"load_image_folder: expected a validation_share", "got 0.6 and 0.4"});

  fs::create_directories(root() / "train" / "a");
  write_file(root() / "train" / "a" / "x.jpg", jpeg(0));
  expect_parts(load(), {"load_image_folder: cannot list ", (root() / "val").string()});
  write_file(root() / "val" / "a" / "x.jpg", jpeg(1));
  write_file(root() / "test" / "b" / "x.jpg", jpeg(2));
  EXPECT_EQ(load(), "load_image_folder: class a is in train and in val");
}

TEST_F(ImageFolder, bad_images) {
  write_plain_layout();
  write_file(root() / "c8" / "only.jpg", "text");
  const auto first = (root() / "c4" / "only.jpg").string();
  const auto good = jpeg(4);
  write_file(first, good.substr(0, good.size() / 2));
  for (int64_t round = 0; round < 20; ++round) {  // the first in order, whichever thread is faster
    EXPECT_EQ(load().find("decode_image: " + first + " is damaged"), 0u);
  }
  EXPECT_EQ(cache_files(), 0);
}

TEST_F(ImageFolder, bad_options) {
  write_plain_layout();
  EXPECT_EQ(message_of([&] { load_image_folder(options().size(0)); }),
            "load_image_folder: expected a size of at least 1, got 0");
  EXPECT_EQ(message_of([&] { load_image_folder(options().channels(4)); }),
            "load_image_folder: expected 1 or 3 channels, got 4");
  EXPECT_EQ(message_of([&] { load_image_folder(options().threads(-1)); }),
            "load_image_folder: expected a number of threads of at least 0, got -1");
}
