#pragma once

#include <functional>
#include <optional>

#include "app/experiment.h"
#include "app/optimizees.h"
#include "gimli/bilevel.h"

namespace gimli::app {

/// Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016): an LSTM m with weights phi
/// that is the optimizer of every coordinate of theta (optim::LSTMOptimizer), learned on a distribution of problems f.
///
///     theta_{t+1}, h_{t+1} = theta_t + 0.1 u, h    where (u, h) = m(df_t(theta_t), h_t; phi)
///     meta-loss            = mean over problems and the steps of a segment of f_t(theta_t)
///     phi                  <- Adam(phi, d meta-loss / d phi)
///
/// An iteration draws new problems and takes `horizon` steps on each, cut into segments of `unroll` steps: each has one
/// meta-update, and the next goes on from its weights and its LSTM's state as constants (truncated backpropagation).
///
/// It is compared with optimizers designed by hand, each at the rate of a grid that leads to the least mean loss on
/// validation problems after `horizon` steps, on held-out problems and for more steps than it was trained for.
ExperimentEntry learned_optimizer();

/// Steps `begin` to `begin + steps` - 1 of a trajectory, and as its meta-loss the mean of the losses after each of
/// them. The result keeps its final state.
Bilevel segment(const Optimizee& optimizee, optim::Optimizer optimizer, int64_t begin, int64_t steps);

/// The losses before each of `steps` steps and after the last, float64 [problems, steps + 1]. A problem that diverges
/// does not disturb its neighbors: its losses are not finite from there on. Nothing if `go_on` says so between steps.
std::optional<at::Tensor> losses_of(const Optimizee& optimizee, const optim::Optimizer& optimizer, int64_t steps,
                                    const std::function<bool()>& go_on);

/// `count` rates from `lowest` to `highest`, each the same number of times the one before.
std::vector<double> rate_grid(double lowest, double highest, int64_t count);

}  // namespace gimli::app
