#pragma once

#include <optional>
#include <string>
#include <vector>

namespace gimli::app {

/// A row of Table 2 of the paper: MAML++ with one network and inner optimizer, three seeds.
struct PublishedResult {
  std::string dataset;  ///< "omniglot" or "mini-imagenet"
  int64_t ways, shots;
  std::string model;
  std::string optimizer;       ///< "sgd" or "adam"
  double accuracy, deviation;  ///< mean and standard deviation, in percent
};

/// All rows, in the paper's order. It leaves out what did not end within three days.
const std::vector<PublishedResult>& published_results();

/// The row of these settings, if there is one.
std::optional<PublishedResult> find_published(const std::string& dataset, int64_t ways, int64_t shots,
                                              const std::string& model, const std::string& optimizer);

}  // namespace gimli::app
