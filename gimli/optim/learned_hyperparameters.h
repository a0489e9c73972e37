#pragma once

#include <torch/arg.h>

#include <optional>

#include "gimli/optim/optimizer.h"
#include "gimli/substitution.h"

namespace gimli::optim {

/// What shares one value of a learned hyperparameter.
enum class Granularity { per_group, per_tensor, per_element };

struct LearnOptions {
  TORCH_ARG(Granularity, granularity) = Granularity::per_group;
  /// Values for each of so many steps, of which the last holds for all that follow; unset: one for all steps.
  TORCH_ARG(std::optional<int64_t>, steps);
  /// Where values may go; unset: where the hyperparameter makes sense (UpdateRule::hyperparameters).
  TORCH_ARG(std::optional<Domain>, domain);
};

/// Hyperparameters of an optimizer as named meta-parameters:
///
///     gimli::optim::Optimizer inner(torch_optimizer);
///     const auto learned = gimli::optim::learn(inner, {"lr", "beta1"});
///     auto outer = torch::optim::Adam(learned.tensors(), 1e-2);
///     ... hypergradient(Bilevel(model, inner), learned.tensors(), ...)
///     learned.copy_to(torch_optimizer);
///
/// The tensors are unconstrained: x itself, x with exp(x) for one that is positive, or x with 1 / (1 + exp(-x)) for one
/// between 0 and 1, so that no outer step can leave the domain. Each starts at the value that the optimizer has.
class LearnedHyperparameters final {
 public:
  /// The meta-parameters: leaves that require a gradient, with names as in "lr.0" (of group 0), and "lr.0.2" for
  /// elements of its parameter number 2. Shapes, with a leading [steps] if there is one value a step: [] per group,
  /// [parameters of the group] per tensor, that of the parameter per element. float64, or the parameter's dtype per
  /// element.
  const TensorList& tensors() const { return meta_parameters_.tensors; }
  const std::vector<std::string>& names() const { return meta_parameters_.names; }

  /// The values of the hyperparameters now, named and shaped alike, outside any graph.
  NamedTensors values() const;

  /// Writes the values into the options of a torch::optim optimizer with the groups that these were read from. It has
  /// one number a group: refuses values per step or element, and per tensor where a group has several tensors; and
  /// hyperparameters of another kind of optimizer. If it throws, nothing was written.
  void copy_to(torch::optim::Optimizer& optimizer) const;

 private:
  friend LearnedHyperparameters learn(Optimizer&, const std::vector<std::string>&, LearnOptions);

  struct Origin {
    size_t group;
    std::string rule, hyperparameter;
    Domain domain;
  };

  LearnOptions options_;
  NamedTensors meta_parameters_;
  std::vector<Origin> origins_;  // of each meta-parameter
};

/// Replaces the named hyperparameters, in every group that has them, by meta-parameters that start at their values.
/// Refuses a value that is not inside its domain (a momentum of 0, say): set another start, or give the domain `real`.
LearnedHyperparameters learn(Optimizer& optimizer, const std::vector<std::string>& hyperparameters,
                             LearnOptions options = {});

}  // namespace gimli::optim
