#pragma once

#include <torch/arg.h>

#include "gimli/hypergradient.h"

namespace gimli {

struct GradcheckOptions {
  /// Of the central differences.
  TORCH_ARG(double, step) = 1e-5;
  /// A derivative passes if |analytic - numeric| <= absolute + relative |numeric|.
  TORCH_ARG(double, absolute) = 1e-7;
  TORCH_ARG(double, relative) = 1e-6;
};

struct GradcheckReport {
  bool passed = true;
  double worst_error = 0;  ///< largest |analytic - numeric| of all elements
  std::string message;     ///< the element that misses its bound by most, in words; empty if all pass

  explicit operator bool() const { return passed; }
};

/// A scalar function of tensors.
using ScalarFunction = std::function<at::Tensor(const TensorList& inputs)>;

/// Compares autograd's gradient of `function` at `inputs` with central differences, element by element. Inputs are
/// float64; those that do not require a gradient are constants. An input on which the function does not depend has
/// gradient 0.
GradcheckReport gradcheck(const ScalarFunction& function, const TensorList& inputs, GradcheckOptions options = {});

/// The same for second derivatives: gradcheck of the gradient's product with a fixed random direction.
GradcheckReport gradgradcheck(const ScalarFunction& function, const TensorList& inputs, GradcheckOptions options = {});

/// Compares a strategy's hypergradient with central differences of the outer loss, all with the same random numbers.
/// The meta-parameters are perturbed in place and are what they were when it returns or throws.
GradcheckReport gradcheck(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks = {},
                          const Strategy& strategy = Unroll(), GradcheckOptions options = {});

}  // namespace gimli
