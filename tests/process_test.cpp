#include <torch/torch.h>

#include <csignal>
#include <random>
#include <thread>

#include "app/checkpoint.h"
#include "app/file.h"
#include "app/metrics.h"
#include "app_fixture.h"
#include "cifar10_files.h"
#include "fashion_mnist_files.h"
#include "photographs.h"

namespace gimli::app {
namespace {

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

/// A training of about a second, besides the start of the process.
struct KilledTraining {
  std::string name;
  Arguments arguments;  ///< of gimli train, without its folder; DATA is a folder with data that the test writes
  int64_t iterations;   ///< as the arguments say
};

Arguments maml_arguments(const Arguments& more) {
  return Arguments{"maml", "--tasks", "3", "--shots", "4", "--queries", "4", "--hidden", "8", "--eval-tasks", "6"} +
         more;
}

/// Any experiment can have rows.
const KilledTraining kKilledTrainings[] = {
    {"maml", maml_arguments({"--iterations", "300"}), 300},
    {"fomaml_adam", maml_arguments({"--iterations", "200", "--method", "fomaml", "--inner-optimizer", "adam"}), 200},
    {"anil_threads", maml_arguments({"--iterations", "200", "--method", "anil", "--threads", "2"}), 200},
    {"meta_sgd_evaluating", maml_arguments({"--iterations", "200", "--method", "meta-sgd", "--eval-every", "10"}), 200},
    {"reptile",
     maml_arguments({"--iterations", "200", "--method", "reptile", "--inner-steps", "3", "--outer-optimizer", "sgd",
                     "--outer-lr", "0.5"}),
     200},
    {"imaml", maml_arguments({"--iterations", "100", "--method", "imaml", "--inner-steps", "4"}), 100},
    {"maml_plus_plus",
     {"maml++",
      "--data-root",
      "DATA",
      "--dataset",
      "mini-imagenet",
      "--ways",
      "2",
      "--queries",
      "1",
      "--hidden",
      "4",
      "--inner-optimizer",
      "adam",
      "--inner-lr",
      "0.01",
      "--tasks",
      "1",
      "--inner-steps",
      "2",
      "--epochs",
      "6",
      "--epoch-iterations",
      "8",
      "--multi-step-epochs",
      "3",
      "--validation-tasks",
      "2",
      "--best-epochs",
      "2",
      "--eval-tasks",
      "2"},
     48},
    {"learning_rates",
     {"learning-rates",
      "--data-root",
      "DATA",
      "--layers",
      "1,1",
      "--growth",
      "2",
      "--seeds",
      "2",
      "--epochs",
      "6",
      "--epoch-iterations",
      "2",
      "--batch",
      "16",
      "--inner-steps",
      "3",
      "--meta-batch",
      "4",
      "--meta-batches",
      "2"},
     72},
    {"learned_optimizer",
     {"learned-optimizer", "--iterations", "80", "--tasks", "2", "--horizon", "10", "--unroll", "5", "--rates", "3",
      "--validation-tasks", "2", "--eval-tasks", "4", "--eval-horizon", "20"},
     80},
    {"learned_loss",
     {"learned-loss", "--hidden", "8", "--loss-hidden", "6,6", "--inner-steps", "3", "--tasks", "2", "--iterations",
      "100", "--validation-tasks", "2", "--eval-tasks", "3", "--eval-steps", "5"},
     100},
    {"hyperparameters",
     {"hyperparameters", "--data-root", "DATA", "--hyperparameter", "data-weights", "--corrupted", "0.5",
      "--training-images", "40", "--validation-images", "30", "--inner-steps", "10", "--iterations", "60", "--seeds",
      "2", "--threads", "2"},
     60},
};

class KillTest : public ProcessTest, public testing::WithParamInterface<KilledTraining> {
 protected:
  Arguments training(const fs::path& out) const {
    auto arguments = GetParam().arguments;
    std::replace(arguments.begin(), arguments.end(), std::string("DATA"), folder.path.string());
    return Arguments{"train"} + arguments + Arguments{"--out", out.string(), "--checkpoint-every", "3", "--quiet"};
  }

  int64_t saved_iteration() const { return load_checkpoint(run / "checkpoint.pt").state.iteration; }
};

TEST_P(KillTest, SurvivesItAtAnyMoment) {
  if (GetParam().name == "maml_plus_plus") write_photographs(folder.path / "mini-imagenet");
  if (GetParam().name == "learning_rates") write_cifar10(folder.path, 40, 20);
  if (GetParam().name == "hyperparameters") data::write_fashion_mnist(folder.path, 120, 40);
  ASSERT_EQ(gimli(training(whole)).code, 0);
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const auto file = run / "checkpoint.pt";
  for (int kill = 0; kill < 3; ++kill) {
    const bool resume = fs::exists(file);
    const auto begun = resume ? saved_iteration() : 0;
    Process process(training(run) + (resume ? Arguments{"--resume"} : Arguments{}), output);
    if (kill == 1) {  // at the start, or not much later
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 1500));
    } else {
      ASSERT_TRUE(wait_for(file, 1)) << read_file(output);
      for (int i = 0; i < 500 && saved_iteration() == begun; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 100000));
    }
    process.send(SIGKILL);
    const auto code = process.wait();
    EXPECT_TRUE(code == -SIGKILL || (code == 0 && kill > 0)) << code << ": " << read_file(output);
    if (kill == 0) {
      EXPECT_LT(saved_iteration(), GetParam().iterations) << "it was killed too late";
    }
  }
  Process process(training(run) + Arguments{"--resume"}, output);
  EXPECT_EQ(process.wait(), 0) << read_file(output);
  EXPECT_EQ(saved_iteration(), GetParam().iterations);
  expect_same_run(run, whole);
}

INSTANTIATE_TEST_SUITE_P(, KillTest, testing::ValuesIn(kKilledTrainings),
                         [](const auto& info) { return info.param.name; });

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
