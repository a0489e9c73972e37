#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace gimli::data {

struct Cifar10Data {
  /// uint8 [n, 3, 32, 32], red, green and blue, in the order of the files.
  at::Tensor train_images;
  /// int64 [n], 0 to 9.
  at::Tensor train_labels;
  at::Tensor test_images;
  at::Tensor test_labels;
  /// How many of the five training files were there.
  int64_t batches;
};

/// Reads CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of features from tiny images") from its binary files
/// `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, in `data_root` or in its folder
/// `cifar-10-batches-bin`. Training files may be missing, all but one. A file is a number of records of one label and
/// 3,072 pixels, 10,000 in the official ones.
///
/// Throws, naming the file, if there is no training file or no test file, a file ends within a record, or a label is
/// not one of the ten.
Cifar10Data load_cifar10(const std::string& data_root);

/// What was read, in a few lines of text.
std::string describe(const Cifar10Data& data);

}  // namespace gimli::data
