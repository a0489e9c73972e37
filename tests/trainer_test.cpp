#include "app/trainer.h"

#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/torch.h>

#include <cmath>
#include <csignal>

#include "app/interrupt.h"
#include "app/metrics.h"
#include "app/progress.h"
#include "app_fixture.h"
#include "expect.h"

namespace gimli::app {
namespace {

using Iterations = std::vector<int64_t>;

/// What happens in the iterations of a Descent, counted from 0.
struct Events {
  int64_t interrupted_between = -1;  ///< the user asks to stop, and the iteration is completed
  int64_t interrupted_within = -1;   ///< the user asks to stop, and the iteration breaks off half done
  int64_t diverges = -1;
  int64_t fails = -1;
  int64_t long_one = -1;
};

/// Goes down a bowl through noise, with two optimizers and a counter: a training that is not meta-learning.
class Descent final : public Experiment {
 public:
  explicit Descent(Events events = {}, int64_t iterations = 12) : events_(std::move(events)), iterations_(iterations) {}

  int64_t iterations() const override { return iterations_; }

  TrainingState state() override { return {{{"x", "y", "count"}, {x_, y_, count_}}, {&adam_, &sgd_}}; }

  bool is_long(int64_t iteration) const override { return iteration == events_.long_one; }

  std::optional<Iteration> iterate(int64_t iteration) override {
    made.push_back(iteration);
    TORCH_CHECK(iteration != events_.fails, "the bowl is broken");
    torch::manual_seed(iteration);
    adam_.zero_grad();
    sgd_.zero_grad();
    const auto loss = (x_ - 3).square().sum() + (x_.detach().sum() * y_).square().sum();
    (loss + 0.1 * (x_ * torch::randn(3)).sum()).backward();
    adam_.step();
    if (iteration == events_.interrupted_within) {
      std::raise(SIGINT);
      return std::nullopt;
    }
    sgd_.step();
    count_ += 1;
    if (iteration == events_.diverges) y_.detach().fill_(std::nan(""));
    if (iteration == events_.interrupted_between) std::raise(SIGTERM);
    return Iteration{{{"outer_loss", loss.item<double>()}, {"count", count_.item<int64_t>()}},
                     iteration == 2 ? "the third iteration" : ""};
  }

  std::optional<Report> report(const std::vector<nlohmann::json>&) override { return Report{}; }

  Iterations made;

 private:
  Events events_;
  int64_t iterations_;
  at::Tensor x_ = torch::zeros(3).requires_grad_(), y_ = torch::ones(2).requires_grad_();
  at::Tensor count_ = torch::zeros({}, torch::kLong);
  torch::optim::Adam adam_{TensorList{x_}, torch::optim::AdamOptions(0.3)};
  torch::optim::SGD sgd_{TensorList{y_}, torch::optim::SGDOptions(1e-3).momentum(0.9)};
};

const ExperimentEntry& entry() {
  static const ExperimentEntry entry = [] {
    Schema schema{{"bowl"}, {{"dataset", "Data", "A bowl", {std::string("bowl")}, true, 0, {"bowl"}}}};
    schema.settings.push_back({"iterations", "Run", "Steps", {int64_t{12}}, false, 0});
    for (auto& setting : run_settings(5)) schema.settings.push_back(std::move(setting));
    return ExperimentEntry{"descent", "Down", schema, [](const Config&) { return std::make_unique<Descent>(); }};
  }();
  return entry;
}

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() {
    for (const auto& path : {whole, run}) fs::create_directory(path);
  }

  Config config(int64_t iterations = 12) const {
    return Config(entry().schema, {{"iterations", iterations}, {"quiet", true}});
  }

  /// Trains 12 iterations, from the checkpoint if there is one.
  bool train(Experiment& experiment, const fs::path& path) {
    const InterruptGuard guard;
    std::optional<Checkpoint> from;
    if (fs::exists(path / "checkpoint.pt")) from = load_checkpoint(path / "checkpoint.pt");
    return app::train(experiment, entry(), config(), path, from);
  }

  int64_t saved_iteration() { return load_checkpoint(run / "checkpoint.pt").state.iteration; }

  TemporaryFolder folder;
  fs::path run = folder.path / "run", whole = folder.path / "whole";
};

TEST_F(TrainerTest, TrainsAnyExperiment) {
  Descent experiment;
  EXPECT_TRUE(train(experiment, run));
  EXPECT_EQ(experiment.made, (Iterations{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  const auto lines = read_metrics(run / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 12);
  EXPECT_LT(lines.back()["outer_loss"], lines.front()["outer_loss"]);
  double seconds = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["iteration"], i + 1);
    EXPECT_EQ(lines[i]["count"], i + 1);
    EXPECT_GE(lines[i]["seconds"], seconds);
    seconds = lines[i]["seconds"];
  }
  const auto checkpoint = load_checkpoint(run / "checkpoint.pt");
  EXPECT_EQ(checkpoint.state.experiment, "descent");
  EXPECT_EQ(checkpoint.state.configuration, config().toml());
  EXPECT_EQ(checkpoint.state.iteration, 12);
  expect_equal(checkpoint.tensors.tensors, clones(experiment.state().tensors.tensors));
}

TEST_F(TrainerTest, PrintsNotesUnlessItIsQuiet) {
  for (const bool quiet : {false, true}) {
    Descent experiment;
    testing::internal::CaptureStderr();
    app::train(experiment, entry(), Config(entry().schema, {{"quiet", quiet}}), run, std::nullopt);
    const auto said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.find("the third iteration") == std::string::npos, quiet) << said;
    if (quiet) {
      EXPECT_EQ(said, "");
    }
  }
}

TEST_F(TrainerTest, GoesOnWhereverItStopped) {
  Descent uninterrupted;
  ASSERT_TRUE(train(uninterrupted, whole));
  const struct {
    const char* name;
    Events events;
    int64_t saved;     ///< the iteration that it goes on after
    Iterations again;  ///< what is made then
  } rows[] = {
      {"at the beginning", {.interrupted_between = 0}, 1, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
      {"between iterations", {.interrupted_between = 6}, 7, {7, 8, 9, 10, 11}},
      {"after a checkpoint", {.interrupted_between = 4}, 5, {5, 6, 7, 8, 9, 10, 11}},
      {"in a short iteration", {.interrupted_within = 7}, 5, {5, 6, 7, 8, 9, 10, 11}},
      {"in a long iteration", {.interrupted_within = 7, .long_one = 7}, 7, {7, 8, 9, 10, 11}},
      {"in a long first one", {.interrupted_within = 0, .long_one = 0}, 0, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
      {"in a long last one", {.interrupted_within = 11, .long_one = 11}, 11, {11}},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    fs::remove_all(run);
    fs::create_directory(run);
    Descent stopped(row.events), resumed;
    EXPECT_FALSE(train(stopped, run));
    EXPECT_EQ(saved_iteration(), row.saved);
    EXPECT_TRUE(train(resumed, run));
    EXPECT_EQ(resumed.made, row.again);
    expect_same_run(run, whole);
  }
}

TEST_F(TrainerTest, AnInterruptInTheLastIterationComesTooLate) {
  Descent experiment({.interrupted_between = 11});
  EXPECT_TRUE(train(experiment, run));
  EXPECT_EQ(saved_iteration(), 12);
}

TEST_F(TrainerTest, HasNothingToDoAtTheEnd) {
  Descent experiment, again;
  ASSERT_TRUE(train(experiment, run));
  EXPECT_TRUE(train(again, run));
  EXPECT_TRUE(again.made.empty());
  expect_equal(again.state().tensors.tensors, experiment.state().tensors.tensors);
  EXPECT_EQ(read_metrics(run / "metrics.jsonl").size(), 12);
}

TEST_F(TrainerTest, KeepsTheLastGoodCheckpoint) {
  Descent uninterrupted;
  ASSERT_TRUE(train(uninterrupted, whole));
  const struct {
    Events events;
    int64_t saved;
    const char* words;
  } rows[] = {
      {{.diverges = 6}, 5, "training diverged: after iteration 10 y is not finite; the last checkpoint is kept"},
      {{.diverges = 6, .long_one = 7}, 5, "training diverged: after iteration 7 y is not finite"},
      {{.diverges = 0}, 0, "training diverged: after iteration 5 y is not finite"},
      {{.diverges = 11}, 10, "training diverged: after iteration 12 y is not finite"},
      {{.interrupted_between = 8, .diverges = 8}, 5, "training diverged: after iteration 9 y is not finite"},
      {{.fails = 8}, 5, "training stopped in iteration 9: the bowl is broken"},
      {{.fails = 8, .long_one = 8}, 8, "training stopped in iteration 9: the bowl is broken"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.words);
    fs::remove_all(run);
    fs::create_directory(run);
    Descent bad(row.events), good;
    expect_error([&] { train(bad, run); }, row.words);
    EXPECT_EQ(saved_iteration(), row.saved);
    EXPECT_TRUE(train(good, run));
    expect_same_run(run, whole);
  }
}

/// Like a Descent after its program was changed.
class Stranger final : public Experiment {
 public:
  explicit Stranger(TrainingState state) : state_(std::move(state)) {}

  int64_t iterations() const override { return 12; }
  TrainingState state() override { return state_; }
  std::optional<Iteration> iterate(int64_t) override {
    ADD_FAILURE() << "trains";
    return std::nullopt;
  }
  std::optional<Report> report(const std::vector<nlohmann::json>&) override { return Report{}; }

 private:
  TrainingState state_;
};

TEST_F(TrainerTest, RefusesAStateThatIsNotItsOwn) {
  Descent experiment;
  ASSERT_TRUE(train(experiment, run));
  const auto state = experiment.state();
  auto renamed = state, reshaped = state, fewer = state;
  renamed.tensors.names[0] = "z";
  reshaped.tensors.tensors[1] = torch::ones({1, 2});
  fewer.optimizers.pop_back();
  const std::pair<TrainingState, const char*> rows[] = {
      {renamed, "the checkpoint's tensors are x, y, count, and the experiment's z, y, count"},
      {reshaped, "the checkpoint's y is Float of shape [2], and the experiment's Float of shape [1, 2]"},
      {fewer, "the checkpoint has the states of 2 optimizers, and the experiment has 1"},
  };
  for (const auto& [other, words] : rows) {
    Stranger stranger(other);
    expect_error([&] { train(stranger, run); }, words);
    EXPECT_EQ(saved_iteration(), 12);
    EXPECT_EQ(read_metrics(run / "metrics.jsonl").size(), 12);
  }
}

// progress

TEST(ProgressTest, FitsAnyWidth) {
  const ProgressFields fields{0.1234, 0.987, 2540.};
  for (int64_t width = 1; width < 200; ++width) {
    const auto line = progress_line("training", 4200, 10000, 42, 58, fields, width);
    EXPECT_LT(static_cast<int64_t>(line.size()), std::max<int64_t>(width, 1)) << line;
  }
  const auto line = progress_line("training", 4200, 10000, 42, 58, fields, 120);
  for (const auto* part : {"4200/10000", "loss 0.1234", "accuracy 98.7 %", "2540 tasks/s", "0:42", "0:58", "===>"}) {
    EXPECT_NE(line.find(part), std::string::npos) << line;
  }
  EXPECT_NE(progress_line("training", 4200, 10000, 42, 58, fields, 20).find("loss 0.1234"), std::string::npos);
}

}  // namespace
}  // namespace gimli::app
