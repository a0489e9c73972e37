#include "gimli/operators/norm_kernels.h"

#include "gimli/processor.h"

namespace gimli::operators {

NormKernel norm_kernel(NormStep step, bool is_double) {
  static const int bytes = register_bytes();
  switch (bytes) {
    case 64:
      return norm_kernel_of_width<64>(step, is_double);
    case 32:
      return norm_kernel_of_width<32>(step, is_double);
    default:
      return norm_kernel_of_width<16>(step, is_double);
  }
}

}  // namespace gimli::operators
