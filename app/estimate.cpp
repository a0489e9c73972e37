#include "app/estimate.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <numeric>

namespace gimli::app {

std::vector<double> to_vector(const at::Tensor& tensor) {
  const auto values = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

Estimate estimate(const std::vector<double>& sample) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  const auto n = static_cast<double>(sample.size());
  const double mean = std::accumulate(sample.begin(), sample.end(), 0.) / n;
  if (std::isnan(mean)) return {kNaN, kNaN};  // of positive sign, to be printed
  if (n < 2) return {mean, kNaN};
  double squares = 0;
  for (const double x : sample) squares += (x - mean) * (x - mean);
  return {mean, 1.96 * std::sqrt(squares / (n - 1)) / std::sqrt(n)};
}

std::string to_text(const Estimate& estimate, int digits, double scale) {
  auto text = fmt::format("{:.{}f}", scale * estimate.mean, digits);
  if (std::isfinite(estimate.interval)) text += fmt::format(" ± {:.{}f}", scale * estimate.interval, digits);
  return text;
}

nlohmann::ordered_json to_json(const Estimate& estimate) {
  return {{"mean", estimate.mean}, {"interval", estimate.interval}};
}

}  // namespace gimli::app
