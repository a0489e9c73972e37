#include "gimli/trace/program.h"

#include <algorithm>

namespace gimli::tracing {

void Program::lay_out() {
  for (auto& slot : slots) slot.first = slot.last = -1;
  const auto end = static_cast<int64_t>(instructions.size());
  for (int64_t now = 0; now < end; ++now) {
    for (const auto& place : instructions[now].places) slots[place.geometry.slot].last = now;
    for (const auto& result : instructions[now].results) {
      auto& slot = slots[result.slot];
      if (slot.first < 0) slot.first = now;
      slot.last = now;
    }
  }
  for (const auto& output : outputs) {
    if (output) slots[output->slot].last = end;
  }

  // The largest first, each as low as it can lie.
  std::vector<Slot*> order;
  for (auto& slot : slots) {
    if (slot.kind == Slot::computed && slot.first >= 0) order.push_back(&slot);
  }
  std::stable_sort(order.begin(), order.end(), [](const Slot* a, const Slot* b) { return a->bytes > b->bytes; });
  std::vector<const Slot*> placed;  // by offset
  arena_bytes = 0;
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

}  // namespace gimli::tracing
