#include "gimli/substitution.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/library.h>
#include <torch/script.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <unordered_set>

#include "gimli/operators/replacement.h"
#include "gimli/vmap/level.h"
#include "gimli/vmap/rules.h"

namespace gimli {
namespace {

// Above autograd and functorch, so that a substituted value is what they see; unused by libtorch itself.
constexpr auto mode_key = c10::DispatchKey::TESTING_ONLY_GenericMode;

thread_local Substitution* innermost = nullptr;
thread_local RandomStream* innermost_stream = nullptr;
std::atomic<int64_t> draws_of_streams = 0;

/// The memory of a tensor, or of what it wraps.
const c10::StorageImpl* storage_of(const at::TensorBase& tensor) {
  const at::TensorBase& own = is_wrapped(tensor) ? physical(at::Tensor(tensor)) : tensor;
  return own.has_storage() ? own.storage().unsafeGetStorageImpl() : nullptr;
}

bool is_written(const c10::OperatorHandle& op, size_t argument) {
  const auto* alias = op.schema().arguments()[argument].alias_info();
  return alias && alias->isWrite();
}

/// The value to put in the place of `tensor`, or nullptr to leave it. Refuses what would be silently wrong.
const at::Tensor* substitute_for(const at::TensorBase& tensor, const c10::OperatorHandle& op, size_t argument) {
  auto* impl = tensor.unsafeGetTensorImpl();
  if (const auto* entry = Substitution::find(impl)) {
    TORCH_CHECK(!(entry->is_parameter && is_written(op, argument)), "gimli: ", op.schema().name(),
                " writes to parameter '", *entry->name,
                "' inside an inner loop, which would change the weights of past steps; compute a new tensor instead");
    return entry->value.is_same(tensor) ? nullptr : &entry->value;
  }
  if (const auto* storage = storage_of(tensor)) {
    const auto* owner = Substitution::owner_of(storage);
    if (!owner) return nullptr;
    TORCH_CHECK(!is_written(op, argument), "gimli: ", op.schema().name(), " writes into the memory of '", *owner->name,
                "' inside an inner loop, which changes neither the model nor the weights of past steps; compute a new "
                "tensor instead");
    TORCH_CHECK(!owner->stale, "gimli: ", op.schema().name(), " reads '", *owner->name,
                "' of the model through an alias that bypasses its fast value (.data(), .variable_data(), or a view "
                "or detach() from outside the inner loop), so the value would be stale and its gradient lost; use the "
                "module's own tensor, or a clone() if the value from before the loop is meant");
  }
  return nullptr;
}

bool substitute_in_list(c10::IValue& argument, const c10::OperatorHandle& op, size_t index) {
  bool copied = false;
  if (argument.isTensorList()) {
    auto list = argument.toTensorList();
    for (size_t i = 0; i < list.size(); ++i) {
      const at::Tensor item = list.get(i);
      if (const auto* value = substitute_for(item, op, index)) {
        if (!std::exchange(copied, true)) argument = list = list.copy();
        list.set(i, *value);
      }
    }
  } else if (argument.isOptionalTensorList()) {
    auto list = argument.toOptionalTensorList();
    for (size_t i = 0; i < list.size(); ++i) {
      const std::optional<at::Tensor> item = list.get(i);
      if (!item) continue;
      if (const auto* value = substitute_for(*item, op, index)) {
        if (!std::exchange(copied, true)) argument = list = list.copy();
        list.set(i, *value);
      }
    }
  }
  return copied;
}

/// Puts values in the place of what an operator was given; returns whether any was.
bool substitute_arguments(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  bool changed = false;
  const size_t count = op.schema().arguments().size();
  c10::IValue* arguments = stack->data() + (stack->size() - count);
  for (size_t i = 0; i < count; ++i) {
    if (arguments[i].isTensor()) {
      if (const auto* value = substitute_for(arguments[i].toTensor(), op, i)) {
        arguments[i] = *value;
        changed = true;
      }
    } else if (arguments[i].isList() && substitute_in_list(arguments[i], op, i)) {
      changed = true;
    }
  }
  return changed;
}

/// The default generator of a device draws as `own` for the time of a scope, and `own` continues from there.
class DefaultGeneratorAs final {
 public:
  DefaultGeneratorAs(const c10::Device& device, at::Generator& own)
      : lock_(mutex()),
        default_(at::globalContext().defaultGenerator(device)),
        own_(own),
        saved_(default_.get_state()) {
    default_.set_state(own_.get_state());
  }
  ~DefaultGeneratorAs() {
    own_.set_state(default_.get_state());
    default_.set_state(saved_);
  }

 private:
  static std::mutex& mutex() {
    static std::mutex one_at_a_time;
    return one_at_a_time;
  }

  const std::lock_guard<std::mutex> lock_;
  at::Generator default_;
  at::Generator& own_;
  const at::Tensor saved_;
};

/// Whether an operator, or what it calls in turn, may draw random numbers. Of operators that are not libtorch's own,
/// that is not known.
bool may_draw(const c10::OperatorHandle& op) {
  return op.hasTag(at::Tag::nondeterministic_seeded) || op.operator_name().name.compare(0, 6, "aten::") != 0;
}

/// Calls an operator that may draw random numbers by `call` so that they come from `stream`.
template <class Call>
void draw_from(RandomStream& stream, const c10::OperatorHandle& op, torch::jit::Stack* stack, Call call) {
  const auto& schema = op.schema().arguments();
  c10::IValue* arguments = stack->data() + (stack->size() - schema.size());
  std::optional<c10::Device> device;
  std::optional<size_t> generator;
  for (size_t i = 0; i < schema.size(); ++i) {
    if (arguments[i].isTensor() && arguments[i].toTensor().defined()) device = arguments[i].toTensor().device();
    if (schema[i].type()->str() == "Generator?") generator = i;
  }
  if (generator) {
    if (device && arguments[*generator].isNone()) arguments[*generator] = stream.generator(*device);
    call();
  } else if (device && !device->is_cpu()) {  // fused kernels know no generator but the default one
    const DefaultGeneratorAs as_stream(*device, stream.generator(*device));
    call();
  } else {  // made of operators that come here in their turn
    call();
  }
}

/// Calls `visit` with each tensor in a value: itself or in a list.
template <class Visit>
void visit_tensors(const c10::IValue& value, Visit visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorList()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
      if (tensor) visit(*tensor);
    }
  }
}

/// What one task has of a value, where tasks run together.
c10::IValue slice_of(const c10::IValue& value, int64_t task) {
  const auto slice = [&](const at::Tensor& tensor) {
    return is_wrapped(tensor) ? tasks_first(tensor).select(0, task) : tensor;
  };
  if (value.isTensor()) return slice(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& tensor : value.toTensorList()) list.push_back(slice(tensor));
  return list;
}

/// Draws random numbers for each of the tasks of a level in turn, from its own stream.
void draw_for_each(const VmapLevel& level, const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  TORCH_CHECK(innermost_stream, "Vmap: ", op.schema().name(),
              " draws random numbers where there is no seed, so that tasks run together would not draw what each "
              "would alone");
  const auto count = op.schema().arguments().size();
  const auto given = torch::jit::pop(*stack, count);
  std::vector<TensorList> results(op.schema().returns().size());
  for (int64_t task = 0; task < level.tasks(); ++task) {
    const VmapLevel::Pause alone;
    innermost_stream->draw_for(task);
    torch::jit::Stack own;
    for (const auto& argument : given) own.push_back(slice_of(argument, task));
    op.callBoxed(&own);
    for (size_t i = 0; i < results.size(); ++i) results[i].push_back(own[i].toTensor());
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const auto* alias = op.schema().returns()[i].alias_info();
    const VmapLevel::Pause alone;
    stack->push_back(alias && alias->isWrite() ? given[0] : level.wrap(at::stack(results[i])));
  }
}

/// Asks for a number or a yes or no for each of the tasks of a level in turn, which must be the same.
void ask_each(const VmapLevel& level, const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto given = torch::jit::pop(*stack, op.schema().arguments().size());
  const VmapLevel::Pause alone;
  for (int64_t task = 0; task < level.tasks(); ++task) {
    torch::jit::Stack own;
    for (const auto& argument : given) own.push_back(slice_of(argument, task));
    op.callBoxed(&own);
    if (task == 0) stack->push_back(own[0]);
    TORCH_CHECK(stack->back() == own[0], "Vmap: ", op.schema().name(), " looks at a value that is ", stack->back(),
                " for task 0 and ", own[0], " for task ", task,
                ", while all tasks take the same way; run them with Sequential or Threads");
  }
}

/// Whether an operator returns a number or a yes or no.
bool looks_at_values(const c10::OperatorHandle& op) {
  const auto& returns = op.schema().returns();
  return returns.size() == 1 &&
         (returns[0].type()->isSubtypeOf(*c10::NumberType::get()) ||
          returns[0].type()->isSubtypeOf(*c10::BoolType::get())) &&
         (op.hasTag(at::Tag::data_dependent_output) || op.operator_name().name == "aten::is_nonzero");
}

/// Calls an operator for all tasks of a level at once.
void call_for_all(VmapLevel& level, const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  using c10::DispatchKey;
  const auto& schema = op.schema().arguments();
  bool any_wrapped = false;
  for (size_t i = 0; i < schema.size(); ++i) {
    visit_tensors(torch::jit::peek(*stack, i, schema.size()), [&](const at::Tensor& tensor) {
      any_wrapped = any_wrapped || is_wrapped(tensor);
      TORCH_CHECK(level.allows(tensor), "Vmap: ", op.schema().name(), " reads a tensor (", tensor.scalar_type(),
                  " of shape ", tensor.sizes(),
                  ") of which nobody said whether each task has its own; declare those of a task by "
                  "Bilevel::inputs and those of all tasks by Bilevel::constants");
    });
  }
  const bool is_composite = op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd);
  if (op.hasTag(at::Tag::nondeterministic_seeded) && !is_composite) {
    if (schema.size() > 0 && is_written(op, 0)) {
      TORCH_CHECK(is_wrapped(torch::jit::peek(*stack, 0, schema.size()).toTensor()), "Vmap: ", op.schema().name(),
                  " draws into a tensor that all tasks share; use its form that returns a new one");
    }
    return draw_for_each(level, op, stack);
  }
  if (!any_wrapped) {
    if (op.hasTag(at::Tag::nondeterministic_seeded)) {  // made of operators that come here in their turn
      op.callBoxedForDispatchKey(DispatchKey::CompositeImplicitAutograd, *stack);
    } else {
      const c10::impl::ExcludeDispatchKeyGuard seen_whole(mode_key);
      op.callBoxed(stack);
    }
    for (size_t i = 0; i < op.schema().returns().size(); ++i) {
      visit_tensors(torch::jit::peek(*stack, i, op.schema().returns().size()),
                    [&](const at::Tensor& tensor) { level.allow(tensor); });
    }
    return;
  }
  if (looks_at_values(op)) return ask_each(level, op, stack);
  const bool has_rule = op.hasKernelForDispatchKey(DispatchKey::FuncTorchBatched);
  {
    // A rule gives its operators what the tensors wrap.
    const c10::impl::ExcludeDispatchKeyGuard seen_whole(mode_key);
    const auto own = vmap_rule_of(op);
    if (own && own(*stack)) return;
    if (has_rule) return op.callBoxedForDispatchKey(DispatchKey::FuncTorchBatched, *stack);
  }
  if (op.hasKernelForDispatchKey(DispatchKey::FuncTorchBatchedDecomposition)) {
    return op.callBoxedForDispatchKey(DispatchKey::FuncTorchBatchedDecomposition, *stack);
  }
  TORCH_CHECK(is_composite, "Vmap: ", op.schema().name(),
              " has no batching rule in this libtorch, which would run it task by task; run the tasks with Sequential "
              "or Threads");
  op.callBoxedForDispatchKey(DispatchKey::CompositeImplicitAutograd, *stack);
}

void intercept(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  TORCH_CHECK(
      innermost || innermost_stream || VmapLevel::active() || torch::autograd::get_current_graph_task_id() != -1,
      "gimli: ", op.schema().name(),
      " runs in a thread that an inner loop's closure started, where its fast weights are not known");
  const bool changed = innermost && substitute_arguments(op, stack);
  if (auto* level = VmapLevel::current()) return call_for_all(*level, op, stack);
  if (const auto replacement = innermost ? operators::replacement_of(op) : nullptr) {
    c10::impl::ExcludeDispatchKeyGuard substituted_already(mode_key);
    if (replacement(*stack)) return;
  }
  const auto call = [&] {
    if (changed) {
      op.callBoxed(stack);  // the values may have other dispatch keys than what they stand for
    } else {
      op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, mode_key), stack);
    }
  };
  if (innermost_stream && may_draw(op)) {
    draw_from(*innermost_stream, op, stack, call);
  } else {
    // What the operator calls in turn has been given its substitutes here.
    c10::impl::ExcludeDispatchKeyGuard substituted_already(mode_key);
    call();
  }
}

void register_once() {
  static const bool registered = [] {
    static torch::Library library(torch::Library::IMPL, "_", mode_key, __FILE__, __LINE__);
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&intercept>());
    return true;
  }();
  (void)registered;
}

void append_unique(NamedTensors& list, std::unordered_set<c10::TensorImpl*>& seen, std::string name,
                   const at::Tensor& tensor) {
  if (!tensor.defined() || !seen.insert(tensor.unsafeGetTensorImpl()).second) return;
  list.names.push_back(std::move(name));
  list.tensors.push_back(tensor);
}

}  // namespace

Interception::Interception() : was_on_(c10::impl::tls_is_dispatch_key_included(mode_key)) {
  register_once();
  c10::impl::tls_set_dispatch_key_included(mode_key, true);
}

Interception::~Interception() { c10::impl::tls_set_dispatch_key_included(mode_key, was_on_); }

ModelTensors::ModelTensors(const torch::nn::Module& model) {
  std::unordered_set<c10::TensorImpl*> seen;
  for (const auto& item : model.named_parameters()) append_unique(parameters, seen, item.key(), item.value());
  for (const auto& item : model.named_buffers()) append_unique(buffers, seen, item.key(), item.value());
}

ModelTensors::ModelTensors(const torch::jit::Module& model) {
  std::unordered_set<c10::TensorImpl*> seen;
  for (const auto& item : model.named_parameters()) append_unique(parameters, seen, item.name, item.value);
  for (const auto& item : model.named_buffers()) append_unique(buffers, seen, item.name, item.value);
}

Substitution::Substitution(const ModelTensors& model, const TensorList& parameters, const TensorList& buffers)
    : model_(model),
      outer_(innermost),
      script_was_optimized_(torch::jit::getGraphExecutorOptimize()),
      first_node_(at::sequence_number::peek()) {
  TORCH_CHECK(parameters.size() == model.parameters.size() && buffers.size() == model.buffers.size(),
              "Substitution: got ", parameters.size(), " parameters and ", buffers.size(), " buffers for a model with ",
              model.parameters.size(), " and ", model.buffers.size());
  const auto add = [&](const NamedTensors& own, const TensorList& values, bool is_parameter) {
    for (size_t i = 0; i < own.size(); ++i) {
      entries_.emplace(own.tensors[i].unsafeGetTensorImpl(), Entry{values[i], &own.names[i], is_parameter});
      const auto* storage = storage_of(own.tensors[i]);
      if (is_parameter) storages_.push_back(storage);
      if (!is_parameter && storage == storage_of(values[i])) continue;
      if (storage) owners_.emplace(storage, Owner{&own.names[i], storage != storage_of(values[i])});
      if (!is_parameter) continue;
      if (const auto* of_value = storage_of(values[i])) owners_.emplace(of_value, Owner{&own.names[i], false});
    }
  };
  entries_.reserve(parameters.size() + buffers.size());
  add(model.parameters, parameters, true);
  add(model.buffers, buffers, false);
  innermost = this;
  // TorchScript's optimizer would tie whole subgraphs to the parameters themselves, past the dispatcher.
  torch::jit::setGraphExecutorOptimize(false);
}

Substitution::~Substitution() {
  torch::jit::setGraphExecutorOptimize(script_was_optimized_);
  innermost = outer_;
}

bool Substitution::was_read(size_t i) const {
  return entries_.at(model_.parameters.tensors[i].unsafeGetTensorImpl()).was_read;
}

bool Substitution::was_hidden(size_t i) const {
  return entries_.at(model_.parameters.tensors[i].unsafeGetTensorImpl()).was_hidden;
}

bool Substitution::active() { return innermost != nullptr; }

const Substitution::Entry* Substitution::find(const c10::TensorImpl* tensor) {
  const Entry* found = nullptr;
  for (const auto* scope = innermost; scope; scope = scope->outer_) {
    const auto entry = scope->entries_.find(tensor);
    if (entry == scope->entries_.end()) continue;
    (found ? entry->second.was_hidden : entry->second.was_read) = true;
    if (!found) found = &entry->second;
  }
  return found;
}

const Substitution::Owner* Substitution::owner_of(const c10::StorageImpl* storage) {
  for (const auto* scope = innermost; scope; scope = scope->outer_) {
    const auto owner = scope->owners_.find(storage);
    if (owner != scope->owners_.end()) return &owner->second;
  }
  return nullptr;
}

void Substitution::check(const TensorList& outputs) const {
  for (size_t i = 0; i < storages_.size(); ++i) {
    TORCH_CHECK(storage_of(model_.parameters.tensors[i]) == storages_[i], "gimli: set_data() was called on parameter '",
                model_.parameters.names[i], "' inside an inner loop, which never changes the model");
  }

  // A node that this scope created holds an edge to the accumulator of a parameter only if an autograd function was
  // given the parameter itself: operators were given its fast value.
  const auto thread = at::RecordFunction::currentThreadId();
  const auto created_here = [&](const torch::autograd::Node* node) {
    return node->thread_id() == thread && node->sequence_nr() >= first_node_;
  };
  std::unordered_set<const torch::autograd::Node*> seen;
  std::vector<const torch::autograd::Node*> pending;
  const auto visit = [&](const torch::autograd::Node* node) {
    if (node && created_here(node) && seen.insert(node).second) pending.push_back(node);
  };
  for (const auto& output : outputs) {
    if (output.defined()) visit(output.grad_fn().get());
  }
  while (!pending.empty()) {
    const auto* node = pending.back();
    pending.pop_back();
    for (const auto& edge : node->next_edges()) {
      if (const auto* leaf = dynamic_cast<const torch::autograd::AccumulateGrad*>(edge.function.get())) {
        const auto entry = entries_.find(leaf->variable.unsafeGetTensorImpl());
        TORCH_CHECK(entry == entries_.end() || entry->second.value.is_same(leaf->variable), "gimli: ", node->name(),
                    " was applied to parameter '", *entry->second.name,
                    "' itself, past the dispatcher, so the gradient of its fast value would be lost; apply it to "
                    "gimli::resolve(parameter), and call torch::jit::setGraphExecutorOptimize(false) before the first "
                    "run of a TorchScript module");
      } else {
        visit(edge.function.get());
      }
    }
  }
}

RandomStream::RandomStream(uint64_t seed) : RandomStream(std::vector<uint64_t>{seed}) {}

RandomStream::RandomStream(const std::vector<uint64_t>& seeds) : outer_(innermost_stream) {
  for (const auto seed : seeds) tasks_.push_back({seed, {}});
  innermost_stream = this;
}

RandomStream::~RandomStream() { innermost_stream = outer_; }

int64_t RandomStream::draws() { return draws_of_streams; }

at::Generator& RandomStream::generator(c10::Device device) {
  ++draws_of_streams;
  auto& [seed, generators] = tasks_.at(task_);
  const auto found = std::find_if(generators.begin(), generators.end(),
                                  [&](const at::Generator& generator) { return generator.device() == device; });
  if (found != generators.end()) return *found;
  if (device.is_cpu()) {
    // libtorch would fill the state of its engine from 32 bits of the seed, so that two streams in 2^32 are the same.
    at::mt19937_data_pod state{seed, /*left_=*/1, /*seeded_=*/true, /*next_=*/0, {}};
    for (size_t i = 0; i < state.state_.size(); ++i) state.state_[i] = static_cast<uint32_t>(fork_seed(seed, i));
    at::mt19937 engine;
    engine.set_data(state);
    auto own = at::detail::createCPUGenerator();
    at::check_generator<at::CPUGeneratorImpl>(own)->set_engine(engine);
    return generators.emplace_back(std::move(own));
  }
  auto own = at::globalContext().defaultGenerator(device).clone();
  own.set_current_seed(seed);
  return generators.emplace_back(std::move(own));
}

uint64_t fork_seed(uint64_t seed, uint64_t index) {
  uint64_t x = seed + 0x9e3779b97f4a7c15 * (index + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

at::Tensor resolve(const at::Tensor& tensor) {
  const auto* entry = Substitution::find(tensor.unsafeGetTensorImpl());
  return entry ? entry->value : tensor;
}

}  // namespace gimli
