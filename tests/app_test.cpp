#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <fstream>
#include <random>
#include <thread>

#include "app/checkpoint.h"
#include "app/command.h"
#include "app/config.h"
#include "app/evaluation.h"
#include "app/experiment.h"
#include "app/file.h"
#include "app/interrupt.h"
#include "app/metrics.h"
#include "app/progress.h"
#include "app/trainer.h"
#include "gimli/data/sinusoid.h"
#include "gimli/nn/mlp.h"
#include "gimli/optim/rules/sgd.h"
#include "temporary_folder.h"

extern char** environ;

namespace gimli::app {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

/// Takes programs out of reach while it lives.
class EmptyPath final {
 public:
  EmptyPath() : path_(std::getenv("PATH")) { setenv("PATH", "", 1); }
  ~EmptyPath() { setenv("PATH", path_.c_str(), 1); }

 private:
  std::string path_;
};

struct Outcome {
  int code = -1;
  std::string out, err;
};

/// The command, in this process.
Outcome gimli(const Arguments& arguments) {
  std::vector<std::string> words{"gimli"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = run_command(static_cast<int>(words.size()), argv.data());
  std::fflush(nullptr);
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A training of a moment.
Arguments small_training(const fs::path& out) {
  return {"train",
          "maml",
          "--out",
          out.string(),
          "--iterations",
          "12",
          "--tasks",
          "3",
          "--shots",
          "4",
          "--queries",
          "4",
          "--hidden",
          "8",
          "--eval-tasks",
          "6",
          "--eval-steps",
          "1,2",
          "--checkpoint-every",
          "5",
          "--threads",
          "1",
          "--quiet"};
}

/// Exit code 2 and one sentence on standard error with these words.
void expect_refusal(const Arguments& arguments, const std::string& words) {
  const auto outcome = gimli(arguments);
  SCOPED_TRACE(testing::PrintToString(arguments) + "\nsaid: " + outcome.err);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_TRUE(outcome.err.starts_with("gimli: "));
  EXPECT_NE(outcome.err.find(words), std::string::npos) << "expected: " << words;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1);
  EXPECT_EQ(outcome.err.find("Exception raised"), std::string::npos);
  EXPECT_EQ(outcome.err.find("frame #"), std::string::npos);
}

void write(const fs::path& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }

/// The metrics of a run without what depends on the clock.
std::vector<nlohmann::json> timeless_metrics(const fs::path& folder) {
  auto lines = read_metrics(folder / "metrics.jsonl");
  for (auto& line : lines) {
    line.erase("seconds");
    line.erase("tasks_per_second");
  }
  return lines;
}

/// The weights, the optimizer's state, the metrics and the evaluation are the same bits.
void expect_same_run(const fs::path& a, const fs::path& b) {
  const auto x = load_checkpoint(a / "checkpoint.pt"), y = load_checkpoint(b / "checkpoint.pt");
  EXPECT_EQ(x.state.iteration, y.state.iteration);
  ASSERT_EQ(x.parameters.names, y.parameters.names);
  for (size_t i = 0; i < x.parameters.size(); ++i) {
    EXPECT_TRUE(torch::equal(x.parameters.tensors[i], y.parameters.tensors[i])) << x.parameters.names[i];
  }
  const auto moments = [](const Checkpoint& checkpoint) {
    auto parameters = checkpoint.parameters.tensors;
    for (auto& parameter : parameters) parameter = parameter.clone().requires_grad_();
    torch::optim::Adam adam(parameters, torch::optim::AdamOptions());
    adam.load(checkpoint.optimizer);
    TensorList list;
    for (const auto& parameter : parameters) {
      const auto found = adam.state().find(parameter.unsafeGetTensorImpl());
      if (found == adam.state().end()) continue;
      const auto& state = static_cast<const torch::optim::AdamParamState&>(*found->second);
      list.push_back(state.exp_avg());
      list.push_back(state.exp_avg_sq());
      list.push_back(torch::tensor(state.step()));
    }
    return list;
  };
  const auto p = moments(x), q = moments(y);
  ASSERT_EQ(p.size(), q.size());
  for (size_t i = 0; i < p.size(); ++i) EXPECT_TRUE(torch::equal(p[i], q[i]));
  EXPECT_EQ(timeless_metrics(a), timeless_metrics(b));
  if (fs::exists(a / "evaluation.json") && fs::exists(b / "evaluation.json")) {
    EXPECT_EQ(read_file(a / "evaluation.json"), read_file(b / "evaluation.json"));
  }
}

/// The command in a process of its own, its output in a file.
class Process final {
 public:
  Process(const Arguments& arguments, const fs::path& output) {
    std::vector<std::string> words{GIMLI_COMMAND};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    if (posix_spawn(&id_, argv[0], &actions, nullptr, argv.data(), environ) != 0) id_ = -1;
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Process() {
    if (!done_) send(SIGKILL), wait();
  }

  void send(int signal) { ::kill(id_, signal); }

  /// The exit code, or minus the signal that ended it.
  int wait() {
    int status = 0;
    waitpid(id_, &status, 0);
    done_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t id_ = -1;
  bool done_ = false;
};

/// Waits until the file is there and has `size` bytes.
bool wait_for(const fs::path& file, size_t size) {
  for (int i = 0; i < 6000; ++i) {
    if (fs::exists(file) && fs::file_size(file) >= size) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

const Schema& maml_schema() { return find_experiment("maml").schema; }

// config

TEST(ConfigTest, DefaultsAreThoseOfTheDataset) {
  const Config sinusoid(maml_schema(), {});
  EXPECT_EQ(sinusoid.text("dataset"), "sinusoid");
  EXPECT_EQ(sinusoid.integer("shots"), 10);
  EXPECT_FALSE(sinusoid.has("ways"));
  const Config omniglot(maml_schema(), {{"dataset", std::string("omniglot")}});
  EXPECT_EQ(omniglot.integer("shots"), 1);
  EXPECT_EQ(omniglot.integer("ways"), 5);
}

TEST(ConfigTest, EverySettingHasADefaultForEachDatasetOrNone) {
  for (const auto& setting : maml_schema().settings) {
    if (setting.key == "dataset") continue;
    EXPECT_EQ(setting.defaults.size(), maml_schema().datasets.size()) << setting.key;
    EXPECT_FALSE(setting.help.empty()) << setting.key;
  }
}

TEST(ConfigTest, WritesAndReadsItself) {
  const Config config(maml_schema(), {{"inner_lr", 0.1},
                                      {"eval_steps", std::vector<int64_t>{3, 7}},
                                      {"first_order", true},
                                      {"out", std::string("a \"b\"\\c\n")}});
  const Config again(maml_schema(), parse_config(maml_schema(), config.toml(), "text"));
  EXPECT_EQ(config.values(), again.values());
}

TEST(ConfigTest, WholeNumbersAreNumbersToo) {
  EXPECT_EQ(Config(maml_schema(), parse_config(maml_schema(), "inner_lr = 1", "text")).number("inner_lr"), 1.);
}

TEST(ConfigTest, SuggestsWhatIsNear) {
  EXPECT_EQ(suggestion("iteratoins", {"tasks", "iterations"}), "; did you mean 'iterations'?");
  EXPECT_EQ(suggestion("zzzzzzz", {"tasks", "iterations"}), "");
}

// checkpoint

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    torch::manual_seed(1);
    for (const auto* name : {"a.weight", "a.bias"}) {
      parameters.names.push_back(name);
      parameters.tensors.push_back(torch::randn({3, 2}).requires_grad_());
    }
    adam = std::make_unique<torch::optim::Adam>(parameters.tensors, torch::optim::AdamOptions(0.1));
    for (auto& parameter : parameters.tensors) parameter.mutable_grad() = torch::randn({3, 2});
    adam->step();
    save_checkpoint(file, {"maml", "x = 1\n", 7, 1.5}, parameters, *adam);
  }

  void expect_load_error(const std::string& words) {
    try {
      load_checkpoint(file);
      FAIL() << "no error; expected: " << words;
    } catch (const c10::Error& error) {
      const std::string said = error.what_without_backtrace();
      EXPECT_NE(said.find(words), std::string::npos) << said;
      EXPECT_NE(said.find(file.string()), std::string::npos) << said;
    }
  }

  TemporaryFolder folder;
  fs::path file = folder.path / "checkpoint.pt";
  NamedTensors parameters;
  std::unique_ptr<torch::optim::Adam> adam;
};

TEST_F(CheckpointTest, RoundTrip) {
  const auto loaded = load_checkpoint(file);
  EXPECT_EQ(loaded.state.experiment, "maml");
  EXPECT_EQ(loaded.state.configuration, "x = 1\n");
  EXPECT_EQ(loaded.state.iteration, 7);
  EXPECT_EQ(loaded.state.seconds, 1.5);
  auto other = parameters;
  for (auto& tensor : other.tensors) tensor = torch::zeros({3, 2}).requires_grad_();
  restore(loaded, other);
  torch::optim::Adam resumed(other.tensors, torch::optim::AdamOptions(0.5));
  resumed.load(loaded.optimizer);
  for (int step = 0; step < 3; ++step) {
    for (size_t i = 0; i < 2; ++i) {
      parameters.tensors[i].mutable_grad() = torch::randn({3, 2});
      other.tensors[i].mutable_grad() = parameters.tensors[i].grad().clone();
    }
    adam->step();
    resumed.step();
  }
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(torch::equal(parameters.tensors[i], other.tensors[i]));
}

TEST_F(CheckpointTest, LeavesNoOtherFile) {
  save_checkpoint(file, {"maml", "", 8, 2}, parameters, *adam);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1);
}

TEST_F(CheckpointTest, RefusesEveryTruncation) {
  const auto bytes = read_file(file);
  for (size_t length : {size_t{0}, size_t{1}, size_t{20}, bytes.size() / 2, bytes.size() - 1}) {
    write(file, bytes.substr(0, length));
    expect_load_error("cut short");
  }
}

TEST_F(CheckpointTest, RefusesFlippedBits) {
  const auto bytes = read_file(file);
  std::mt19937 random(3);
  for (int i = 0; i < 50; ++i) {
    auto damaged = bytes;
    damaged[random() % (bytes.size() - 40)] ^= static_cast<char>(1 << (random() % 8));
    write(file, damaged);
    expect_load_error("damaged");
  }
}

TEST_F(CheckpointTest, RefusesOtherFiles) {
  write(file, std::string(5000, 'x'));
  expect_load_error("not a checkpoint");
  fs::remove(file);
  expect_load_error("there is no checkpoint");
}

TEST_F(CheckpointTest, RefusesOtherParameters) {
  const auto loaded = load_checkpoint(file);
  auto other = parameters;
  other.names[0] = "b.weight";
  EXPECT_THROW(restore(loaded, other), c10::Error);
  other = parameters;
  other.tensors[1] = torch::zeros({2, 3});
  EXPECT_THROW(restore(loaded, other), c10::Error);
}

// files

TEST(FileTest, AFailedWriteLeavesTheOldFile) {
  TemporaryFolder folder;
  write_file(folder.path / "a", "old");
  fs::create_directory(folder.path / "a.tmp");
  EXPECT_THROW(write_file(folder.path / "a", "new"), c10::Error);
  EXPECT_EQ(read_file(folder.path / "a"), "old");
}

TEST(FileTest, AFolderHasOneOwner) {
  TemporaryFolder folder;
  {
    FolderLock lock(folder.path / "run");
    EXPECT_THROW(FolderLock(folder.path / "run"), c10::Error);
  }
  FolderLock again(folder.path / "run");
}

// metrics

TEST(MetricsTest, CutsLaterAndUnfinishedLines) {
  TemporaryFolder folder;
  const auto file = folder.path / "metrics.jsonl";
  const std::string one = "{\"iteration\":1,\"outer_loss\":2.0}\n", two = "{\"iteration\":2,\"outer_loss\":1.0}\n";
  write(file, one + two + "{\"iteration\":3,");
  { MetricsFile metrics(file, 5); }
  EXPECT_EQ(read_file(file), one + two);
  {
    MetricsFile metrics(file, 1);
    metrics.append({{"iteration", 2}, {"outer_loss", 1.0}});
  }
  EXPECT_EQ(read_file(file), one + two);
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

// evaluation

TEST(EvaluationTest, IntervalOfAKnownSample) {
  // 1..n has mean (n + 1) / 2 and variance n (n + 1) / 12.
  std::vector<double> sample;
  for (int i = 1; i <= 100; ++i) sample.push_back(i);
  const auto result = estimate(sample);
  EXPECT_DOUBLE_EQ(result.mean, 50.5);
  EXPECT_NEAR(result.interval, 1.96 * std::sqrt(100. * 101 / 12) / 10, 1e-12);
  EXPECT_TRUE(std::isnan(estimate({3.}).interval));
}

/// Tells which of two halves of the line a number is in: classification of a moment.
class Halves : public data::TaskSource {
 public:
  data::Task task(int64_t index) const override {
    const auto examples = [&](int64_t count) -> torch::data::Example<> {
      const auto x = torch::linspace(-1, 1, count).unsqueeze(1) + 0.001 * static_cast<double>(index % 100);
      return {x, x.gt(0).squeeze(1).to(torch::kLong)};
    };
    return {examples(6), examples(8)};
  }
};

class HalvesExperiment : public Experiment {
 public:
  explicit HalvesExperiment(std::shared_ptr<data::TaskSource> held_out = std::make_shared<Halves>(), double rate = 0.5)
      : dataset_(make(std::move(held_out))),
        problem_(dataset_.model, optim::Optimizer(optim::SGD(rate), parameters())) {
    problem_.steps(1)
        .inner([this](const data::Task& task) { return dataset_.loss(task.support); })
        .outer([this](const data::Task& task) { return dataset_.score(task.query); });
  }

  const Dataset& dataset() const override { return dataset_; }
  NamedTensors meta_parameters() const override { return problem_.model().parameters; }
  const Bilevel& problem() const override { return problem_; }
  Result differentiate(const std::vector<data::Task>& tasks, const TaskBatch& batch) const override {
    return hypergradient(problem_, parameters(), tasks, Unroll(), batch);
  }

 private:
  static Dataset make(std::shared_ptr<data::TaskSource> held_out) {
    torch::manual_seed(2);
    Dataset dataset;
    auto model = nn::mlp({1, 4, 2});
    dataset.training = std::make_shared<Halves>();
    dataset.held_out = std::move(held_out);
    dataset.model = model.ptr();
    dataset.forward = [model](const at::Tensor& x) mutable { return model->forward(x); };
    dataset.classifies = true;
    return dataset;
  }
  TensorList parameters() const { return dataset_.model->parameters(); }

  Dataset dataset_;
  Bilevel problem_;
};

TEST(EvaluationTest, AgreesWithALoopByHand) {
  const HalvesExperiment experiment;
  const auto evaluation = evaluate_adaptation(experiment, 120, {2, 2}, Threads(2));
  ASSERT_TRUE(evaluation);
  ASSERT_EQ(evaluation->steps.size(), 2);
  std::vector<double> losses, accuracies;
  for (int64_t i = 0; i < 120; ++i) {
    const auto task = experiment.dataset().held_out->task(i);
    InnerLoop loop(experiment.dataset().model,
                   optim::Optimizer(optim::SGD(0.5), experiment.dataset().model->parameters()),
                   InnerLoopOptions().graph(Graph::none));
    for (int k = 0; k < 2; ++k) loop.step([&] { return experiment.dataset().loss(task.support); });
    const auto logits = loop.run([&] { return experiment.dataset().forward(task.query.data); });
    losses.push_back(torch::nn::functional::cross_entropy(logits, task.query.target).item<double>());
    accuracies.push_back(logits.argmax(1).eq(task.query.target).to(torch::kDouble).mean().item<double>());
  }
  EXPECT_EQ(evaluation->steps[0].step, 0);
  EXPECT_EQ(evaluation->steps[1].step, 2);
  EXPECT_NEAR(evaluation->steps[1].loss.mean, estimate(losses).mean, 1e-6);
  EXPECT_NEAR(evaluation->steps[1].loss.interval, estimate(losses).interval, 1e-6);
  EXPECT_NEAR(evaluation->steps[1].accuracy->mean, estimate(accuracies).mean, 1e-6);
  EXPECT_FALSE(evaluate_adaptation(experiment, 120, {1}, Threads(1), [](int64_t) { return false; }));
}

TEST(EvaluationTest, ATaskThatDivergesIsNotANumber) {
  const HalvesExperiment experiment(std::make_shared<Halves>(), 3e38);
  const auto evaluation = evaluate_adaptation(experiment, 3, {10}, Threads(1));
  ASSERT_TRUE(evaluation);
  EXPECT_TRUE(std::isfinite(evaluation->steps[0].loss.mean));
  EXPECT_TRUE(std::isnan(evaluation->steps[1].loss.mean));
  EXPECT_TRUE(std::isnan(evaluation->steps[1].accuracy->mean));
  const auto table = to_markdown(*evaluation);
  EXPECT_NE(table.find(" nan |"), std::string::npos) << table;
  EXPECT_EQ(table.find("-nan"), std::string::npos) << table;
  EXPECT_TRUE(nlohmann::json::parse(to_json(*evaluation).dump())["steps"][1]["loss"]["mean"].is_null());
}

TEST(EvaluationTest, Table) {
  const Evaluation evaluation{600, {{0, {1.5, 0.25}, Estimate{0.2, 0.01}}, {10, {0.5, 0.125}, Estimate{0.98, 0.002}}}};
  EXPECT_EQ(to_markdown(evaluation),
            "| adaptation steps |            loss | accuracy (%) |\n"
            "|-----------------:|----------------:|-------------:|\n"
            "|                0 | 1.5000 ± 0.2500 | 20.00 ± 1.00 |\n"
            "|               10 | 0.5000 ± 0.1250 | 98.00 ± 0.20 |\n"
            "\nMean and 95 % interval over 600 held-out tasks.\n");
  EXPECT_EQ(to_json(evaluation)["steps"][1]["accuracy"]["mean"], 0.98);
}

// the trainer, with an experiment that it has not met

TEST(TrainerTest, TrainsAnyExperiment) {
  TemporaryFolder folder;
  HalvesExperiment experiment;
  const auto& entry = find_experiment("maml");
  const Config config(entry.schema, {{"iterations", int64_t{20}},
                                     {"tasks", int64_t{2}},
                                     {"quiet", true},
                                     {"eval_every", int64_t{10}},
                                     {"eval_tasks", int64_t{4}},
                                     {"outer_lr", 0.05}});
  EXPECT_TRUE(train(experiment, entry, config, Threads(1), folder.path, std::nullopt));
  const auto lines = read_metrics(folder.path / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 20);
  EXPECT_LT(lines.back()["outer_loss"], lines.front()["outer_loss"]);
  EXPECT_TRUE(lines[0].contains("accuracy"));
  EXPECT_FALSE(lines[0].contains("evaluation_accuracy"));
  EXPECT_TRUE(lines[19].contains("evaluation_accuracy"));
}

/// The user loses patience with the first held-out task.
class Impatience final : public Halves {
 public:
  data::Task task(int64_t index) const override {
    if (!raised_.exchange(true)) std::raise(SIGINT);
    return Halves::task(index);
  }

 private:
  mutable std::atomic<bool> raised_ = false;
};

TEST(TrainerTest, AnInterruptedEvaluationIsTakenUpAgain) {
  TemporaryFolder folder;
  const auto whole = folder.path / "whole", run = folder.path / "run";
  for (const auto& path : {whole, run}) fs::create_directory(path);
  const auto& entry = find_experiment("maml");
  const Config config(entry.schema, {{"iterations", int64_t{8}},
                                     {"tasks", int64_t{2}},
                                     {"quiet", true},
                                     {"eval_every", int64_t{4}},
                                     {"eval_tasks", int64_t{4}}});
  HalvesExperiment patient, impatient(std::make_shared<Impatience>()), again;
  EXPECT_TRUE(train(patient, entry, config, Threads(1), whole, std::nullopt));
  {
    const InterruptGuard guard;
    EXPECT_FALSE(train(impatient, entry, config, Threads(1), run, std::nullopt));
  }
  const std::optional<Checkpoint> checkpoint = load_checkpoint(run / "checkpoint.pt");
  EXPECT_EQ(checkpoint->state.iteration, 3);
  EXPECT_EQ(read_metrics(run / "metrics.jsonl").size(), 3);
  const InterruptGuard guard;
  EXPECT_TRUE(train(again, entry, config, Threads(1), run, checkpoint));
  expect_same_run(run, whole);
}

/// Its gradients are of no use.
class BrokenExperiment final : public HalvesExperiment {
 public:
  Result differentiate(const std::vector<data::Task>& tasks, const TaskBatch& batch) const override {
    auto result = HalvesExperiment::differentiate(tasks, batch);
    for (auto& gradient : result.gradients) gradient = torch::full_like(gradient, std::nan(""));
    return result;
  }
};

TEST(TrainerTest, KeepsTheLastGoodCheckpoint) {
  TemporaryFolder folder;
  BrokenExperiment experiment;
  const auto& entry = find_experiment("maml");
  const Config config(entry.schema, {{"iterations", int64_t{1}}, {"tasks", int64_t{2}}, {"quiet", true}});
  EXPECT_THROW(train(experiment, entry, config, Threads(1), folder.path, std::nullopt), c10::Error);
  EXPECT_EQ(load_checkpoint(folder.path / "checkpoint.pt").state.iteration, 0);
}

// the command

class CommandTest : public testing::Test {
 protected:
  void train(const fs::path& out, const Arguments& more = {}, int code = 0) {
    const auto outcome = gimli(small_training(out) + more);
    EXPECT_EQ(outcome.code, code) << outcome.err;
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
  fs::path run = folder.path / "run";
};

TEST_F(CommandTest, HelpSaysWhatThereIs) {
  const auto nothing = gimli({});
  EXPECT_EQ(nothing.code, 0);
  for (const auto* word : {"train", "eval", "plot", "data"}) EXPECT_NE(nothing.out.find(word), std::string::npos);
  EXPECT_EQ(gimli({"--help"}).out, nothing.out);
  const auto help = gimli({"train", "maml", "--help"});
  EXPECT_EQ(help.code, 0);
  for (const auto& setting : maml_schema().settings) {
    EXPECT_NE(help.out.find(flag_of(setting.key).substr(2)), std::string::npos) << setting.key;
  }
  EXPECT_EQ(gimli({"--version"}).code, 0);
  for (const auto* command : {"train", "eval", "plot", "data"}) EXPECT_EQ(gimli({command, "--help"}).code, 0);
}

TEST_F(CommandTest, LeavesTheFilesOfARun) {
  const auto outcome = gimli(small_training(run));
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.out.find("adaptation steps"), std::string::npos);
  EXPECT_NE(outcome.err.find("gnuplot"), std::string::npos) << "no warning that there are no plots";
  for (const auto* file :
       {"config.toml", "metrics.jsonl", "checkpoint.pt", "evaluation.md", "evaluation.json", "figures.json"}) {
    EXPECT_TRUE(fs::exists(run / file)) << file;
  }
  const auto lines = read_metrics(run / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 12);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["iteration"], i + 1);
    EXPECT_TRUE(lines[i]["outer_loss"].is_number());
    EXPECT_TRUE(lines[i]["tasks_per_second"].is_number());
    EXPECT_TRUE(lines[i]["seconds"].is_number());
  }
  const auto config = read_config(maml_schema(), run / "config.toml");
  EXPECT_EQ(std::get<int64_t>(config.at("hidden")), 8);
  EXPECT_EQ(config, Config(maml_schema(), config).values()) << "not the full configuration";
}

TEST_F(CommandTest, FlagsWinOverTheFileWhichWinsOverDefaults) {
  write(folder.path / "c.toml", "hidden = 6\nshots = 3\nqueries = 5\nfirst_order = true\n");
  train(run, {"--config", (folder.path / "c.toml").string(), "--no-first-order"});
  const Config config(maml_schema(), read_config(maml_schema(), run / "config.toml"));
  EXPECT_EQ(config.integer("hidden"), 8);
  EXPECT_FALSE(config.flag("first_order"));
  EXPECT_EQ(config.number("inner_lr"), 0.01);
  const auto other = folder.path / "other";
  const auto outcome = gimli({"train", "maml", "--config", (run / "config.toml").string(), "--out", other.string()});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  expect_same_run(run, other);
}

TEST_F(CommandTest, TheNumberOfThreadsDoesNotChangeTheNumbers) {
  train(run);
  train(folder.path / "two", {"--threads", "2"});
  expect_same_run(run, folder.path / "two");
}

TEST_F(CommandTest, TheSeedChangesTheNumbers) {
  train(run);
  train(folder.path / "other", {"--seed", "1"});
  EXPECT_NE(timeless_metrics(run), timeless_metrics(folder.path / "other"));
}

TEST_F(CommandTest, ResumesToTheBit) {
  train(run);
  const auto stopped = folder.path / "stopped";
  train(stopped, {"--iterations", "7"});
  const auto outcome = gimli({"train", "maml", "--resume", "--out", stopped.string(), "--iterations", "12"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  expect_same_run(run, stopped);
}

TEST_F(CommandTest, CutsTheMetricsAfterTheCheckpoint) {
  train(run);
  const auto copy = folder.path / "copy";
  train(copy, {"--iterations", "5"});
  auto lines = read_file(copy / "metrics.jsonl");
  write(copy / "metrics.jsonl", lines + "{\"iteration\":6,\"outer_loss\":99.0}\n{\"iteration\":7,\"out");
  train(copy, {"--resume"});
  expect_same_run(run, copy);
}

TEST_F(CommandTest, ResumeOfAFinishedRunEvaluatesAgain) {
  train(run);
  const auto before = read_file(run / "checkpoint.pt");
  fs::remove(run / "evaluation.json");
  train(run, {"--resume"});
  EXPECT_EQ(read_file(run / "checkpoint.pt"), before);
  EXPECT_TRUE(fs::exists(run / "evaluation.json"));
}

TEST_F(CommandTest, OverwriteStartsAnew) {
  train(run);
  train(folder.path / "other", {"--seed", "4"});
  train(run, {"--seed", "4", "--overwrite"});
  expect_same_run(run, folder.path / "other");
}

TEST_F(CommandTest, EvaluatesACheckpoint) {
  train(run);
  const auto outcome = gimli({"eval", "--checkpoint", run.string(), "--quiet", "--threads", "2"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find(read_file(run / "evaluation.md")), std::string::npos) << outcome.out;
  const auto more = gimli({"eval", "--checkpoint", (run / "checkpoint.pt").string(), "--eval-tasks", "5",
                           "--eval-steps", "3", "--out", (folder.path / "e").string()});
  EXPECT_EQ(more.code, 0) << more.err;
  EXPECT_NE(more.out.find("over 5 held-out tasks"), std::string::npos);
  const auto written = nlohmann::json::parse(read_file(folder.path / "e" / "evaluation.json"));
  EXPECT_EQ(written["steps"].size(), 2);
  train(folder.path / "other");
  expect_refusal({"eval", "--checkpoint", run.string(), "--out", (folder.path / "other").string()},
                 "holds another run");
  EXPECT_EQ(gimli({"eval", "--checkpoint", run.string(), "--quiet", "--out", run.string()}).code, 0);
}

TEST_F(CommandTest, ADivergedEvaluationDoesNotEndARun) {
  train(run, {"--iterations", "2", "--inner-lr", "100", "--eval-steps", "300", "--eval-every", "1"});
  EXPECT_NE(read_file(run / "evaluation.md").find(" nan |"), std::string::npos);
  EXPECT_EQ(read_file(run / "evaluation.md").find("-nan"), std::string::npos);
  EXPECT_TRUE(read_metrics(run / "metrics.jsonl")[0]["evaluation_loss"].is_null());
  EXPECT_NE(read_file(run / "figures.json").find("null"), std::string::npos);
}

TEST_F(CommandTest, EveryInnerOptimizerTrains) {
  for (const auto* name : {"sgd", "momentum", "adam", "adamw"}) {
    train(folder.path / name, {"--inner-optimizer", name, "--iterations", "2", "--inner-steps", "2"});
  }
  train(folder.path / "first", {"--first-order", "--iterations", "2"});
}

TEST_F(CommandTest, OutputElsewhereThanATerminalIsPlain) {
  auto arguments = small_training(run);
  arguments.pop_back();  // --quiet
  const auto outcome = gimli(arguments);
  for (const unsigned char c : outcome.out + outcome.err) {
    ASSERT_TRUE(c == '\n' || c >= 0x20) << "control character " << int{c};
  }
  EXPECT_NE(outcome.err.find("12/12"), std::string::npos) << outcome.err;
}

TEST_F(CommandTest, RefusesWhatItCannotDo) {
  const auto train_with = [&](const Arguments& more) { return small_training(run) + more; };
  expect_refusal({"trian"}, "'train'");
  expect_refusal({"train"}, "gimli train maml");
  expect_refusal({"train", "mamal"}, "'maml'? See gimli train --help");
  expect_refusal({"train", "maml", "--xyzzyxyzzy"}, "'--xyzzyxyzzy' is not known here. See gimli train maml --help");
  expect_refusal(train_with({"--threads", "1025"}), "threads must be 0 to 1024, got 1025");
  expect_refusal(train_with({"--threads", "-1"}), "threads must be 0 to 1024, got -1");
  expect_refusal(train_with({"--quiet=perhaps"}), "--quiet takes no value but true or false");
  expect_refusal({"data"}, "gimli data check");
  expect_refusal(train_with({"--iteratoins", "5"}), "'--iterations'");
  expect_refusal(train_with({"--tasks", "many"}), "--tasks must be a whole number, got 'many'");
  expect_refusal(train_with({"--tasks", "0"}), "tasks must be at least 1, got 0");
  expect_refusal(train_with({"--tasks", "-3"}), "tasks must be at least 1, got -3");
  expect_refusal(train_with({"--tasks"}), "--tasks needs a value");
  expect_refusal(train_with({"--tasks", "99999999999999999999"}), "whole number");
  expect_refusal(train_with({"--inner-lr", "fast"}), "--inner-lr must be a number");
  expect_refusal(train_with({"--inner-lr", "nan"}), "inner_lr must be finite");
  expect_refusal(train_with({"--eval-steps", "1,x"}), "--eval-steps must be a list of whole numbers");
  expect_refusal(train_with({"--inner-optimizer", "adm"}), "did you mean 'adam'");
  expect_refusal(train_with({"--dataset", "imagenet"}), "sinusoid, omniglot");
  expect_refusal(train_with({"--ways", "5"}), "ways has no meaning with the dataset sinusoid");
  expect_refusal(train_with({"--device", "abacus"}), "device must be cpu, cuda or cuda:N");
  if (!torch::cuda::is_available()) expect_refusal(train_with({"--device", "cuda"}), "0 CUDA devices");
  expect_refusal(train_with({"--inner-lr", "1e30", "--inner-steps", "3"}), "training stopped in iteration 1");
  expect_refusal(train_with({"--resume", "--out", (folder.path / "none").string()}), "nothing to resume");
  EXPECT_FALSE(fs::exists(folder.path / "none"));
  expect_refusal(train_with({"--resume", "--overwrite"}), "not both");
  write(folder.path / "file", "");
  expect_refusal(train_with({"--out", (folder.path / "file").string()}), "cannot make the folder");
  expect_refusal({"eval"}, "--checkpoint");
  expect_refusal({"eval", "--checkpoint", (folder.path / "nothing").string()}, "there is no checkpoint");
  expect_refusal({"eval", "--checkpoint", (folder.path / "file").string()}, "not a checkpoint");
  expect_refusal({"plot", (folder.path / "nothing").string()}, "gnuplot");
  expect_refusal({"data", "check", "--dataset", "omniglot", "--data-root", folder.path.string()},
                 "images_background.zip");
}

TEST_F(CommandTest, RefusesConfigurationsWithMistakes) {
  const auto file = folder.path / "c.toml";
  const auto refuse = [&](const std::string& toml, const std::string& words) {
    write(file, toml);
    expect_refusal(small_training(run) + Arguments{"--config", file.string()}, words);
    expect_refusal(small_training(run) + Arguments{"--config", file.string()}, file.string());
  };
  refuse("inner_learning = 1\n", "there is no setting 'inner_learning'");
  refuse("iner_lr = 1\n", "did you mean 'inner_lr'");
  refuse("shots = 1.5\n", "shots must be a whole number");
  refuse("shots = \"one\"\n", "shots must be a whole number");
  refuse("first_order = 1\n", "first_order must be true or false");
  refuse("eval_steps = [1, \"x\"]\n", "eval_steps must be a list of whole numbers");
  refuse("[inner]\nlr = 1\n", "there is no setting 'inner'");
  refuse("shots = 1\nshots = = 2\n", "line 2");
  expect_refusal(small_training(run) + Arguments{"--config", "nowhere.toml"}, "cannot read nowhere.toml");
}

TEST_F(CommandTest, RefusesToMixRuns) {
  train(run);
  const auto checkpoint = read_file(run / "checkpoint.pt"), metrics = read_file(run / "metrics.jsonl");
  expect_refusal(small_training(run), "already holds a run; continue it with --resume, replace it with --overwrite");
  const Arguments resume{"train", "maml", "--resume", "--out", run.string()};
  expect_refusal(resume + Arguments{"--inner-lr", "0.5"}, "inner_lr = 0.01, but inner_lr = 0.5");
  expect_refusal(resume + Arguments{"--dataset", "omniglot"}, "dataset = \"sinusoid\", but dataset = \"omniglot\"");
  expect_refusal(resume + Arguments{"--iterations", "3"}, "already at iteration 12");
  write(run / "checkpoint.pt", checkpoint.substr(0, checkpoint.size() / 2));
  expect_refusal(resume, "cut short");
  auto damaged = checkpoint;
  damaged[damaged.size() / 2] ^= 1;
  write(run / "checkpoint.pt", damaged);
  expect_refusal(resume, "damaged");
  expect_refusal({"eval", "--checkpoint", run.string()}, "damaged");
  EXPECT_EQ(read_file(run / "checkpoint.pt"), damaged);
  EXPECT_EQ(read_file(run / "metrics.jsonl"), metrics);
}

TEST_F(CommandTest, DataCheckOfSineWaves) { EXPECT_EQ(gimli({"data", "check"}).code, 0); }

// processes

class ProcessTest : public testing::Test {
 protected:
  /// A training that takes about a second.
  Arguments long_training(const fs::path& out) const {
    return small_training(out) + Arguments{"--iterations", "300", "--checkpoint-every", "3"};
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
  fs::path run = folder.path / "run", whole = folder.path / "whole", output = folder.path / "output";
};

TEST_F(ProcessTest, SurvivesKillAtAnyMoment) {
  ASSERT_EQ(gimli(long_training(whole)).code, 0);
  std::mt19937 random(std::random_device{}());
  const auto file = run / "checkpoint.pt";
  for (int kill = 0; kill < 3; ++kill) {
    const bool resume = fs::exists(file);
    const auto begun = resume ? load_checkpoint(file).state.iteration : 0;
    Process process(long_training(run) + (resume ? Arguments{"--resume"} : Arguments{}), output);
    ASSERT_TRUE(wait_for(file, 1));
    for (int i = 0; i < 500 && load_checkpoint(file).state.iteration == begun; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 200000));
    process.send(SIGKILL);
    process.wait();
  }
  Process process(long_training(run) + Arguments{"--resume"}, output);
  EXPECT_EQ(process.wait(), 0) << read_file(output);
  expect_same_run(run, whole);
}

TEST_F(ProcessTest, AnInterruptSavesAndSaysHowToContinue) {
  ASSERT_EQ(gimli(long_training(whole)).code, 0);
  for (const int signal : {SIGINT, SIGTERM}) {
    fs::remove_all(run);
    Process process(long_training(run) + Arguments{"--iterations", "100000"}, output);
    ASSERT_TRUE(wait_for(run / "checkpoint.pt", 1));
    process.send(signal);
    EXPECT_EQ(process.wait(), 130);
    const auto said = read_file(output);
    EXPECT_NE(said.find("gimli train maml --resume --out " + run.string()), std::string::npos) << said;
    EXPECT_EQ(load_checkpoint(run / "checkpoint.pt").state.iteration,
              static_cast<int64_t>(read_metrics(run / "metrics.jsonl").size()));
  }
  ASSERT_LE(load_checkpoint(run / "checkpoint.pt").state.iteration, 300);
  ASSERT_EQ(gimli(long_training(run) + Arguments{"--resume"}).code, 0);
  expect_same_run(run, whole);
}

TEST_F(ProcessTest, SaysWhenItCannotSay) { EXPECT_EQ(Process({"--version"}, "/dev/full").wait(), 2); }

TEST_F(ProcessTest, TwoInterruptsStopAtOnce) {
  Process process(long_training(run) + Arguments{"--iterations", "100000"}, output);
  ASSERT_TRUE(wait_for(run / "metrics.jsonl", 0));
  process.send(SIGINT);
  process.send(SIGTERM);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_NO_THROW(load_checkpoint(run / "checkpoint.pt"));
}

}  // namespace
}  // namespace gimli::app
