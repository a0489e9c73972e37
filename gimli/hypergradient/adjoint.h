#pragma once

#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// cotangents^T d outputs / d inputs; undefined for inputs on which no output depends, and for those that are undefined
/// or not recorded. Outputs without a cotangent count as 0.
TensorList vjp(const TensorList& outputs, const TensorList& cotangents, const TensorList& inputs,
               bool keep_graph = false, bool create_graph = false);

/// The tensors of a state that an inner loop changes, in one list: adapted parameters (frozen ones are undefined
/// there), the slots of each parameter, buffers.
TensorList tensors_of(const InnerState& state);

/// The same state with adapted parameters and slots as leaves that require a gradient: where a piece of an inner loop
/// that is differentiated on its own begins. Memory is shared.
InnerState as_leaves(const InnerState& state);

/// Refuses, by a strategy's name, a step that wrote to a buffer what depends on the weights: buffers are not among the
/// leaves, so its gradient would be lost in the next step.
void refuse_graph_in_buffers(const Bilevel& problem, const InnerState& after, const std::string& name);

/// Where a meta-parameter stands among the model's parameters, or nothing.
std::optional<size_t> position_in(const ModelTensors& model, const at::Tensor& meta_parameter);

/// The whole inner loop of `task` and its outer losses, without a graph and without gradients.
Strategy::TaskResult run_without_graph(const Bilevel& problem, const TaskRef& task);

/// Where `task` is after `steps` steps without a graph, for strategies that differentiate what comes then. Refuses, by
/// the strategy's name, outer losses before.
InnerState run_to(int64_t steps, const Bilevel& problem, const TaskRef& task, const std::string& name);

/// `state` as constants, but for parameters that no step has moved since `start`: these are what they are there, with
/// their graph.
InnerState cut_from(const InnerState& start, const InnerState& state);

/// An outer value at a state, and its gradients.
struct OuterGradient {
  OuterValue value;
  TensorList state;            ///< dL/d tensors_of(state); undefined where L does not depend on them
  TensorList meta_parameters;  ///< dL/dphi at a fixed state, likewise
};

OuterGradient outer_gradient(const Bilevel& problem, const TensorList& meta_parameters, const TaskRef& task,
                             const InnerState& state);

/// Reverse accumulation through an inner loop, piece by piece from its end to its start: the cotangent of the state
/// where it is, lambda_k = dL/dS_k, and what the pieces behind it contribute to the gradients of the meta-parameters
/// phi,
///
///     lambda_k = lambda_{k+1} dS_{k+1}/dS_k + dL_k/dS_k,    dL/dphi += lambda_{k+1} dS_{k+1}/dphi + dL_k/dphi
///
/// (lines 8 to 14 of the paper's Algorithm 1 with one step in memory at a time). It makes no difference how the states
/// come about: kept, recomputed or reconstructed.
class Adjoint final {
 public:
  /// All of them outlive it; `name` is the strategy's, for errors.
  Adjoint(const Bilevel& problem, const TensorList& meta_parameters, const TaskRef& task, std::string name);

  /// The outer loss at `state`, if the problem has one after so many steps. To begin with, at the last state.
  void add_outer(const InnerState& state);

  /// Through the step that begins at `before`, which is run and recorded, and then the outer loss there. Only one graph
  /// is in memory at a time.
  struct Step {
    at::Tensor loss;
    InnerState after;
  };
  Step pull_back(const InnerState& before);

  /// Through any recorded piece from `leaves` to the state `after`, of which the cotangent is here.
  void pull_back(const TensorList& leaves, const InnerState& after);

  /// Whether nothing is left to pull back from the state after `step` steps to the start.
  bool vanishes_at(int64_t step) const;

  /// Through the start as a function of the meta-parameters. Its cost is that of the pieces.
  Strategy::TaskResult finish();
  /// The same, where the pieces begin at `first`, a function of the meta-parameters.
  Strategy::TaskResult finish(const InnerState& first);

 private:
  const Bilevel& problem_;
  const TensorList& meta_parameters_;
  const TaskRef& task_;
  const std::string name_;
  TensorList cotangent_;  // of tensors_of(state); empty if it is 0
  TensorList gradients_;
  std::vector<OuterValue> outer_values_;  // from the last to the first
  InnerState final_state_;
  TaskCost cost_;
};

}  // namespace gimli
