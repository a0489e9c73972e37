#include "gimli/hypergradient/evolution.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "gimli/hypergradient/adjoint.h"

namespace gimli {
namespace {

constexpr uint64_t perturbations = 0xe7037ed1a0b428db;  // unlike the number of any step

ModelTensors named(const TensorList& meta_parameters) {
  NamedTensors named;
  for (size_t i = 0; i < meta_parameters.size(); ++i) named.names.push_back(c10::str("meta-parameter ", i));
  named.tensors = meta_parameters;
  return ModelTensors(std::move(named));
}

TensorList normal_like(const TensorList& list, double sigma, uint64_t seed) {
  const RandomStream stream(seed);
  TensorList result;
  for (const auto& tensor : list) result.push_back(at::randn_like(tensor).mul_(sigma));
  return result;
}

/// a + factor b, outside any graph.
TensorList moved(const TensorList& a, double factor, const TensorList& b) {
  TensorList result;
  for (size_t i = 0; i < a.size(); ++i) result.push_back(at::add(a[i].detach(), b[i], factor));
  return result;
}

/// An inner loop that runs window by window, with other values of the meta-parameters phi in each.
class Particle final {
 public:
  Particle(const Bilevel& problem, const ModelTensors& phi, const TaskRef& task)
      : problem_(problem), phi_(phi), task_(task), started_(phi.parameters.size()), used_(started_), acted_(started_) {}

  /// The outer losses of the window that ends after `end` steps, with `values` in the place of phi.
  OuterSum run(const TensorList& values, int64_t end) {
    OuterSum outer;
    const auto add_outer = [&] {
      if (problem_.has_outer_at(step())) outer.add(problem_.outer(*loop_, task_).detach());
    };
    const bool is_first = !loop_;
    enter(values);
    const Substitution scope(phi_, values, {});
    if (is_first) add_outer();
    while (step() < end) {
      problem_.step(*loop_, task_);
      add_outer();
    }
    for (size_t i = 0; i < values.size(); ++i) {
      acted_[i] = acted_[i] || scope.was_read(i);
      used_[i] = used_[i] || scope.was_read(i) || (started_[i] && scope.was_hidden(i));
    }
    return outer;
  }

  /// Whether the last window depended on its value of the i-th meta-parameter.
  bool acted(size_t i) const { return acted_[i]; }
  /// Whether anything did, other than the start of the loop, which reads weights that no loss may ask for.
  bool used(size_t i) const { return used_[i]; }

 private:
  /// Starts the loop, or has it read anew the weights that it does not adapt.
  void enter(const TensorList& values) {
    const Substitution scope(phi_, values, {});
    if (loop_) {
      loop_->set_state(loop_->state());
    } else {
      loop_ = problem_.start(Graph::none, task_);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const auto& held = loop_->parameters();
      acted_[i] =
          std::any_of(held.begin(), held.end(), [&](const auto& theta) { return theta.is_alias_of(values[i]); });
      started_[i] = started_[i] || acted_[i];
    }
  }

  int64_t step() const { return loop_->state().step; }

  const Bilevel& problem_;
  const ModelTensors& phi_;
  const TaskRef& task_;
  std::optional<InnerLoop> loop_;
  std::vector<bool> started_, used_, acted_;
};

double value_of(const OuterSum& outer) { return outer.empty() ? 0 : outer.total().item<double>(); }

}  // namespace

Evolution::Evolution(EvolutionOptions options) : options_(options) {
  TORCH_CHECK(std::isfinite(options_.sigma()) && options_.sigma() > 0,
              "Evolution: expected sigma to be finite and above 0, got ", options_.sigma());
  TORCH_CHECK(options_.pairs() >= 1, "Evolution: expected at least 1 pair, got ", options_.pairs());
  TORCH_CHECK(options_.window().value_or(1) >= 1, "Evolution: expected a window of at least 1 step, got ",
              *options_.window());
}

std::string Evolution::name() const {
  const auto window = options_.window() ? c10::str(", window ", *options_.window()) : "";
  return c10::str("Evolution(sigma ", options_.sigma(), ", pairs ", options_.pairs(), window, ")");
}

Strategy::TaskResult Evolution::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                              const TaskRef& task) const {
  const auto steps = problem.steps(), window = options_.window().value_or(steps);
  const auto count = meta_parameters.size();
  for (int64_t k = 0; k < steps; ++k) {
    TORCH_CHECK(!problem.stops_gradient_before(k), name(), ": the gradient is to stop before step ", k,
                ", but perturbations pass; leave the stop out, or use Unroll");
  }
  for (size_t i = 0; i < count; ++i) {
    const auto type = meta_parameters[i].scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble, name(), ": meta-parameter ", i, " is of type ", type,
                ", in which a perturbation is lost to rounding; keep it in float32 and convert it in the closure");
  }

  const auto phi = named(meta_parameters);
  auto result = run_without_graph(problem, task);  // at phi itself

  TensorList total(count);
  std::vector<bool> used(count);
  for (int64_t pair = 0; pair < options_.pairs(); ++pair) {
    const auto seed = fork_seed(fork_seed(task.seed(), perturbations), pair);
    Particle plus(problem, phi, task), minus(problem, phi, task);
    TensorList xi(count);
    int64_t end = 0;
    for (int64_t w = 0; w == 0 || end < steps; ++w) {
      end = window < steps - end ? end + window : steps;
      auto e = normal_like(meta_parameters, options_.sigma(), fork_seed(seed, w));
      const auto difference = value_of(plus.run(moved(meta_parameters, 1, e), end)) -
                              value_of(minus.run(moved(meta_parameters, -1, e), end));
      for (size_t i = 0; i < count; ++i) {
        if (!plus.acted(i) && !minus.acted(i)) e[i].reset();
      }
      xi = sum(std::move(xi), e);
      total = add_scaled(std::move(total), difference, xi);
    }
    for (size_t i = 0; i < count; ++i) used[i] = used[i] || plus.used(i) || minus.used(i);
  }
  for (size_t i = 0; i < count; ++i) {
    if (!used[i]) total[i].reset();
  }

  result.gradients = divide(std::move(total), 2 * options_.pairs() * options_.sigma() * options_.sigma());
  const auto loops = 2 * options_.pairs() + 1;
  result.cost.inner_steps *= loops;
  result.cost.gradient_evaluations *= loops;
  result.cost.outer_evaluations *= loops;
  result.cost.states_stored = 3;
  return result;
}

}  // namespace gimli
