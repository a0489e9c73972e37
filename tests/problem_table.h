#pragma once

#include <torch/torch.h>

#include <string>
#include <vector>

#include "gimli/hypergradient.h"

namespace gimli {

/// A task of three classes.
struct Classification {
  at::Tensor x, y, x_query, y_query;
};

/// A small model in float64, and what can be learned around it: a learning rate, weights of examples, a loss network,
/// and initial weights.
struct Learner {
  /// `forward` maps [n, input_sizes...] to [n, 3].
  Learner(std::shared_ptr<torch::nn::Module> module, std::function<at::Tensor(const at::Tensor&)> forward,
          std::vector<int64_t> input_sizes);

  Bilevel problem(optim::Optimizer optimizer) const;
  std::vector<Classification> tasks(int count) const;

  /// What acts in every step.
  TensorList hyperparameters() const;
  /// These and the initial value of the last bias.
  TensorList meta_parameters() const;

  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor&)> forward;
  std::vector<int64_t> input_sizes;
  at::Tensor lr, weights;
  torch::nn::Linear loss_network;
};

Learner mlp_learner();

/// A problem with the meta-parameters in which it is to be differentiated.
struct ProblemRow {
  std::string name;
  Bilevel problem;
  TensorList meta_parameters;
  std::vector<Classification> tasks;
};

/// Four steps of SGD with momentum and of Adam on an MLP, a convolution with batch norm in train(), an LSTM, and layer
/// norm with dropout; then, on the MLP, everything else that a problem can ask for.
std::vector<ProblemRow> problem_table();

/// |a - b| / |b| of two lists, each taken as one vector.
double relative_error(const TensorList& a, const TensorList& b);

}  // namespace gimli
