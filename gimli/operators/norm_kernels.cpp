#include "gimli/operators/norm_kernels.h"

#include "gimli/processor.h"

namespace gimli::operators {

NormKernel norm_kernel(NormStep step, bool rectified, bool is_double) {
  return for_register_bytes([&](auto bytes) { return norm_kernel_of_width<bytes>(step, rectified, is_double); });
}

}  // namespace gimli::operators
