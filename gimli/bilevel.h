#pragma once

#include <functional>
#include <optional>
#include <typeinfo>
#include <utility>

#include "gimli/inner_loop.h"

namespace gimli {

/// A task of any type, as a problem's closures receive it: it refers to the task and does not own it. To a strategy it
/// also says which one of the batch it is, and where its random numbers begin.
class TaskRef final {
 public:
  TaskRef() = default;
  template <class Task>
  static TaskRef to(const Task& task) {
    return TaskRef(&task, &typeid(Task));
  }

  template <class Task>
  const Task& get() const {
    TORCH_CHECK(type_ && *type_ == typeid(Task), "Bilevel: the closures take a task of type ",
                c10::demangle(typeid(Task).name()), ", but they were given ",
                type_ ? "one of type " + c10::demangle(type_->name()) : "no task");
    return *static_cast<const Task*>(task_);
  }

  /// The same task as the `index`-th of a batch whose random numbers begin at `seed`.
  TaskRef in_batch(int64_t index, uint64_t seed) const;
  int64_t index() const { return index_; }
  uint64_t seed() const { return seed_; }

  /// Several tasks that run together: the closures are given one of them, and read all tasks' tensors in the place of
  /// its own.
  struct Together {
    std::vector<uint64_t> seeds;
    NamedTensors given;  ///< the tensors of that task, as declared
    TensorList stacked;  ///< those of all tasks, [tasks, ...]
    TensorList shared;   ///< what all tasks read
  };
  TaskRef with(std::shared_ptr<const Together> together) const;
  /// These tasks, or nullptr if it is one.
  const Together* together() const { return together_.get(); }
  /// How many they are, or 0.
  int64_t count() const { return together_ ? static_cast<int64_t>(together_->seeds.size()) : 0; }

 private:
  TaskRef(const void* task, const std::type_info* type) : task_(task), type_(type) {}

  const void* task_ = nullptr;
  const std::type_info* type_ = nullptr;
  int64_t index_ = 0;
  uint64_t seed_ = 0;
  std::shared_ptr<const Together> together_;
};

/// The tasks of a batch. It refers to the elements of a vector, which must outlive it.
class TaskList final {
 public:
  /// A single task about which nothing is to be known, for problems whose closures take none.
  TaskList() : tasks_(1) {}
  template <class Task>
  TaskList(const std::vector<Task>& tasks) {
    static_assert(!std::is_integral_v<Task>,
                  "gimli: an integer argument of a closure is the step; put integer tasks "
                  "into a struct");
    for (const auto& task : tasks) tasks_.push_back(TaskRef::to(task));
  }

  int64_t size() const { return static_cast<int64_t>(tasks_.size()); }
  const TaskRef& operator[](int64_t index) const { return tasks_[index]; }

 private:
  std::vector<TaskRef> tasks_;
};

/// The same state outside any graph and in memory of its own: parameters that no step has moved are otherwise the
/// model's, and change with it.
InnerState apart_from(const ModelTensors& model, const InnerState& state);

/// What an outer closure returns: its loss and, if it likes, a tensor to report beside it (an accuracy, predictions),
/// which is not differentiated.
struct OuterValue {
  OuterValue(at::Tensor outer_loss) : loss(std::move(outer_loss)) {}
  OuterValue(at::Tensor outer_loss, at::Tensor report) : loss(std::move(outer_loss)), auxiliary(std::move(report)) {}

  OuterValue detach() const { return {loss.detach(), auxiliary}; }

  at::Tensor loss;
  at::Tensor auxiliary;
};

/// A bilevel problem as a value, so that it can be run again: an inner loop of `steps` steps on `inner`, and the outer
/// loss `outer` of the weights that it reaches (equation 4 of the paper).
///
///     auto problem = gimli::Bilevel(model, optimizer)
///         .steps(5)
///         .inner([&](const Task& task) { return loss(model->forward(task.support.data), task.support.target); })
///         .outer([&](const Task& task) { return loss(model->forward(task.query.data), task.query.target); });
///
/// The closures call the unmodified model and find the fast weights under it. They take `(const Task&, int64_t step)`,
/// or either of the two, or nothing. `step` counts the steps made so far. Whatever they use besides the task (a loss
/// network, weights of examples) can be a meta-parameter.
///
/// A strategy may run a step several times, in any order and in several threads at once. So closures are functions of
/// the task and the step: what they compute from meta-parameters they compute inside, they leave the model's train()
/// and eval() alone, and random numbers (dropout, noise) come from libtorch's default generators, in whose place each
/// task and step has a stream of its own (see RandomStream). What an inner closure writes to buffers, the next step
/// sees; an outer closure only looks at the state, and its writes are forgotten. Running statistics of a batch norm in
/// eval() are constants to libtorch, and so to the hypergradient.
class Bilevel final {
 public:
  /// The optimizer's options and state are those of now.
  Bilevel(ModelTensors model, optim::Optimizer optimizer);

  Bilevel& steps(int64_t count);

  template <class Closure>
  Bilevel& inner(Closure closure) {
    inner_ = erase<at::Tensor>(std::move(closure));
    return changed();
  }

  template <class Closure>
  Bilevel& outer(Closure closure) {
    outer_ = erase<OuterValue>(std::move(closure));
    return changed();
  }

  /// The tensors of a task that the closures read, from a closure over the task, for strategies that must know them
  /// (Captured).
  template <class Closure>
  Bilevel& inputs(Closure closure) {
    inputs_ = erase<TensorList>(std::move(closure));
    return changed();
  }

  /// Other tensors that they read, for the same strategies: always these, with the contents that they have then.
  Bilevel& constants(TensorList tensors);

  /// Outer losses after each of these numbers of steps, in place of the last alone; the outer value is their sum.
  Bilevel& outer_at(std::vector<int64_t> steps);

  /// Cuts the graph before each of these steps (the paper's stop operator).
  Bilevel& stop_gradient_before(std::vector<int64_t> steps);

  /// Applied to every step's gradients, after those that were given before.
  Bilevel& gradient_transform(optim::GradientTransform transform);

  /// Starts every inner loop from `state` in place of the model's and optimizer's own (warm start).
  Bilevel& start_from(InnerState state);

  /// Adds strength / 2 |theta - theta_0|^2 to the inner loss of every step, theta_0 being the model's own parameters,
  /// as far as the inner loop adapts them (iMAML, Rajeswaran et al. 2019, equation 3). A number of at least 0, or a
  /// tensor to be learned.
  Bilevel& proximal(optim::Value strength);

  /// Where the random numbers of the closures begin. Without it, each call draws a seed from libtorch's default
  /// generator.
  Bilevel& seed(uint64_t seed);

  /// Report the inner loops' last states in the result.
  Bilevel& keep_final_states(bool keep);

  // What strategies build on.

  int64_t steps() const { return steps_; }
  bool keeps_final_states() const { return keep_final_states_; }
  const ModelTensors& model() const { return model_; }
  const optim::Optimizer& optimizer() const { return optimizer_; }
  const std::optional<uint64_t>& seed() const { return seed_; }
  bool has_outer_at(int64_t step) const;
  bool stops_gradient_before(int64_t step) const;
  bool stops_gradient() const { return !stops_.empty(); }
  bool has_inner() const { return static_cast<bool>(inner_); }
  bool has_proximal() const { return !proximal_.is_off(); }
  bool has_gradient_transforms() const { return !transforms_.empty(); }

  /// A number that copies share until one of their settings is changed; seed() changes none.
  uint64_t identity() const { return identity_; }
  /// The tensors of a task, as declared; stacked, those of several together.
  TensorList inputs_of(const TaskRef& task) const;
  /// Tasks as one that runs them together, for which the closures are given the `given`-th. Refuses what it cannot know
  /// to be right, by the name "Vmap".
  TaskRef together(const std::vector<TaskRef>& tasks, int64_t given = 0) const;
  /// All others that are known to be read: the model's, the optimizer's, where the loop starts, and the constants.
  TensorList tensors() const;

  /// Throws if something is missing.
  void check() const;

  /// The inner loop of `task` before its first step.
  InnerLoop start(Graph graph, const TaskRef& task = {}) const;

  /// The inner loss of the next step of `loop` on `task`, with its proximal term.
  at::Tensor loss(InnerLoop& loop, const TaskRef& task) const;

  /// The next step of `loop` on `task`. Returns its inner loss.
  at::Tensor step(InnerLoop& loop, const TaskRef& task) const;

  /// The outer value of the weights where `loop` is.
  OuterValue outer(const InnerLoop& loop, const TaskRef& task) const;

 private:
  template <class Result>
  using Closure = std::function<Result(const TaskRef&, int64_t)>;

  template <class>
  struct Arguments;
  template <class Result, class Class, class... Args>
  struct Arguments<Result (Class::*)(Args...) const> {
    using type = std::tuple<std::decay_t<Args>...>;
  };

  /// A closure over its own task type as one over TaskRef.
  template <class Result, class F>
  static Closure<Result> erase(F f) {
    using Args = typename Arguments<decltype(&F::operator())>::type;
    constexpr size_t count = std::tuple_size_v<Args>;
    if constexpr (count == 0) {
      return [f](const TaskRef&, int64_t) -> Result { return f(); };
    } else if constexpr (count == 1 && std::is_integral_v<std::tuple_element_t<0, Args>>) {
      return [f](const TaskRef&, int64_t step) -> Result { return f(step); };
    } else if constexpr (count == 1) {
      return
          [f](const TaskRef& task, int64_t) -> Result { return f(task.template get<std::tuple_element_t<0, Args>>()); };
    } else {
      static_assert(count == 2 && std::is_integral_v<std::tuple_element_t<1, Args>>,
                    "gimli: a closure takes (const Task&, int64_t step), or either of them, or nothing");
      return [f](const TaskRef& task, int64_t step) -> Result {
        return f(task.template get<std::tuple_element_t<0, Args>>(), step);
      };
    }
  }

  /// `closure(task, step)`, where operators read the tensors of all tasks that run together.
  template <class Result>
  Result call(const Closure<Result>& closure, const TaskRef& task, int64_t step) const;

  /// Gives the problem an identity of its own.
  Bilevel& changed();

  ModelTensors model_;
  optim::Optimizer optimizer_;
  uint64_t identity_;
  int64_t steps_ = 1;
  Closure<at::Tensor> inner_;
  Closure<OuterValue> outer_;
  Closure<TensorList> inputs_;
  TensorList constants_;
  std::vector<int64_t> outer_steps_;
  std::vector<int64_t> stops_;
  std::vector<optim::GradientTransform> transforms_;
  std::optional<InnerState> start_;
  optim::Value proximal_;
  std::optional<uint64_t> seed_;
  bool keep_final_states_ = false;
};

}  // namespace gimli
