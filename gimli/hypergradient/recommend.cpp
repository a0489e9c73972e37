#include "gimli/hypergradient/recommend.h"

#include <algorithm>

#include "gimli/hypergradient/replay.h"
#include "gimli/memory_meter.h"

namespace gimli {
namespace {

/// The problem with fewer steps and outer losses after some of them.
Bilevel shortened(const Bilevel& problem, int64_t steps, std::vector<int64_t> outer_steps) {
  return Bilevel(problem).steps(steps).outer_at(std::move(outer_steps)).stop_gradient_before({}).seed(0);
}

int64_t bytes_of(const InnerState& state) {
  int64_t bytes = 0;
  const auto add = [&](const TensorList& list) {
    for (const auto& tensor : list) bytes += tensor.defined() ? tensor.nbytes() : 0;
  };
  add(state.parameters);
  add(state.buffers);
  for (const auto& of_parameter : state.optimizer) add(of_parameter.slots);
  return bytes;
}

std::string in_units(int64_t bytes) {
  const char* unit = "B";
  double value = static_cast<double>(bytes);
  for (const char* next : {"KB", "MB", "GB", "TB"}) {
    if (value < 1000) break;
    value /= 1000;
    unit = next;
  }
  std::ostringstream text;
  text.precision(3);
  text << value << " " << unit;
  return text.str();
}

}  // namespace

Recommendation recommend(const Bilevel& problem, const TensorList& meta_parameters, int64_t memory_limit,
                         const TaskList& tasks) {
  TORCH_CHECK(memory_limit > 0, "recommend: expected a memory limit above 0 bytes, got ", memory_limit);
  TORCH_CHECK(tasks.size() > 0, "recommend: got an empty list of tasks");
  problem.check();
  const int64_t T = problem.steps();
  const auto first = tasks[0].in_batch(0, 0);
  at::AutoGradMode with_gradient(true);
  const auto measure = [&](const Strategy& strategy, int64_t steps, std::vector<int64_t> outer_steps) {
    const MemoryMeter meter;
    const auto result =
        strategy.differentiate(shortened(problem, steps, std::move(outer_steps)), meta_parameters, first);
    return std::pair(meter.peak_bytes(), bytes_of(result.final_state));
  };

  int64_t outer_losses = 0;
  for (int64_t k = 0; k <= T; ++k) outer_losses += problem.has_outer_at(k);
  const int64_t few = std::min<int64_t>(T, 2), more = std::min<int64_t>(T, 3);
  measure(Unroll(), few, {few});  // what libtorch sets up once
  const auto unrolled_few = measure(Unroll(), few, {few}).first;
  const auto [unrolled_more, state] = measure(Unroll(), more, {more});
  const auto an_outer_loss = outer_losses > 1 ? measure(Unroll(), more, {0, more}).first - unrolled_more : 0;
  const int64_t a_step = unrolled_more - unrolled_few;
  const int64_t unrolled = unrolled_more + (T - more) * a_step + (outer_losses - 1) * an_outer_loss;
  const auto measured = c10::str("a recorded step keeps ", in_units(a_step), " and a state has ", in_units(state),
                                 ", so ", T, " steps of Unroll() need about ", in_units(unrolled));
  if (unrolled <= memory_limit) return {std::make_shared<Unroll>(), unrolled, measured};

  const auto recorded = measure(Replay(), more, {more}).first;
  const auto needed = [&](const ReplaySchedule& schedule) {  // two states are where the loop is
    return recorded + (cost_of(schedule.plan(T), T).kept + 2) * state;
  };
  const auto explain = [&](const Strategy& strategy, int64_t bytes) {
    return c10::str(measured, ", ", strategy.name(), " about ", in_units(bytes));
  };
  if (const auto bytes = needed(KeepAll()); bytes <= memory_limit) {
    return {std::make_shared<Replay>(), bytes, explain(Replay(), bytes)};
  }
  const auto least = needed(Binomial(1));
  TORCH_CHECK(least <= memory_limit, "recommend: ", measured, ", and a single recorded step ", in_units(least),
              ", which is more than the limit of ", in_units(memory_limit));
  const auto snapshots = 1 + (memory_limit - least) / std::max<int64_t>(state, 1);
  const auto strategy = Replay(Binomial(snapshots));
  const auto bytes = needed(Binomial(snapshots));
  return {std::make_shared<Replay>(strategy), bytes, explain(strategy, bytes)};
}

}  // namespace gimli
