#pragma once

#include <functional>
#include <string>
#include <vector>

namespace gimli::app {

/// A data set on disk, and what is in it, in words.
struct CheckedDataset {
  std::string name;
  std::function<std::string(const std::string& root)> describe;
};

const std::vector<CheckedDataset>& checked_datasets();

/// Reads a data set, without a cache, and says what is in it and how long it took. Throws if it is unknown or damaged.
std::string check_dataset(const std::string& name, const std::string& root);

}  // namespace gimli::app
