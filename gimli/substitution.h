#pragma once

#include <ATen/core/Generator.h>
#include <c10/util/flat_hash_map.h>
#include <torch/nn/module.h>

#include <concepts>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "gimli/tensor_list.h"

namespace torch::jit {
struct Module;
}

namespace gimli {

/// Tensors with the names under which a model registers them; a tensor that is registered twice (tied weights) is
/// listed once, under its first name.
struct NamedTensors {
  std::vector<std::string> names;
  TensorList tensors;

  size_t size() const { return tensors.size(); }
};

/// The tensors that a model reads besides its inputs. A module, a module holder, a pointer to a module and a
/// TorchScript module all convert to it.
struct ModelTensors {
  ModelTensors(const torch::nn::Module& model);
  ModelTensors(const torch::jit::Module& model);
  template <class Pointer>
  requires requires(const Pointer& pointer) {
    { *pointer } -> std::convertible_to<const torch::nn::Module&>;
  }
  ModelTensors(const Pointer& pointer) : ModelTensors(static_cast<const torch::nn::Module&>(*pointer)) {}
  /// Tensors of no module, as parameters.
  explicit ModelTensors(NamedTensors tensors) : parameters(std::move(tensors)) {}

  NamedTensors parameters;
  NamedTensors buffers;
};

/// While it lives, operators of this thread that go through libtorch's dispatcher are seen by the scopes below and by
/// VmapLevel.
class Interception final {
 public:
  Interception();
  ~Interception();
  Interception(const Interception&) = delete;
  Interception& operator=(const Interception&) = delete;

 private:
  const bool was_on_;
};

/// While it lives, every operator that this thread sends through libtorch's dispatcher reads `parameters[i]` where it
/// was given the model's i-th parameter, and reads and writes `buffers[i]` where it was given the i-th buffer. The
/// model itself is neither changed nor locked: other threads see their own substitutions, or none.
///
/// This is what makes an unmodified module stateless (section 4.2 of the paper). It works below the modules, so it
/// holds for any of them, whether written with torch::nn or TorchScript. Scopes nest; the innermost that knows a tensor
/// decides. A scope costs one hash table entry a tensor, and one boxed call an operator.
///
/// Code that reads a parameter without the dispatcher would see the model's value and lose the gradient. Such code is
/// refused, with the parameter's name:
///   - a write to a parameter or into its memory (fast weights of past steps would change with it), when the operator
///     is called;
///   - an alias of the parameter's memory made behind the dispatcher's back (`.data()`, `.variable_data()`, a view kept
///     from before), when an operator reads it and the value of the parameter is elsewhere;
///   - a torch::autograd::Function applied to the parameter itself, and `set_data`, by `check`;
///   - an operator in a thread that the code starts through libtorch (at::launch, TorchScript's fork).
/// What remains invisible is a raw `data_ptr()` read outside any operator, and a std::thread.
class Substitution final {
 public:
  /// The lists have one entry for each of the model's parameters and buffers; an entry may be the model's own tensor.
  /// `model` must outlive the scope.
  Substitution(const ModelTensors& model, const TensorList& parameters, const TensorList& buffers);
  Substitution(ModelTensors&& model, const TensorList& parameters, const TensorList& buffers) = delete;
  ~Substitution();
  Substitution(const Substitution&) = delete;
  Substitution& operator=(const Substitution&) = delete;

  /// Throws if what was computed in this scope, and led to `outputs`, took a parameter past the substitution.
  void check(const TensorList& outputs) const;

  /// Whether this thread is inside a scope.
  static bool active();

  struct Entry {
    at::Tensor value;
    const std::string* name;
    bool is_parameter;
    mutable bool was_read = false, was_hidden = false;
  };

  /// The owner of memory: a parameter or buffer of the model, or its value here.
  struct Owner {
    const std::string* name;
    bool stale;  ///< it is the model's, and the value here is elsewhere
  };

  /// Whether the value that this scope has for the model's i-th parameter was asked for.
  bool was_read(size_t i) const;
  /// Whether the parameter was asked for where a scope within this one had another value for it.
  bool was_hidden(size_t i) const;

  /// What the innermost scope of this thread puts in the place of a tensor, or nullptr.
  static const Entry* find(const c10::TensorImpl* tensor);

  /// Whose memory this is, or nullptr.
  static const Owner* owner_of(const c10::StorageImpl* storage);

 private:
  const ModelTensors& model_;
  Substitution* const outer_;
  const Interception interception_;
  const bool script_was_optimized_;
  const uint64_t first_node_;  // sequence number of the first autograd node that this scope may create
  ska::flat_hash_map<const c10::TensorImpl*, Entry> entries_;
  ska::flat_hash_map<const c10::StorageImpl*, Owner> owners_;
  std::vector<const c10::StorageImpl*> storages_;  // of the model's parameters, as they were on entry
};

/// While it lives, operators of this thread draw random numbers from generators of its own, which begin at `seed`,
/// where they would draw from libtorch's default ones: what a closure draws is then a function of the seed, in whatever
/// order and thread it runs, and running it again replays it bit by bit. The innermost scope decides. Generators that a
/// caller gives to an operator explicitly are left alone.
class RandomStream final {
 public:
  explicit RandomStream(uint64_t seed);
  /// For tasks that run together (see VmapLevel): each draws as it would alone, in a stream that begins at its seed.
  explicit RandomStream(const std::vector<uint64_t>& seeds);
  ~RandomStream();
  RandomStream(const RandomStream&) = delete;
  RandomStream& operator=(const RandomStream&) = delete;

  /// The generator for tensors on `device` of the task that draws.
  at::Generator& generator(c10::Device device);
  void draw_for(size_t task) { task_ = task; }

  /// How many operators have drawn from streams, in all threads.
  static int64_t draws();

 private:
  struct Seeded {
    uint64_t seed;
    std::vector<at::Generator> generators;
  };
  std::vector<Seeded> tasks_;
  size_t task_ = 0;
  RandomStream* const outer_;
  const Interception interception_;
};

/// The seed of the `index`-th of the streams that `seed` begins (a finalised counter, as in SplitMix64, Steele et al.
/// 2014).
uint64_t fork_seed(uint64_t seed, uint64_t index);

/// The value that operators of this thread read for `tensor` now: its substitute, or itself. For a
/// torch::autograd::Function that takes parameters: `MyFunction::apply(gimli::resolve(weight))`.
at::Tensor resolve(const at::Tensor& tensor);

/// Appends the tensors inside a result: a tensor, or any nesting of tuples, pairs, optionals and vectors of them.
template <class T>
void append_tensors(TensorList& list, const T& value) {
  if constexpr (std::is_convertible_v<const T&, at::Tensor>) {
    list.push_back(value);
  } else if constexpr (std::is_arithmetic_v<T>) {
    return;
  } else if constexpr (requires { value.has_value(); }) {
    if (value) append_tensors(list, *value);
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    std::apply([&](const auto&... item) { (append_tensors(list, item), ...); }, value);
  } else if constexpr (requires { value.begin() != value.end(); }) {
    for (const auto& item : value) append_tensors(list, item);
  } else if constexpr (
      requires { value.getSubValues; } || requires { value.isTensor(); }) {
    if (value.isTensor()) {
      list.push_back(value.toTensor());
    } else if (value.isTuple()) {
      append_tensors(list, value.toTupleRef().elements().vec());
    } else if (value.isTensorList()) {
      append_tensors(list, value.toTensorVector());
    } else if (value.isList()) {
      append_tensors(list, value.toListRef().vec());
    }
  } else {
    static_assert(!sizeof(T), "gimli: return a tensor, or tuples, pairs, optionals and vectors of tensors");
  }
}

/// Calls `function()` with the substitution in place and returns its result, checked.
template <class Function>
auto substituted(const ModelTensors& model, const TensorList& parameters, const TensorList& buffers,
                 Function&& function) {
  Substitution scope(model, parameters, buffers);
  auto result = std::forward<Function>(function)();
  TensorList outputs;
  append_tensors(outputs, result);
  scope.check(outputs);
  return result;
}

}  // namespace gimli
