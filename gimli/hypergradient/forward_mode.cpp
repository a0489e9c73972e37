#include "gimli/hypergradient/forward_mode.h"

#include <ATen/ATen.h>
#include <algorithm>

#include "gimli/hypergradient/adjoint.h"

namespace gimli {
namespace {

bool is_recorded(const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }

/// The derivative of recorded outputs by inputs, to be multiplied by tangents, in which undefined stands for 0.
class Jacobian final {
 public:
  Jacobian(const TensorList& outputs, const TensorList& inputs) {
    for (const auto& y : outputs) u_.push_back(is_recorded(y) ? at::zeros_like(y).requires_grad_() : at::Tensor());
    transposed_times_u_ = vjp(outputs, u_, inputs, /*keep_graph=*/true, /*create_graph=*/true);
  }

  TensorList operator*(const TensorList& v) const { return vjp(transposed_times_u_, v, u_, /*keep_graph=*/true); }

 private:
  TensorList u_, transposed_times_u_;
};

/// dS/dphi_j for one element phi_j of a meta-parameter.
struct Tangent {
  size_t meta_parameter;
  int64_t element;
  TensorList state;

  /// Of what comes before a piece of the loop: the state there, if it has one, and the meta-parameters.
  TensorList with(const TensorList& meta_parameters) const {
    auto result = state;
    result.resize(state.size() + meta_parameters.size());
    const auto& phi = meta_parameters[meta_parameter];
    auto unit = at::zeros(phi.numel(), phi.options());
    unit[element].fill_(1);
    result[state.size() + meta_parameter] = unit.reshape(phi.sizes());
    return result;
  }
};

at::Tensor product(const TensorList& a, const TensorList& b) {
  at::Tensor total;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].defined() || !b[i].defined()) continue;
    const auto term = (a[i] * b[i]).sum();
    total = total.defined() ? total + term : term;
  }
  return total;
}

/// dL/dphi = dL/dS Z + dL/dphi at a fixed S.
TensorList total_gradients(OuterGradient outer, const std::vector<Tangent>& tangents,
                           const TensorList& meta_parameters) {
  TensorList through_state(meta_parameters.size());
  for (const auto& tangent : tangents) {
    const auto derivative = product(outer.state, tangent.state);
    if (!derivative.defined()) continue;
    const auto& phi = meta_parameters[tangent.meta_parameter];
    auto& gradient = through_state[tangent.meta_parameter];
    if (!gradient.defined()) gradient = at::zeros(phi.sizes(), phi.options());
    gradient.view(-1)[tangent.element].copy_(derivative);
  }
  return sum(std::move(outer.meta_parameters), through_state);
}

}  // namespace

ForwardMode& ForwardMode::max_elements(int64_t count) {
  TORCH_CHECK(count >= 1, "ForwardMode::max_elements: expected at least 1, got ", count);
  max_elements_ = count;
  return *this;
}

Strategy::TaskResult ForwardMode::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                                const TaskRef& task) const {
  std::vector<Tangent> tangents;
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    for (int64_t j = 0; j < meta_parameters[i].numel(); ++j) tangents.push_back({i, j, {}});
  }
  const auto elements = static_cast<int64_t>(tangents.size());
  TORCH_CHECK(elements <= max_elements_, name(), ": the meta-parameters have ", elements,
              " elements, each of which would be a tangent, and max_elements is ", max_elements_,
              "; use Replay, whose cost does not depend on their number");

  TaskResult result;
  result.gradients.resize(meta_parameters.size());
  OuterSum outer;
  const auto advance = [&](const TensorList& outputs, TensorList inputs) {
    inputs.insert(inputs.end(), meta_parameters.begin(), meta_parameters.end());
    const Jacobian jacobian(outputs, inputs);
    for (auto& tangent : tangents) tangent.state = jacobian * tangent.with(meta_parameters);
    result.cost.gradient_evaluations += 1 + elements;
  };
  const auto add_outer = [&](const InnerState& state) {
    if (!problem.has_outer_at(state.step)) return;
    auto at_state = outer_gradient(problem, meta_parameters, task, state);
    outer.add(at_state.value);
    result.gradients =
        sum(std::move(result.gradients), total_gradients(std::move(at_state), tangents, meta_parameters));
    ++result.cost.gradient_evaluations;
  };

  const auto start = problem.start(Graph::full, task).state();
  advance(tensors_of(start), {});
  auto state = start.detach();
  add_outer(state);
  while (state.step < problem.steps()) {
    auto loop = problem.start(Graph::full, task);
    loop.set_state(as_leaves(state));
    const auto leaves = tensors_of(loop.state());
    problem.step(loop, task);
    ++result.cost.gradient_evaluations;
    refuse_graph_in_buffers(problem, loop.state(), name());
    advance(tensors_of(loop.state()), leaves);
    state = loop.state().detach();
    add_outer(state);
  }

  result.outer_loss = outer.total();
  result.auxiliary = outer.auxiliary();
  result.final_state = std::move(state);
  result.cost.inner_steps = problem.steps();
  result.cost.outer_evaluations = outer.count();
  result.cost.states_stored = 1 + elements;
  return result;
}

}  // namespace gimli
