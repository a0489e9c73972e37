#include "gimli/data/idx.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <vector>

#include "gimli/data/archive.h"

namespace gimli::data {
namespace {

namespace fs = std::filesystem;

constexpr unsigned char kUint8 = 8;
constexpr size_t kMostDimensions = 8;

fs::path find_file(const MnistOptions& options, const std::string& name) {
  const fs::path root = options.data_root();
  for (const auto& folder : {root, root / options.folder()}) {
    for (const auto& path : {folder / name, folder / (name + ".gz")}) {
      std::error_code error;
      if (fs::is_regular_file(path, error)) return path;
    }
  }
  TORCH_CHECK(false, "load_mnist: expected ", name, " or ", name, ".gz in ", root, " or ", root / options.folder(),
              ", found neither");
}

struct Examples {
  at::Tensor images, labels;
};

Examples read_examples(const MnistOptions& options, const std::string& part) {
  const auto images_path = find_file(options, part + "-images-idx3-ubyte");
  const auto labels_path = find_file(options, part + "-labels-idx1-ubyte");
  const auto images = read_idx(images_path), labels = read_idx(labels_path);
  TORCH_CHECK(images.dim() == 3 && images.numel() > 0, "load_mnist: expected images [n, height, width], got ",
              images.sizes(), " in ", images_path);
  TORCH_CHECK(labels.dim() == 1 && labels.size(0) == images.size(0), "load_mnist: expected ", images.size(0),
              " labels, as many as images, got ", labels.sizes(), " in ", labels_path);
  return {images.unsqueeze(1), labels.to(at::kLong)};
}

}  // namespace

at::Tensor read_idx(const fs::path& path) {
  auto bytes = read_file(path);
  if (bytes.starts_with("\x1f\x8b")) bytes = read_gzip(bytes, path);
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  TORCH_CHECK(bytes.size() >= 4 && byte(0) == 0 && byte(1) == 0 && byte(3) >= 1 && byte(3) <= kMostDimensions,
              "read_idx: expected an IDX file of 1 to ", kMostDimensions,
              " dimensions, got another kind of file: ", path);
  TORCH_CHECK(byte(2) == kUint8, "read_idx: expected values of the type uint8 (", int{kUint8}, "), got the type ",
              int{byte(2)}, " in ", path);
  const size_t begin = 4 + 4 * size_t{byte(3)};
  TORCH_CHECK(bytes.size() >= begin, "read_idx: expected a header of ", begin, " bytes, got ", bytes.size(), " in ",
              path);
  std::vector<int64_t> shape;
  uint64_t count = 1;
  bool overflows = false;
  for (size_t i = 4; i < begin; i += 4) {
    const uint64_t size = uint64_t{byte(i)} << 24 | byte(i + 1) << 16 | byte(i + 2) << 8 | byte(i + 3);
    shape.push_back(static_cast<int64_t>(size));
    overflows |= c10::mul_overflows(count, size, &count);
  }
  TORCH_CHECK(!overflows && bytes.size() - begin == count, "read_idx: expected as many values as the shape ",
              at::IntArrayRef(shape), " has, got ", bytes.size() - begin, " in ", path);
  auto values = at::empty(shape, at::kByte);
  std::memcpy(values.mutable_data_ptr<uint8_t>(), bytes.data() + begin, count);
  return values;
}

MnistData load_mnist(const MnistOptions& options) {
  auto train = read_examples(options, "train");
  auto test = read_examples(options, "t10k");
  return {std::move(train.images), std::move(train.labels), std::move(test.images), std::move(test.labels)};
}

MnistData load_fashion_mnist(const std::string& data_root) {
  return load_mnist(MnistOptions(data_root).folder("fashion-mnist"));
}

std::string describe(const MnistData& data) {
  const auto classes = std::max(data.train_labels.max().item<int64_t>(), data.test_labels.max().item<int64_t>()) + 1;
  std::ostringstream text;
  text << "training images  " << data.train_images.size(0) << '\n'
       << "test images      " << data.test_images.size(0) << '\n'
       << "classes          " << classes << '\n'
       << "image size       " << data.train_images.size(2) << 'x' << data.train_images.size(3) << '\n';
  return text.str();
}

}  // namespace gimli::data
