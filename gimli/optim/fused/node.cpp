#include "gimli/optim/fused/node.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "gimli/operators/arguments.h"
#include "gimli/optim/fused/dual.h"
#include "gimli/optim/fused/symbol.h"
#include "gimli/optim/fused/trace.h"
#include "gimli/substitution.h"

namespace gimli::optim::fused {
namespace {

using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using NodePointer = decltype(Edge::function);
using Saved = std::vector<SavedVariable>;

/// Nodes are held by a std::shared_ptr up to some version of libtorch, and by an intrusive one from there on.
template <class Of, class... Arguments>
NodePointer make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return NodePointer(new Of(std::forward<Arguments>(arguments)...), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Of>(std::forward<Arguments>(arguments)...);
  }
}

using Mask = std::vector<bool>;

void attach(const NodePointer& node, const TensorList& outputs, const Mask& differentiable) {
  for (size_t j = 0; j < outputs.size(); ++j) {
    set_history(outputs[j].defined() && differentiable[j] ? outputs[j] : at::Tensor(), node);
  }
}

Edge edge_of(const at::Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad() ? torch::autograd::impl::gradient_edge(tensor) : Edge();
}

/// The needed tensors and all coefficients, which by_operators() needs.
template <class Formula>
Saved saved(const Group<Formula>& group, const TensorList& tensors, const Mask& needed) {
  Saved result;
  result.reserve(tensors.size());
  for (size_t j = 0; j < tensors.size(); ++j) {
    const bool is_coefficient = group.c(0, 0) <= j && j < group.count_of_inputs();
    result.push_back(needed[j] || is_coefficient ? SavedVariable(tensors[j], /*is_output=*/false) : SavedVariable());
  }
  return result;
}

TensorList unpacked(const Saved& saved) {
  TensorList result;
  result.reserve(saved.size());
  for (const auto& variable : saved) result.push_back(variable.unpack());
  return result;
}

TensorList joined(TensorList first, const TensorList& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

bool any(const Mask& mask) { return std::find(mask.begin(), mask.end(), true) != mask.end(); }

template <class Formula>
void check_cotangents(const TensorList& cotangents) {
  for (const auto& cotangent : cotangents) {
    TORCH_CHECK(
        !cotangent.defined() || is_plain(cotangent), Formula::name,
        " in one pass: its derivatives take plain dense tensors on the CPU, got one that is not (of a functorch "
        "transform, a subclass, ...)");
  }
}

/// The inputs of one member as traces: x, c and y_bar, in the order of lists of inputs that end with the outputs.
template <class Formula>
class Traces {
 public:
  template <class Predicate>
  Traces(const Group<Formula>& group, size_t member, Predicate requires_grad) {
    const auto row = group.members[member].row;
    for (size_t k = 0; k < x.size(); ++k) add(x[k], group.x(member, k), requires_grad);
    for (size_t k = 0; k < c.size(); ++k) add(c[k], group.c(row, k), requires_grad);
    for (size_t k = 0; k < y_bar.size(); ++k) {
      add(y_bar[k], group.count_of_inputs() + group.y(member, k), requires_grad);
    }
  }

  /// Marks the inputs of a set in a list of all.
  void mark(uint32_t set, Mask& list) const {
    for (size_t k = 0; k < positions_.size(); ++k) {
      if ((set >> k & 1) && positions_[k] < list.size()) list[positions_[k]] = true;
    }
  }

  std::array<Trace, Formula::inputs> x;
  std::array<Trace, Formula::coefficients> c;
  std::array<Trace, Formula::outputs> y_bar;
  uint32_t needed = 0;

 private:
  template <class Predicate>
  void add(Trace& trace, size_t position, Predicate requires_grad) {
    trace = Trace(1u << positions_.size(), requires_grad(position), needed);
    positions_.push_back(position);
  }

  c10::SmallVector<size_t, 16> positions_;
};

/// What the nodes of both orders have in common.
template <class Formula>
class UpdateNode : public Node {
 public:
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

 protected:
  UpdateNode(std::shared_ptr<const Group<Formula>> group, edge_list edges, Saved inputs)
      : Node(std::move(edges)), group_(std::move(group)), saved_(std::move(inputs)) {}

  /// Room for what is wanted of a list of inputs.
  TensorList inputs_wanted() const {
    auto result = members_wanted(0, Formula::inputs);
    for (auto j = result.size(); j < group_->count_of_inputs(); ++j) {
      result.push_back(task_should_compute_output(j) ? at::empty({}, at::kDouble) : at::Tensor());
    }
    return result;
  }
  /// Of a list of outputs, which follows one of inputs.
  TensorList outputs_wanted() const { return members_wanted(group_->count_of_inputs(), Formula::outputs); }

  const std::shared_ptr<const Group<Formula>> group_;
  Saved saved_;

 private:
  TensorList members_wanted(size_t first, size_t count) const {
    TensorList result;
    for (const auto& member : group_->members) {
      for (size_t k = 0; k < count; ++k) {
        result.push_back(task_should_compute_output(first + result.size()) ? member.empty() : at::Tensor());
      }
    }
    return result;
  }
};

/// The second derivatives: of x_bar = J(x)^T y_bar by x and y_bar, along w.
template <class Formula>
class SecondNode final : public UpdateNode<Formula> {
 public:
  SecondNode(std::shared_ptr<const Group<Formula>> group, edge_list edges, Saved x_c_and_y_bar)
      : UpdateNode<Formula>(std::move(group), std::move(edges), std::move(x_c_and_y_bar)) {}

  std::string name() const override { return c10::str(Formula::name, "UpdateBackwardBackward"); }

  variable_list apply(variable_list&& w) override {
    std::lock_guard<std::mutex> lock(this->mutex_);
    check_cotangents<Formula>(w);
    const auto inputs = unpacked(this->saved_);
    if (at::GradMode::is_enabled()) return by_operators(inputs, w);
    auto result = joined(this->inputs_wanted(), this->outputs_wanted());
    evaluate(this->group_, Order::second, joined(inputs, w), result);
    return result;
  }

 private:
  /// The same, and differentiable.
  variable_list by_operators(const TensorList& inputs, const variable_list& w) const {
    const auto& group = *this->group_;
    variable_list result(inputs.size());
    for (size_t i = 0; i < group.members.size(); ++i) {
      const auto& [formula, row, dtype, sizes, strides, numel] = group.members[i];
      const auto symbol = [](const at::Tensor& tensor) { return tensor.defined() ? Symbol(tensor) : Symbol(0); };
      std::array<Dual<Symbol>, Formula::inputs> x;
      std::array<Dual<Symbol>, Formula::coefficients> c;
      std::array<Dual<Symbol>, Formula::outputs> y_bar;
      for (size_t k = 0; k < x.size(); ++k) x[k] = {symbol(inputs[group.x(i, k)]), symbol(w[group.x(i, k)])};
      for (size_t k = 0; k < c.size(); ++k) {
        const auto& value = inputs[group.c(row, k)];
        c[k] = {value.defined() ? Symbol(value) : Symbol(group.rows[row][k]), symbol(w[group.c(row, k)])};
      }
      for (size_t k = 0; k < y_bar.size(); ++k) y_bar[k] = symbol(inputs[group.count_of_inputs() + group.y(i, k)]);

      const auto bar = formula.vjp(x, c, y_bar);
      const auto y = formula.forward(x, c);
      const auto derivative = [&, &sizes = sizes](const Dual<Symbol>& of) { return of.epsilon.tensor.expand(sizes); };
      const auto put = [&, dtype = dtype](const Dual<Symbol>& of, size_t j) {
        if (this->task_should_compute_output(j)) result[j] = derivative(of).to(dtype);
      };
      for (size_t k = 0; k < x.size(); ++k) put(bar.x[k], group.x(i, k));
      for (size_t k = 0; k < y.size(); ++k) put(y[k], group.count_of_inputs() + group.y(i, k));
      for (size_t k = 0; k < c.size(); ++k) {
        const auto j = group.c(row, k);
        if (!this->task_should_compute_output(j)) continue;
        const auto sum = derivative(bar.c[k]).sum(at::kDouble);
        result[j] = result[j].defined() ? result[j] + sum : sum;
      }
    }
    return result;
  }
};

/// The derivatives of an update: x_bar = J(x)^T y_bar.
template <class Formula>
class FirstNode final : public UpdateNode<Formula> {
 public:
  FirstNode(std::shared_ptr<const Group<Formula>> group, edge_list edges, Saved x_and_c)
      : UpdateNode<Formula>(std::move(group), std::move(edges), std::move(x_and_c)) {}

  std::string name() const override { return c10::str(Formula::name, "UpdateBackward"); }

  variable_list apply(variable_list&& y_bar) override {
    std::lock_guard<std::mutex> lock(this->mutex_);
    check_cotangents<Formula>(y_bar);
    auto inputs = unpacked(this->saved_);
    const auto& group = *this->group_;
    auto x_bar = this->inputs_wanted();
    for (size_t i = 0; i < group.members.size(); ++i) {
      if (passes_theta_bar(i)) x_bar[group.x(i, 0)] = at::Tensor();
    }
    evaluate(this->group_, Order::first, joined(inputs, y_bar), x_bar);
    for (size_t i = 0; i < group.members.size(); ++i) {
      if (passes_theta_bar(i)) x_bar[group.x(i, 0)] = y_bar[group.y(i, 0)];
    }
    if (at::GradMode::is_enabled()) record_second(std::move(inputs), y_bar, x_bar);
    return x_bar;
  }

 private:
  bool passes_theta_bar(size_t member) const {
    return this->group_->members[member].formula.passes_theta_bar() &&
           this->task_should_compute_output(this->group_->x(member, 0));
  }

  void record_second(TensorList inputs, const variable_list& y_bar, const variable_list& x_bar) const {
    const auto& group = *this->group_;
    inputs = joined(std::move(inputs), y_bar);
    auto edges = this->next_edges();
    for (const auto& cotangent : y_bar) edges.push_back(edge_of(cotangent));
    Mask used(inputs.size()), needed(inputs.size()), differentiable(x_bar.size());
    for (size_t i = 0; i < group.members.size(); ++i) {
      const auto& [formula, row, dtype, sizes, strides, numel] = group.members[i];
      Traces<Formula> traces(group, i, [&](size_t j) { return edges[j].is_valid(); });
      const auto bar = formula.vjp(traces.x, traces.c, traces.y_bar);
      const auto add = [&](const Trace& trace, size_t j) {
        if (!trace.requires_grad || !x_bar[j].defined()) return;
        differentiable[j] = true;
        traces.mark(trace.inputs, used);
      };
      for (int k = passes_theta_bar(i) ? 1 : 0; k < Formula::inputs; ++k) add(bar.x[k], group.x(i, k));
      for (int k = 0; k < Formula::coefficients; ++k) add(bar.c[k], group.c(row, k));
      traces.mark(traces.needed, needed);
    }
    if (!any(differentiable)) return;
    for (size_t j = 0; j < edges.size(); ++j) {
      if (!used[j]) edges[j] = Edge();
    }
    auto kept = saved(group, inputs, needed);
    attach(make_node<SecondNode<Formula>>(this->group_, std::move(edges), std::move(kept)), x_bar, differentiable);
  }
};

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  return operators::is_dense(tensor) && !torch::autograd::isFwGradDefined(tensor) && resolve(tensor).is_same(tensor);
}

template <class Formula>
void record(const std::shared_ptr<const Group<Formula>>& group, const TensorList& inputs, const TensorList& outputs) {
  const auto requires_grad = [&](size_t j) {
    return j < inputs.size() && inputs[j].defined() && inputs[j].requires_grad();
  };
  Mask used(inputs.size()), needed(inputs.size()), differentiable(outputs.size());
  for (size_t i = 0; i < group->members.size(); ++i) {
    const auto& formula = group->members[i].formula;
    Traces<Formula> traces(*group, i, requires_grad);
    const auto y = formula.forward(traces.x, traces.c);
    for (int k = 0; k <= formula.slots(); ++k) {
      if (!y[k].requires_grad) continue;
      differentiable[group->y(i, k)] = true;
      traces.mark(y[k].inputs, used);
    }
    traces.mark(traces.needed, needed);
  }
  if (!any(differentiable)) return;
  edge_list edges(inputs.size());
  for (size_t j = 0; j < inputs.size(); ++j) {
    if (used[j]) edges[j] = edge_of(inputs[j]);
  }
  auto kept = saved(*group, inputs, needed);
  attach(make_node<FirstNode<Formula>>(group, std::move(edges), std::move(kept)), outputs, differentiable);
}

template void record(const std::shared_ptr<const Group<SgdFormula>>&, const TensorList&, const TensorList&);
template void record(const std::shared_ptr<const Group<AdamFormula>>&, const TensorList&, const TensorList&);

}  // namespace gimli::optim::fused
