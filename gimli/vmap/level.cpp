#include "gimli/vmap/level.h"

#include <ATen/ATen.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>

namespace gimli {

struct VmapLayer {
  at::functorch::DynamicLayer layer;
};

namespace {

namespace functorch = at::functorch;

thread_local VmapLevel* current_level = nullptr;
thread_local bool has_level = false;

/// Operators on wrapped tensors find their batching rules by the tensors' keys. The modes by which functorch takes hold
/// of all others serve transforms within transforms and random numbers, which are drawn elsewhere.
void leave_modes_off() { functorch::setDynamicLayerFrontBackKeysIncluded(false); }

}  // namespace

VmapLevel::VmapLevel(int64_t tasks) : tasks_(tasks) {
  if (tasks == 0) return;
  TORCH_CHECK(functorch::getDynamicLayerStack().empty(),
              "Vmap: tasks cannot be run together inside of other tasks that are, or of a functorch transform");
  level_ = functorch::initAndPushDynamicLayer(functorch::TransformType::Vmap, c10::SymInt(tasks),
                                              functorch::RandomnessType::Error);
  leave_modes_off();
  current_level = this;
  has_level = true;
}

VmapLevel::~VmapLevel() {
  if (tasks_ == 0) return;
  current_level = nullptr;
  has_level = false;
  functorch::popDynamicLayerAndDeleteMetadata();
}

VmapLevel* VmapLevel::current() { return current_level; }

bool VmapLevel::active() { return has_level; }

at::Tensor VmapLevel::wrap(const at::Tensor& stacked) const {
  if (tasks_ == 0 || !stacked.defined()) return stacked;
  TORCH_INTERNAL_ASSERT(!is_wrapped(stacked) && stacked.dim() > 0 && stacked.size(0) == tasks_);
  auto wrapped = functorch::makeBatched(stacked, 0, level_);
  // Some operators choose what they do by it.
  if (stacked.requires_grad()) wrapped.set_requires_grad(true);
  return wrapped;
}

TensorList VmapLevel::wrap(TensorList stacked) const {
  for (auto& tensor : stacked) tensor = wrap(tensor);
  return stacked;
}

at::Tensor VmapLevel::unwrapped(const at::Tensor& tensor) const {
  if (tasks_ == 0 || !tensor.defined()) return tensor;
  const Pause alone;
  const auto first = tasks_first(tensor);
  if (is_wrapped(tensor)) return first;
  std::vector<int64_t> sizes = first.sizes().vec();
  sizes[0] = tasks_;
  return first.expand(sizes);
}

void VmapLevel::allow_only(const TensorList& shared) {
  is_strict_ = true;
  for (const auto& tensor : shared) {
    if (tensor.has_storage()) allowed_.insert(tensor.storage().unsafeGetStorageImpl());
  }
}

bool VmapLevel::allows(const at::Tensor& tensor) const {
  if (!is_strict_ || !tensor.defined() || is_wrapped(tensor)) return true;
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number() || (tensor.requires_grad() && tensor.is_leaf())) return true;
  return tensor.has_storage() && allowed_.count(tensor.storage().unsafeGetStorageImpl());
}

void VmapLevel::allow(const at::Tensor& computed) {
  if (!is_strict_ || !computed.defined() || is_wrapped(computed) || !computed.has_storage()) return;
  if (allowed_.insert(computed.storage().unsafeGetStorageImpl()).second) kept_.push_back(computed.storage());
}

VmapLevel::Pause::Pause() : paused_(current_level) {
  if (!paused_) return;
  current_level = nullptr;
  layer_.reset(new VmapLayer{functorch::popDynamicLayer()});
}

VmapLevel::Pause::~Pause() {
  if (!paused_) return;
  functorch::pushDynamicLayer(std::move(layer_->layer));
  leave_modes_off();
  current_level = paused_;
}

bool is_wrapped(const at::TensorBase& tensor) {
  return tensor.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::FuncTorchBatched);
}

const at::Tensor& physical(const at::Tensor& tensor) {
  return is_wrapped(tensor) ? functorch::unsafeGetBatchedImpl(tensor)->value() : tensor;
}

at::Tensor tasks_first(const at::Tensor& tensor) {
  if (!is_wrapped(tensor)) return tensor.unsqueeze(0);
  const auto* batched = functorch::unsafeGetBatchedImpl(tensor);
  return batched->bdim() == 0 ? batched->value() : batched->value().movedim(batched->bdim(), 0);
}

at::Tensor wrapped_like(const at::Tensor& like, const at::Tensor& value) {
  const auto* batched = functorch::unsafeGetBatchedImpl(like);
  return functorch::makeBatched(value, batched->bdim(), batched->level());
}

}  // namespace gimli
