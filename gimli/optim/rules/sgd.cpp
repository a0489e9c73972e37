#include "gimli/optim/rules/sgd.h"

namespace gimli::optim {

SGD::SGD(SGDOptions options) : options_(options) {
  TORCH_CHECK(!options.nesterov() || (options.momentum() > 0 && options.dampening() == 0),
              "SGD: nesterov needs a momentum above 0 and no dampening, got momentum ", options.momentum(),
              " and dampening ", options.dampening());
}

std::vector<HyperparameterSpec> SGD::hyperparameters() const {
  return {{"lr", options_.lr(), Domain::positive},
          {"momentum", options_.momentum(), Domain::unit},
          {"dampening", options_.dampening(), Domain::real},
          {"weight_decay", options_.weight_decay(), Domain::positive}};
}

ParameterState SGD::init(const at::Tensor&) const { return {0, {at::Tensor()}}; }

Iterate SGD::update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                    const Values& hyperparameters) const {
  const auto [lr, momentum, dampening, weight_decay] = unpack<4>(hyperparameters);
  auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  auto b = state.slots[0];
  if (!momentum.is_off()) {
    b = b.defined() ? add_scaled(scale(momentum, b), 1 - dampening, g) : g;
    g = options_.nesterov() ? add_scaled(g, momentum, b) : b;
  }
  return {add_scaled(theta, -lr, g), {state.step + 1, {b}}};
}

}  // namespace gimli::optim
