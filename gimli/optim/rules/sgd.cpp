#include "gimli/optim/rules/sgd.h"

#include "gimli/optim/fused/update.h"

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

void SGD::update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                     const std::vector<Values>& hyperparameters) const {
  const auto recipe = [&](const ParameterState& state, const Values& values) {
    const auto [lr, momentum, dampening, weight_decay] = unpack<4>(values);
    const bool has_momentum = !momentum.is_off(), has_b = state.slots[0].defined();
    const fused::SgdFormula formula{has_momentum, options_.nesterov(), !weight_decay.is_off(), options_.maximize()};
    return fused::Recipe<fused::SgdFormula>{
        formula,
        {-lr, has_b || options_.nesterov() ? momentum : 0, has_momentum && has_b ? 1 - dampening : 1, weight_decay}};
  };
  fused::update_all<fused::SgdFormula>(*this, recipe, iterates, gradients, hyperparameters);
}

at::Tensor SGD::parameter_before(const at::Tensor& theta, const at::Tensor& b, const Values& hyperparameters) const {
  const auto [lr, momentum, dampening, weight_decay] = unpack<4>(hyperparameters);
  return add_scaled(theta, lr, b);
}

at::Tensor SGD::momentum_before(const at::Tensor& b, const at::Tensor& gradient, const at::Tensor& theta,
                                const Values& hyperparameters) const {
  const auto [lr, momentum, dampening, weight_decay] = unpack<4>(hyperparameters);
  const auto g = descent(gradient, options_.maximize(), weight_decay, theta);
  return divide(add_scaled(b, dampening - 1, g), momentum);
}

std::string SGD::irreversible(const Values& hyperparameters) const {
  const auto momentum = hyperparameters[1];
  if (options_.nesterov()) return "with nesterov, the step taken depends on the gradient where it began";
  if (momentum.is_off()) return "without momentum, nothing tells from where a step came";
  const bool positive = momentum.is_number() ? momentum.number() > 0 : momentum.tensor().gt(0).all().item<bool>();
  return positive ? "" : "where the momentum is not above 0, nothing tells from where a step came";
}

}  // namespace gimli::optim
