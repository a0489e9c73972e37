#include "gimli/hypergradient/adjoint.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

namespace gimli {
namespace {

bool is_frozen(const InnerState& state, size_t i) { return (*state.rules)[i].empty(); }

at::Tensor as_leaf(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_floating_point() ? tensor.detach().requires_grad_() : tensor;
}

bool is_recorded(const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }

/// vjp by leaves and by meta-parameters.
std::pair<TensorList, TensorList> vjp_in_parts(const TensorList& outputs, const TensorList& cotangents,
                                               const TensorList& leaves, const TensorList& meta_parameters) {
  auto inputs = leaves;
  inputs.insert(inputs.end(), meta_parameters.begin(), meta_parameters.end());
  const auto found = vjp(outputs, cotangents, inputs);
  const auto middle = found.begin() + static_cast<int64_t>(leaves.size());
  return {TensorList(found.begin(), middle), TensorList(middle, found.end())};
}

}  // namespace

TensorList vjp(const TensorList& outputs, const TensorList& cotangents, const TensorList& inputs, bool keep_graph,
               bool create_graph) {
  TensorList from, along, to;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!is_recorded(outputs[i]) || !cotangents[i].defined()) continue;
    from.push_back(outputs[i]);
    along.push_back(cotangents[i]);
  }
  std::copy_if(inputs.begin(), inputs.end(), std::back_inserter(to), is_recorded);
  TensorList result(inputs.size());
  if (from.empty() || to.empty()) return result;
  const auto found = torch::autograd::grad(from, to, along, keep_graph || create_graph, create_graph,
                                           /*allow_unused=*/true);
  for (size_t i = 0, next = 0; i < inputs.size(); ++i) {
    if (is_recorded(inputs[i])) result[i] = found[next++];
  }
  return result;
}

TensorList tensors_of(const InnerState& state) {
  TensorList list;
  for (size_t i = 0; i < state.parameters.size(); ++i) {
    list.push_back(is_frozen(state, i) ? at::Tensor() : state.parameters[i]);
  }
  for (const auto& of_parameter : state.optimizer) {
    list.insert(list.end(), of_parameter.slots.begin(), of_parameter.slots.end());
  }
  list.insert(list.end(), state.buffers.begin(), state.buffers.end());
  return list;
}

InnerState as_leaves(const InnerState& state) {
  auto leaves = state;
  for (size_t i = 0; i < leaves.parameters.size(); ++i) {
    if (!is_frozen(state, i)) leaves.parameters[i] = as_leaf(state.parameters[i]);
    for (auto& slot : leaves.optimizer[i].slots) slot = as_leaf(slot);
  }
  return leaves;
}

void refuse_graph_in_buffers(const Bilevel& problem, const InnerState& after, const std::string& name) {
  for (size_t i = 0; i < after.buffers.size(); ++i) {
    TORCH_CHECK(
        !after.buffers[i].requires_grad(), name, ": step ", after.step - 1, " wrote to buffer '",
        problem.model().buffers.names[i],
        "' what depends on the weights, and its gradient would be lost from step to step; detach what is written, "
        "or use Unroll");
  }
}

std::optional<size_t> position_in(const ModelTensors& model, const at::Tensor& meta_parameter) {
  for (size_t p = 0; p < model.parameters.size(); ++p) {
    if (model.parameters.tensors[p].is_same(meta_parameter)) return p;
  }
  return std::nullopt;
}

Strategy::TaskResult run_without_graph(const Bilevel& problem, const TaskRef& task) {
  OuterSum outer;
  auto loop = problem.start(Graph::none, task);
  for (int64_t k = 0; k <= problem.steps(); ++k) {
    if (k > 0) problem.step(loop, task);
    if (problem.has_outer_at(k)) outer.add(problem.outer(loop, task).detach());
  }
  Strategy::TaskResult result{outer.total(), outer.auxiliary(), {}, loop.state().detach(), {}, {}};
  result.cost.inner_steps = result.cost.gradient_evaluations = problem.steps();
  result.cost.outer_evaluations = outer.count();
  result.cost.states_stored = 1;
  return result;
}

InnerState run_to(int64_t steps, const Bilevel& problem, const TaskRef& task, const std::string& name) {
  auto loop = problem.start(Graph::none, task);
  for (int64_t k = 0; k < steps; ++k) {
    TORCH_CHECK(!problem.has_outer_at(k), name, ": the outer loss after step ", k,
                " lies before what is differentiated; use Unroll or Replay");
    problem.step(loop, task);
  }
  return loop.state().detach();
}

InnerState cut_from(const InnerState& start, const InnerState& state) {
  auto result = state.detach();
  for (size_t i = 0; i < result.parameters.size(); ++i) {
    if (result.parameters[i].is_alias_of(start.parameters[i])) result.parameters[i] = start.parameters[i];
  }
  return result;
}

OuterGradient outer_gradient(const Bilevel& problem, const TensorList& meta_parameters, const TaskRef& task,
                             const InnerState& state) {
  auto loop = problem.start(Graph::full, task);
  loop.set_state(as_leaves(state));
  const auto leaves = tensors_of(loop.state());
  const auto value = problem.outer(loop, task);
  auto [of_state, of_meta_parameters] =
      vjp_in_parts({value.loss}, {at::ones_like(value.loss)}, leaves, meta_parameters);
  return {value.detach(), std::move(of_state), std::move(of_meta_parameters)};
}

Adjoint::Adjoint(const Bilevel& problem, const TensorList& meta_parameters, const TaskRef& task, std::string name)
    : problem_(problem),
      meta_parameters_(meta_parameters),
      task_(task),
      name_(std::move(name)),
      gradients_(meta_parameters.size()) {}

void Adjoint::add_outer(const InnerState& state) {
  if (final_state_.parameters.empty()) final_state_ = state.detach();
  if (!problem_.has_outer_at(state.step)) return;
  auto outer = outer_gradient(problem_, meta_parameters_, task_, state);
  outer_values_.push_back(std::move(outer.value));
  cotangent_ = cotangent_.empty() ? std::move(outer.state) : sum(std::move(cotangent_), outer.state);
  gradients_ = sum(std::move(gradients_), outer.meta_parameters);
  ++cost_.outer_evaluations;
  ++cost_.gradient_evaluations;
}

Adjoint::Step Adjoint::pull_back(const InnerState& before) {
  const auto step = [&]() -> Step {
    auto loop = problem_.start(Graph::full, task_);
    loop.set_state(as_leaves(before));
    const auto leaves = tensors_of(loop.state());
    auto loss = problem_.step(loop, task_).detach();
    pull_back(leaves, loop.state());
    return {std::move(loss), loop.state().detach()};
  }();
  ++cost_.inner_steps;
  cost_.gradient_evaluations += 2;
  add_outer(before);
  return step;
}

void Adjoint::pull_back(const TensorList& leaves, const InnerState& after) {
  refuse_graph_in_buffers(problem_, after, name_);
  if (cotangent_.empty()) return;
  TensorList of_meta_parameters;
  std::tie(cotangent_, of_meta_parameters) = vjp_in_parts(tensors_of(after), cotangent_, leaves, meta_parameters_);
  gradients_ = sum(std::move(gradients_), of_meta_parameters);
}

bool Adjoint::vanishes_at(int64_t step) const {
  if (std::any_of(cotangent_.begin(), cotangent_.end(), [](const at::Tensor& t) { return t.defined(); })) return false;
  for (int64_t k = 0; k <= step; ++k) {
    if (problem_.has_outer_at(k)) return false;
  }
  return true;
}

Strategy::TaskResult Adjoint::finish() { return finish(problem_.start(Graph::full, task_).state()); }

Strategy::TaskResult Adjoint::finish(const InnerState& first) {
  pull_back({}, first);
  OuterSum outer;
  for (auto value = outer_values_.rbegin(); value != outer_values_.rend(); ++value) outer.add(*value);
  return {outer.total(), outer.auxiliary(), std::move(gradients_), std::move(final_state_), {}, cost_};
}

}  // namespace gimli
