#include "gimli/trace.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/jit/runtime/operator.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <unordered_map>

namespace gimli {
namespace {

using c10::IValue;
using torch::jit::Stack;

// Below autograd and above the backends, and unused by libtorch up to 2.13.
constexpr auto trace_key = c10::DispatchKey::Fake;

constexpr int64_t kAlignment = 64;

/// How a tensor lies in the memory of a slot.
struct Geometry {
  size_t slot;
  std::vector<int64_t> sizes, strides;
  int64_t offset;
  at::ScalarType type;
};

/// Memory that the list's tensors lie in.
struct Slot {
  enum Kind { computed, copied, shared, constant } kind;
  at::Tensor owner;  ///< a tensor in it, which keeps it from being used again; of computed ones, only while recording
  int64_t bytes;
  int64_t begin = 0;              ///< in the memory of its owner, in bytes
  int64_t first = -1, last = -1;  ///< instructions between which it is in use
  int64_t offset = 0;             ///< in the arena, of computed ones
};

/// A tensor among an operator's arguments: of the argument itself, or an element of a list.
struct Place {
  size_t argument;
  int64_t element;  ///< -1: the argument itself
  Geometry geometry;
};

struct Instruction {
  enum Kind {
    writes_out,  ///< the out= form of an operator, into where its results lie
    writes_in,   ///< in place
    returns,     ///< results are copied to where they lie
    copies,      ///< one tensor to another
    expects_finite
  } kind;
  std::optional<c10::OperatorHandle> op;
  std::vector<IValue> arguments;  ///< without the tensors
  std::vector<Place> places;
  std::vector<Geometry> results;
  std::vector<size_t> returned;  ///< of which of the operator's results these are
  std::string what;              ///< is expected to be finite
};

constexpr auto kNotPlain = "it computes with tensors that are not dense or not on the CPU";

bool is_plain(const at::Tensor& tensor) {
  return tensor.has_storage() && tensor.layout() == at::kStrided && tensor.device().is_cpu();
}

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// The bytes of its storage between which a tensor lies.
std::pair<int64_t, int64_t> extent(const at::Tensor& tensor) {
  int64_t last = tensor.storage_offset();
  if (tensor.numel() == 0) return {last * tensor.element_size(), last * tensor.element_size()};
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return {tensor.storage_offset() * tensor.element_size(), (last + 1) * tensor.element_size()};
}

const c10::StorageImpl* storage_of(const at::Tensor& tensor) { return tensor.storage().unsafeGetStorageImpl(); }

/// The form of an operator that writes its results into tensors given last, if it takes all arguments of `op`.
std::optional<c10::OperatorHandle> out_form(const c10::OperatorHandle& op) {
  static std::mutex mutex;
  static std::unordered_map<c10::OperatorHandle, std::optional<c10::OperatorHandle>> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(op);
  if (found != known.end()) return found->second;

  std::optional<c10::OperatorHandle> result;
  const auto& own = op.schema();
  const auto count = own.arguments().size(), outputs = own.returns().size();
  for (const auto& candidate : torch::jit::getAllOperatorsFor(c10::Symbol::fromQualString(own.name()))) {
    const auto& schema = candidate->schema();
    if (schema.arguments().size() != count + outputs) continue;
    bool fits = true;
    for (size_t i = 0; fits && i < count + outputs; ++i) {
      const auto& argument = schema.arguments()[i];
      fits = i < count ? argument.name() == own.arguments()[i].name() && *argument.type() == *own.arguments()[i].type()
                       : argument.is_out();
    }
    if (fits) result = c10::Dispatcher::singleton().findSchema({schema.name(), schema.overload_name()});
    if (result) break;
  }
  known.emplace(op, result);
  return result;
}

/// Whether the out= form of an operator writes these results, bit by bit, into tensors that lie as they do. Some resize
/// them first (mse_loss).
bool writes_in_place(const c10::OperatorHandle& out, const std::vector<IValue>& arguments, const TensorList& results) {
  class Silent final : public c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard without_warnings(&silent);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  TensorList targets;
  for (const auto& result : results) {
    targets.push_back(at::empty_strided(result.sizes(), result.strides(), result.options()));
  }
  Stack stack(arguments);
  stack.insert(stack.end(), targets.begin(), targets.end());
  std::vector<const void*> memory;
  for (const auto& target : targets) memory.push_back(target.const_data_ptr());
  try {
    out.callBoxed(stack);
  } catch (const c10::Error&) {
    return false;
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].const_data_ptr() != memory[i] || targets[i].sizes() != results[i].sizes() ||
        targets[i].strides() != results[i].strides() || !at::equal(targets[i], results[i])) {
      return false;
    }
  }
  return true;
}

void check_finite(const at::Tensor& scalar, const std::string& what) {
  const auto value = scalar.item<double>();
  TORCH_CHECK(std::isfinite(value), what, " is ", value, ", expected a finite number");
}

bool is_one_of(const c10::OperatorHandle& op, std::initializer_list<const char*> names) {
  return std::find(names.begin(), names.end(), op.schema().name()) != names.end();
}

/// Why a call does the same for other data only if it is made again by the function, or nullptr.
const char* obstacle(const c10::OperatorHandle& op, const std::vector<IValue>& arguments) {
  if (op.hasTag(at::Tag::nondeterministic_seeded)) return "draws random numbers";
  if (op.hasTag(at::Tag::data_dependent_output)) return "looks at values";
  if (!op.hasTag(at::Tag::dynamic_output_shape)) return nullptr;
  // Of indices, those that are integers lead to as many elements as they are.
  if (op.schema().name() != "aten::index") return "looks at values";
  for (const at::IValue& index : arguments[1].toListRef()) {
    if (index.isTensor() &&
        (index.toTensor().scalar_type() == at::kBool || index.toTensor().scalar_type() == at::kByte)) {
      return "looks at values";
    }
  }
  return nullptr;
}

}  // namespace

struct Trace::Program {
  std::vector<Slot> slots;
  std::vector<Instruction> instructions;
  std::vector<Geometry> copied;
  std::vector<std::optional<Geometry>> outputs;
  int64_t arena_bytes = 0;

  void lay_out();
};

/// Slots that are in use at the same time get memory of their own, the largest first.
void Trace::Program::lay_out() {
  std::vector<Slot*> order;
  for (auto& slot : slots) {
    if (slot.kind == Slot::computed && slot.first >= 0) order.push_back(&slot);
  }
  std::stable_sort(order.begin(), order.end(), [](const Slot* a, const Slot* b) { return a->bytes > b->bytes; });
  std::vector<const Slot*> placed;  // by offset
  for (auto* slot : order) {
    int64_t offset = 0;
    for (const auto* other : placed) {
      if (other->last < slot->first || slot->last < other->first) continue;
      if (offset + slot->bytes <= other->offset) break;
      offset = std::max(offset, other->offset + other->bytes);
    }
    slot->offset = offset;
    arena_bytes = std::max(arena_bytes, offset + slot->bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), slot,
                                   [](const Slot* a, const Slot* b) { return a->offset < b->offset; }),
                  slot);
  }
}

/// Writes down what operators of its thread do.
class Recorder final {
 public:
  explicit Recorder(const TraceInputs& inputs) : program_(std::make_unique<Trace::Program>()) {
    for (const auto& tensor : inputs.copied) add_copied(tensor);
    for (const auto& tensor : inputs.copied) {
      if (auto at = geometry(tensor)) program_->copied.push_back(std::move(*at));
    }
    for (const auto& tensor : inputs.shared) {
      if (!slot_of_.count(storage_of(tensor))) add_slot(tensor, Slot::shared);
    }
  }

  static thread_local Recorder* current;

  void record(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const auto& schema = op.schema();
    const auto count = schema.arguments().size();
    const std::vector<IValue> arguments(stack->end() - count, stack->end());
    const c10::impl::ExcludeDispatchKeyGuard recorded_already(trace_key);
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, trace_key), stack);
    if (!refusal_.empty()) return;
    add(op, arguments, std::vector<IValue>(stack->end() - schema.returns().size(), stack->end()));
  }

  void expect_finite(const at::Tensor& scalar, const std::string& what) {
    if (!refusal_.empty()) return;
    Instruction instruction{Instruction::expects_finite};
    instruction.what = what;
    if (const auto at = geometry(scalar)) {
      instruction.places.push_back({0, -1, *at});
      push(std::move(instruction));
    }
  }

  void refuse(const std::string& why) {
    if (refusal_.empty()) refusal_ = why;
  }

  Trace::Recording finish(TensorList outputs) {
    for (const auto& output : outputs) {
      program_->outputs.push_back(output.defined() ? geometry(output) : std::nullopt);
    }
    if (!refusal_.empty()) return {std::move(outputs), nullptr, refusal_};
    const auto end = static_cast<int64_t>(program_->instructions.size());
    for (const auto& output : program_->outputs) {
      if (output) program_->slots[output->slot].last = end;
    }
    for (auto& slot : program_->slots) {
      if (slot.kind != Slot::computed) continue;
      if (slot.first < 0) {  // it was filled past operators
        slot.kind = Slot::constant;
      } else {
        slot.owner.reset();
      }
    }
    program_->lay_out();
    return {std::move(outputs), std::shared_ptr<const Trace>(new Trace(std::move(program_))), ""};
  }

 private:
  void add_slot(const at::Tensor& tensor, Slot::Kind kind) {
    slot_of_[storage_of(tensor)] = program_->slots.size();
    program_->slots.push_back({kind, tensor.detach(), aligned(static_cast<int64_t>(tensor.storage().nbytes()))});
  }

  /// Of a storage, a slot has what lies between its first input and its last.
  void add_copied(const at::Tensor& tensor) {
    if (!is_plain(tensor)) return refuse(kNotPlain);
    const auto [begin, end] = extent(tensor);
    const auto found = slot_of_.find(storage_of(tensor));
    if (found == slot_of_.end()) {
      add_slot(tensor, Slot::copied);
      program_->slots.back().begin = begin;
      program_->slots.back().bytes = end - begin;
      return;
    }
    auto& slot = program_->slots[found->second];
    const auto last = std::max(slot.begin + slot.bytes, end);
    slot.begin = std::min(slot.begin, begin);
    slot.bytes = last - slot.begin;
  }

  /// Where a tensor lies. Nothing, and a refusal, if that is not known.
  std::optional<Geometry> geometry(const at::Tensor& tensor) {
    if (!is_plain(tensor)) {
      refuse(kNotPlain);
      return std::nullopt;
    }
    const auto found = slot_of_.find(storage_of(tensor));
    const auto* slot = found == slot_of_.end() ? nullptr : &program_->slots[found->second];
    const auto [begin, end] = extent(tensor);
    if (!slot || (slot->kind == Slot::copied && (begin < slot->begin || end > slot->begin + slot->bytes))) {
      refuse(c10::str("it reads a tensor of shape ", tensor.sizes(), " that is not among its inputs"));
      return std::nullopt;
    }
    return Geometry{found->second, tensor.sizes().vec(), tensor.strides().vec(),
                    tensor.storage_offset() - slot->begin / static_cast<int64_t>(tensor.element_size()),
                    tensor.scalar_type()};
  }

  void push(Instruction instruction) {
    const auto now = static_cast<int64_t>(program_->instructions.size());
    for (const auto& place : instruction.places) program_->slots[place.geometry.slot].last = now;
    for (const auto& result : instruction.results) {
      auto& slot = program_->slots[result.slot];
      if (slot.first < 0) slot.first = now;
      slot.last = now;
    }
    program_->instructions.push_back(std::move(instruction));
  }

  void add(const c10::OperatorHandle& op, const std::vector<IValue>& arguments, const std::vector<IValue>& returns) {
    const auto& schema = op.schema();
    if (const auto* why = obstacle(op, arguments)) return refuse(c10::str("it calls ", schema.name(), ", which ", why));

    // Results in memory that is known already are views, or were written in place: then they are arguments too.
    Instruction instruction{Instruction::returns, op, arguments};
    std::vector<at::Tensor> results;
    for (const auto& value : returns) {
      if (value.isTensor()) {
        results.push_back(value.toTensor());
      } else if (value.isTensorList()) {
        for (const at::Tensor& tensor : value.toTensorVector()) results.push_back(tensor);
      } else {
        return refuse(c10::str("it calls ", schema.name(), ", which returns something other than tensors"));
      }
    }
    std::vector<size_t> fresh;
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].defined() && results[i].has_storage() && !slot_of_.count(storage_of(results[i])))
        fresh.push_back(i);
    }
    const bool writes = schema.is_mutable();
    if (fresh.empty() && !writes) return;

    for (size_t i = 0; i < arguments.size(); ++i) {
      auto& argument = instruction.arguments[i];
      const auto place = [&](const at::Tensor& tensor, int64_t element) {
        if (!tensor.defined() || tensor.unsafeGetTensorImpl()->is_wrapped_number()) return false;
        if (auto at = geometry(tensor)) instruction.places.push_back({i, element, std::move(*at)});
        return true;
      };
      if (argument.isTensor()) {
        if (place(argument.toTensor(), -1)) argument = IValue();
      } else if (argument.isTensorList()) {
        const auto list = arguments[i].toTensorList();
        auto without = list.copy();
        for (size_t k = 0; k < list.size(); ++k) {
          if (place(list.get(k), static_cast<int64_t>(k))) without.set(k, at::Tensor());
        }
        argument = without;
      } else if (argument.isOptionalTensorList()) {
        const auto list = arguments[i].toOptionalTensorList();
        auto without = list.copy();
        for (size_t k = 0; k < list.size(); ++k) {
          const std::optional<at::Tensor> element = list.get(k);
          if (element && place(*element, static_cast<int64_t>(k))) without.set(k, std::nullopt);
        }
        argument = without;
      }
      const auto* alias = schema.arguments()[i].alias_info();
      if (alias && alias->isWrite() && arguments[i].isTensor()) {
        if (is_one_of(op, {"aten::resize_", "aten::set_", "aten::resize_as_", "aten::transpose_", "aten::squeeze_",
                           "aten::unsqueeze_", "aten::t_"})) {
          return refuse(c10::str("it calls ", schema.name(), ", which changes a tensor's shape"));
        }
        if (auto at = geometry(arguments[i].toTensor())) instruction.results.push_back(std::move(*at));
      }
    }
    if (!refusal_.empty()) return;

    if (writes) {
      if (!fresh.empty()) return refuse(c10::str("it calls ", schema.name(), ", which writes and returns"));
      for (const auto& result : instruction.results) {
        if (program_->slots[result.slot].kind != Slot::computed) {
          return refuse(c10::str("it calls ", schema.name(), ", which writes to one of its inputs"));
        }
      }
      instruction.kind = Instruction::writes_in;
      return push(std::move(instruction));
    }

    for (const auto i : fresh) {
      if (!slot_of_.count(storage_of(results[i]))) add_slot(results[i], Slot::computed);
      if (auto at = geometry(results[i])) instruction.results.push_back(std::move(*at));
      instruction.returned.push_back(i);
    }
    if (is_one_of(op, {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
                       "aten::new_empty_strided"})) {
      return;
    }
    if (is_one_of(op, {"aten::clone", "aten::_to_copy"})) {
      instruction.kind = Instruction::copies;
    } else if (fresh.size() == schema.returns().size() && fresh.size() == results.size()) {
      // native_batch_norm writes to running statistics, of which its schema says nothing: it is not tried twice.
      auto out = is_one_of(op, {"aten::native_batch_norm"}) ? std::nullopt : out_form(op);
      if (out && writes_in_place(*out, arguments, results)) {
        instruction.kind = Instruction::writes_out;
        instruction.op = std::move(out);
      }
    }
    push(std::move(instruction));
  }

  std::unique_ptr<Trace::Program> program_;
  std::unordered_map<const c10::StorageImpl*, size_t> slot_of_;
  std::string refusal_;
};

thread_local Recorder* Recorder::current = nullptr;

namespace {

void intercept(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  if (Recorder::current) {
    Recorder::current->record(op, keys, stack);
  } else {
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, trace_key), stack);
  }
}

/// Why there can be no traces; empty if there can.
const std::string& unavailable() {
  static const std::string reason = []() -> std::string {
    try {
      static torch::Library library(torch::Library::IMPL, "_", trace_key, __FILE__, __LINE__);
      library.fallback(torch::CppFunction::makeFromBoxedFunction<&intercept>());
      return "";
    } catch (const std::exception& error) {
      return std::string("this libtorch has no dispatch key for it: ") + error.what();
    }
  }();
  return reason;
}

}  // namespace

Trace::Recording Trace::record(const std::function<TensorList()>& function, const TraceInputs& inputs) {
  TORCH_CHECK(!is_recording(), "Trace::record: this thread records already");
  if (!unavailable().empty()) return {function(), nullptr, unavailable()};
  Recorder recorder(inputs);
  struct Scope {
    explicit Scope(Recorder* recorder) { Recorder::current = recorder; }
    ~Scope() { Recorder::current = nullptr; }
    c10::impl::IncludeDispatchKeyGuard included{trace_key};
  };
  TensorList outputs;
  {
    const Scope scope(&recorder);
    outputs = function();
  }
  return recorder.finish(std::move(outputs));
}

Trace::Trace(std::unique_ptr<const Program> program) : program_(std::move(program)) {}
Trace::~Trace() = default;

int64_t Trace::size() const { return static_cast<int64_t>(program_->instructions.size()); }
int64_t Trace::memory_bytes() const { return program_->arena_bytes; }

class Trace::Memory final {
 public:
  explicit Memory(const Program& program) : arena_(at::empty({program.arena_bytes + kAlignment}, at::kByte)) {
    auto* begin = static_cast<char*>(arena_.mutable_data_ptr());
    begin += (kAlignment - reinterpret_cast<uintptr_t>(begin) % kAlignment) % kAlignment;
    for (const auto& slot : program.slots) {
      if (slot.kind == Slot::copied) {
        inputs_.push_back(at::empty({slot.bytes}, at::kByte));
        bases_.push_back(static_cast<char*>(inputs_.back().mutable_data_ptr()));
      } else {
        bases_.push_back(slot.kind == Slot::computed ? begin + slot.offset : nullptr);
      }
    }
    for (const auto& geometry : program.copied) copied.push_back(tensor(program, geometry));
    for (const auto& output : program.outputs) {
      outputs.push_back(output ? tensor(program, *output) : at::Tensor());
      is_shared.push_back(output && program.slots[output->slot].kind == Slot::shared);
    }
    for (const auto& instruction : program.instructions) {
      auto& stack = stacks.emplace_back(instruction.arguments);
      for (const auto& [argument, element, geometry] : instruction.places) {
        if (instruction.kind == Instruction::expects_finite || instruction.kind == Instruction::copies) continue;
        auto& value = stack[argument];
        if (element < 0) {
          value = tensor(program, geometry);
        } else if (value.isTensorList()) {
          auto list = value.toTensorList();
          if (is_first(instruction, argument, element)) value = list = list.copy();
          list.set(element, tensor(program, geometry));
        } else {
          auto list = value.toOptionalTensorList();
          if (is_first(instruction, argument, element)) value = list = list.copy();
          list.set(element, tensor(program, geometry));
        }
      }
      auto& targets = results.emplace_back();
      for (const auto& result : instruction.results) targets.push_back(tensor(program, result));
      if (instruction.kind == Instruction::writes_out) stack.insert(stack.end(), targets.begin(), targets.end());
      sources.push_back(instruction.kind == Instruction::copies || instruction.kind == Instruction::expects_finite
                            ? tensor(program, instruction.places[0].geometry)
                            : at::Tensor());
    }
  }

  TensorList copied, outputs;
  std::vector<bool> is_shared;      ///< of each output: it is one of the shared inputs
  std::vector<Stack> stacks;        ///< the arguments of each instruction
  std::vector<TensorList> results;  ///< where its results lie
  TensorList sources;               ///< of copies and of what is expected to be finite
  Stack stack;

 private:
  /// Whether this is the first element of a list to be filled in, which is then copied from that of the program.
  static bool is_first(const Instruction& instruction, size_t argument, int64_t element) {
    return std::none_of(instruction.places.begin(), instruction.places.end(),
                        [&](const Place& place) { return place.argument == argument && place.element < element; });
  }

  at::Tensor tensor(const Program& program, const Geometry& geometry) const {
    const auto& [slot, sizes, strides, offset, type] = geometry;
    if (!bases_[slot]) {
      const auto& owner = program.slots[slot].owner;
      return at::empty({0}, owner.options().dtype(type)).set_(owner.storage(), offset, sizes, strides);
    }
    auto* data = bases_[slot] + offset * static_cast<int64_t>(at::elementSize(type));
    return at::from_blob(data, sizes, strides, at::TensorOptions(type));
  }

  at::Tensor arena_;
  TensorList inputs_;
  std::vector<char*> bases_;
};

std::shared_ptr<Trace::Memory> Trace::allocate() const {
  at::NoGradGuard no_grad;
  return std::make_shared<Memory>(*program_);
}

TensorList Trace::replay(Memory& memory, const TensorList& copied) const {
  TORCH_CHECK(copied.size() == memory.copied.size(), "Trace::replay: got ", copied.size(), " tensors for ",
              memory.copied.size(), " inputs");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (size_t i = 0; i < copied.size(); ++i) {
    TORCH_CHECK(
        copied[i].sizes() == memory.copied[i].sizes() && copied[i].scalar_type() == memory.copied[i].scalar_type(),
        "Trace::replay: input ", i, " is ", copied[i].scalar_type(), " of shape ", copied[i].sizes(), ", expected ",
        memory.copied[i].scalar_type(), " of shape ", memory.copied[i].sizes());
    memory.copied[i].copy_(copied[i]);
  }
  const auto& instructions = program_->instructions;
  for (size_t i = 0; i < instructions.size(); ++i) {
    const auto& instruction = instructions[i];
    if (instruction.kind == Instruction::copies) {
      memory.results[i][0].copy_(memory.sources[i]);
    } else if (instruction.kind == Instruction::expects_finite) {
      check_finite(memory.sources[i], instruction.what);
    } else {
      memory.stack.assign(memory.stacks[i].begin(), memory.stacks[i].end());
      instruction.op->callBoxed(memory.stack);
      if (instruction.kind != Instruction::returns) continue;
      size_t position = 0, next = 0;
      const auto keep = [&](const at::Tensor& result) {
        if (next < instruction.returned.size() && instruction.returned[next] == position) {
          memory.results[i][next++].copy_(result);
        }
        ++position;
      };
      for (const auto& value : memory.stack) {
        if (value.isTensor()) {
          keep(value.toTensor());
        } else {
          for (const at::Tensor& result : value.toTensorVector()) keep(result);
        }
      }
    }
  }
  TensorList outputs;
  for (size_t i = 0; i < memory.outputs.size(); ++i) {
    const auto& output = memory.outputs[i];
    outputs.push_back(!output.defined() || memory.is_shared[i] ? output : output.clone());
  }
  return outputs;
}

bool Trace::is_recording() { return Recorder::current != nullptr; }

void Trace::expect_finite(const at::Tensor& scalar, const std::string& what) {
  {
    const Pause looking;
    check_finite(scalar, what);
  }
  if (Recorder::current) Recorder::current->expect_finite(scalar, what);
}

Trace::Pause::Pause() : paused_(Recorder::current) { Recorder::current = nullptr; }
Trace::Pause::~Pause() { Recorder::current = static_cast<Recorder*>(paused_); }

}  // namespace gimli
