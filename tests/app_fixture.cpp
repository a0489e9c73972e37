#include "app_fixture.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <torch/serialize/archive.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <thread>

#include "app/checkpoint.h"
#include "app/command.h"
#include "app/experiment.h"
#include "app/file.h"
#include "app/metrics.h"

extern char** environ;

namespace gimli::app {
namespace {

using torch::serialize::InputArchive;

/// The words as C has them, which `words` own.
std::vector<char*> argv_of(std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return argv;
}

template <class T>
T read(InputArchive& archive, const std::string& key) {
  T value;
  archive.read(key, value);
  return value;
}

std::vector<std::string> sorted_keys(InputArchive& archive) {
  auto keys = archive.keys();
  std::sort(keys.begin(), keys.end());
  return keys;
}

void expect_same_value(const c10::IValue& a, const c10::IValue& b) {
  ASSERT_EQ(a.isTensor(), b.isTensor());
  if (!a.isTensor()) {
    EXPECT_EQ(a, b);
  } else if (a.toTensor().defined() || b.toTensor().defined()) {
    EXPECT_TRUE(at::equal(a.toTensor(), b.toTensor()));
  }
}

void expect_same_archive(InputArchive& a, InputArchive& b) {
  const auto keys = sorted_keys(a);
  ASSERT_EQ(keys, sorted_keys(b));
  for (const auto& key : keys) {
    SCOPED_TRACE(key);
    InputArchive x, y;
    if (!a.try_read(key, x)) {
      expect_same_value(read<c10::IValue>(a, key), read<c10::IValue>(b, key));
    } else if (b.try_read(key, y)) {
      expect_same_archive(x, y);
    } else {
      ADD_FAILURE() << "one has an archive, the other a value";
    }
  }
}

int64_t size_of(InputArchive& archive, const std::string& key) {
  return read<at::Tensor>(archive, key).item<int64_t>();
}

/// libtorch files the state of a parameter under its address, which the parameter's group lists.
void expect_same_optimizer(InputArchive& a, InputArchive& b) {
  auto states_a = read<InputArchive>(a, "state"), states_b = read<InputArchive>(b, "state");
  auto groups_a = read<InputArchive>(a, "param_groups"), groups_b = read<InputArchive>(b, "param_groups");
  EXPECT_EQ(states_a.keys().size(), states_b.keys().size());
  const auto groups = size_of(groups_a, "param_groups/size");
  ASSERT_EQ(groups, size_of(groups_b, "param_groups/size"));
  for (int64_t g = 0; g < groups; ++g) {
    const auto key = "param_groups/" + std::to_string(g);
    auto x = read<InputArchive>(groups_a, key), y = read<InputArchive>(groups_b, key);
    auto options_a = read<InputArchive>(x, "options"), options_b = read<InputArchive>(y, "options");
    expect_same_archive(options_a, options_b);
    const auto parameters = size_of(x, "params/size");
    ASSERT_EQ(parameters, size_of(y, "params/size"));
    for (int64_t i = 0; i < parameters; ++i) {
      const auto parameter = "params/" + std::to_string(i);
      SCOPED_TRACE(parameter);
      InputArchive p, q;
      const bool has_a = states_a.try_read(read<c10::IValue>(x, parameter).toStringRef(), p);
      const bool has_b = states_b.try_read(read<c10::IValue>(y, parameter).toStringRef(), q);
      ASSERT_EQ(has_a, has_b);
      if (has_a) expect_same_archive(p, q);
    }
  }
}

}  // namespace

void expect_resumes_to_the_bit(const ExperimentEntry& entry, const Config& config, int64_t stop) {
  struct End {
    TensorList tensors;
    std::vector<nlohmann::json> metrics;
    std::string report;
  };
  const auto run = [&](std::optional<int64_t> stops_at) {
    const TemporaryFolder folder;
    const auto file = folder.path / "checkpoint.pt";
    auto experiment = entry.make(config);
    End end;
    for (int64_t i = 0; i < experiment->iterations(); ++i) {
      if (i == stops_at) {
        save_checkpoint(file, {entry.name, "", i, 0}, experiment->state());
        experiment = entry.make(config);
        restore(load_checkpoint(file), experiment->state());
      }
      auto iteration = experiment->iterate(i);
      EXPECT_TRUE(iteration);
      iteration->metrics.erase("tasks_per_second");
      iteration->metrics["iteration"] = i + 1;
      end.metrics.push_back(iteration->metrics);
    }
    for (const auto& tensor : experiment->state().tensors.tensors) end.tensors.push_back(tensor.detach().clone());
    end.report = experiment->report(end.metrics)->numbers.dump();
    return end;
  };
  const auto whole = run(std::nullopt), stopped = run(stop);
  ASSERT_EQ(whole.tensors.size(), stopped.tensors.size());
  for (size_t i = 0; i < whole.tensors.size(); ++i) EXPECT_TRUE(at::equal(whole.tensors[i], stopped.tensors[i])) << i;
  EXPECT_EQ(whole.metrics, stopped.metrics);
  EXPECT_EQ(whole.report, stopped.report);
}

EmptyPath::EmptyPath() : path_(std::getenv("PATH")) { setenv("PATH", "", 1); }

EmptyPath::~EmptyPath() { setenv("PATH", path_.c_str(), 1); }

Outcome gimli(const Arguments& arguments) {
  auto words = Arguments{"gimli"} + arguments;
  auto argv = argv_of(words);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = run_command(static_cast<int>(words.size()), argv.data());
  std::fflush(nullptr);
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

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

const Schema& maml_schema() { return find_experiment("maml").schema; }

void write(const fs::path& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }

std::vector<nlohmann::json> timeless_metrics(const fs::path& folder) {
  auto lines = read_metrics(folder / "metrics.jsonl");
  for (auto& line : lines) {
    line.erase("seconds");
    line.erase("tasks_per_second");
  }
  return lines;
}

void expect_same_run(const fs::path& a, const fs::path& b) {
  const auto x = load_checkpoint(a / "checkpoint.pt"), y = load_checkpoint(b / "checkpoint.pt");
  EXPECT_EQ(x.state.iteration, y.state.iteration);
  ASSERT_EQ(x.tensors.names, y.tensors.names);
  for (size_t i = 0; i < x.tensors.size(); ++i) {
    EXPECT_TRUE(at::equal(x.tensors.tensors[i], y.tensors.tensors[i])) << x.tensors.names[i];
  }
  ASSERT_EQ(x.optimizers.size(), y.optimizers.size());
  for (size_t i = 0; i < x.optimizers.size(); ++i) {
    SCOPED_TRACE("optimizer " + std::to_string(i));
    expect_same_optimizer(x.optimizers[i], y.optimizers[i]);
  }
  EXPECT_EQ(timeless_metrics(a), timeless_metrics(b));
  for (const auto* file : {"report.md", "report.json", "figures.json"}) {
    if (fs::exists(a / file) && fs::exists(b / file)) {
      EXPECT_EQ(read_file(a / file), read_file(b / file)) << file;
    }
  }
}

Process::Process(const Arguments& arguments, const fs::path& output) {
  auto words = Arguments{GIMLI_COMMAND} + arguments;
  auto argv = argv_of(words);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  if (posix_spawn(&id_, argv[0], &actions, nullptr, argv.data(), environ) != 0) id_ = -1;
  posix_spawn_file_actions_destroy(&actions);
}

Process::~Process() {
  if (!done_) send(SIGKILL), wait();
}

void Process::send(int signal) {
  if (id_ > 0) ::kill(id_, signal);
}

int Process::wait() {
  int status = 0;
  if (id_ > 0) waitpid(id_, &status, 0);
  done_ = true;
  return id_ < 0 ? 127 : WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool wait_for(const fs::path& file, size_t size) {
  for (int i = 0; i < 6000; ++i) {
    if (fs::exists(file) && fs::file_size(file) >= size) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

}  // namespace gimli::app
