#include "gimli/operators/max_pool_steps.h"

namespace gimli::operators {

template PoolKernel pool_kernel_of_width<16>(PoolStep, bool);

}  // namespace gimli::operators
