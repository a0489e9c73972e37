#pragma once

#include <torch/arg.h>

#include "gimli/hypergradient/strategy.h"

namespace gimli {

struct EvolutionOptions {
  /// The standard deviation of perturbations, in the units of the meta-parameters and the same for all of them. A
  /// larger one smooths more and is further from the gradient; a smaller one loses digits in L(phi + e) - L(phi - e).
  TORCH_ARG(double, sigma) = 0.01;
  /// Antithetic pairs, each of which runs two inner loops.
  TORCH_ARG(int64_t, pairs) = 16;
  /// Steps between fresh perturbations; unset: one perturbation for the whole loop.
  TORCH_ARG(std::optional<int64_t>, window);
};

/// The gradient of the smoothed outer value E L(phi + e), e ~ N(0, sigma^2 I), estimated from values of L alone
/// (evolution strategies, Salimans et al. 2017). With N pairs of inner loops,
///
///     g = 1 / (2 N sigma^2) sum_i e_i (L(phi + e_i) - L(phi - e_i))
///
/// Nothing is differentiated but the inner losses by the weights: outer losses and updates may have steps, have no
/// derivative, or be chaotic in phi. It is right on average, E g = grad E L(phi + e), which for quadratic L is grad
/// L(phi) and otherwise differs from it by sigma^2 / 2 grad(laplacian L) + O(sigma^4). For linear L,
///
///     variance of g_j = (|grad L|^2 + (grad L)_j^2) / N
///
/// so it is for few meta-parameters, or for many pairs.
///
/// With a window of K steps, a loop goes on with a fresh e^w in its w-th window, and L is the sum over windows of L^w,
/// the outer losses after steps k with (w - 1) K < k <= w K; one before the first step belongs to the first window.
/// L^w depends on all perturbations up to its own, so that (persistent evolution strategies, Vicol et al. 2021)
///
///     g = 1 / (2 N sigma^2) sum_i sum_w xi_i^w (L^w(phi + e_i) - L^w(phi - e_i)),    xi^w = e^1 + ... + e^w
///
/// is unbiased for the gradient of E L, every window having an e of its own: without the sum in xi, what windows do to
/// the losses of later ones would be missing. Its variance depends on the problem. If phi acts on the losses of its own
/// window alone, with slopes s_w, that of a pair is sum_w (w + 1) s_w^2 in place of 2 (sum_w s_w)^2: up to 4 times less
/// where they agree, and growing with the number of windows where they cancel. A window in which a meta-parameter is
/// not read leaves its xi alone.
///
/// Perturbed values are put in the place of the meta-parameters by a Substitution, and no tensor is written to; what
/// that refuses inside an inner loop (a view of a weight from before it), it refuses here for every meta-parameter.
/// Dropout and other noise of the closures is the same in all loops. A perturbed learning rate may be negative and the
/// loop diverge, which throws as it does elsewhere: lower sigma, or perturb its logarithm (optim::learn).
///
/// A task runs 2 N + 1 inner loops, with no graph and at most three states in memory; outer_loss, auxiliary and
/// final_state are those of the loop at phi itself.
class Evolution final : public Strategy {
 public:
  explicit Evolution(EvolutionOptions options = {});

  std::string name() const override;
  /// Refuses stop_gradient_before, which no perturbation would heed; likewise, a detach() in a closure stops nothing.
  std::string one_task_because() const override { return "its pairs are drawn for one task"; }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  EvolutionOptions options_;
};

}  // namespace gimli
