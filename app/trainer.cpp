#include "app/trainer.h"

#include "app/interrupt.h"
#include "app/metrics.h"
#include "app/progress.h"

namespace gimli::app {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// The next iteration; errors say where training was.
std::optional<Iteration> iterate(Experiment& experiment, int64_t iteration) {
  try {
    return experiment.iterate(iteration);
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "training stopped in iteration ", iteration + 1, ": ", error.what_without_backtrace());
  }
}

/// Throws if training has diverged.
void check_finite(const NamedTensors& tensors, int64_t iteration) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    TORCH_CHECK(tensors.tensors[i].isfinite().all().item<bool>(), "training diverged: after iteration ", iteration, " ",
                tensors.names[i], " is not finite; the last checkpoint is kept");
  }
}

/// A moving average, for the eye.
void smooth(std::optional<double>& average, const nlohmann::ordered_json& metrics, const char* name) {
  if (!metrics.contains(name) || !metrics[name].is_number()) return;
  const auto value = metrics[name].get<double>();
  average = average ? 0.98 * *average + 0.02 * value : value;
}

}  // namespace

bool train(Experiment& experiment, const ExperimentEntry& entry, const Config& config,
           const std::filesystem::path& folder, const std::optional<Checkpoint>& from) {
  const auto training = experiment.state();
  RunState state{entry.name, config.toml(), 0, 0};
  if (from) {
    restore(*from, training);
    state.iteration = from->state.iteration;
    state.seconds = from->state.seconds;
  }
  const auto checkpoint = checkpoint_path(folder);
  if (!from) save_checkpoint(checkpoint, state, training);
  MetricsFile metrics(folder / "metrics.jsonl", state.iteration);
  int64_t saved = state.iteration;
  const auto save = [&] {
    if (saved == state.iteration) return;
    check_finite(training.tensors, state.iteration);
    metrics.flush();
    save_checkpoint(checkpoint, state, training);
    saved = state.iteration;
  };

  const auto iterations = experiment.iterations();
  ProgressDisplay display("training", state.iteration, iterations, config.flag("quiet"));
  ProgressFields shown;
  const auto began = Clock::now();
  auto flushed = began;
  const auto seconds_before = state.seconds;

  while (state.iteration < iterations && !interrupted()) {
    if (experiment.is_long(state.iteration)) save();
    const auto done = iterate(experiment, state.iteration);
    if (!done) return false;
    ++state.iteration;
    state.seconds = seconds_before + seconds_since(began);

    nlohmann::ordered_json line{{"iteration", state.iteration}};
    line.update(done->metrics);
    line["seconds"] = state.seconds;
    metrics.append(line);
    if (!done->note.empty()) display.print(done->note);
    smooth(shown.loss, line, "outer_loss");
    smooth(shown.accuracy, line, "accuracy");
    smooth(shown.tasks_per_second, line, "tasks_per_second");
    display.update(state.iteration, shown);
    if (state.iteration % config.integer("checkpoint_every") == 0) save();
    if (Clock::now() - flushed > std::chrono::seconds(1)) {
      metrics.flush();
      flushed = Clock::now();
    }
  }
  save();
  return state.iteration == iterations;
}

}  // namespace gimli::app
