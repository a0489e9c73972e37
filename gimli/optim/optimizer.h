#pragma once

#include <torch/optim/optimizer.h>

#include <initializer_list>
#include <memory>

#include "gimli/optim/hyperparameter.h"

namespace gimli::optim {

/// What an optimizer remembers about one parameter.
struct ParameterState {
  int64_t step = 0;  ///< updates made so far
  TensorList slots;  ///< e.g. the moments, in the rule's order; undefined where there is none yet
};

/// The same values in memory of their own, outside any graph.
ParameterState detached_copy(ParameterState state);

/// One parameter in the course of its updates.
struct Iterate {
  at::Tensor parameter;
  ParameterState state;
};

/// Where a hyperparameter makes sense. A number may also be the end 0; a tensor is not looked at.
enum class Domain {
  real,      ///< anywhere
  positive,  ///< above 0
  unit       ///< between 0 and 1
};

/// A continuous hyperparameter: its name, and the value it has unless a group says otherwise.
struct HyperparameterSpec {
  std::string name;
  double value;
  Domain domain;
};

/// A differentiable optimizer: a pure function from a parameter, its gradient, its state and the hyperparameters to the
/// new parameter and state (opt_t in equation 2 of the paper). Nothing is hidden, so autograd differentiates the update
/// with respect to every one of them. Thread-safe, since it is immutable.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;

  virtual std::string name() const = 0;

  /// The continuous hyperparameters, in the order in which update() takes them.
  virtual std::vector<HyperparameterSpec> hyperparameters() const = 0;

  /// The state of a parameter before its first update.
  virtual ParameterState init(const at::Tensor& parameter) const = 0;

  virtual Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                         const Values& hyperparameters) const = 0;

  /// Whether an update acts on each element by itself, so that tensors of several tasks, stacked along a first
  /// dimension, are updated like one.
  virtual bool is_elementwise() const { return false; }

  /// Updates several parameters of a group, each by `update`, unless a rule knows a faster way or sees them as one
  /// vector. An undefined gradient leaves its iterate as it is. `hyperparameters` has the values for each parameter.
  ///
  /// Tensors that nothing but `iterates` holds may be overwritten when no graph is recorded; all others never. If it
  /// throws, `iterates` are what they were.
  virtual void update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                          const std::vector<Values>& hyperparameters) const;
};

/// `update` for a rule that sees a group as one vector: update_all of one parameter.
Iterate update_alone(const UpdateRule& rule, const at::Tensor& parameter, const at::Tensor& gradient,
                     const ParameterState& state, const Values& hyperparameters);

/// What many rules start with. `count` slots of zeros like `parameter`:
TensorList zeros(const at::Tensor& parameter, int64_t count);
/// ... the gradient to descend, with its sign turned where the loss is to be maximised:
at::Tensor descent(const at::Tensor& gradient, bool maximize);
/// ... and with weight decay as the gradient of an L2 penalty: +-g + weight_decay theta.
at::Tensor descent(const at::Tensor& gradient, bool maximize, const Value& weight_decay, const at::Tensor& theta);
/// Or decoupled weight decay (Loshchilov & Hutter 2019): (1 - lr weight_decay) theta.
at::Tensor decayed(const at::Tensor& theta, const Value& lr, const Value& weight_decay);

/// Parameters that share a rule and its hyperparameters. Refuses parameters that are not of floating point, and numbers
/// outside of a hyperparameter's domain.
struct ParameterGroup {
  ParameterGroup(std::shared_ptr<const UpdateRule> rule, TensorList parameters);

  bool has(const std::string& name) const;
  HyperparameterSpec spec(const std::string& name) const;
  const Hyperparameter& value(const std::string& name) const;
  void set(const std::string& name, Hyperparameter value);

  /// The hyperparameters at `step` of an inner loop for each of those parameters that `indices` names, whose values are
  /// now `parameters`.
  std::vector<Values> values_at(int64_t step, const std::vector<size_t>& indices, const TensorList& parameters) const;

  std::shared_ptr<const UpdateRule> rule;
  TensorList parameters;               ///< the model's own tensors
  std::vector<ParameterState> states;  ///< of each parameter when an inner loop starts
  std::vector<std::string> names;      ///< of the hyperparameters, in the rule's order
  std::vector<Hyperparameter> values;  ///< likewise

  /// Refuses a value that does not fit.
  void check(const std::string& name, const Hyperparameter& value) const;

 private:
  size_t position_of(const std::string& name) const;
};

/// What an inner loop does with its gradients: parameter groups, each with its rule.
///
/// A torch::optim optimizer converts by itself, so `InnerLoop(model, torch_optimizer)` works. A rule can also be
/// applied to parameters directly: `Optimizer(SGD(SGDOptions(0.1).maximize(true)), parameters)`.
class Optimizer final {
 public:
  /// The differentiable form of a torch::optim optimizer whose type is registered: a copy of its groups, their options
  /// and its state. The optimizer itself is never modified.
  Optimizer(const torch::optim::Optimizer& optimizer);

  template <class Rule>
  requires std::is_base_of_v<UpdateRule, Rule> Optimizer(Rule rule, TensorList parameters) {
    groups_.emplace_back(std::make_shared<const Rule>(std::move(rule)), std::move(parameters));
  }

  /// Several optimizers on one model.
  Optimizer(std::initializer_list<Optimizer> optimizers) : Optimizer(std::vector<Optimizer>(optimizers)) {}
  explicit Optimizer(const std::vector<Optimizer>& optimizers);

  /// Sets a hyperparameter of every group that has it, or of one group. Give a tensor to learn it.
  Optimizer& set(const std::string& name, const Hyperparameter& value);
  Optimizer& set(size_t group, const std::string& name, Hyperparameter value);

  /// Sets what it remembers about `parameter` when an inner loop starts (the paper starts an inner Adam from the
  /// moments of the outer one). Throws if no group holds the parameter, or if the state is not of its rule and shape.
  Optimizer& start_from(const at::Tensor& parameter, ParameterState state);

  const std::vector<ParameterGroup>& groups() const { return groups_; }

 private:
  std::vector<ParameterGroup> groups_;
};

}  // namespace gimli::optim
