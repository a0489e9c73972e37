#include "gimli/trace/loops.h"

#include "gimli/processor.h"

namespace gimli::tracing {

Loop::Kernel loop_kernel(Operation operation, bool is_double) {
  switch (register_bytes()) {
    case 64:
      return loop_kernel_of_width<64>(operation, is_double);
    case 32:
      return loop_kernel_of_width<32>(operation, is_double);
    default:
      return loop_kernel_of_width<16>(operation, is_double);
  }
}

}  // namespace gimli::tracing
