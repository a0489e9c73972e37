#include "gimli/operators/max_pool_steps.h"

namespace gimli::operators {

template PoolKernel pool_kernel_of_width<64>(PoolStep, bool);

}  // namespace gimli::operators
