#include "gimli/trace/loops.h"

#include "gimli/processor.h"

namespace gimli::tracing {

Loop::Kernel loop_kernel(Operation operation, bool is_double) {
  return for_register_bytes([&](auto bytes) { return loop_kernel_of_width<bytes()>(operation, is_double); });
}

}  // namespace gimli::tracing
