#pragma once

#include <type_traits>

/// Of what is compiled once for each width of registers: it must not become a function of its own, of which a linker
/// would keep one, for whichever processor.
#define GIMLI_INLINE __attribute__((always_inline)) inline

namespace gimli {

/// The width in bytes of the widest registers that this processor has of those for which there are kernels: 64 for
/// AVX-512, 32 for AVX2 with FMA, 16 for SSE2 or whatever there is.
int register_bytes();

/// Returns what `choose` returns for that width as a std::integral_constant.
template <class Choose>
auto for_register_bytes(Choose choose) {
  static const int bytes = register_bytes();
  switch (bytes) {
    case 64:
      return choose(std::integral_constant<int, 64>());
    case 32:
      return choose(std::integral_constant<int, 32>());
    default:
      return choose(std::integral_constant<int, 16>());
  }
}

}  // namespace gimli
