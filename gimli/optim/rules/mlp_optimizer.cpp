#include "gimli/optim/rules/mlp_optimizer.h"

#include <ATen/ATen.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "gimli/optim/rules/coordinates.h"

namespace gimli::optim {
namespace {

void check(const MLPOptimizerOptions& options) {
  const auto moment = [](double beta) { return beta >= 0 && beta < 1; };
  const auto positive = [](double x) { return x > 0; };
  const auto all = [](const std::vector<double>& list, const auto& is) {
    return std::all_of(list.begin(), list.end(), is);
  };
  TORCH_CHECK(options.layers() >= 1 && options.hidden_size() >= 1,
              "MLPOptimizer: expected at least 1 layer and a hidden size of at least 1, got ", options.layers(),
              " and ", options.hidden_size());
  TORCH_CHECK(all(options.momenta(), moment), "MLPOptimizer: expected momenta from 0 to below 1, got ",
              options.momenta());
  TORCH_CHECK(moment(options.second_moment()), "MLPOptimizer: expected a second moment from 0 to below 1, got ",
              options.second_moment());
  TORCH_CHECK(all(options.timescales(), positive), "MLPOptimizer: expected timescales above 0, got ",
              options.timescales());
  TORCH_CHECK(positive(options.eps()), "MLPOptimizer: expected eps above 0, got ", options.eps());
}

torch::nn::Sequential network_for(const MLPOptimizerOptions& options) {
  check(options);
  torch::nn::Sequential network;
  auto size = static_cast<int64_t>(3 + options.momenta().size() + options.timescales().size());
  for (int64_t layer = 0; layer < options.layers(); ++layer) {
    network->push_back(torch::nn::Linear(std::exchange(size, options.hidden_size()), options.hidden_size()));
    network->push_back(torch::nn::ReLU());
  }
  torch::nn::Linear last(size, 2);
  for (auto& weight : last->parameters()) torch::nn::init::zeros_(weight);
  network->push_back(last);
  return network;
}

}  // namespace

MLPOptimizer::MLPOptimizer(MLPOptimizerOptions options) : options_(options), network_(network_for(options)) {}

std::vector<HyperparameterSpec> MLPOptimizer::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive}, {"scale", options_.scale(), Domain::positive}};
}

ParameterState MLPOptimizer::init(const at::Tensor& parameter) const {
  check_network(name(), *network_, parameter);
  return {0, zeros(parameter, static_cast<int64_t>(options_.momenta().size()) + 1)};
}

ParameterState MLPOptimizer::moments(const at::Tensor& g, const ParameterState& state) const {
  ParameterState next{state.step + 1, {}};
  for (size_t k = 0; k < options_.momenta().size(); ++k) {
    next.slots.push_back(moving_average(options_.momenta()[k], state.slots[k], g));
  }
  next.slots.push_back(moving_average(options_.second_moment(), state.slots.back(), g * g));
  return next;
}

at::Tensor MLPOptimizer::features(const at::Tensor& theta, const at::Tensor& g, const ParameterState& moments) const {
  const auto t = static_cast<double>(moments.step);
  const auto squared_eps = options_.eps() * options_.eps();
  const auto v = moments.slots.back() / (1 - std::pow(options_.second_moment(), t));

  auto columns = moments.slots;
  columns.back() = g / (v + squared_eps).sqrt();
  columns.insert(columns.end(), {g, theta});
  for (auto& x : columns) x = (x / (x.square().mean() + squared_eps).sqrt()).reshape(-1);
  for (const auto tau : options_.timescales()) columns.push_back(at::full_like(columns[0], std::tanh(t / tau - 1)));
  return at::stack(columns, 1);
}

Iterate MLPOptimizer::update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                             const Values& hyperparameters) const {
  return update_alone(*this, parameter, gradient, state, hyperparameters);
}

void MLPOptimizer::update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                              const std::vector<Values>& hyperparameters) const {
  const Coordinates coordinates(iterates, gradients);
  if (coordinates.used().empty()) return;
  auto next = iterates;
  for (const auto i : coordinates.used()) {
    check_network(name(), *network_, iterates[i].parameter);
    next[i].state = moments(gradients[i], iterates[i].state);
  }
  const auto x =
      coordinates.join([&](size_t i) { return features(iterates[i].parameter, gradients[i], next[i].state); });
  auto network = network_;
  const auto output = network->forward(x).unbind(1);
  const auto d = coordinates.split(output[0]), m = coordinates.split(output[1]);
  for (size_t k = 0; k < d.size(); ++k) {
    const auto i = coordinates.used()[k];
    const auto [lr, scale_m] = unpack<2>(hyperparameters[i]);
    auto& theta = next[i].parameter;
    const auto exponent = scale(scale_m, m[k].view_as(theta));
    theta = add_scaled(theta, -lr, d[k].view_as(theta) * exponent.exp());
  }
  iterates = std::move(next);
}

}  // namespace gimli::optim
