// The optimizers as rows for the tests: how each is made from a baseline's options, and what it is like.

#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <numeric>
#include <set>

#include "expect.h"
#include "gimli/gimli.h"

namespace gimli::optim {

using TorchOptimizer = std::unique_ptr<torch::optim::Optimizer>;

// ---------------------------------------------------------------- what optim_baselines.py computes

/// Every hyperparameter, and the switches that are on.
using Options = std::map<std::string, double>;

struct DefaultBaseline {
  std::string optimizer;
  Options options;
};

struct UpdateBaseline {
  std::string optimizer;
  Options options;
  std::vector<std::vector<double>> parameters;           ///< all of them, flat, after 1, 2, 3 and 20 updates
  std::vector<std::vector<std::vector<double>>> states;  ///< the slots of each parameter, flat, after 3 updates
};

struct Derivative {
  std::string of;       ///< a hyperparameter, or the first element of a weight
  double value, error;  ///< the error is an estimate
};

struct LoopBaseline {
  std::string optimizer;
  Options options;
  double outer_loss;
  std::vector<Derivative> derivatives;
};

extern const std::vector<DefaultBaseline> default_baselines;  ///< of torch.optim's constructors
extern const std::vector<UpdateBaseline> update_baselines;
extern const std::vector<UpdateBaseline> rounded_baselines;  ///< computed in bfloat16 in part
extern const std::vector<LoopBaseline> loop_baselines;

// ---------------------------------------------------------------- the table

inline bool has(const Options& options, const std::string& name) { return options.count(name) > 0; }

struct Family {
  std::function<Optimizer(const Options&, TensorList)> make;
  /// libtorch's own, where it has one, with two parameter groups if it takes as many: the first parameter, and the
  /// others with different options.
  std::function<TorchOptimizer(const Options&, const TensorList&)> make_torch = {};
  /// The shapes of parameters it likes to be tested on.
  std::vector<std::vector<int64_t>> shapes = {{3, 2}, {2}, {1, 2, 2, 1}};
  /// Hyperparameters that are one value a tensor.
  std::set<std::string> scalar_only = {};
  /// Whether a gradient acts by its sign: at 0 the update jumps.
  bool signs = false;
  /// Hyperparameters whose derivative is 0, since they act within a sign.
  std::set<std::string> flat = {};
};

extern const std::map<std::string, Family> families;

MuonOptions muon_options(const Options& from);

/// What `scale` of a hyperparameter's change is about as large as the hyperparameter, or as its distance to 1.
inline double unit_of(double value) {
  const double distance = std::abs(1 - value);
  if (value > 0 && value < 1) return std::min(value, distance);
  return value == 1 ? 1 : distance;
}

/// Whether the update has a kink where a hyperparameter has this value. Adafactor clips rms(u) at d = 1, and the u of a
/// first update is a sign.
inline bool at_kink(const std::string& name, double value) { return name == "d" && value == 1; }

/// The same where a gradient is 0: a sum of squares begins under a root.
inline bool at_kink_of_zero(const std::string& name, double value) {
  return at_kink(name, value) || (name == "initial_accumulator_value" && value == 0);
}

template <class Baseline>
std::string title(const Baseline& row) {
  auto text = row.optimizer;
  for (const auto& [name, value] : row.options) text += c10::str(" ", name, " ", value);
  return text;
}

/// The numbers of optim_baselines.py: odd multiples of 1/32 between -0.75 and 0.75.
inline at::Tensor values(at::IntArrayRef sizes, int64_t offset) {
  const auto i = at::arange(c10::multiply_integers(sizes), at::kDouble);
  return ((2 * at::remainder(7 * i + 5 * offset, 23) - 23) / 32).reshape(sizes);
}

/// The same, pushed away from 0, where the derivatives of first updates are steep.
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

/// The inner loop of optim_baselines.py. Muon adapts the matrices alone.
struct Loop {
  explicit Loop(const LoopBaseline& row, at::Tensor (*activation)(const at::Tensor&) = at::tanh)
      : net(torch::nn::Linear(2, 3), torch::nn::Functional(activation), torch::nn::Linear(3, 1)),
        steps(has(row.options, "steps") ? static_cast<int64_t>(row.options.at("steps")) : 5) {
    net->to(at::kDouble);
    torch::NoGradGuard no_gradient;
    TensorList adapted;
    for (size_t i = 0; i < 4; ++i) {
      auto parameter = net->parameters()[i];
      parameter.copy_(values(parameter.sizes(), 5 + i));
      if (parameter.dim() == 2 || row.optimizer != "Muon") adapted.push_back(parameter);
    }
    const auto& family = families.at(row.optimizer);
    optimizer = std::make_unique<Optimizer>(family.make(row.options, adapted));
    for (const auto& name : optimizer->groups()[0].names) {
      if (row.optimizer != "ASGD" || name != "t0") names.push_back(name);  // it acts on the average alone
    }
  }

  /// Makes every hyperparameter a tensor, and returns them, in the order of `names`.
  TensorList learn_hyperparameters(const Options& options) {
    TensorList result;
    for (const auto& name : names) {
      result.push_back(scalar(options.at(name)));
      optimizer->set(name, result.back());
    }
    return result;
  }

  at::Tensor loss(int64_t x, int64_t y) { return at::mse_loss(net->forward(values({5, 2}, x)), values({5, 1}, y)); }

  Bilevel problem() {
    return Bilevel(net, *optimizer).steps(steps).inner([this] { return loss(1, 2); }).outer([this] {
      return loss(3, 4);
    });
  }

  torch::nn::Sequential net;
  int64_t steps;
  std::unique_ptr<Optimizer> optimizer;
  std::vector<std::string> names;
};

}  // namespace gimli::optim
