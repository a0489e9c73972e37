#pragma once

#include <torch/nn/modules/container/sequential.h>

#include "app/dataset.h"
#include "app/experiment.h"
#include "gimli/bilevel.h"

namespace gimli::app {

/// A loss that is learned (ML3: Bechtle et al. 2021, "Meta learning via learned loss"): a network L_phi takes the place
/// of the loss in the inner loop, from initial weights theta_0 that are drawn anew and not learned,
///
///     theta_k = theta_{k-1} - alpha dL_phi(f(x; theta_{k-1}), y) / dtheta, k = 1..K, on the support examples
///     phi     <- Adam(phi, d/dphi mean_k L(f(x'; theta_k), y')), with the task's plain loss L on the query examples
///
/// and in the end it alone trains networks on held-out tasks, from weights of their own and for more steps than K. The
/// baselines are the plain loss at the same rate alpha, and at the rate that is best on validation tasks.
///
/// The inner loop starts from one draw of weights in each iteration, which all of its tasks share.
ExperimentEntry learned_loss();

/// L_phi, the mean over examples of the sum over outputs of l_phi(u, t), where u is an output and t its target:
///
///     l_phi(u, t) = softplus(MLP([u, t]))
///
/// For targets that are classes, u is the log-probability of a class and t is 1 for the right one and 0 for others, so
/// that it does not matter in which order the classes come; cross-entropy is -t u. For others, u and t are what the
/// network and the task say; the squared error is (u - t)^2. All layers have a softplus between them where the source
/// has a ReLU: the hypergradient needs the second derivatives of l_phi, of which a ReLU's are 0.
class LossNetwork final {
 public:
  explicit LossNetwork(const std::vector<int64_t>& hidden);

  /// l_phi, element by element.
  at::Tensor values(const at::Tensor& outputs, const at::Tensor& targets) const;

  /// L_phi of a network's outputs [n, outputs] and targets [n, outputs], or of logits [n, classes] and classes [n].
  at::Tensor operator()(const at::Tensor& outputs, const at::Tensor& targets) const;

  /// phi
  NamedTensors parameters() const;

  torch::nn::Sequential layers;
};

/// A loss of outputs and targets.
using Loss = std::function<at::Tensor(const at::Tensor& outputs, const at::Tensor& targets)>;

/// SGD at `lr` on `loss` of a task's support examples; the outer value is the data set's score of the query examples.
/// `dataset` must outlive it.
Bilevel training_with(Loss loss, const Dataset& dataset, double lr);

/// `problem` from weights that are drawn for it: a function of `seed`.
Bilevel from_new_weights(Bilevel problem, const Dataset& dataset, uint64_t seed);

}  // namespace gimli::app
