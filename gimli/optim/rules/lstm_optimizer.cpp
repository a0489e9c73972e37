#include "gimli/optim/rules/lstm_optimizer.h"

#include <ATen/ATen.h>
#include <torch/nn/init.h>

#include <cmath>

#include "gimli/optim/rules/coordinates.h"

namespace gimli::optim {

at::Tensor log_and_sign(const at::Tensor& g, double p) {
  const auto large = g.detach().abs() >= std::exp(-p);
  const auto magnitude = at::where(large, g.abs(), 1);
  return at::stack({at::where(large, magnitude.log() / p, -1), at::where(large, g.sign(), std::exp(p) * g)}, -1);
}

CoordinateLSTMImpl::CoordinateLSTMImpl(int64_t layers, int64_t hidden_size)
    : layers_(layers), hidden_size_(hidden_size) {
  TORCH_CHECK(layers >= 1 && hidden_size >= 1,
              "CoordinateLSTM: expected at least 1 layer and a hidden size of at least 1, got ", layers, " and ",
              hidden_size);
  reset();
}

void CoordinateLSTMImpl::reset() {
  cells_.clear();
  for (int64_t layer = 0; layer < layers_; ++layer) {
    cells_.push_back(
        register_module(c10::str("cell", layer), torch::nn::LSTMCell(layer == 0 ? 2 : hidden_size_, hidden_size_)));
  }
  out_ = register_module("out", torch::nn::Linear(hidden_size_, 1));
  for (auto& weight : out_->parameters()) torch::nn::init::zeros_(weight);
}

std::tuple<at::Tensor, TensorList> CoordinateLSTMImpl::forward(at::Tensor x, const TensorList& state) {
  TORCH_CHECK(state.size() == 2 * cells_.size(), "CoordinateLSTM: expected h and c of ", layers_, " layers, got ",
              state.size(), " tensors");
  TensorList next;
  for (size_t layer = 0; layer < cells_.size(); ++layer) {
    const auto [h, c] = cells_[layer]->forward(x, std::make_tuple(state[2 * layer], state[2 * layer + 1]));
    next.insert(next.end(), {h, c});
    x = h;
  }
  return {out_->forward(x).squeeze(-1), next};
}

LSTMOptimizer::LSTMOptimizer(LSTMOptimizerOptions options)
    : options_(options), network_(options.layers(), options.hidden_size()) {
  TORCH_CHECK(options.p() > 0, "LSTMOptimizer: expected p above 0, got ", options.p());
}

std::vector<HyperparameterSpec> LSTMOptimizer::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive}};
}

ParameterState LSTMOptimizer::init(const at::Tensor& parameter) const {
  check_network(name(), *network_, parameter);
  ParameterState state;
  for (int64_t slot = 0; slot < 2 * network_->layers(); ++slot) {
    state.slots.push_back(at::zeros({parameter.numel(), network_->hidden_size()}, parameter.options()));
  }
  return state;
}

Iterate LSTMOptimizer::update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                              const Values& hyperparameters) const {
  return update_alone(*this, parameter, gradient, state, hyperparameters);
}

void LSTMOptimizer::update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                               const std::vector<Values>& hyperparameters) const {
  const Coordinates coordinates(iterates, gradients);
  if (coordinates.used().empty()) return;
  for (const auto i : coordinates.used()) check_network(name(), *network_, iterates[i].parameter);

  const auto g = coordinates.join([&](size_t i) { return gradients[i].reshape(-1); });
  TensorList state;
  for (int64_t slot = 0; slot < 2 * network_->layers(); ++slot) {
    state.push_back(coordinates.join([&](size_t i) { return iterates[i].state.slots[slot]; }));
  }
  auto network = network_;
  const auto [output, next_state] = network->forward(log_and_sign(g, options_.p()), state);

  const auto u = coordinates.split(output);
  std::vector<TensorList> slots;
  for (const auto& slot : next_state) slots.push_back(coordinates.split(slot));
  auto next = iterates;
  for (size_t k = 0; k < u.size(); ++k) {
    const auto i = coordinates.used()[k];
    const auto [lr] = unpack<1>(hyperparameters[i]);
    auto& [theta, theta_state] = next[i];
    theta = add_scaled(theta, lr, u[k].view_as(theta));
    ++theta_state.step;
    for (size_t s = 0; s < slots.size(); ++s) theta_state.slots[s] = slots[s][k];
  }
  iterates = std::move(next);
}

}  // namespace gimli::optim
