#include "gimli/trace/program.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

namespace gimli::tracing {
namespace {

/// Memory from address 0 on, of which parts are taken and given back.
class Arena final {
 public:
  int64_t bytes() const { return bytes_; }

  /// The smallest gap that is large enough, or what comes last.
  int64_t take(int64_t size) {
    auto best = gaps_.end();
    for (auto gap = gaps_.begin(); gap != gaps_.end(); ++gap) {
      if (gap->second >= size && (best == gaps_.end() || gap->second < best->second)) best = gap;
    }
    if (best == gaps_.end()) {
      const bool ends_in_gap = !gaps_.empty() && end_of(*gaps_.rbegin()) == bytes_;
      const auto offset = ends_in_gap ? gaps_.rbegin()->first : bytes_;
      if (ends_in_gap) gaps_.erase(std::prev(gaps_.end()));
      bytes_ = offset + size;
      return offset;
    }
    const auto [offset, available] = *best;
    gaps_.erase(best);
    if (available > size) gaps_[offset + size] = available - size;
    return offset;
  }

  void give_back(int64_t offset, int64_t size) {
    auto next = gaps_.lower_bound(offset);
    if (next != gaps_.end() && offset + size == next->first) {
      size += next->second;
      next = gaps_.erase(next);
    }
    if (next != gaps_.begin() && end_of(*std::prev(next)) == offset) {
      std::prev(next)->second += size;
    } else {
      gaps_[offset] = size;
    }
  }

 private:
  static int64_t end_of(const std::pair<const int64_t, int64_t>& gap) { return gap.first + gap.second; }

  std::map<int64_t, int64_t> gaps_;  ///< sizes by offset; none touches another
  int64_t bytes_ = 0;
};

}  // namespace

int64_t Geometry::count() const {
  return std::accumulate(sizes().begin(), sizes().end(), int64_t(1), std::multiplies<>());
}

const Geometry* Instruction::operand(size_t k) const {
  const auto found = std::find_if(places.begin(), places.end(),
                                  [&](const Place& place) { return place.argument == k && place.element < 0; });
  return found == places.end() ? nullptr : &found->geometry;
}

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

  std::vector<std::vector<Slot*>> begun(end + 1), ended(end + 1);
  for (auto& slot : slots) {
    if (slot.kind != Slot::computed || slot.first < 0) continue;
    begun[slot.first].push_back(&slot);
    ended[slot.last].push_back(&slot);
  }
  // Small slots lie behind all others.
  constexpr int64_t least = 16;
  const auto is_small = [](const Slot& slot) { return slot.bytes <= kAlignment - least; };
  const auto aligned = [&](const Slot& slot) {
    const auto unit = is_small(slot) ? least : kAlignment;
    return std::max<int64_t>((slot.bytes + unit - 1) / unit, 1) * unit;
  };
  Arena large, small;
  for (int64_t now = 0; now <= end; ++now) {
    for (auto* slot : begun[now]) slot->offset = (is_small(*slot) ? small : large).take(aligned(*slot));
    for (const auto* slot : ended[now]) (is_small(*slot) ? small : large).give_back(slot->offset, aligned(*slot));
  }
  for (auto& slot : slots) slot.offset += is_small(slot) ? large.bytes() : 0;
  arena_bytes = large.bytes() + small.bytes();
}

}  // namespace gimli::tracing
