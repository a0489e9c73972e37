#include "gimli/optim/fused/kernels.h"

#include "gimli/processor.h"

namespace gimli::optim::fused {

template <class Formula>
Kernel<Formula> kernel_for(Order order, bool is_double, bool summed) {
  static const int bytes = register_bytes();
  switch (bytes) {
    case 64:
      return kernel_of_width<64, Formula>(order, is_double, summed);
    case 32:
      return kernel_of_width<32, Formula>(order, is_double, summed);
    default:
      return kernel_of_width<16, Formula>(order, is_double, summed);
  }
}

template Kernel<SgdFormula> kernel_for(Order, bool, bool);
template Kernel<AdamFormula> kernel_for(Order, bool, bool);

}  // namespace gimli::optim::fused
