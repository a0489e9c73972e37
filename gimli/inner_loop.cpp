#include "gimli/inner_loop.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "gimli/optim/registry.h"
#include "gimli/trace.h"

namespace gimli {
namespace {

at::Tensor detached(const at::Tensor& tensor) { return tensor.defined() ? tensor.detach() : tensor; }

TensorList detached(TensorList list) {
  for (auto& tensor : list) tensor = detached(tensor);
  return list;
}

TensorList picked(const TensorList& list, const std::vector<size_t>& positions) {
  TensorList result;
  result.reserve(positions.size());
  for (const auto i : positions) result.push_back(list[i]);
  return result;
}

/// Parameters and their states, moved out of an inner state and back into it.
struct Lent {
  Lent(InnerState& from, const std::vector<size_t>& at) : state(from), positions(at) {
    iterates.reserve(positions.size());
    for (const auto i : positions) {
      iterates.push_back({std::move(state.parameters[i]), std::move(state.optimizer[i])});
    }
  }
  ~Lent() {
    for (size_t k = 0; k < positions.size(); ++k) {
      state.parameters[positions[k]] = std::move(iterates[k].parameter);
      state.optimizer[positions[k]] = std::move(iterates[k].state);
    }
  }

  InnerState& state;
  const std::vector<size_t>& positions;
  std::vector<optim::Iterate> iterates;
};

/// A level for tasks that run together, if they do, and operators that are seen by it.
struct Together {
  explicit Together(int64_t tasks) : level(tasks) {
    if (tasks > 0) seen.emplace();
  }

  const VmapLevel level;
  std::optional<Interception> seen;
};

bool any_wrapped(const std::vector<optim::Values>& hyperparameters) {
  for (const auto& values : hyperparameters) {
    for (const auto& value : values) {
      if (!value.is_number() && is_wrapped(value.tensor())) return true;
    }
  }
  return false;
}

template <class Function>
std::vector<optim::Iterate> map_tensors(std::vector<optim::Iterate> iterates, Function function) {
  for (auto& [parameter, state] : iterates) {
    parameter = function(parameter);
    for (auto& slot : state.slots) slot = function(slot);
  }
  return iterates;
}

/// Each tensor of a state that an inner loop changes.
template <class Function>
InnerState map_tensors(InnerState state, Function function) {
  const auto each = [&](at::Tensor& tensor) {
    if (tensor.defined()) tensor = function(tensor);
  };
  for (size_t i = 0; i < state.parameters.size(); ++i) {
    if (!(*state.rules)[i].empty()) each(state.parameters[i]);
    for (auto& slot : state.optimizer[i].slots) each(slot);
  }
  for (auto& buffer : state.buffers) each(buffer);
  return state;
}

}  // namespace

InnerState expanded(const InnerState& state, int64_t tasks) {
  at::AutoGradMode with_gradient(true);
  return map_tensors(state, [&](const at::Tensor& tensor) {
    auto sizes = tensor.sizes().vec();
    sizes.insert(sizes.begin(), tasks);
    return tensor.expand(sizes);
  });
}

InnerState state_of(const InnerState& together, int64_t task) {
  return map_tensors(together, [&](const at::Tensor& tensor) { return tensor.select(0, task); });
}

InnerState InnerState::detach() const {
  InnerState result{detached(parameters), optimizer, detached(buffers), step, rules};
  for (auto& state : result.optimizer) state.slots = detached(std::move(state.slots));
  return result;
}

InnerLoop::InnerLoop(ModelTensors model, optim::Optimizer optimizer, InnerLoopOptions options) {
  auto setup = std::make_shared<Setup>(Setup{std::move(model), std::move(optimizer), std::move(options), {}, {}});
  const auto& parameters = setup->model.parameters;
  setup->group_of.resize(parameters.size());

  std::unordered_map<const c10::TensorImpl*, size_t> position;
  for (size_t i = 0; i < parameters.size(); ++i) position[parameters.tensors[i].unsafeGetTensorImpl()] = i;

  state_.optimizer.resize(parameters.size());
  const auto& groups = setup->optimizer.groups();
  setup->adapted.resize(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    for (size_t i = 0; i < groups[g].parameters.size(); ++i) {
      const auto& parameter = groups[g].parameters[i];
      const auto found = position.find(parameter.unsafeGetTensorImpl());
      TORCH_CHECK(found != position.end(), "InnerLoop: the optimizer's group ", g, " holds a parameter (number ", i,
                  ", shape ", parameter.sizes(), ") that the model does not have");
      auto& group = setup->group_of[found->second];
      TORCH_CHECK(!group, "InnerLoop: parameter '", parameters.names[found->second],
                  "' is there twice in the groups of the optimizers");
      if (!parameter.requires_grad()) continue;
      group = &groups[g];
      setup->adapted[g].indices.push_back(i);
      setup->adapted[g].positions.push_back(found->second);
      state_.optimizer[found->second] = groups[g].states[i];
    }
  }

  for (size_t i = 0; i < parameters.size(); ++i) {
    auto value = resolve(parameters.tensors[i]);
    if (setup->group_of[i] && setup->options.graph() == Graph::none) value = value.detach().requires_grad_();
    state_.parameters.push_back(std::move(value));
  }
  std::vector<std::string> rules;
  for (const auto* group : setup->group_of) rules.push_back(group ? group->rule->name() : "");
  state_.rules = std::make_shared<const std::vector<std::string>>(std::move(rules));
  for (const auto& buffer : setup->model.buffers.tensors) state_.buffers.push_back(resolve(buffer).detach().clone());
  setup_ = std::move(setup);
  if (tasks() > 0) state_ = expanded(state_, tasks());
  if (setup_->options.history()) history_.push_back(state_.parameters);
}

// A step may have saved the buffers for its backward pass, and states that were taken keep theirs.
TensorList InnerLoop::writable_buffers() const {
  auto buffers = state_.buffers;
  for (auto& buffer : buffers) buffer = buffer.clone();
  return buffers;
}

TensorList InnerLoop::seen_parameters(const VmapLevel& level) const {
  auto parameters = state_.parameters;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (adapts(i)) parameters[i] = level.wrap(parameters[i]);
  }
  return parameters;
}

at::Tensor InnerLoop::step(at::Tensor loss) {
  auto found = gradients(loss);
  if (setup_->options.graph() == Graph::none) {
    loss = loss.detach();  // its graph holds the weights, whose memory the update may use again
  }
  apply(transformed(std::move(found)));
  return loss;
}

TensorList InnerLoop::gradients(const at::Tensor& loss) const {
  checked_loss(loss, tasks(), c10::str("InnerLoop::step: the loss of step ", state_.step));
  TensorList inputs;
  for (size_t i = 0; i < state_.parameters.size(); ++i) {
    if (adapts(i)) inputs.push_back(state_.parameters[i]);
  }
  TORCH_CHECK(!inputs.empty(), "InnerLoop::step: every parameter of the model is frozen, there is nothing to adapt");
  TORCH_CHECK(loss.requires_grad(), "InnerLoop::step: the loss of step ", state_.step,
              " does not depend on the model's parameters");
  const bool full = setup_->options.graph() == Graph::full;
  const bool retain = setup_->options.graph() != Graph::none;
  const auto found = torch::autograd::grad({loss}, inputs, {at::ones_like(loss)}, retain, full, /*allow_unused=*/true);

  TensorList gradients(state_.parameters.size());
  bool any = false;
  for (size_t i = 0, next = 0; i < gradients.size(); ++i) {
    if (!adapts(i)) continue;
    gradients[i] = found[next++];
    any = any || gradients[i].defined();
  }
  TORCH_CHECK(any, "InnerLoop::step: the loss of step ", state_.step, " does not depend on the model's parameters");
  return gradients;
}

TensorList InnerLoop::transformed(TensorList gradients) const {
  at::AutoGradMode mode(setup_->options.graph() != Graph::none);
  const auto& transforms = setup_->options.gradient_transforms();
  if (transforms.empty()) return gradients;
  const Together together(tasks());
  const auto parameters = seen_parameters(together.level);
  gradients = together.level.wrap(std::move(gradients));
  for (size_t t = 0; t < transforms.size(); ++t) {
    gradients = with_stream(t + 1, [&] { return transforms[t](std::move(gradients), parameters, state_.step); });
    TORCH_CHECK(gradients.size() == state_.parameters.size(), "InnerLoop::step: a gradient transform returned ",
                gradients.size(), " tensors for ", state_.parameters.size(), " parameters");
    for (size_t i = 0; i < gradients.size(); ++i) {
      TORCH_CHECK(adapts(i) || !gradients[i].defined(),
                  "InnerLoop::step: a gradient transform returned a gradient for the frozen parameter '",
                  setup_->model.parameters.names[i], "'");
    }
  }
  return together.level.unwrap(std::move(gradients));
}

void InnerLoop::apply(const TensorList& gradients) {
  TORCH_CHECK(gradients.size() == state_.parameters.size(), "InnerLoop::apply: got ", gradients.size(),
              " gradients for ", state_.parameters.size(), " parameters");
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    TORCH_CHECK(adapts(i), "InnerLoop::apply: got a gradient for the frozen parameter '",
                setup_->model.parameters.names[i], "'");
    TORCH_CHECK(gradients[i].sizes() == state_.parameters[i].sizes(), "InnerLoop::apply: the gradient of '",
                setup_->model.parameters.names[i], "' has shape ", gradients[i].sizes(), ", expected ",
                state_.parameters[i].sizes());
  }
  const bool record = setup_->options.graph() != Graph::none;
  at::AutoGradMode mode(record);
  update(gradients);
  ++state_.step;
  if (setup_->options.history()) history_.push_back(state_.parameters);
  if (!record) stop_gradient();
}

void InnerLoop::update(const TensorList& gradients) {
  const auto adapts_any = [](const Adapted& adapted) { return !adapted.positions.empty(); };
  const bool several = std::count_if(setup_->adapted.begin(), setup_->adapted.end(), adapts_any) > 1;
  // A rule leaves alone what is held here too. One group needs no other guarantee than its rule's, and may have memory
  // written over.
  const auto before = several ? std::optional(state_) : std::nullopt;
  try {
    update_groups(gradients);
  } catch (...) {
    if (before) state_ = *before;
    throw;
  }
}

void InnerLoop::update_groups(const TensorList& gradients) {
  const auto& groups = setup_->optimizer.groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto& positions = setup_->adapted[g].positions;
    const auto& rule = *groups[g].rule;
    const Together together(tasks());
    const auto values = values_of_group(g, seen_parameters(together.level));
    Lent lent(state_, positions);
    if (tasks() == 0 || (rule.is_elementwise() && !any_wrapped(values))) {
      const VmapLevel::Pause alone;
      rule.update_all(lent.iterates, picked(gradients, positions), values);
      continue;
    }
    auto seen = map_tensors(lent.iterates, [&](const at::Tensor& tensor) { return together.level.wrap(tensor); });
    rule.update_all(seen, together.level.wrap(picked(gradients, positions)), values);
    lent.iterates =
        map_tensors(std::move(seen), [&](const at::Tensor& tensor) { return together.level.unwrap(tensor); });
  }
}

std::vector<optim::Values> InnerLoop::values_of_group(size_t group, const TensorList& parameters) const {
  const auto& [indices, positions] = setup_->adapted[group];
  return with_stream(0, [&, adapted = picked(parameters, positions)] {
    return setup_->optimizer.groups()[group].values_at(state_.step, indices, adapted);
  });
}

std::vector<optim::Values> InnerLoop::hyperparameters() const {
  std::vector<optim::Values> result(state_.parameters.size());
  const auto& groups = setup_->optimizer.groups();
  const Together together(tasks());
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto& positions = setup_->adapted[g].positions;
    auto values = values_of_group(g, seen_parameters(together.level));
    TORCH_CHECK(!any_wrapped(values), "InnerLoop::hyperparameters: those of step ", state_.step,
                " are others for each of the tasks that run together");
    for (size_t k = 0; k < positions.size(); ++k) result[positions[k]] = std::move(values[k]);
  }
  return result;
}

void InnerLoop::stop_gradient() { set_state(state_.detach()); }

void InnerLoop::set_state(InnerState state) {
  const auto& model = setup_->model;
  TORCH_CHECK(state.parameters.size() == model.parameters.size() && state.buffers.size() == model.buffers.size() &&
                  state.optimizer.size() == model.parameters.size(),
              "InnerLoop::set_state: the state has ", state.parameters.size(), " parameters and ", state.buffers.size(),
              " buffers, the model has ", model.parameters.size(), " and ", model.buffers.size());
  TORCH_CHECK(!state.rules || *state.rules == *state_.rules, "InnerLoop::set_state: the state was made by ",
              c10::Join(", ", *state.rules), ", one a parameter, and this loop adapts by ",
              c10::Join(", ", *state_.rules));
  for (size_t i = 0; i < state.parameters.size(); ++i) {
    const auto &parameter = state.parameters[i], &own = model.parameters.tensors[i];
    auto sizes = own.sizes().vec();
    if (tasks() > 0 && adapts(i)) sizes.insert(sizes.begin(), tasks());
    TORCH_CHECK(parameter.defined() && parameter.sizes() == sizes && parameter.scalar_type() == own.scalar_type(),
                "InnerLoop::set_state: the state has '", model.parameters.names[i], "' as ",
                parameter.defined() ? c10::str(parameter.scalar_type(), " of shape ", parameter.sizes()) : "undefined",
                ", expected ", own.scalar_type(), " of shape ", at::IntArrayRef(sizes));
  }
  TORCH_CHECK(state.step >= 0, "InnerLoop::set_state: expected a state of step 0 or later, got ", state.step);
  state.rules = state_.rules;
  TORCH_CHECK(!setup_->options.history() || state.step <= static_cast<int64_t>(history_.size()),
              "InnerLoop::set_state: the state is of step ", state.step, ", and the history of this loop ends at step ",
              static_cast<int64_t>(history_.size()) - 1);
  state_ = std::move(state);
  for (size_t i = 0; i < state_.parameters.size(); ++i) {
    auto& parameter = state_.parameters[i];
    if (!adapts(i)) {
      parameter = resolve(model.parameters.tensors[i]);
    } else if (!parameter.requires_grad()) {
      parameter = parameter.detach().requires_grad_();
    }
  }
  if (setup_->options.history()) {
    history_.resize(state_.step);
    history_.push_back(state_.parameters);
  }
}

const TensorList& InnerLoop::parameters(int64_t step) const {
  TORCH_CHECK(setup_->options.history(),
              "InnerLoop::parameters: the weights of past steps are kept only with the option history(true)");
  TORCH_CHECK(step >= 0 && step < static_cast<int64_t>(history_.size()),
              "InnerLoop::parameters: expected a step from 0 to ", static_cast<int64_t>(history_.size()) - 1, ", got ",
              step);
  return history_[step];
}

void InnerLoop::copy_parameters_to(const ModelTensors& model) const {
  const auto check = [](const NamedTensors& to, const NamedTensors& own, const char* kind) {
    TORCH_CHECK(to.names == own.names, "InnerLoop::copy_parameters_to: the model's ", kind,
                " have other names than those of the inner loop's model");
    for (size_t i = 0; i < to.size(); ++i) {
      TORCH_CHECK(to.tensors[i].sizes() == own.tensors[i].sizes(), "InnerLoop::copy_parameters_to: '", to.names[i],
                  "' has shape ", to.tensors[i].sizes(), " there and ", own.tensors[i].sizes(), " in the inner loop");
    }
  };
  check(model.parameters, setup_->model.parameters, "parameters");
  check(model.buffers, setup_->model.buffers, "buffers");
  at::NoGradGuard no_gradient;
  for (size_t i = 0; i < model.parameters.size(); ++i) model.parameters.tensors[i].copy_(state_.parameters[i]);
  for (size_t i = 0; i < model.buffers.size(); ++i) model.buffers.tensors[i].copy_(state_.buffers[i]);
}

void InnerLoop::copy_state_to(torch::optim::Optimizer& optimizer) const {
  std::unordered_map<const c10::TensorImpl*, size_t> adapted;
  const auto& parameters = setup_->model.parameters.tensors;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (adapts(i)) adapted[parameters[i].unsafeGetTensorImpl()] = i;
  }
  const auto translation = optim::translation_of(optimizer);
  struct Held {
    std::vector<optim::ParameterState> states;
    TensorList parameters;
  };
  std::vector<Held> groups;
  for (const auto& group : optimizer.param_groups()) {
    auto& held = groups.emplace_back();
    for (const auto& parameter : group.params()) {
      const auto found = adapted.find(parameter.unsafeGetTensorImpl());
      if (found == adapted.end()) continue;
      const auto adapted_by = setup_->group_of[found->second]->rule->name();
      const auto held_by = translation.rule(group.options())->name();
      TORCH_CHECK(held_by == adapted_by, "InnerLoop::copy_state_to: parameter '",
                  setup_->model.parameters.names[found->second], "' was adapted by ", adapted_by,
                  ", whose state cannot be copied into ", held_by);
      if (state_.optimizer[found->second].step == 0) continue;
      held.states.push_back(state_.optimizer[found->second]);
      held.parameters.push_back(parameter);
    }
  }
  for (auto& held : groups) optim::copy_states(std::move(held.states), held.parameters, optimizer);
}

at::Tensor checked_loss(const at::Tensor& loss, int64_t tasks, const std::string& what) {
  TORCH_CHECK(loss.defined() && loss.numel() == std::max<int64_t>(tasks, 1) && loss.is_floating_point(), what,
              " must be a scalar of floating point, got ",
              loss.defined()
                  ? c10::str(loss.scalar_type(), " of shape ", tasks > 0 ? loss.sizes().slice(1) : loss.sizes())
                  : "an undefined tensor");
  Trace::expect_finite(tasks > 0 ? loss.detach().sum() : loss, what);
  return tasks > 0 ? loss.reshape({tasks}) : loss;
}

}  // namespace gimli
