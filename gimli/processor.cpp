#include "gimli/processor.h"

namespace gimli {

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

}  // namespace gimli
