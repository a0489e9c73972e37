#pragma once

namespace gimli {

/// The width in bytes of the widest registers that this processor has of those for which there are kernels: 64 for
/// AVX-512, 32 for AVX2 with FMA, 16 for SSE2 or whatever there is.
int register_bytes();

}  // namespace gimli
