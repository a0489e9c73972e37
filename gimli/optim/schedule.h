#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "gimli/optim/hyperparameter.h"

namespace gimli::optim {

/// A hyperparameter that follows the inner loop: its value at each step t, counted from 0. A Hyperparameter takes one,
/// and any other function of the step:
///
///     auto start = torch::tensor(0.1, torch::requires_grad());
///     optimizer.set("lr", linear_warmup(cosine(start, 0, 90), 10, 0));
///
/// What is continuous in the schedules below is a Value, so that it can be learned: give a leaf tensor that requires a
/// gradient, 0-dimensional or of a shape that a hyperparameter may have. What is computed from it is computed anew at
/// every step; a tensor that was computed outside would have its graph freed by the first backward pass. Each function
/// refuses a number that is not finite or out of range, an undefined tensor and one that is not of floating point.
using Schedule = std::function<Value(int64_t step)>;

/// start
Schedule constant(Value start);

/// start factor^floor(t / period), as torch.optim's StepLR. Throws if `period` is below 1.
Schedule step_decay(Value start, int64_t period, Value factor);

/// start factor^(number of milestones <= t), as torch.optim's MultiStepLR. Throws if the milestones are negative or not
/// in ascending order; one that is there twice counts twice.
Schedule multi_step(Value start, std::vector<int64_t> milestones, Value factor);

/// start factor^t, as torch.optim's ExponentialLR.
Schedule exponential_decay(Value start, Value factor);

/// end + (start - end) (1 + cos(pi t / steps)) / 2, as torch.optim's CosineAnnealingLR (Loshchilov & Hutter 2017), and
/// `end` from t = steps on. Throws if `steps` is below 1.
Schedule cosine(Value start, Value end, int64_t steps);

/// after(0) (start_factor + (1 - start_factor) t / steps) before t = steps, as torch.optim's LinearLR, and
/// after(t - steps) from then on: `after` begins when the warm-up is over. Throws if `steps` is negative, `after` is
/// empty or `start_factor` is a number outside of [0, 1].
Schedule linear_warmup(Schedule after, int64_t steps, Value start_factor);

}  // namespace gimli::optim
