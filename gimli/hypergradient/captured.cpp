#include "gimli/hypergradient/captured.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <list>
#include <mutex>

#include "gimli/hypergradient/unroll.h"
#include "gimli/operators/replacement.h"
#include "gimli/trace.h"

namespace gimli {
namespace {

/// Calls `visit` with each tensor of a result, always in the same order.
template <class Result, class Visit>
void visit_tensors(Result& result, Visit visit) {
  visit(result.outer_loss);
  visit(result.auxiliary);
  for (auto& gradient : result.gradients) visit(gradient);
  for (auto& parameter : result.final_state.parameters) visit(parameter);
  for (auto& buffer : result.final_state.buffers) visit(buffer);
  for (auto& parameter : result.final_state.optimizer) {
    for (auto& slot : parameter.slots) visit(slot);
  }
}

TensorList tensors_of(const Strategy::TaskResult& result) {
  TensorList list;
  visit_tensors(result, [&](const at::Tensor& tensor) { list.push_back(tensor); });
  return list;
}

/// `like` with those tensors.
Strategy::TaskResult result_with(Strategy::TaskResult like, const TensorList& list) {
  auto next = list.begin();
  visit_tensors(like, [&](at::Tensor& tensor) { tensor = *next++; });
  return like;
}

/// How far apart two results are: their losses, gradients or final weights, whichever are the farthest.
double difference(const Strategy::TaskResult& a, const Strategy::TaskResult& b) {
  return std::max({relative_distance({a.outer_loss}, {b.outer_loss}), relative_distance(a.gradients, b.gradients),
                   relative_distance(a.final_state.parameters, b.final_state.parameters),
                   relative_distance(a.final_state.buffers, b.final_state.buffers)});
}

/// What a recording is for.
struct Key {
  uint64_t problem;
  std::vector<const void*> memory;  ///< of what it reads besides the task
  std::vector<int64_t> shapes;      ///< of the task's tensors: sizes, type, and which share memory with one before
  bool operator==(const Key&) const = default;
};

Key key_of(const Bilevel& problem, const TraceInputs& inputs) {
  Key key{problem.identity(), {}, {}};
  for (const auto& tensor : inputs.shared) {
    key.memory.push_back(tensor.const_data_ptr());
    key.shapes.push_back(tensor.requires_grad());
  }
  const auto& tensors = inputs.copied;
  for (const auto& tensor : tensors) {
    TORCH_CHECK(tensor.defined(), "Captured: the problem's inputs() returned an undefined tensor");
    key.shapes.push_back(tensor.dim());
    key.shapes.insert(key.shapes.end(), tensor.sizes().begin(), tensor.sizes().end());
    key.shapes.push_back(static_cast<int64_t>(tensor.scalar_type()));
    const auto first =
        std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.is_alias_of(tensor); });
    key.shapes.push_back(first - tensors.begin());
    key.shapes.push_back(tensor.storage_offset() - first->storage_offset());
  }
  return key;
}

/// How far replays may be from the strategy itself.
double tolerance(const Strategy::TaskResult& result) {
  return result.outer_loss.scalar_type() == at::kDouble ? 1e-10 : 1e-5;
}

/// How far those on own kernels may be where those on libtorch's are near: rounding can turn a ReLU on or off.
double rounding_tolerance(const Strategy::TaskResult& result) { return 1000 * tolerance(result); }

}  // namespace

/// The recordings of the problems and shapes that came last.
class Captured::Cache final {
 public:
  struct Entry {
    Key key;
    std::mutex mutex;
    std::shared_ptr<const Trace> recorded, trace;  ///< as it was, and as it is replayed
    TaskResult like;
    std::string refusal;
    int64_t replays = 0;
    std::vector<std::shared_ptr<Trace::Memory>> idle;
  };

  std::shared_ptr<Entry> entry(Key key) {
    constexpr size_t most = 16;
    const std::lock_guard lock(mutex_);
    for (auto at = entries_.begin(); at != entries_.end(); ++at) {
      if ((*at)->key != key) continue;
      entries_.splice(entries_.begin(), entries_, at);
      return entries_.front();
    }
    auto entry = std::make_shared<Entry>();
    entry->key = std::move(key);
    entries_.push_front(entry);
    if (entries_.size() > most) entries_.pop_back();
    return entry;
  }

 private:
  std::mutex mutex_;
  std::list<std::shared_ptr<Entry>> entries_;
};

Captured::Captured() : Captured(std::make_shared<const Unroll>()) {}

Captured::Captured(std::shared_ptr<const Strategy> strategy)
    : strategy_(std::move(strategy)), cache_(std::make_shared<Cache>()) {}

std::string Captured::name() const { return c10::str("Captured(", strategy_->name(), ")"); }

Strategy::TaskResult Captured::differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                                             const TaskRef& task) const {
  const auto itself = [&](const std::string& remark) {
    auto result = strategy_->differentiate(problem, meta_parameters, task);
    result.cost.capture_remark = remark;
    return result;
  };

  TraceInputs inputs{problem.inputs_of(task), problem.tensors()};
  inputs.shared.insert(inputs.shared.end(), meta_parameters.begin(), meta_parameters.end());
  const auto entry = cache_->entry(key_of(problem, inputs));

  std::unique_lock lock(entry->mutex);
  if (const auto refusal = entry->refusal; !refusal.empty()) {
    lock.unlock();
    return itself(refusal);
  }
  const bool records = !entry->trace;
  TaskResult result;
  if (records) {
    const auto recording = Trace::record([&] { return tensors_of(result = itself("")); }, inputs);
    if (!recording.trace) {
      result.cost.capture_remark = entry->refusal = recording.refusal;
      return result;
    }
    entry->like = result;
    entry->recorded = recording.trace;
    entry->trace = own_operators_in_use() ? recording.trace->on_own_kernels() : recording.trace;
    entry->like.cost.capture_bytes = entry->trace->memory_bytes();
  }
  const auto replay = records ? 0 : ++entry->replays;
  const auto trace = entry->trace;
  std::shared_ptr<Trace::Memory> memory;
  if (!entry->idle.empty()) {
    memory = std::move(entry->idle.back());
    entry->idle.pop_back();
  }
  lock.unlock();

  if (!memory) memory = trace->allocate();
  auto replayed = result_with(entry->like, trace->replay(*memory, inputs.copied));
  lock.lock();
  if (trace == entry->trace) entry->idle.push_back(std::move(memory));
  lock.unlock();

  if ((replay & (replay - 1)) != 0) return replayed;
  if (!records) result = itself("");
  const auto found = difference(replayed, result);
  if (found <= tolerance(result)) return replayed;
  // Is it rounding? What records has the arithmetic of a recording, to the last bit.
  const auto recorded = result_with(entry->like, entry->recorded->replay(*entry->recorded->allocate(), inputs.copied));
  TaskResult while_recording;
  Trace::record([&] { return tensors_of(while_recording = itself("")); }, inputs);
  if (const auto found = difference(recorded, while_recording); !(found <= tolerance(result))) {
    lock.lock();
    entry->refusal = c10::str("a replay differs from ", strategy_->name(), " itself by ", found,
                              ": the closures read something that is neither declared nor computed by operators");
    result.cost.capture_remark = entry->refusal;
    return result;
  }
  if (found <= rounding_tolerance(result)) return replayed;
  lock.lock();
  entry->trace = entry->recorded;
  entry->idle.clear();
  return result;
}

}  // namespace gimli
