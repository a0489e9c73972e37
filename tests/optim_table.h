// The optimizers as rows for the tests: how each is made from a baseline's options, and what it is like.

#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>

#include "expect.h"
#include "gimli/gimli.h"
#include "optim_fixture.h"

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
      const bool of_average = row.optimizer == "ASGD" && name == "t0";
      if (!of_average && !at_kink(name, row.options.at(name))) names.push_back(name);
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

  /// Likewise, as the x = 0 of value + unit x: differences are in proportion to the values.
  TensorList learn_scaled(const Options& options) {
    TensorList result;
    for (const auto& name : names) {
      const double value = options.at(name);
      const auto x = scalar(0);
      result.push_back(x);
      optimizer->set(name, [=](int64_t) { return value + unit_of(value) * x; });
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
