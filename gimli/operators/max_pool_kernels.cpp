#include "gimli/operators/max_pool_kernels.h"

#include "gimli/processor.h"

namespace gimli::operators {

PoolKernel pool_kernel(PoolStep step, bool is_double) {
  return for_register_bytes([&](auto bytes) { return pool_kernel_of_width<bytes>(step, is_double); });
}

}  // namespace gimli::operators
