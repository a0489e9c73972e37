#include "gimli/trace/recorder.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/hash.h>
#include <torch/csrc/jit/runtime/operator.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>

namespace gimli::tracing {
namespace {

using c10::IValue;
using torch::jit::Stack;

// Below autograd and above the backends, and unused by libtorch up to 2.13.
constexpr auto trace_key = c10::DispatchKey::Fake;

constexpr auto kNotPlain = "it computes with tensors that are not dense or not on the CPU";

bool is_plain(const at::Tensor& tensor) {
  return tensor.has_storage() && tensor.layout() == at::kStrided && tensor.device().is_cpu();
}

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

bool is_one_of(const c10::OperatorHandle& op, std::initializer_list<const char*> names) {
  return std::find(names.begin(), names.end(), op.schema().name()) != names.end();
}

/// Whether two arguments are one tensor. nn::MultiheadAttention asks that of its query, key and value.
bool are_same(const IValue& a, const IValue& b) {
  return a.isTensor() && b.isTensor() && a.toTensor().is_alias_of(b.toTensor()) &&
         a.toTensor().storage_offset() == b.toTensor().storage_offset() &&
         a.toTensor().sizes() == b.toTensor().sizes() && a.toTensor().strides() == b.toTensor().strides();
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

Recorder::Recorder(const TraceInputs& inputs) : program_(std::make_unique<Program>()) {
  for (const auto& tensor : inputs.copied) add_copied(tensor);
  for (const auto& tensor : inputs.copied) {
    if (auto at = geometry(tensor)) program_->copied.push_back(std::move(*at));
  }
  for (const auto& tensor : inputs.shared) {
    if (!slot_of_.count(storage_of(tensor))) add_slot(tensor, Slot::shared);
  }
}

TensorList Recorder::run(const std::function<TensorList()>& function) {
  struct Scope {
    explicit Scope(Recorder* recorder) { current = recorder; }
    ~Scope() { current = nullptr; }
    c10::impl::IncludeDispatchKeyGuard included{trace_key};
  };
  const Scope scope(this);
  return function();
}

void Recorder::call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const std::vector<IValue> arguments(stack->end() - count, stack->end());
  const c10::impl::ExcludeDispatchKeyGuard recorded_already(trace_key);
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, trace_key), stack);
  if (!refusal_.empty()) return;
  add(op, arguments, std::vector<IValue>(stack->end() - schema.returns().size(), stack->end()));
}

void Recorder::expect_finite(const at::Tensor& scalar, const std::string& what) {
  if (!refusal_.empty()) return;
  if (auto at = geometry(scalar)) {
    Instruction instruction{.kind = Instruction::expects_finite, .what = what};
    instruction.places.push_back({0, -1, std::move(*at)});
    program_->instructions.push_back(std::move(instruction));
  }
}

void Recorder::refuse(const std::string& why) {
  if (refusal_.empty()) refusal_ = why;
}

std::unique_ptr<Program> Recorder::finish(const TensorList& outputs) {
  for (const auto& output : outputs) program_->outputs.push_back(output.defined() ? geometry(output) : std::nullopt);
  if (!refusal_.empty()) return nullptr;
  for (auto& slot : program_->slots) {
    if (slot.kind == Slot::computed && slot.owner.defined())
      slot.kind = Slot::constant;  // it was filled past operators
  }
  program_->lay_out();
  return std::move(program_);
}

void Recorder::add_slot(const at::Tensor& tensor, Slot::Kind kind, bool is_kept) {
  slot_of_[storage_of(tensor)] = program_->slots.size();
  seen_.push_back(tensor.storage().getWeakStorageImpl());
  program_->slots.push_back(
      {kind, is_kept ? tensor.detach() : at::Tensor(), static_cast<int64_t>(tensor.storage().nbytes())});
}

/// Of a storage, a slot has what lies between its first input and its last.
void Recorder::add_copied(const at::Tensor& tensor) {
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
std::optional<Geometry> Recorder::geometry(const at::Tensor& tensor) {
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
  return Geometry{found->second,
                  shared({tensor.sizes().vec(), tensor.strides().vec(),
                          tensor.storage_offset() - slot->begin / static_cast<int64_t>(tensor.element_size()),
                          tensor.scalar_type()})};
}

std::shared_ptr<const Layout> Recorder::shared(Layout layout) {
  const auto hash = c10::get_hash(layout.sizes, layout.strides, layout.offset, layout.type);
  const auto [begin, end] = layouts_.equal_range(hash);
  for (auto at = begin; at != end; ++at) {
    if (*at->second == layout) return at->second;
  }
  return layouts_.emplace(hash, std::make_shared<const Layout>(std::move(layout)))->second;
}

void Recorder::add(const c10::OperatorHandle& op, const std::vector<IValue>& arguments,
                   const std::vector<IValue>& returns) {
  const auto& schema = op.schema();
  if (schema.name() == "aten::equal" && are_same(arguments[0], arguments[1])) return;
  if (const auto* why = obstacle(op, arguments)) return refuse(c10::str("it calls ", schema.name(), ", which ", why));

  // Results in memory that is known already are views, or were written in place: then they are arguments too.
  Instruction instruction{.kind = Instruction::returns, .op = op, .arguments = arguments};
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
    if (results[i].defined() && results[i].has_storage() && !slot_of_.count(storage_of(results[i]))) fresh.push_back(i);
  }
  if (fresh.empty() && !schema.is_mutable()) return;

  std::vector<Geometry> written;
  // Of which its schema says nothing.
  const bool writes_to_statistics = is_one_of(op, {"aten::native_batch_norm"}) && arguments[3].isTensor() &&
                                    arguments[3].toTensor().defined() && arguments[5].toBool();
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
      if (auto at = geometry(arguments[i].toTensor())) written.push_back(std::move(*at));
    }
    if (alias && alias->isWrite() && arguments[i].isTensorList()) {
      for (const at::Tensor& tensor : arguments[i].toTensorVector()) {
        if (!tensor.defined()) continue;
        if (auto at = geometry(tensor)) written.push_back(std::move(*at));
      }
    }
  }
  if (writes_to_statistics) {
    for (const size_t i : {3, 4}) {
      if (auto at = geometry(arguments[i].toTensor())) written.push_back(std::move(*at));
    }
  }
  if (!refusal_.empty()) return;

  for (const auto& tensor : written) {
    if (program_->slots[tensor.slot].kind != Slot::computed) {
      return refuse(c10::str("it calls ", schema.name(), ", which writes to one of its inputs"));
    }
    program_->slots[tensor.slot].owner.reset();
  }
  const bool is_empty = is_one_of(
      op, {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"});
  for (const auto i : fresh) {
    if (!slot_of_.count(storage_of(results[i]))) add_slot(results[i], Slot::computed, is_empty);
    if (auto at = geometry(results[i])) instruction.results.push_back(std::move(*at));
    instruction.returned.push_back(i);
  }
  instruction.results.insert(instruction.results.end(), written.begin(), written.end());
  if (fresh.empty()) instruction.kind = Instruction::writes_in;
  if (is_empty) return;
  if (is_one_of(op, {"aten::clone", "aten::_to_copy"})) {
    instruction.kind = Instruction::copies;
  } else if (written.empty() && fresh.size() == schema.returns().size() && fresh.size() == results.size()) {
    auto out = out_form(op);
    if (out && writes_in_place(*out, arguments, results)) {
      instruction.kind = Instruction::writes_out;
      instruction.op = std::move(out);
    }
  }
  program_->instructions.push_back(std::move(instruction));
}

thread_local Recorder* Recorder::current = nullptr;

namespace {

void intercept(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  if (Recorder::current) {
    Recorder::current->call(op, keys, stack);
  } else {
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, trace_key), stack);
  }
}

}  // namespace

const std::string& Recorder::unavailable() {
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

}  // namespace gimli::tracing
