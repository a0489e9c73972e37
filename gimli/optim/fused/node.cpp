#include "gimli/optim/fused/node.h"

#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

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

Saved saved(const TensorList& tensors, const Mask& needed) {
  Saved result;
  result.reserve(tensors.size());
  for (size_t j = 0; j < tensors.size(); ++j) {
    result.push_back(needed[j] ? SavedVariable(tensors[j], /*is_output=*/false) : SavedVariable());
  }
  return result;
}

TensorList unpacked(const Saved& saved) {
  TensorList result;
  result.reserve(saved.size());
  for (const auto& variable : saved) result.push_back(variable.unpack());
  return result;
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

/// The second derivatives: of x_bar = J(x)^T y_bar by x and y_bar, along w.
template <class Formula>
class SecondNode final : public Node {
 public:
  SecondNode(std::shared_ptr<const Group<Formula>> group, edge_list edges, Saved inputs)
      : Node(std::move(edges)), group_(std::move(group)), saved_(std::move(inputs)) {}

  std::string name() const override { return c10::str(Formula::name, "SecondUpdateBackward"); }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

  variable_list apply(variable_list&& w) override {
    std::lock_guard<std::mutex> lock(mutex_);
    check_cotangents<Formula>(w);
    const auto inputs = unpacked(saved_);
    const auto first_y = inputs.begin() + group_->count_of_inputs();
    variable_list result(inputs.size());
    TensorList y_result(group_->count_of_outputs());
    bool summed = false;
    for (size_t i = 0; i < group_->members.size(); ++i) {
      const auto& member = group_->members[i];
      const auto wanted = [&](size_t j) { return task_should_compute_output(j) ? member.empty() : at::Tensor(); };
      for (int k = 0; k < Formula::inputs; ++k) result[group_->x(i, k)] = wanted(group_->x(i, k));
      for (int k = 0; k < Formula::outputs; ++k) {
        const auto j = group_->y(i, k);
        y_result[j] = result[group_->count_of_inputs() + j] = wanted(group_->count_of_inputs() + j);
      }
    }
    for (size_t j = group_->c(0, 0); j < group_->count_of_inputs(); ++j) {
      summed = summed || task_should_compute_output(j);
    }

    Evaluation<Formula> evaluation(*group_, Order::second);
    evaluation.read(inputs, Formula::inputs);
    evaluation.read(TensorList(first_y, inputs.end()), Formula::outputs);
    evaluation.read(w, Formula::inputs);
    evaluation.move(w, group_->c(0, 0));
    evaluation.write(result, Formula::inputs);
    evaluation.write(y_result, Formula::outputs);
    if (summed) {
      const auto sums = evaluation.run_with_sums();
      for (size_t r = 0; r < sums.size(); ++r) {
        for (int k = 0; k < Formula::coefficients; ++k) {
          const auto j = group_->c(r, k);
          if (task_should_compute_output(j)) result[j] = at::scalar_tensor(sums[r][k], at::kDouble);
        }
      }
    } else {
      evaluation.run();
    }
    if (at::GradMode::is_enabled()) refuse_third(w, result);
    return result;
  }

 private:
  void refuse_third(const variable_list& w, const variable_list& result) const {
    auto edges = next_edges();
    for (const auto& direction : w) {
      edges.push_back(direction.defined() ? torch::autograd::impl::gradient_edge(direction) : Edge());
    }
    const auto message = c10::str("the third derivative of ", Formula::name, "'s update is not implemented");
    attach(make_node<torch::autograd::Error>(message, std::move(edges)), result, Mask(result.size(), true));
  }

  const std::shared_ptr<const Group<Formula>> group_;
  Saved saved_;  // x, c, y_bar
};

/// The derivatives of an update: x_bar = J(x)^T y_bar.
template <class Formula>
class FirstNode final : public Node {
 public:
  FirstNode(std::shared_ptr<const Group<Formula>> group, edge_list edges, Saved inputs)
      : Node(std::move(edges)), group_(std::move(group)), saved_(std::move(inputs)) {}

  std::string name() const override { return c10::str(Formula::name, "UpdateBackward"); }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

  variable_list apply(variable_list&& y_bar) override {
    std::lock_guard<std::mutex> lock(mutex_);
    check_cotangents<Formula>(y_bar);
    auto inputs = unpacked(saved_);
    variable_list x_bar(group_->count_of_inputs());
    for (size_t i = 0; i < group_->members.size(); ++i) {
      for (int k = 0; k < Formula::inputs; ++k) {
        const auto j = group_->x(i, k);
        if (task_should_compute_output(j)) x_bar[j] = group_->members[i].empty();
      }
    }
    bool summed = false;
    for (size_t j = group_->c(0, 0); j < x_bar.size(); ++j) summed = summed || task_should_compute_output(j);

    Evaluation<Formula> evaluation(*group_, Order::first);
    evaluation.read(inputs, Formula::inputs);
    evaluation.read(y_bar, Formula::outputs);
    evaluation.write(x_bar, Formula::inputs);
    if (summed) {
      const auto sums = evaluation.run_with_sums();
      for (size_t r = 0; r < sums.size(); ++r) {
        for (int k = 0; k < Formula::coefficients; ++k) {
          const auto j = group_->c(r, k);
          if (task_should_compute_output(j)) x_bar[j] = at::scalar_tensor(sums[r][k], at::kDouble);
        }
      }
    } else {
      evaluation.run();
    }
    if (at::GradMode::is_enabled()) record_second(std::move(inputs), y_bar, x_bar);
    return x_bar;
  }

 private:
  void record_second(TensorList inputs, const variable_list& y_bar, const variable_list& x_bar) const {
    inputs.insert(inputs.end(), y_bar.begin(), y_bar.end());
    auto edges = next_edges();
    for (const auto& cotangent : y_bar) {
      const bool required = cotangent.defined() && cotangent.requires_grad();
      edges.push_back(required ? torch::autograd::impl::gradient_edge(cotangent) : Edge());
    }
    Mask used(inputs.size()), needed(inputs.size()), differentiable(x_bar.size());
    for (size_t i = 0; i < group_->members.size(); ++i) {
      const auto& member = group_->members[i];
      Traces<Formula> traces(*group_, i, [&](size_t j) { return edges[j].is_valid(); });
      const auto bar = member.formula.vjp(traces.x, traces.c, traces.y_bar);
      const auto add = [&](const Trace& trace, size_t j) {
        if (!trace.requires_grad || !x_bar[j].defined()) return;
        differentiable[j] = true;
        traces.mark(trace.inputs, used);
      };
      for (int k = 0; k < Formula::inputs; ++k) add(bar.x[k], group_->x(i, k));
      for (int k = 0; k < Formula::coefficients; ++k) add(bar.c[k], group_->c(member.row, k));
      traces.mark(traces.needed, needed);
    }
    if (!any(differentiable)) return;
    for (size_t j = 0; j < edges.size(); ++j) {
      if (!used[j]) edges[j] = Edge();
    }
    attach(make_node<SecondNode<Formula>>(group_, std::move(edges), saved(inputs, needed)), x_bar, differentiable);
  }

  const std::shared_ptr<const Group<Formula>> group_;
  Saved saved_;  // x, c
};

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  return !at::isTensorSubclassLike(tensor) && tensor.layout() == at::kStrided && tensor.device().is_cpu() &&
         tensor.has_storage() && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble) &&
         !torch::autograd::isFwGradDefined(tensor) && resolve(tensor).is_same(tensor);
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
    if (used[j] && requires_grad(j)) edges[j] = torch::autograd::impl::gradient_edge(inputs[j]);
  }
  attach(make_node<FirstNode<Formula>>(group, std::move(edges), saved(inputs, needed)), outputs, differentiable);
}

template void record(const std::shared_ptr<const Group<SgdFormula>>&, const TensorList&, const TensorList&);
template void record(const std::shared_ptr<const Group<AdamFormula>>&, const TensorList&, const TensorList&);

}  // namespace gimli::optim::fused
