#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace gimli::app {

/// The mean of a sample and half the width of its 95 % interval: 1.96 s / sqrt(n), where s^2 is the sum of the squared
/// distances from the mean divided by n - 1. One value has no interval: NaN.
struct Estimate {
  double mean = 0;
  double interval = 0;
};

/// The elements of a tensor, row by row.
std::vector<double> to_vector(const at::Tensor& tensor);

Estimate estimate(const std::vector<double>& sample);

/// "1.25 ± 0.03", both times `scale`; the mean alone if there is no interval.
std::string to_text(const Estimate& estimate, int digits, double scale = 1);
nlohmann::ordered_json to_json(const Estimate& estimate);

}  // namespace gimli::app
