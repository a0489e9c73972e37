#pragma once

#include <torch/torch.h>

#include <string>
#include <vector>

#include "gimli/gimli.h"

namespace gimli {

/// A task of three classes.
struct Classification {
  at::Tensor x, y, x_query, y_query;
};

/// A small model, and what can be learned around it: a learning rate, weights of examples, a loss network, and initial
/// weights. Data are those of float64, rounded, in other types.
struct Learner {
  /// `forward` maps [n, input_sizes...] to [n, 3].
  Learner(std::shared_ptr<torch::nn::Module> module, std::function<at::Tensor(const at::Tensor&)> forward,
          std::vector<int64_t> input_sizes);

  void to(at::ScalarType type);

  /// Four steps, each on the examples in another order.
  Bilevel problem(optim::Optimizer optimizer) const;
  std::vector<Classification> tasks(int count) const;

  /// What acts in every step.
  TensorList hyperparameters() const;
  /// These and the initial value of the last bias.
  TensorList meta_parameters() const;
  /// These and all initial weights.
  TensorList all_meta_parameters() const;

  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor&)> forward;
  std::vector<int64_t> input_sizes;
  at::Tensor lr, weights;
  torch::nn::Linear loss_network;
};

struct Network {
  std::string name;
  std::function<Learner()> make;
};

/// An MLP, a convolution with batch norm in train(), an LSTM and a transformer block, both with dropout; all smooth.
extern const std::vector<Network> networks;

Learner mlp_learner();

struct InnerOptimizer {
  std::string name;
  double lr;
  std::function<optim::Optimizer(const TensorList&)> make;
};

extern const std::vector<InnerOptimizer> inner_optimizers;

/// A network trained by an optimizer, in float64 or float32.
struct Pairing {
  const Network& network;
  const InnerOptimizer& optimizer;
  at::ScalarType dtype;

  std::string name() const;
  /// With the optimizer's learning rate, drawn from a fixed seed.
  Learner learner() const;
};

/// All networks with all optimizers.
std::vector<Pairing> pairings();

/// A problem with the meta-parameters in which it is to be differentiated.
struct ProblemRow {
  std::string name;
  Bilevel problem;
  TensorList meta_parameters;
  std::vector<Classification> tasks;
};

/// Each network with SGD with momentum and with Adam; then, on the MLP, everything else that a problem can ask for.
std::vector<ProblemRow> problem_table();

/// |a - b| / |b| of two lists, each taken as one vector; infinite if one has a tensor where the other has none.
double relative_error(const TensorList& a, const TensorList& b);

}  // namespace gimli
