#pragma once

#include <torch/arg.h>
#include <torch/nn/modules/container/sequential.h>

#include <vector>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

struct MLPOptimizerOptions {
  MLPOptimizerOptions(double lr = 1e-3) : lr_(lr) {}
  TORCH_ARG(double, lr);
  /// Of the magnitude, in the exponent.
  TORCH_ARG(double, scale) = 1e-3;
  TORCH_ARG(int64_t, layers) = 2;
  TORCH_ARG(int64_t, hidden_size) = 32;
  /// beta_k of the momenta.
  TORCH_ARG(std::vector<double>, momenta) = {0.5, 0.9, 0.99, 0.999};
  /// beta of the second moment.
  TORCH_ARG(double, second_moment) = 0.999;
  /// tau_k of the time features.
  TORCH_ARG(std::vector<double>, timescales) = {1, 3, 10, 30, 100, 300, 1000, 3000, 10000};
  TORCH_ARG(double, eps) = 1e-5;
};

/// A multilayer perceptron for each coordinate, in the manner of Metz et al. 2019 (Understanding and correcting
/// pathologies in the training of learned optimizers) and 2020 (Tasks, stability, architecture, and compute), with t
/// counting updates from 1:
///
///     m_k <- beta_k m_k + (1 - beta_k) g                          for each of the momenta
///     v <- beta v + (1 - beta) g^2
///     x = [m_1, ..., m_K, g / sqrt(v / (1 - beta^t) + eps^2), g, theta], each divided by sqrt(mean(x^2) + eps^2), its
///         root mean square over the tensor, and tanh(t / tau_k - 1) for each of the timescales
///     (d, m) = MLP(x; phi)
///     theta <- theta - lr d exp(scale m)
///
/// The eps under the roots makes the features smooth where gradients or parameters are 0.
///
/// The meta-parameters are phi, the network's, which copies of the rule share: linear layers of `hidden_size` with a
/// ReLU after each, as many as `layers`, and a last one that starts at 0, so that the untrained rule leaves theta where
/// it is. The network is float to begin with: `rule.network()->to(torch::kDouble)` before a float64 loop starts.
///
/// The slots are m_1, ..., m_K and v. A group is one batch, with a row a coordinate. Throws if an option is out of
/// range, and, when it is given a parameter and at every update, if that has another type or device than the network.
class MLPOptimizer final : public UpdateRule {
 public:
  explicit MLPOptimizer(MLPOptimizerOptions options = {});

  std::string name() const override { return "MLPOptimizer"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;
  void update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                  const std::vector<Values>& hyperparameters) const override;

  torch::nn::Sequential network() const { return network_; }
  TensorList parameters() const { return network_->parameters(); }

 private:
  ParameterState moments(const at::Tensor& gradient, const ParameterState& state) const;
  /// [elements of theta, features]
  at::Tensor features(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& moments) const;

  MLPOptimizerOptions options_;
  torch::nn::Sequential network_;
};

}  // namespace gimli::optim
