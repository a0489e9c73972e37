#pragma once

#include "app/experiment.h"

namespace gimli::app {

/// MAML++ (Antoniou et al. 2018, "How to train your MAML") as section 5.2 of the paper varies it: any network, SGD or
/// Adam as the inner optimizer, and batch statistics everywhere in the place of a normalization for each step, which is
/// an option.
///
///     outer loss      sum_k w_k L(theta_k) over the inner steps k = 1..K in the first epochs (step_loss_weights), then
///                     L(theta_K)
///     inner SGD       a learned rate for each tensor and step
///     inner Adam      starts from the moments of the outer Adam; a learned rate, beta1 and beta2 for each tensor
///     outer Adam      its rate annealed by a cosine from epoch to epoch
///     derivatives     of first order in the first epochs, if so set; then of second order
///
/// After each epoch the held-out validation classes are adapted to; the weights of the best epochs are kept, and at the
/// end their logits are averaged on the test classes.
ExperimentEntry maml_plus_plus();

/// The weights w_1, ..., w_K of the outer losses after each of K inner steps in an epoch, counted from 0, when the
/// annealing takes `epochs`: equal to begin with, the last one growing at the cost of the others, which stay at least
/// 0.03 / K. They sum to 1.
std::vector<double> step_loss_weights(int64_t steps, int64_t epoch, int64_t epochs);

}  // namespace gimli::app
