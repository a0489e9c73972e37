#include "gimli/optim/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>

#include "gimli/optim/registry.h"

namespace gimli::optim {

ParameterState detached_copy(ParameterState state) {
  for (auto& slot : state.slots) {
    if (slot.defined()) slot = slot.detach().clone();
  }
  return state;
}

void UpdateRule::update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                            const std::vector<Values>& hyperparameters) const {
  auto next = iterates;
  for (size_t i = 0; i < iterates.size(); ++i) {
    if (!gradients[i].defined()) continue;
    next[i] = update(iterates[i].parameter, gradients[i], iterates[i].state, hyperparameters[i]);
  }
  iterates = std::move(next);
}

Iterate update_alone(const UpdateRule& rule, const at::Tensor& parameter, const at::Tensor& gradient,
                     const ParameterState& state, const Values& hyperparameters) {
  std::vector<Iterate> alone{{parameter, state}};
  rule.update_all(alone, {gradient}, {hyperparameters});
  return std::move(alone[0]);
}

TensorList zeros(const at::Tensor& parameter, int64_t count) {
  TensorList slots;
  for (int64_t i = 0; i < count; ++i)
    slots.push_back(at::zeros_like(parameter, at::TensorOptions().requires_grad(false)));
  return slots;
}

at::Tensor descent(const at::Tensor& gradient, bool maximize) { return maximize ? -gradient : gradient; }

at::Tensor descent(const at::Tensor& gradient, bool maximize, const Value& weight_decay, const at::Tensor& theta) {
  const auto g = descent(gradient, maximize);
  return weight_decay.is_off() ? g : add_scaled(g, weight_decay, theta);
}

at::Tensor decayed(const at::Tensor& theta, const Value& lr, const Value& weight_decay) {
  return weight_decay.is_off() ? theta : scale(1 - lr * weight_decay, theta);
}

ParameterGroup::ParameterGroup(std::shared_ptr<const UpdateRule> update_rule, TensorList group_parameters)
    : rule(std::move(update_rule)), parameters(std::move(group_parameters)) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    TORCH_CHECK(parameters[i].defined() && parameters[i].is_floating_point(), rule->name(),
                ": expected parameters of floating point, got ",
                parameters[i].defined() ? c10::str(parameters[i].scalar_type()) : "an undefined tensor", " as number ",
                i);
    states.push_back(rule->init(parameters[i]));
  }
  for (auto& spec : rule->hyperparameters()) {
    names.push_back(std::move(spec.name));
    values.emplace_back(spec.value);
    check(names.back(), values.back());
  }
}

bool ParameterGroup::has(const std::string& name) const {
  return std::find(names.begin(), names.end(), name) != names.end();
}

size_t ParameterGroup::position_of(const std::string& name) const {
  const auto found = std::find(names.begin(), names.end(), name);
  TORCH_CHECK(found != names.end(), "Optimizer: ", rule->name(), " has no hyperparameter '", name,
              "'; it has: ", c10::Join(", ", names));
  return found - names.begin();
}

HyperparameterSpec ParameterGroup::spec(const std::string& name) const {
  return rule->hyperparameters()[position_of(name)];
}

const Hyperparameter& ParameterGroup::value(const std::string& name) const { return values[position_of(name)]; }

void ParameterGroup::check(const std::string& name, const Hyperparameter& value) const {
  value.check(parameters.size(), name);
  if (!value.is_number()) return;
  const auto domain = spec(name).domain;
  const double x = value.number();
  TORCH_CHECK(std::isfinite(x) && (domain == Domain::real || x >= 0) && (domain != Domain::unit || x < 1), rule->name(),
              ": expected ", name,
              domain == Domain::unit   ? " in [0, 1)"
              : domain == Domain::real ? " finite"
                                       : " of at least 0",
              ", got ", x);
}

void ParameterGroup::set(const std::string& name, Hyperparameter value) {
  check(name, value);
  values[position_of(name)] = std::move(value);
}

std::vector<Values> ParameterGroup::values_at(int64_t step, const std::vector<size_t>& indices,
                                              const TensorList& parameters) const {
  std::vector<Values> result(indices.size());
  for (size_t h = 0; h < values.size(); ++h) {
    const auto each = values[h].at(step, this->parameters.size(), indices, parameters, names[h]);
    for (size_t i = 0; i < indices.size(); ++i) result[i].push_back(each[i]);
  }
  return result;
}

Optimizer::Optimizer(const torch::optim::Optimizer& optimizer) {
  const auto translation = translation_of(optimizer);
  for (const auto& from : optimizer.param_groups()) {
    auto& group = groups_.emplace_back(translation.rule(from.options()), from.params());
    const auto states = translation.read(optimizer, group.parameters);
    for (size_t i = 0; i < states.size(); ++i) {
      if (states[i]) group.states[i] = detached_copy(*states[i]);
    }
  }
}

Optimizer::Optimizer(const std::vector<Optimizer>& optimizers) {
  for (const auto& optimizer : optimizers) {
    groups_.insert(groups_.end(), optimizer.groups_.begin(), optimizer.groups_.end());
  }
}

Optimizer& Optimizer::set(const std::string& name, const Hyperparameter& value) {
  bool known = false;
  for (auto& group : groups_) {
    if (!group.has(name)) continue;
    group.check(name, value);
    known = true;
  }
  TORCH_CHECK(known, "Optimizer::set: no parameter group has a hyperparameter '", name,
              "'; the first has: ", groups_.empty() ? "none" : c10::Join(", ", groups_[0].names));
  for (auto& group : groups_) {
    if (group.has(name)) group.set(name, value);
  }
  return *this;
}

Optimizer& Optimizer::start_from(const at::Tensor& parameter, ParameterState state) {
  for (auto& group : groups_) {
    for (size_t i = 0; i < group.parameters.size(); ++i) {
      if (!group.parameters[i].is_same(parameter)) continue;
      const auto fresh = group.rule->init(parameter);
      TORCH_CHECK(state.step >= 0 && state.slots.size() == fresh.slots.size(), "Optimizer::start_from: ",
                  group.rule->name(), " remembers ", fresh.slots.size(), " tensors and a step of at least 0, got ",
                  state.slots.size(), " and ", state.step);
      for (size_t k = 0; k < fresh.slots.size(); ++k) {
        const auto& slot = fresh.slots[k];
        TORCH_CHECK(!slot.defined() || (state.slots[k].defined() && state.slots[k].sizes() == slot.sizes()),
                    "Optimizer::start_from: slot ", k, " of ", group.rule->name(), " has shape ", slot.sizes(),
                    ", got ", state.slots[k].defined() ? c10::str(state.slots[k].sizes()) : "none");
      }
      group.states[i] = detached_copy(std::move(state));
      return *this;
    }
  }
  TORCH_CHECK(false, "Optimizer::start_from: no group holds the parameter of shape ", parameter.sizes());
}

Optimizer& Optimizer::set(size_t group, const std::string& name, Hyperparameter value) {
  TORCH_CHECK(group < groups_.size(), "Optimizer::set: no parameter group ", group, ", there are ", groups_.size());
  groups_[group].set(name, std::move(value));
  return *this;
}

}  // namespace gimli::optim
