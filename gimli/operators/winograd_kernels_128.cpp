#include "gimli/operators/winograd_steps.h"

namespace gimli::operators {

template WinogradKernels winograd_kernels_of_width<16>(bool);

}  // namespace gimli::operators
