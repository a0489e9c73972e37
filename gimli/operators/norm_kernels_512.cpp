#include "gimli/operators/norm_steps.h"

namespace gimli::operators {

template NormKernel norm_kernel_of_width<64>(NormStep, bool, bool);

}  // namespace gimli::operators
