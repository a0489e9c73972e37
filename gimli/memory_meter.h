#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <atomic>
#include <cstdint>
#include <memory>

namespace gimli {

/// Counts the bytes of tensors that are allocated and freed while it lives, on any device, by this thread and by those
/// that work for it (Threads). Meters nest, and libtorch's profiler goes on counting.
class MemoryMeter final {
 public:
  MemoryMeter() : guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {}

  /// Allocated since, less what was freed; negative if more was freed.
  int64_t live_bytes() const { return counter_->live; }
  /// The most live bytes there were at any time.
  int64_t peak_bytes() const { return counter_->peak; }

 private:
  struct Counter final : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void* data, int64_t size, size_t allocated, size_t reserved, c10::Device device) override {
      if (around) around->reportMemoryUsage(data, size, allocated, reserved, device);
      const int64_t now = live += size;
      for (int64_t seen = peak; now > seen && !peak.compare_exchange_weak(seen, now);) {
      }
    }
    bool memoryProfilingEnabled() const override { return true; }
    c10::MemoryReportingInfoBase* const around =
        dynamic_cast<c10::MemoryReportingInfoBase*>(c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE));
    std::atomic<int64_t> live = 0, peak = 0;
  };

  std::shared_ptr<Counter> counter_ = std::make_shared<Counter>();
  c10::DebugInfoGuard guard_;
};

}  // namespace gimli
