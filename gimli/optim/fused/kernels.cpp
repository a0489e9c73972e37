#include "gimli/optim/fused/kernels.h"

namespace gimli::optim::fused {
int register_bytes() {
#if defined(__x86_64__)
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    return 64;
  }
  if (fma) return 32;
#endif
  return 16;
}

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
