// The problems on which strategies are compared: networks, optimizers, outer losses, every kind of meta-parameter.

#pragma once

#include <torch/torch.h>

#include "gimli/gimli.h"

namespace gimli {

struct Examples {
  at::Tensor x, y, x_query, y_query;
};

/// A network [n, ...] -> [n, 2].
struct Network {
  std::string name;
  std::vector<int64_t> input;  ///< shape of one example
  std::function<std::shared_ptr<torch::nn::Module>()> make;
  std::function<at::Tensor(torch::nn::Module&, const at::Tensor&)> forward;
};

extern const std::vector<Network> networks;
const Network& network(const std::string& name);

struct InnerOptimizer {
  std::string name;
  std::function<optim::Optimizer(const TensorList&)> make;
};

extern const std::vector<InnerOptimizer> inner_optimizers;
const InnerOptimizer& inner_optimizer(const std::string& name);

/// A problem in which the outer loss depends on initial weights, learning rates, a loss network and weights of
/// examples.
class StrategyProblem final {
 public:
  StrategyProblem(const Network& network, const InnerOptimizer& optimizer, at::ScalarType dtype = at::kDouble,
                  int task_count = 1);

  Bilevel bilevel(int64_t steps) const;

  /// Initial weights, loss network, learning rate, weights of examples.
  TensorList meta_parameters() const;
  /// The last two.
  TensorList few_meta_parameters() const { return {lr, example_weights}; }

  std::shared_ptr<torch::nn::Module> model;
  std::vector<Examples> tasks;
  at::Tensor lr, example_weights;
  TensorList loss_network;

 private:
  Network network_;
  InnerOptimizer optimizer_;
};

/// |a - b| / |b| of all tensors as one vector; infinite if one has a tensor where the other has none.
double relative_difference(const TensorList& a, const TensorList& b);

}  // namespace gimli
