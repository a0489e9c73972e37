#pragma once

#include <torch/data/example.h>
#include <torch/optim/sgd.h>

#include "app/experiment.h"
#include "gimli/bilevel.h"
#include "gimli/nn/densenet.h"

namespace gimli::app {

/// Learning rates that are learned while a network trains (section 5.1 of the paper): DenseNet-BC on CIFAR-10 by SGD,
/// every tensor of its parameters with a rate alpha_i of its own. After each epoch, one meta-update:
///
///     (theta_0, b_0)   copies of the weights and momentum buffers of now
///     theta_k, b_k     = SGD(theta_{k-1}, b_{k-1}, dL_k(theta_{k-1}); alpha), k = 1..K, on batches of training images
///     meta-loss        mean over M batches of validation images of L(theta_K)
///     alpha            <- Adam(alpha, d meta-loss / d alpha)
///
/// Training goes on from the weights of now: of the inner loop, only the new rates are kept. The rates themselves are
/// learned, not their logarithms, so that one can become negative. The validation images are taken from the training
/// images, 1 of 100.
///
/// The baselines train on all of the training images: at a fixed rate, and at one that is divided by 10 after 1/2 and
/// 3/4 of the epochs. With the same seed, the three methods begin with the same weights.
ExperimentEntry learning_rates();

/// Indices of training images: those that the learned rates are validated on are 1 of 100, rounded, and at least one.
struct Split {
  std::vector<int64_t> training, validation;
};

int64_t validation_size(int64_t images);

/// A random split of `images` training images.
Split split(uint64_t seed, int64_t images);

/// What a meta-update sees: float images [n, 3, 32, 32] and their classes, a batch for each inner step, and those of
/// the meta-loss.
struct MetaBatches {
  std::vector<torch::data::Example<>> training, validation;
};

/// The meta-update's inner loop and meta-loss; tasks are MetaBatches. `inner` is SGD with the rates that are learned;
/// the loop starts from the network's weights and the momentum buffers of `sgd`. Normalizations use the statistics of
/// the batch, in the meta-loss too, as long as the network is in train().
Bilevel meta_problem(const nn::DenseNet& network, optim::Optimizer inner, const torch::optim::SGD& sgd, int64_t steps);

}  // namespace gimli::app
