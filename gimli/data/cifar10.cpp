#include "gimli/data/cifar10.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <filesystem>
#include <iomanip>
#include <sstream>
#include <utility>
#include <vector>

#include "gimli/data/archive.h"
#include "gimli/data/image_batch.h"

namespace gimli::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatches = 5;
constexpr int64_t kClasses = 10;
constexpr int64_t kPixels = 3 * 32 * 32;
constexpr int64_t kRecord = 1 + kPixels;
constexpr const char* kFolder = "cifar-10-batches-bin";
constexpr const char* kTestFile = "test_batch.bin";

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

std::vector<fs::path> train_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (int64_t i = 1; i <= kBatches; ++i) {
    auto path = folder / ("data_batch_" + std::to_string(i) + ".bin");
    if (is_file(path)) files.push_back(std::move(path));
  }
  return files;
}

fs::path find_folder(const fs::path& root) {
  for (const auto& folder : {root, root / kFolder}) {
    if (!train_files(folder).empty() && is_file(folder / kTestFile)) return folder;
  }
  TORCH_CHECK(false, "load_cifar10: expected ", kTestFile, " and at least one of data_batch_1.bin to data_batch_",
              kBatches, ".bin in ", root, " or ", root / kFolder,
              ", unpacked from https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz");
}

struct Examples {
  at::Tensor images, labels;
};

Examples read_records(const fs::path& path) {
  const auto bytes = read_file(path);
  const auto size = static_cast<int64_t>(bytes.size());
  TORCH_CHECK(size > 0 && size % kRecord == 0, "load_cifar10: expected whole records of ", kRecord, " bytes, got ",
              size, " bytes in ", path);
  const int64_t count = size / kRecord;
  auto images = at::empty({count, 3, 32, 32}, at::kByte);
  auto labels = at::empty({count}, at::kLong);
  auto* const pixels = images.mutable_data_ptr<uint8_t>();
  auto* const label = labels.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    const char* record = bytes.data() + i * kRecord;
    label[i] = static_cast<uint8_t>(*record);
    TORCH_CHECK(label[i] < kClasses, "load_cifar10: expected labels from 0 to ", kClasses - 1, ", got ", label[i],
                " in record ", i, " of ", path);
    std::memcpy(pixels + i * kPixels, record + 1, kPixels);
  }
  return {std::move(images), std::move(labels)};
}

}  // namespace

Cifar10Data load_cifar10(const std::string& data_root) {
  const auto folder = find_folder(data_root);
  const auto files = train_files(folder);
  std::vector<at::Tensor> images, labels;
  for (const auto& file : files) {
    auto examples = read_records(file);
    images.push_back(std::move(examples.images));
    labels.push_back(std::move(examples.labels));
  }
  auto test = read_records(folder / kTestFile);
  return {.train_images = at::cat(images),
          .train_labels = at::cat(labels),
          .test_images = std::move(test.images),
          .test_labels = std::move(test.labels),
          .batches = static_cast<int64_t>(files.size())};
}

std::string describe(const Cifar10Data& data) {
  const auto moments = channel_moments(data.train_images);
  const auto row = [](std::ostream& text, const std::vector<double>& values) {
    for (const double value : values) text << ' ' << value;
    text << '\n';
  };
  std::ostringstream text;
  text << "training files   " << data.batches << " of " << kBatches << '\n'
       << "training images  " << data.train_images.size(0) << '\n'
       << "test images      " << data.test_images.size(0) << '\n'
       << "image size       3x32x32\n"
       << std::fixed << std::setprecision(4) << "channel mean    ";
  row(text, moments.mean);
  text << "channel std     ";
  row(text, moments.std);
  return text.str();
}

}  // namespace gimli::data
