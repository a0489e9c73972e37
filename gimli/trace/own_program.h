#pragma once

#include "gimli/trace/program.h"

namespace gimli::tracing {

/// The program with own kernels where there are some, and simplified.
Program on_own_kernels(Program program);

}  // namespace gimli::tracing
