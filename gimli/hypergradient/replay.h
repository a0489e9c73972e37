#pragma once

#include "gimli/hypergradient/replay_schedule.h"
#include "gimli/hypergradient/strategy.h"

namespace gimli {

/// The exact hypergradient with one recorded step in memory at a time: states of the inner loop are kept or recomputed
/// without a graph, as a schedule says, and each step is run once more, recorded, to be pulled back through. It equals
/// Unroll() to rounding.
///
///     Replay()               keeps every state: memory of T states and one step
///     Replay(Binomial(8))    keeps 8 states at most, and recomputes as few steps as that allows
///
/// Beside the recorded steps, Replay() runs each step once without a graph, and other schedules some of them more
/// often. Replayed steps must be what they were the first time: their inner losses are compared, and a closure that
/// depends on more than its task and step is refused. Buffers must not carry gradients from step to step.
class Replay final : public Strategy {
 public:
  Replay() : Replay(KeepAll()) {}
  template <class Schedule>
  requires std::is_base_of_v<ReplaySchedule, Schedule>
  explicit Replay(Schedule schedule) : schedule_(std::make_shared<const Schedule>(std::move(schedule))) {}

  /// Keep the gradients of each step, of the size of the parameters, so that what the schedule recomputes costs an
  /// update each and no gradient.
  Replay& keep_gradients(bool keep);

  /// Move kept states to the host's memory, and back when they are needed.
  Replay& offload(bool offload);

  std::string name() const override;
  std::string one_task_because() const override { return {}; }
  TaskResult differentiate(const Bilevel& problem, const TensorList& meta_parameters,
                           const TaskRef& task) const override;

 private:
  std::shared_ptr<const ReplaySchedule> schedule_;
  bool keep_gradients_ = false;
  bool offload_ = false;
};

}  // namespace gimli
