#pragma once

#include "gimli/hypergradient.h"

namespace gimli {

struct Recommendation {
  std::shared_ptr<const Strategy> strategy;
  int64_t peak_bytes = 0;  ///< that it is expected to need for one task, beside what was there before
  std::string reason;      ///< with what was measured, in words
};

/// The fastest of the exact strategies for which one task fits into `memory_limit` bytes: Unroll(), Replay(), or
/// Replay(Binomial(s)) with as many snapshots as there is room for. It runs inner loops of two and three steps on the
/// first task, counts the bytes of their tensors, and goes on from there to the problem's number of steps; data and
/// states are taken to keep the size that they have there. With Threads(n), n tasks are in memory at once: give an n-th
/// of the limit.
///
/// Throws if not even a single recorded step fits.
Recommendation recommend(const Bilevel& problem, const TensorList& meta_parameters, int64_t memory_limit,
                         const TaskList& tasks = {});

}  // namespace gimli
