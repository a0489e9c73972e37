#include "gimli/data/sinusoid.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "gimli/data/counter_rng.h"

namespace gimli::data {
namespace {

void check_range(const char* name, Interval range) {
  TORCH_CHECK(std::isfinite(range.low) && std::isfinite(range.high) && range.low <= range.high,
              "Sinusoid: expected a finite range of ", name, " with low <= high, got [", range.low, ", ", range.high,
              "]");
}

CounterRng rng_of(const SinusoidOptions& options, int64_t index) {
  TORCH_CHECK(index >= 0, "Sinusoid: expected a task index of at least 0, got ", index);
  return CounterRng(options.seed(), static_cast<uint64_t>(index));
}

SinusoidCurve draw_curve(const SinusoidOptions& options, CounterRng& rng) {
  const double amplitude = rng.uniform(options.amplitude().low, options.amplitude().high);
  const double phase = rng.uniform(options.phase().low, options.phase().high);
  return {amplitude, phase};
}

torch::data::Example<> draw_points(const SinusoidCurve& curve, Interval range, int64_t count, CounterRng& rng) {
  auto x = at::empty({count, 1}, at::kFloat);
  auto y = at::empty({count, 1}, at::kFloat);
  float* const x_data = x.mutable_data_ptr<float>();
  float* const y_data = y.mutable_data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) {
    x_data[i] = static_cast<float>(rng.uniform(range.low, range.high));
    y_data[i] = static_cast<float>(curve(x_data[i]));
  }
  return {std::move(x), std::move(y)};
}

}  // namespace

double SinusoidCurve::operator()(double x) const { return amplitude * std::sin(x - phase); }

Sinusoid::Sinusoid(SinusoidOptions options) : options_(options) {
  TORCH_CHECK(options.shots() >= 1, "Sinusoid: expected at least 1 shot, got ", options.shots());
  TORCH_CHECK(options.queries() >= 0, "Sinusoid: expected at least 0 queries, got ", options.queries());
  check_range("amplitude", options.amplitude());
  check_range("phase", options.phase());
  check_range("x", options.x());
}

Task Sinusoid::task(int64_t index) const {
  CounterRng rng = rng_of(options_, index);
  const SinusoidCurve curve = draw_curve(options_, rng);
  auto support = draw_points(curve, options_.x(), options_.shots(), rng);
  auto query = draw_points(curve, options_.x(), options_.queries(), rng);
  return {std::move(support), std::move(query)};
}

SinusoidCurve Sinusoid::curve(int64_t index) const {
  CounterRng rng = rng_of(options_, index);
  return draw_curve(options_, rng);
}

}  // namespace gimli::data
