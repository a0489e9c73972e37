#pragma once

#include <torch/arg.h>

#include <cstdint>
#include <string>
#include <utility>

#include "gimli/data/image_classes.h"

namespace gimli::data {

struct ImageFolderOptions {
  explicit ImageFolderOptions(std::string data_root) : data_root_(std::move(data_root)) {}
  TORCH_ARG(std::string, data_root);
  /// The side of the images that are made; those of another size are scaled to it.
  TORCH_ARG(int64_t, size) = 84;
  /// 3 for red, green and blue, 1 for gray.
  TORCH_ARG(int64_t, channels) = 3;
  /// In a folder without splits: which part of the classes, rounded to whole ones, is for validation and for testing,
  /// and the seed of the shuffle that splits them. The shares are mini-ImageNet's.
  TORCH_ARG(double, validation_share) = 0.16;
  TORCH_ARG(double, test_share) = 0.2;
  TORCH_ARG(uint64_t, split_seed) = 0;
  /// How many threads decode; 0 for as many as there are processors.
  TORCH_ARG(int64_t, threads) = 0;
  /// Where the decoded images are kept for the next run; empty for `default_cache_dir()` (cache_file.h).
  TORCH_ARG(std::string, cache_dir) = "";
  /// False: neither read nor write a cache.
  TORCH_ARG(bool, cache) = true;
};

/// The splits share one tensor of images: uint8 [n, channels, size, size], class by class. Classes are ordered by name,
/// and the images of a class by file name.
struct ImageFolderData {
  ImageClasses train, validation, test;
};

/// Reads classes of PNG and JPEG files (`decode_image`; names that end in .png, .jpg or .jpeg, in any case), laid out
/// in one of three ways:
///
///     <root>/images/<file> or <root>/images/<label>/<file>,       the classes listed in <root>/train.csv, val.csv and
///                                                                 test.csv: lines `filename,label`, this being the
///                                                                 first
///     <root>/train/<class>/<file>, likewise in val and test
///     <root>/<class>/<file>                                       split by the options
///
/// The first is that of mini-ImageNet (Vinyals et al. 2016) with the split files of Ravi and Larochelle 2017
/// ("Optimization as a model for few-shot learning"): 64, 16 and 20 classes of 600 images. What begins with a dot is
/// passed over.
///
/// Images that are not size x size become so by `resize_image`, which scales each side by itself. They are decoded by
/// several threads into one tensor and kept in the cache folder, under a name made from the files' names, sizes and
/// times of change, the options and the format's version. What was read from there is not copied: the tensor is a view
/// of it. A cache that is damaged or cannot be written is ignored.
///
/// Throws, naming the file and of a CSV file the line, if an image is missing or damaged, a line is not of that form, a
/// class has no images or is in two splits, or a split has no classes (that for validation only if its share is not 0).
ImageFolderData load_image_folder(const ImageFolderOptions& options);

/// What was read, in a few lines of text.
std::string describe(const ImageFolderData& data);

}  // namespace gimli::data
