#pragma once

#include <torch/arg.h>

#include <memory>
#include <optional>
#include <type_traits>

#include "gimli/optim/gradient_transform.h"
#include "gimli/optim/optimizer.h"
#include "gimli/substitution.h"
#include "gimli/vmap/level.h"

namespace gimli {

/// What an inner loop records for an outer loss to be differentiated through it.
enum class Graph {
  full,         ///< everything: the outer gradient is exact
  first_order,  ///< the updates, with the inner gradients as constants (first-order MAML)
  none          ///< nothing, for evaluation: memory does not grow with the number of steps
};

struct InnerLoopOptions {
  TORCH_ARG(Graph, graph) = Graph::full;
  /// Keep the weights of every step for parameters(step).
  TORCH_ARG(bool, history) = false;
  /// Applied to the gradients of each step, in this order, before the update.
  TORCH_ARG(std::vector<optim::GradientTransform>, gradient_transforms);
  /// Where random numbers of gradient transforms and of functions of the step (hyperparameters) begin: each step has
  /// streams of its own (see RandomStream). Without it, they come from libtorch's default generator.
  TORCH_ARG(std::optional<uint64_t>, seed);
  /// Several tasks together, one a seed: what the loop adapts, what it remembers and its buffers have the tasks as
  /// their first dimension, and `run` calls its function once for all (see VmapLevel). Random numbers of each task
  /// begin at its seed, in the place of `seed`.
  TORCH_ARG(std::vector<uint64_t>, task_seeds);
};

/// Everything that one step of an inner loop hands to the next. The lists follow the model's parameters and buffers.
struct InnerState {
  TensorList parameters;                         ///< fast weights theta_t; frozen parameters are the model's own
  std::vector<optim::ParameterState> optimizer;  ///< one a parameter; empty for frozen ones
  TensorList buffers;                            ///< e.g. running statistics; never written to, but replaced
  int64_t step = 0;
  /// The names of the rules that adapt the parameters, empty for frozen ones.
  std::shared_ptr<const std::vector<std::string>> rules = nullptr;

  /// The same values, outside any graph.
  InnerState detach() const;
};

/// An inner training loop on an unmodified model, recorded so that an outer loss can be differentiated through it
/// (lines 3 to 7 of Algorithm 1 in the paper):
///
///     gimli::InnerLoop inner(model, optimizer);
///     for (int k = 0; k < 5; ++k) inner.step([&] { return loss(model->forward(x), y); });
///     inner.run([&] { return loss(model->forward(x_query), y_query); }).backward();
///
/// The closures call the model itself; while they run, this thread reads the loop's fast weights in the place of its
/// parameters, and the loop's buffers in the place of its buffers (see Substitution). Neither the model nor the
/// optimizer is modified. Fast weights start as the model's parameters, so the outer gradient arrives in
/// `model->parameters()`; the optimizer's state starts as a copy of what it holds.
///
/// Parameters that the optimizer does not hold, or that do not require a gradient, are frozen. A parameter that a
/// step's loss does not use keeps its value and its state in that step, as with torch.optim.
///
/// A copy is a branch: it shares the past and goes its own way. One loop belongs to one thread; loops in several
/// threads may share a model.
class InnerLoop final {
 public:
  InnerLoop(ModelTensors model, optim::Optimizer optimizer, InnerLoopOptions options = {});

  /// Calls `function()` with the fast weights under the model. Its result is a tensor, or tuples, pairs, optionals and
  /// vectors of them. What it writes to buffers, the loop has from then on; if it throws, nothing changed.
  template <class Function>
  auto run(Function&& function) {
    const VmapLevel level(tasks());
    auto buffers = level.wrap(writable_buffers());
    auto result = substituted(setup_->model, seen_parameters(level), buffers,
                              [&] { return level.unwrap(std::forward<Function>(function)()); });
    state_.buffers = level.unwrap(std::move(buffers));
    return result;
  }

  /// One step on the loss that `closure()` returns, computed with the fast weights under the model. Returns the loss.
  /// If it throws, parameters and optimizer are what they were; buffers are what the closure made of them.
  template <class Closure>
  requires std::is_invocable_r_v<at::Tensor, Closure> at::Tensor step(Closure&& closure) {
    at::AutoGradMode with_gradient(true);
    return step(at::Tensor(run(std::forward<Closure>(closure))));
  }

  /// One step on a loss that was computed from earlier results of `run`: apply(transformed(gradients(loss))). Throws if
  /// it is not a finite scalar, or does not depend on the fast weights.
  at::Tensor step(at::Tensor loss);

  // The parts of a step, for gradients that are summed, estimated or looked at before they are applied.

  /// The gradients of `loss` with respect to the fast weights, one a parameter of the model; undefined for those that
  /// are frozen or that it does not use. They carry a graph of their own if the loop's is full.
  TensorList gradients(const at::Tensor& loss) const;
  /// `gradients` after the options' transforms.
  TensorList transformed(TensorList gradients) const;
  /// The optimizer's update by `gradients`, which is the end of a step.
  void apply(const TensorList& gradients);

  /// Cuts the graph here: what follows treats the weights and the optimizer's state of now as constants.
  void stop_gradient();

  const InnerState& state() const { return state_; }
  /// How many tasks the state is of, if they run together, or 0.
  int64_t tasks() const { return static_cast<int64_t>(setup_->options.task_seeds().size()); }
  /// Whether the loop adapts the model's i-th parameter, or leaves it frozen.
  bool adapts(size_t i) const { return setup_->group_of[i] != nullptr; }
  /// What adapts it.
  const optim::UpdateRule& rule(size_t i) const { return *setup_->group_of[i]->rule; }
  /// The hyperparameters of the next step, for each of the model's parameters; none for frozen ones.
  std::vector<optim::Values> hyperparameters() const;

  /// The fast weights now, in the order of the model's parameters.
  const TensorList& parameters() const { return state_.parameters; }
  /// The fast weights after `step` steps; needs the option `history`.
  const TensorList& parameters(int64_t step) const;

  /// Goes on from `state`, which a loop on this model with the same kinds of optimizers made.
  void set_state(InnerState state);

  /// Copies weights and buffers into a model of the same structure.
  void copy_parameters_to(const ModelTensors& model) const;
  /// Copies the state of the parameters that `optimizer` holds into it; it is of the kind that adapted them. Where the
  /// loop has made no update there is nothing to copy, and the optimizer's own state stays.
  void copy_state_to(torch::optim::Optimizer& optimizer) const;

 private:
  /// The parameters that a group adapts: the others are frozen.
  struct Adapted {
    std::vector<size_t> indices;    ///< among the group's parameters
    std::vector<size_t> positions;  ///< likewise, among the model's
  };
  struct Setup {
    ModelTensors model;
    optim::Optimizer optimizer;
    InnerLoopOptions options;
    std::vector<Adapted> adapted;                        ///< one a group
    std::vector<const optim::ParameterGroup*> group_of;  ///< of each of the model's parameters, or nullptr
  };

  TensorList writable_buffers() const;
  /// The parameters as operators are to see them.
  TensorList seen_parameters(const VmapLevel& level) const;
  /// Calls `function()` with the `index`-th random stream of this step, if the loop has a seed.
  template <class Function>
  auto with_stream(uint64_t index, Function function) const {
    auto seeds = setup_->options.task_seeds();
    if (seeds.empty() && setup_->options.seed()) seeds.push_back(*setup_->options.seed());
    for (auto& seed : seeds) seed = fork_seed(fork_seed(seed, state_.step), index);
    std::optional<RandomStream> stream;
    if (!seeds.empty()) stream.emplace(seeds);
    return function();
  }
  /// For parameters as operators see them.
  std::vector<optim::Values> values_of_group(size_t group, const TensorList& parameters) const;
  void update(const TensorList& gradients);
  void update_groups(const TensorList& gradients);

  std::shared_ptr<const Setup> setup_;
  InnerState state_;
  std::vector<TensorList> history_;
};

/// `loss`, if it is a finite scalar of floating point, or one for each of `tasks` that run together; otherwise throws a
/// sentence that begins with `what`.
at::Tensor checked_loss(const at::Tensor& loss, int64_t tasks, const std::string& what);

/// The state of an inner loop of one task as that of `tasks`, which share it.
InnerState expanded(const InnerState& state, int64_t tasks);

/// That of one of the tasks.
InnerState state_of(const InnerState& together, int64_t task);

}  // namespace gimli
