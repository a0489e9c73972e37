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
#include <mutex>
#include <optional>
#include <unordered_set>

#include "gimli/operators/replacement.h"

namespace gimli {
namespace {

// Above autograd and functorch, so that a substituted value is what they see; unused by libtorch itself.
constexpr auto mode_key = c10::DispatchKey::TESTING_ONLY_GenericMode;

thread_local Substitution* innermost = nullptr;
thread_local RandomStream* innermost_stream = nullptr;

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
  if (tensor.defined() && tensor.has_storage()) {
    const auto* owner = Substitution::owner_of(tensor.storage().unsafeGetStorageImpl());
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

void intercept(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  TORCH_CHECK(innermost || innermost_stream || torch::autograd::get_current_graph_task_id() != -1,
              "gimli: ", op.schema().name(),
              " runs in a thread that an inner loop's closure started, where its fast weights are not known");
  const bool changed = innermost && substitute_arguments(op, stack);
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

const c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

}  // namespace

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
      mode_was_on_(c10::impl::tls_is_dispatch_key_included(mode_key)),
      script_was_optimized_(torch::jit::getGraphExecutorOptimize()),
      first_node_(at::sequence_number::peek()) {
  TORCH_CHECK(parameters.size() == model.parameters.size() && buffers.size() == model.buffers.size(),
              "Substitution: got ", parameters.size(), " parameters and ", buffers.size(), " buffers for a model with ",
              model.parameters.size(), " and ", model.buffers.size());
  register_once();
  const auto add = [&](const NamedTensors& own, const TensorList& values, bool is_parameter) {
    for (size_t i = 0; i < own.size(); ++i) {
      entries_.emplace(own.tensors[i].unsafeGetTensorImpl(), Entry{values[i], &own.names[i], is_parameter});
      const auto* storage = storage_of(own.tensors[i]);
      if (is_parameter) storages_.push_back(storage);
      if (!is_parameter && storage == storage_of(values[i])) continue;
      if (storage) owners_.emplace(storage, Owner{&own.names[i], storage != storage_of(values[i])});
      if (is_parameter && values[i].has_storage()) owners_.emplace(storage_of(values[i]), Owner{&own.names[i], false});
    }
  };
  entries_.reserve(parameters.size() + buffers.size());
  add(model.parameters, parameters, true);
  add(model.buffers, buffers, false);
  innermost = this;
  c10::impl::tls_set_dispatch_key_included(mode_key, true);
  // TorchScript's optimizer would tie whole subgraphs to the parameters themselves, past the dispatcher.
  torch::jit::setGraphExecutorOptimize(false);
}

Substitution::~Substitution() {
  torch::jit::setGraphExecutorOptimize(script_was_optimized_);
  c10::impl::tls_set_dispatch_key_included(mode_key, mode_was_on_);
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

RandomStream::RandomStream(uint64_t seed)
    : seed_(seed), outer_(innermost_stream), mode_was_on_(c10::impl::tls_is_dispatch_key_included(mode_key)) {
  register_once();
  innermost_stream = this;
  c10::impl::tls_set_dispatch_key_included(mode_key, true);
}

RandomStream::~RandomStream() {
  c10::impl::tls_set_dispatch_key_included(mode_key, mode_was_on_);
  innermost_stream = outer_;
}

at::Generator& RandomStream::generator(c10::Device device) {
  const auto found = std::find_if(generators_.begin(), generators_.end(),
                                  [&](const at::Generator& generator) { return generator.device() == device; });
  if (found != generators_.end()) return *found;
  if (device.is_cpu()) {
    // libtorch would fill the state of its engine from 32 bits of the seed, so that two streams in 2^32 are the same.
    at::mt19937_data_pod state{seed_, /*left_=*/1, /*seeded_=*/true, /*next_=*/0, {}};
    for (size_t i = 0; i < state.state_.size(); ++i) state.state_[i] = static_cast<uint32_t>(fork_seed(seed_, i));
    at::mt19937 engine;
    engine.set_data(state);
    auto own = at::detail::createCPUGenerator();
    at::check_generator<at::CPUGeneratorImpl>(own)->set_engine(engine);
    return generators_.emplace_back(std::move(own));
  }
  auto own = at::globalContext().defaultGenerator(device).clone();
  own.set_current_seed(seed_);
  return generators_.emplace_back(std::move(own));
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
