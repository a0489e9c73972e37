#include "gimli/optim/fused/evaluate.h"

namespace gimli::optim::fused {

template Kernel<SgdFormula> kernel_of_width<16>(Order, bool, bool);
template Kernel<AdamFormula> kernel_of_width<16>(Order, bool, bool);

}  // namespace gimli::optim::fused
