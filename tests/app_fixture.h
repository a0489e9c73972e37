#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/config.h"
#include "app/experiment.h"
#include "temporary_folder.h"

namespace gimli::app {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

inline Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Takes programs out of reach while it lives.
class EmptyPath final {
 public:
  EmptyPath();
  ~EmptyPath();

 private:
  std::string path_;
};

struct Outcome {
  int code = -1;
  std::string out, err;
};

/// The command, in this process.
Outcome gimli(const Arguments& arguments);

/// Exit code 2 and one sentence on standard error with these words.
void expect_refusal(const Arguments& arguments, const std::string& words);

/// A training of a moment.
Arguments small_training(const fs::path& out);

const Schema& maml_schema();

void write(const fs::path& path, const std::string& content);

/// The metrics of a run without what depends on the clock.
std::vector<nlohmann::json> timeless_metrics(const fs::path& folder);

/// The tensors, the optimizers' states, the metrics and the report are the same bits.
void expect_same_run(const fs::path& a, const fs::path& b);

/// A training that is stopped after `stop` iterations, saved to a file and taken up by a new experiment ends with the
/// same bits as one that is not, and so do its metrics and its report.
void expect_resumes_to_the_bit(const ExperimentEntry& entry, const Config& config, int64_t stop);

/// A test of the command in this process.
class CommandTest : public testing::Test {
 protected:
  void train(const fs::path& out, const Arguments& more = {}) {
    const auto outcome = gimli(small_training(out) + more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
  fs::path run = folder.path / "run";
};

/// The command in a process of its own, its output in a file.
class Process final {
 public:
  Process(const Arguments& arguments, const fs::path& output);
  ~Process();

  void send(int signal);

  /// The exit code, or minus the signal that ended it.
  int wait();

 private:
  pid_t id_ = -1;
  bool done_ = false;
};

/// Waits until the file is there and has `size` bytes.
bool wait_for(const fs::path& file, size_t size);

}  // namespace gimli::app
