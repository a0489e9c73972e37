#include "app/checkpoint.h"

#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/torch.h>

#include <functional>
#include <random>

#include "app/file.h"
#include "app/metrics.h"
#include "app_fixture.h"
#include "expect.h"

namespace gimli::app {
namespace {

/// Two weights with an Adam, a third with an SGD, and a counter.
struct Training {
  NamedTensors tensors{{"a.weight", "a.bias", "b", "count"},
                       {torch::randn({3, 2}).requires_grad_(), torch::randn({2}).requires_grad_(),
                        torch::randn({4}, torch::kDouble).requires_grad_(), torch::zeros({}, torch::kLong)}};
  torch::optim::Adam adam{TensorList{tensors.tensors[0], tensors.tensors[1]}, torch::optim::AdamOptions(0.1)};
  torch::optim::SGD sgd{TensorList{tensors.tensors[2]}, torch::optim::SGDOptions(0.1).momentum(0.9)};

  TrainingState state() { return {tensors, {&adam, &sgd}}; }

  void step(int64_t seed) {
    torch::manual_seed(seed);
    for (size_t i = 0; i < 3; ++i) tensors.tensors[i].mutable_grad() = torch::randn_like(tensors.tensors[i]);
    adam.step();
    sgd.step();
    tensors.tensors[3].add_(1);
  }
};

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    training.step(1);
    save_checkpoint(file, {"maml", "x = 1\n", 7, 1.5}, training.state());
  }

  void expect_load_error(const std::string& words) {
    const auto said = message_of([&] { load_checkpoint(file); });
    EXPECT_NE(said.find(words), std::string::npos) << said;
    EXPECT_NE(said.find(file.string()), std::string::npos) << said;
  }

  TemporaryFolder folder;
  fs::path file = folder.path / "checkpoint.pt";
  Training training;
};

TEST_F(CheckpointTest, RoundTrip) {
  const auto loaded = load_checkpoint(file);
  EXPECT_EQ(loaded.state.experiment, "maml");
  EXPECT_EQ(loaded.state.configuration, "x = 1\n");
  EXPECT_EQ(loaded.state.iteration, 7);
  EXPECT_EQ(loaded.state.seconds, 1.5);
  EXPECT_EQ(loaded.tensors.names, training.tensors.names);
  Training resumed;
  restore(loaded, resumed.state());
  for (int64_t step = 0; step < 3; ++step) {
    expect_equal(resumed.tensors.tensors, training.tensors.tensors);
    training.step(10 + step);
    resumed.step(10 + step);
  }
  expect_equal(resumed.tensors.tensors, training.tensors.tensors);
}

TEST_F(CheckpointTest, HoldsTrainingsWithoutTensorsOrOptimizers) {
  save_checkpoint(file, {"nothing", "", 1, 0}, {});
  const auto loaded = load_checkpoint(file);
  EXPECT_EQ(loaded.tensors.size(), 0);
  EXPECT_TRUE(loaded.optimizers.empty());
  restore(loaded, {});
}

TEST_F(CheckpointTest, LeavesNoOtherFile) {
  save_checkpoint(file, {"maml", "", 8, 2}, training.state());
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

TEST_F(CheckpointTest, RefusesATrainingThatIsNotTheSame) {
  const auto loaded = load_checkpoint(file);
  const struct {
    std::function<void(TrainingState&)> change;
    std::string words;
  } rows[] = {
      {[](auto& state) { state.tensors.names[1] = "b.bias"; },
       "the checkpoint's tensors are a.weight, a.bias, b, count, and the experiment's a.weight, b.bias, b, count"},
      {[](auto& state) { std::swap(state.tensors.names[0], state.tensors.names[2]); }, "the checkpoint's tensors are"},
      {[](auto& state) { state.tensors.names.pop_back(), state.tensors.tensors.pop_back(); },
       "and the experiment's a.weight, a.bias, b"},
      {[](auto& state) {
         state.tensors.tensors[0] = torch::zeros({2, 3});
       },
       "the checkpoint's a.weight is Float of shape [3, 2], and the experiment's Float of shape [2, 3]"},
      {[](auto& state) { state.tensors.tensors[2] = torch::zeros({4}); },
       "the checkpoint's b is Double of shape [4], and the experiment's Float of shape [4]"},
      {[](auto& state) { state.optimizers.pop_back(); },
       "the checkpoint has the states of 2 optimizers, and the experiment has 1"},
  };
  for (const auto& row : rows) {
    Training other;
    const auto before = clones(other.tensors.tensors);
    auto state = other.state();
    row.change(state);
    expect_error([&] { restore(loaded, state); }, row.words);
    expect_equal(other.tensors.tensors, before);
  }
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

}  // namespace
}  // namespace gimli::app
