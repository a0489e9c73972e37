#include "gimli/operators/winograd_steps.h"

namespace gimli::operators {

template WinogradKernels winograd_kernels_of_width<64>(bool);

}  // namespace gimli::operators
