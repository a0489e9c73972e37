#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/pimpl.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

struct LSTMOptimizerOptions {
  /// The factor 0.1 of Andrychowicz et al.
  LSTMOptimizerOptions(double lr = 0.1) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(int64_t, layers) = 2;
  TORCH_ARG(int64_t, hidden_size) = 20;
  /// p of log_and_sign.
  TORCH_ARG(double, p) = 10;
};

/// The preprocessing of Appendix A of Andrychowicz et al. 2016, [...] -> [..., 2]:
///
///     (log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g).
///
/// Its derivatives of any order are finite everywhere, at g = 0 too.
at::Tensor log_and_sign(const at::Tensor& gradient, double p);

/// LSTM layers and a linear one, from [coordinates, 2] to [coordinates]. The weights of the layers are those of
/// torch::nn::LSTM; the linear layer starts at 0. Throws if `layers` or `hidden_size` is below 1.
class CoordinateLSTMImpl final : public torch::nn::Cloneable<CoordinateLSTMImpl> {
 public:
  CoordinateLSTMImpl(int64_t layers, int64_t hidden_size);

  void reset() override;

  /// What it returns for `x`, and the state after it. A state is h and c of each layer, in the order
  /// h_1, c_1, h_2, c_2, ...: [coordinates, hidden_size] each. Throws if it has another number of tensors.
  std::tuple<at::Tensor, TensorList> forward(at::Tensor x, const TensorList& state);

  int64_t layers() const { return layers_; }
  int64_t hidden_size() const { return hidden_size_; }

 private:
  int64_t layers_, hidden_size_;
  std::vector<torch::nn::LSTMCell> cells_;
  torch::nn::Linear out_ = nullptr;
};
TORCH_MODULE(CoordinateLSTM);

/// Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016): the update is the output of a
/// recurrent network m with weights phi, the same for each coordinate, which has a state of its own (equation 3):
///
///     (u, h) <- m(log_and_sign(g), h; phi)
///     theta <- theta + lr u
///
///     LSTMOptimizer rule;
///     rule.network()->to(torch::kDouble);  // for float64 parameters
///     const auto problem = Bilevel(model, Optimizer(rule, model->parameters())).steps(20).inner(...).outer(...);
///     hypergradient(problem, rule.parameters());
///
/// The meta-parameters are phi, the network's, which copies of the rule share. Untrained, it leaves theta where it is.
/// The paper treats gradients as constants: Graph::first_order or Unroll::first_order().
///
/// The slots are the state that CoordinateLSTM describes. A group is one batch, with a row a coordinate. Throws if an
/// option is out of range, and, when it is given a parameter and at every update, if that has another type or device
/// than the network.
class LSTMOptimizer final : public UpdateRule {
 public:
  explicit LSTMOptimizer(LSTMOptimizerOptions options = {});

  std::string name() const override { return "LSTMOptimizer"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;
  void update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                  const std::vector<Values>& hyperparameters) const override;

  CoordinateLSTM network() const { return network_; }
  TensorList parameters() const { return network_->parameters(); }

 private:
  LSTMOptimizerOptions options_;
  CoordinateLSTM network_;
};

}  // namespace gimli::optim
