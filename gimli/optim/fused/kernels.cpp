#include "gimli/optim/fused/kernels.h"

#include "gimli/processor.h"

namespace gimli::optim::fused {

template <class Formula>
Kernel<Formula> kernel_for(Order order, bool is_double, bool summed) {
  return for_register_bytes([&](auto bytes) { return kernel_of_width<bytes, Formula>(order, is_double, summed); });
}

template Kernel<SgdFormula> kernel_for(Order, bool, bool);
template Kernel<AdamFormula> kernel_for(Order, bool, bool);

}  // namespace gimli::optim::fused
