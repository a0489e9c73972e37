#pragma once

#include "gimli/trace/program.h"

namespace gimli::tracing {

/// Leaves out what own operations need not do: sums with 0, copies that nobody writes to, and results that nobody
/// reads. A product adds, and takes a ReLU or its derivative, as it is stored.
void simplify(Program& program);

}  // namespace gimli::tracing
