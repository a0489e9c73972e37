#pragma once

namespace gimli::app {

/// While it lives, the first SIGINT or SIGTERM is a request to stop at the next good moment; the second ends the
/// process at once. One at a time.
class InterruptGuard final {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
};

/// Whether there was such a request.
bool interrupted();

}  // namespace gimli::app
