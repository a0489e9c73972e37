#pragma once

#include "gimli/trace/program.h"

namespace gimli::tracing {

/// The same by an own kernel, if there is one: on float or double tensors so small that it pays, of a layout for which
/// there are loops.
std::optional<Instruction> lowered(const Instruction& instruction);

/// The product C = p A B + q D as C^T = p B^T A^T + q D^T, and that of both whose columns lie next to one another in C.
Instruction turned(Instruction product);
Instruction oriented(Instruction product);
Geometry transposed(const Geometry& matrix);

/// The loop that does what an instruction with an own operation says, without addresses, if three loops are enough.
std::optional<Loop> loop_of(const Instruction& instruction);

}  // namespace gimli::tracing
