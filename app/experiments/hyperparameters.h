#pragma once

#include "app/experiment.h"

namespace gimli::app {

/// Hyperparameters that are learned by the gradient of a validation loss (Bengio 2000, Maclaurin et al. 2015, Luketina
/// et al. 2016, Franceschi et al. 2017 and 2018; Wang et al. 2018 for distillation), on Fashion-MNIST:
///
///     theta_k = SGD(theta_{k-1}, dL(theta_{k-1}; phi)), k = 1..K, from given weights, on training images
///     phi     <- Adam(phi, d validation loss(theta_K) / d phi)
///
/// L is `training_loss`. One of these is learned:
///
///     learning-rate    SGD's rate
///     step-rates       a rate for each step
///     weight-decay     the factor of an L2 penalty
///     l2               a penalty for each parameter
///     data-weights     a weight of [0, 1] for each training image, some of whose labels are wrong
///     distillation     the pixels of a few images, which are all that is trained on, and the rate
///
/// Each is learned without bounds, as its logarithm or logit. The hypergradient is exact (replay, unroll), or the
/// implicit one, for those on which the minimum of L depends. `seeds` repetitions differ in images and initial weights.
ExperimentEntry hyperparameters();

}  // namespace gimli::app
