#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <filesystem>
#include <string>
#include <utility>

namespace gimli::data {

/// The array of an IDX file, the format of the MNIST family: uint8 of the file's shape, which may be packed by gzip.
/// Throws, naming the file, if it is not such a file, holds another type than uint8, or has not the size that its
/// header says.
at::Tensor read_idx(const std::filesystem::path& path);

struct MnistOptions {
  explicit MnistOptions(std::string data_root) : data_root_(std::move(data_root)) {}
  /// The folder that holds the four files, itself or in its folder `folder`.
  TORCH_ARG(std::string, data_root);
  TORCH_ARG(std::string, folder) = "mnist";
};

struct MnistData {
  /// uint8 [n, 1, height, width], paper 0.
  at::Tensor train_images;
  /// int64 [n].
  at::Tensor train_labels;
  at::Tensor test_images;
  at::Tensor test_labels;
};

/// Reads a data set in the layout of MNIST (LeCun et al. 1998, "Gradient-based learning applied to document
/// recognition"): `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
/// `t10k-labels-idx1-ubyte`, each plain or packed as `.gz`.
///
/// Throws, naming the file, if one is missing or damaged, or there are not as many labels as images, at least one.
MnistData load_mnist(const MnistOptions& options);

/// Where Debian's package dataset-fashion-mnist has its files.
inline constexpr const char* kFashionMnistRoot = "/usr/share/datasets/fashion-mnist";

/// Fashion-MNIST (Xiao et al. 2017, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
/// algorithms"): 60,000 and 10,000 images of 28x28, ten classes. `load_mnist` with the folder `fashion-mnist`.
MnistData load_fashion_mnist(const std::string& data_root = kFashionMnistRoot);

/// What was read, in a few lines of text.
std::string describe(const MnistData& data);

}  // namespace gimli::data
