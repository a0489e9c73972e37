#include "gimli/hypergradient/finite_difference.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <cmath>

#include "gimli/hypergradient/adjoint.h"
#include "gimli/hypergradient/step_record.h"

namespace gimli {
namespace {

using torch::autograd::AutogradContext;

/// The gradients of one step's inner loss by the weights that are adapted, as a function of these weights and of the
/// meta-parameters.
struct InnerGradient final : torch::CustomClassHolder {
  InnerGradient(const Bilevel& problem, const TensorList& meta_parameters, const TaskRef& task, InnerState point,
                double epsilon, std::string name)
      : problem(problem),
        meta_parameters(meta_parameters),
        task(task),
        point(std::move(point)),
        epsilon(epsilon),
        losses(std::move(name), "the loss") {}

  TensorList variables_of(const InnerLoop& loop) const {
    TensorList list;
    for (size_t i = 0; i < loop.parameters().size(); ++i) {
      if (loop.adapts(i)) list.push_back(loop.parameters()[i]);
    }
    list.insert(list.end(), meta_parameters.begin(), meta_parameters.end());
    return list;
  }

  /// grad_{w, phi} loss(w + scale v).
  TensorList first_order(double scale, const TensorList& v) const {
    auto loop = problem.start(Graph::none, task);
    auto state = point;
    for (size_t k = 0; k < v.size(); ++k) {
      auto& w = state.parameters[positions[k]];
      w = w + scale * v[k];
    }
    loop.set_state(std::move(state));
    const auto loss = problem.loss(loop, task);
    return torch::autograd::grad({loss}, variables_of(loop), /*grad_outputs=*/{}, /*retain_graph=*/false,
                                 /*create_graph=*/false, /*allow_unused=*/true);
  }

  at::Tensor loss() const {
    auto loop = problem.start(Graph::none, task);
    loop.set_state(point);
    return problem.loss(loop, task).detach();
  }

  /// (dg/d(w, phi))^T v.
  TensorList transposed_times(const TensorList& v) {
    losses.see(0, loss());
    double length = 0;
    for (const auto& part : v) length = std::hypot(length, part.norm().item<double>());
    const double scale = length > 0 ? epsilon / length : 1;
    return divide(add_scaled(first_order(scale, v), -1, first_order(-scale, v)), 2 * scale);
  }

  const Bilevel& problem;
  const TensorList& meta_parameters;
  const TaskRef& task;
  InnerState point;
  const double epsilon;
  StepRecord losses;              // at the point, where it must be the same as at first
  std::vector<size_t> positions;  // of the parameters that have a gradient
};

/// `gradients` as the values of an InnerGradient, by which autograd differentiates them.
class Evaluated final : public torch::autograd::Function<Evaluated> {
 public:
  static TensorList forward(AutogradContext* context, at::TensorList /*variables*/, const TensorList& gradients,
                            const c10::intrusive_ptr<InnerGradient>& function) {
    context->saved_data["function"] = c10::IValue::make_capsule(function);
    TensorList values;
    for (const auto& gradient : gradients) values.push_back(gradient.clone());
    return values;
  }

  static TensorList backward(AutogradContext* context, const TensorList& v) {
    const auto function = context->saved_data["function"].toCapsule();
    auto result = static_cast<InnerGradient&>(*function).transposed_times(v);
    result.resize(result.size() + 2);
    return result;
  }
};

/// A step, recorded from `leaves` to `after`.
struct Piece {
  TensorList leaves;
  InnerState after;
};

}  // namespace

FiniteDifference FiniteDifference::sama() {
  FiniteDifference strategy;
  strategy.at_final_weights_ = true;
  return strategy;
}

FiniteDifference& FiniteDifference::last(int64_t steps) {
  TORCH_CHECK(steps >= 0, "FiniteDifference::last: expected at least 0 steps, got ", steps);
  TORCH_CHECK(!at_final_weights_, "FiniteDifference::last: sama() differentiates the last step alone, got ", steps);
  last_ = steps;
  return *this;
}

FiniteDifference& FiniteDifference::epsilon(double length) {
  TORCH_CHECK(std::isfinite(length) && length > 0, "FiniteDifference::epsilon: expected a positive number, got ",
              length);
  epsilon_ = length;
  return *this;
}

std::string FiniteDifference::name() const {
  if (at_final_weights_) return "FiniteDifference::sama()";
  return last_ == 1 ? "FiniteDifference()" : c10::str("FiniteDifference().last(", last_, ")");
}

Strategy::TaskResult FiniteDifference::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                                     const TaskRef& task) const {
  const auto record = [&](const InnerState& before) -> Piece {
    auto loop = problem.start(Graph::first_order, task);
    loop.set_state(as_leaves(before));
    auto leaves = tensors_of(loop.state());
    const auto loss = problem.loss(loop, task);
    auto gradients = loop.gradients(loss);
    const auto function = c10::make_intrusive<InnerGradient>(problem, meta_parameters, task, before, epsilon_, name());
    TensorList values;
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      const auto type = gradients[i].scalar_type();
      TORCH_CHECK(type == at::kFloat || type == at::kDouble, name(), ": parameter '",
                  problem.model().parameters.names[i], "' is of type ", type,
                  ", in which a difference of gradients is lost to rounding; use float32, or Unroll");
      function->positions.push_back(i);
      values.push_back(gradients[i]);
    }
    const auto variables = function->variables_of(loop);
    values = Evaluated::apply(at::TensorList(variables), values, function);
    for (size_t k = 0; k < values.size(); ++k) gradients[function->positions[k]] = values[k];
    loop.apply(loop.transformed(std::move(gradients)));
    if (at_final_weights_) {
      function->point = loop.state().detach();
      function->point.step = before.step;
      for (const auto i : function->positions) leaves[i].reset();
      std::for_each(leaves.begin() + loop.parameters().size(), leaves.end(), [](at::Tensor& slot) { slot.reset(); });
    }
    function->losses.see(0, at_final_weights_ ? function->loss() : loss.detach());
    return {std::move(leaves), loop.state()};
  };

  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    TORCH_CHECK(meta_parameters[i].is_leaf(), name(), ": meta-parameter ", i,
                " was computed from other tensors; give the tensor that it was computed from");
  }
  const auto steps = problem.steps();
  const auto cut = std::max<int64_t>(steps - last_, 0);
  const auto first = run_to(cut, problem, task, name());
  std::vector<Piece> pieces;
  for (int64_t k = cut; k < steps; ++k) pieces.push_back(record(pieces.empty() ? first : pieces.back().after.detach()));

  Adjoint adjoint(problem, meta_parameters, task, name());
  for (; !pieces.empty(); pieces.pop_back()) {
    adjoint.add_outer(pieces.back().after.detach());
    adjoint.pull_back(pieces.back().leaves, pieces.back().after);
  }
  adjoint.add_outer(first);
  const auto start = problem.start(Graph::full, task).state();
  auto result = adjoint.finish(cut > 0 ? cut_from(start, first) : start);
  result.cost.inner_steps += steps;
  result.cost.gradient_evaluations += steps + 2 * (steps - cut);
  result.cost.states_stored = steps - cut + 1;
  return result;
}

}  // namespace gimli
