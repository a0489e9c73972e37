#include "gimli/operators/winograd_kernels.h"

#include "gimli/processor.h"

namespace gimli::operators {

WinogradKernels winograd_kernels(bool is_double) {
  return for_register_bytes([&](auto bytes) { return winograd_kernels_of_width<bytes>(is_double); });
}

}  // namespace gimli::operators
