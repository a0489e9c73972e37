#pragma once

#include <torch/arg.h>

#include <cstdint>
#include <numbers>

#include "gimli/data/task.h"

namespace gimli::data {

struct Interval {
  double low;
  double high;
};

struct SinusoidOptions {
  /// Points of the support set and of the query set.
  TORCH_ARG(int64_t, shots) = 10;
  TORCH_ARG(int64_t, queries) = 10;
  TORCH_ARG(uint64_t, seed) = 0;
  TORCH_ARG(Interval, amplitude) = {0.1, 5.0};
  TORCH_ARG(Interval, phase) = {0.0, std::numbers::pi};
  TORCH_ARG(Interval, x) = {-5.0, 5.0};
};

/// The curve behind one task.
struct SinusoidCurve {
  double amplitude;
  double phase;

  /// amplitude * sin(x - phase)
  double operator()(double x) const;
};

/// Regression on sine waves, the toy problem of Finn et al. 2017 ("Model-agnostic meta-learning", section 5.1):
///
///     y = A sin(x - phase),    A ~ U[0.1, 5],    phase ~ U[0, pi],    x ~ U[-5, 5]
///
/// The paper says "amplitude and phase"; the minus sign is that of the authors' program. With phases of a half period
/// it matters: the curves of one sign are not those of the other.
///
/// A task's tensors are float32, `data` (x) and `target` (y) both [shots, 1] in the support set and [queries, 1] in the
/// query set. Amplitudes, phases and x are the same bits everywhere; y is the double value rounded once, so it is too
/// wherever the platform's sine is good to its last bits. More queries do not change the support set.
class Sinusoid final : public TaskSource {
 public:
  /// Throws if there is not at least one shot, or if a range is empty or not finite.
  explicit Sinusoid(SinusoidOptions options = {});

  Task task(int64_t index) const override;

  /// The curve of that task, to plot it or to measure against the truth.
  SinusoidCurve curve(int64_t index) const;

  const SinusoidOptions& options() const { return options_; }

 private:
  SinusoidOptions options_;
};

}  // namespace gimli::data
