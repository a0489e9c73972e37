#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <string>
#include <vector>

#include "app/config.h"
#include "app/labelled_images.h"
#include "gimli/bilevel.h"

namespace gimli::app {

inline constexpr int64_t kImageClasses = 10;

/// What a training consists of besides its network, as tensors without bounds: the logarithm of what is positive, the
/// logit of what is between 0 and 1. Any of them can be learned: it is then a leaf that requires a gradient.
struct Recipe {
  LabelledImages examples;
  at::Tensor weight_logits;  ///< [n]; undefined: each example has weight 1
  at::Tensor log_rate;       ///< [], or [steps]: one for each step
  TensorList log_penalties;  ///< one [] for all parameters, or one for each that expands to it; none: no penalty
};

/// How the inner loop follows a recipe.
struct InnerTraining {
  int64_t steps;
  double momentum;
  int64_t batch;        ///< 0: all examples in each step
  uint64_t order_seed;  ///< of the batches
};

/// The inner loss on those of the recipe's examples that `rows` names, or on all if it is undefined,
///
///     mean_i sigmoid(s_i) l(x_i, y_i) + 1/2 sum_j exp(p_j) theta_j^2
///
/// for weight logits s, logarithms of penalties p, parameters theta and the cross-entropy l.
at::Tensor training_loss(torch::nn::Sequential network, const Recipe& recipe, const at::Tensor& rows = {});

/// The mean cross-entropy, and the part of the images whose class is the likeliest.
OuterValue score(torch::nn::Sequential network, const LabelledImages& images);

/// Training from the network's weights of now, by SGD with momentum at the rate exp(log_rate), as inner loop; the score
/// on `validation` is the outer value.
Bilevel training_problem(const torch::nn::Sequential& network, const Recipe& recipe, const InnerTraining& training,
                         const LabelledImages& validation);

/// What can be learned.
struct HyperparameterKind {
  std::string name;
  /// Whether the minimum of the inner loss depends on it, so that there is an implicit hypergradient.
  bool moves_minimum;
  /// Makes it a part of the recipe that is learned. Returns the learned tensors.
  NamedTensors (*learn)(Recipe& recipe, const Config& config, const torch::nn::Sequential& network);
};

const std::vector<HyperparameterKind>& hyperparameter_kinds();

/// A repetition of the experiment: images, initial weights and corrupted labels of its own.
struct Repetition {
  ImageParts parts;
  at::Tensor is_corrupted;  ///< bool, of the training images
  torch::nn::Sequential network;
  InnerTraining training;
  Recipe start;          ///< in numbers of the configuration
  Recipe recipe;         ///< likewise, but for what is learned
  NamedTensors learned;  ///< of the recipe
  LabelledImages real;   ///< of distillation: as many images as are learned, drawn from the training images

  Bilevel problem(const Recipe& other) const { return training_problem(network, other, training, parts.validation); }
};

Repetition make_repetition(const Config& config, const data::MnistData& data, int64_t index);

}  // namespace gimli::app
