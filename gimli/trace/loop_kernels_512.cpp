#include "gimli/trace/loop_kernels.h"

namespace gimli::tracing {

template Loop::Kernel loop_kernel_of_width<64>(Operation, bool);

}  // namespace gimli::tracing
