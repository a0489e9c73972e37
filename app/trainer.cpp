#include "app/trainer.h"

#include <fmt/format.h>

#include <chrono>
#include <future>

#include "app/evaluation.h"
#include "app/interrupt.h"
#include "app/metrics.h"
#include "app/progress.h"

namespace gimli::app {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// Makes the tasks of the next iteration while this one computes.
class TaskQueue final {
 public:
  TaskQueue(const Dataset& dataset, int64_t tasks, int64_t iteration) : dataset_(dataset), tasks_(tasks) {
    begin(iteration);
  }

  /// The tasks of the iteration that comes next.
  std::vector<data::Task> pop() {
    auto tasks = next_.get();
    begin(++iteration_);
    return tasks;
  }

 private:
  void begin(int64_t iteration) {
    iteration_ = iteration;
    next_ = std::async(std::launch::async, [this, first = iteration * tasks_] {
      std::vector<data::Task> tasks;
      for (int64_t i = 0; i < tasks_; ++i) tasks.push_back(task_on(*dataset_.training, first + i, dataset_.device));
      return tasks;
    });
  }

  const Dataset& dataset_;
  const int64_t tasks_;
  int64_t iteration_ = 0;
  std::future<std::vector<data::Task>> next_;
};

std::optional<double> mean_accuracy(const Result& result) {
  if (!result.auxiliary.front().defined()) return std::nullopt;
  double sum = 0;
  for (const auto& accuracy : result.auxiliary) sum += accuracy.item<double>();
  return sum / static_cast<double>(result.auxiliary.size());
}

/// The tasks' outer losses and their gradient; errors say where training was.
Result differentiate(const Experiment& experiment, const std::vector<data::Task>& tasks, const TaskBatch& batch,
                     int64_t iteration) {
  try {
    return experiment.differentiate(tasks, batch);
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "training stopped in iteration ", iteration, ": ", error.what_without_backtrace());
  }
}

/// Throws if training has diverged.
void check_finite(const NamedTensors& parameters, int64_t iteration) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    TORCH_CHECK(parameters.tensors[i].isfinite().all().item<bool>(), "training diverged: after iteration ", iteration,
                " the parameter ", parameters.names[i], " is not finite; the last checkpoint is kept");
  }
}

/// A moving average, for the eye.
void smooth(std::optional<double>& average, const std::optional<double>& value) {
  if (value) average = average ? 0.98 * *average + 0.02 * *value : *value;
}

}  // namespace

bool train(Experiment& experiment, const ExperimentEntry& entry, const Config& config, const TaskBatch& batch,
           const std::filesystem::path& folder, const std::optional<Checkpoint>& from) {
  const auto parameters = experiment.meta_parameters();
  torch::optim::Adam optimizer(parameters.tensors, torch::optim::AdamOptions(config.number("outer_lr")));
  RunState state{entry.name, config.toml(), 0, 0};
  if (from) {
    restore(*from, parameters);
    optimizer.load(from->optimizer);
    state.iteration = from->state.iteration;
    state.seconds = from->state.seconds;
  }
  const auto checkpoint = checkpoint_path(folder);
  if (!from) save_checkpoint(checkpoint, state, parameters, optimizer);
  MetricsFile metrics(folder / "metrics.jsonl", state.iteration);
  const auto save = [&] {
    check_finite(parameters, state.iteration);
    metrics.flush();
    save_checkpoint(checkpoint, state, parameters, optimizer);
  };

  const auto iterations = config.integer("iterations");
  if (state.iteration == iterations) return true;
  const auto tasks = config.integer("tasks");
  const auto eval_every = config.integer("eval_every");
  const auto classifies = experiment.dataset().classifies;
  ProgressDisplay display("training", state.iteration, iterations, config.flag("quiet"));
  ProgressFields shown;
  TaskQueue queue(experiment.dataset(), tasks, state.iteration);
  auto began = Clock::now();
  auto flushed = began;
  const auto seconds_before = state.seconds;

  while (state.iteration < iterations && !interrupted()) {
    const auto start = Clock::now();
    const auto result = differentiate(experiment, queue.pop(), batch, state.iteration + 1);
    const bool evaluates = eval_every > 0 && (state.iteration + 1) % eval_every == 0;
    if (evaluates) save();  // where an interrupted evaluation goes on
    assign_gradients(parameters.tensors, result.gradients);
    optimizer.step();
    ++state.iteration;
    state.seconds = seconds_before + seconds_since(began);

    const double loss = result.outer_loss.item<double>();
    const auto accuracy = mean_accuracy(result);
    const double rate = static_cast<double>(tasks) / seconds_since(start);
    smooth(shown.loss, loss);
    smooth(shown.accuracy, accuracy);
    smooth(shown.tasks_per_second, rate);
    nlohmann::ordered_json line{{"iteration", state.iteration}, {"outer_loss", loss}};
    if (accuracy) line["accuracy"] = *accuracy;
    if (evaluates) {
      const auto evaluation =
          evaluate_adaptation(experiment, config.integer("eval_tasks"), config.integers("eval_steps"), batch,
                              [](int64_t) { return !interrupted(); });
      if (!evaluation) return false;
      const auto& last = evaluation->steps.back();
      line["evaluation_loss"] = last.loss.mean;
      auto text = fmt::format("iteration {}: held-out loss {:.4f}", state.iteration, last.loss.mean);
      if (classifies) {
        line["evaluation_accuracy"] = last.accuracy->mean;
        text += fmt::format(", accuracy {:.2f} %", 100 * last.accuracy->mean);
      }
      display.print(text + fmt::format(" after {} steps", last.step));
    }
    line["tasks_per_second"] = rate;
    line["seconds"] = state.seconds;
    metrics.append(line);
    display.update(state.iteration, shown);
    if (state.iteration % config.integer("checkpoint_every") == 0 && state.iteration < iterations) save();
    if (Clock::now() - flushed > std::chrono::seconds(1)) {
      metrics.flush();
      flushed = Clock::now();
    }
  }
  save();
  return state.iteration == iterations;
}

}  // namespace gimli::app
