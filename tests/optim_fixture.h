#pragma once

#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <numeric>

#include "gimli/gradcheck.h"
#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The numbers of optim_baselines.py: odd multiples of 1/32 between -0.75 and 0.75.
inline at::Tensor values(at::IntArrayRef sizes, int64_t offset) {
  const auto i = at::arange(c10::multiply_integers(sizes), at::kDouble);
  return ((2 * at::remainder(7 * i + 5 * offset, 23) - 23) / 32).reshape(sizes);
}

/// The same, pushed away from 0, where the derivatives of Adam's first updates are steep.
inline at::Tensor far_values(at::IntArrayRef sizes, int64_t offset) {
  const auto x = values(sizes, offset);
  return x + 0.5 * x.sign();
}

inline void expect_near(const at::Tensor& actual, const at::Tensor& expected, double relative) {
  ASSERT_EQ(actual.sizes(), expected.sizes());
  const auto error = (actual - expected).detach().abs().max().item<double>();
  EXPECT_LE(error, relative * expected.detach().abs().max().item<double>()) << actual << "\nexpected\n" << expected;
}

/// Parameters and states on their way through an optimizer's updates, outside any inner loop.
struct Course {
  explicit Course(Optimizer from) : optimizer(std::move(from)) {
    for (const auto& group : optimizer.groups()) {
      for (const auto& parameter : group.parameters) parameters.push_back(parameter.detach().clone());
      states.insert(states.end(), group.states.begin(), group.states.end());
    }
  }

  void update(const TensorList& gradients) {
    size_t i = 0;
    for (const auto& group : optimizer.groups()) {
      std::vector<size_t> indices(group.parameters.size());
      std::iota(indices.begin(), indices.end(), 0);
      std::vector<Iterate> iterates;
      for (const auto index : indices) iterates.push_back({parameters[i + index], states[i + index]});
      const TensorList now(parameters.begin() + i, parameters.begin() + i + indices.size());
      group.rule->update_all(iterates, TensorList(gradients.begin() + i, gradients.begin() + i + indices.size()),
                             group.values_at(step, indices, now));
      for (auto& [parameter, state] : iterates) {
        parameters[i] = std::move(parameter);
        states[i++] = std::move(state);
      }
    }
    ++step;
  }

  /// All parameters, and slots, as one number.
  at::Tensor total(bool with_slots = true) const {
    auto sum = at::zeros({}, at::kDouble);
    int64_t offset = 0;
    const auto add = [&](const at::Tensor& x) {
      if (x.defined()) sum = sum + (x * far_values(x.sizes(), offset++)).sum();
    };
    for (const auto& parameter : parameters) add(parameter);
    for (const auto& state : states) {
      if (!with_slots) break;
      for (const auto& slot : state.slots) add(slot);
    }
    return sum;
  }

  Optimizer optimizer;
  TensorList parameters;
  std::vector<ParameterState> states;
  int64_t step = 0;
};

inline TensorList requires_grad(TensorList list) {
  for (auto& tensor : list) tensor = tensor.detach().clone().requires_grad_();
  return list;
}

inline at::Tensor scalar(double value) { return at::scalar_tensor(value, at::kDouble).requires_grad_(); }

/// A model that is nothing but one parameter.
struct Point : torch::nn::Module {
  explicit Point(const at::Tensor& value) { theta = register_parameter("theta", value); }
  at::Tensor theta;
};

/// First and second derivatives, against central differences.
inline void expect_derivatives(const ScalarFunction& function, const TensorList& inputs,
                               GradcheckOptions options = {}) {
  const auto first = gradcheck(function, inputs, options);
  EXPECT_TRUE(first) << first.message;
  const auto second = gradgradcheck(function, inputs, options);
  EXPECT_TRUE(second) << second.message;
}

}  // namespace gimli::optim
