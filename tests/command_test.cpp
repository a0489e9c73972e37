#include "app/command.h"

#include <torch/torch.h>

#include <algorithm>
#include <sstream>

#include "app/checkpoint.h"
#include "app/experiment.h"
#include "app/file.h"
#include "app/metrics.h"
#include "app/preset.h"
#include "app_fixture.h"
#include "photographs.h"

namespace gimli::app {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// What a run was made with.
Config config_of(const fs::path& run) { return Config(maml_schema(), read_config(maml_schema(), run / "config.toml")); }

TEST_F(CommandTest, HelpSaysWhatThereIs) {
  const auto nothing = gimli({});
  EXPECT_EQ(nothing.code, 0);
  for (const auto* word : {"train", "list", "eval", "plot", "data"}) {
    EXPECT_NE(nothing.out.find(word), std::string::npos) << word;
  }
  EXPECT_EQ(gimli({"--help"}).out, nothing.out);
  EXPECT_EQ(gimli({"--version"}).code, 0);
  const auto train_help = gimli({"train", "--help"});
  for (const auto& entry : experiments()) {
    EXPECT_NE(train_help.out.find("\n  " + entry.name + " "), std::string::npos) << train_help.out;
    const auto help = gimli({"train", entry.name, "--help"});
    EXPECT_EQ(help.code, 0);
    for (const auto& setting : entry.schema.settings) {
      EXPECT_NE(help.out.find(flag_of(setting.key).substr(2)), std::string::npos) << setting.key;
      for (const auto& choice : setting.choices) EXPECT_NE(help.out.find(choice), std::string::npos) << choice;
    }
  }
}

TEST_F(CommandTest, HelpFitsATerminal) {
  std::vector<Arguments> commands{{}, {"train"}, {"list"}, {"eval"}, {"plot"}, {"data"}, {"data", "check"},
                                  {"ablate"}, {"ablate", "maml++"}};
  for (const auto& entry : experiments()) commands.push_back({"train", entry.name});
  for (const auto& command : commands) {
    const auto help = gimli(command + Arguments{"--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_FALSE(help.out.empty());
    for (const auto& line : lines_of(help.out)) EXPECT_LE(line.size(), 100) << line;
  }
}

TEST_F(CommandTest, ListsExperimentsAndPresetsLineByLine) {
  const auto list = gimli({"list"});
  EXPECT_EQ(list.code, 0);
  const auto lines = lines_of(list.out);
  EXPECT_EQ(lines.size(), experiments().size() + 1 + presets().size());  // and the ablation
  auto line = lines.begin();
  for (const auto& entry : experiments()) {
    ASSERT_NE(line, lines.end());
    EXPECT_TRUE(line->starts_with("gimli train " + entry.name + " ")) << *line;
    EXPECT_TRUE(line++->ends_with(" " + entry.summary));
    for (const auto& preset : presets()) {
      if (preset.experiment != entry.name) continue;
      ASSERT_NE(line, lines.end());
      EXPECT_TRUE(line->starts_with("  --preset " + preset.name + " ")) << *line;
      EXPECT_TRUE(line++->ends_with(" " + preset.summary));
    }
  }
}

/// Makes a folder the current one while it lives.
class WorkingFolder final {
 public:
  explicit WorkingFolder(const fs::path& path) : before_(fs::current_path()) { fs::current_path(path); }
  ~WorkingFolder() { fs::current_path(before_); }

 private:
  fs::path before_;
};

TEST_F(CommandTest, TheFolderHasTheNameOfThePresetOrTheDataset) {
  const WorkingFolder here(folder.path);
  const Arguments few{"--iterations", "1", "--eval-tasks", "1", "--quiet"};
  const std::pair<Arguments, const char*> rows[] = {
      {{}, "runs/maml-sinusoid"},
      {{"--preset", "sinusoid-small"}, "runs/maml-sinusoid-small"},
      {{"--preset", "anil-sinusoid"}, "runs/maml-anil-sinusoid"},
      {{"--preset", "anil-sinusoid", "--out", "elsewhere"}, "elsewhere"},
  };
  for (const auto& [arguments, path] : rows) {
    const auto words = Arguments{"train", "maml"} + few + arguments;
    const auto outcome = gimli(words);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_TRUE(fs::exists(folder.path / path / "report.md")) << path;
    EXPECT_EQ(config_of(path).text("out"), path);
    expect_refusal(words, std::string(path) + " already holds a run");
    const auto resumed = gimli(words + Arguments{"--resume"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
  }
}

TEST_F(CommandTest, FlagsWinOverTheFileWhichWinsOverThePreset) {
  write(folder.path / "c.toml", "inner_lr = 0.03\nshots = 3\nhidden = 6\n");
  train(run, {"--preset", "reptile-sinusoid", "--config", (folder.path / "c.toml").string(), "--iterations", "2"});
  const auto config = config_of(run);
  EXPECT_EQ(config.text("method"), "reptile");
  EXPECT_EQ(config.text("outer_optimizer"), "sgd");
  EXPECT_EQ(config.integer("inner_steps"), 32);
  EXPECT_EQ(config.number("inner_lr"), 0.03);
  EXPECT_EQ(config.integer("shots"), 4);
  EXPECT_EQ(config.integer("hidden"), 8);
  EXPECT_EQ(config.integer("seed"), 0);
}

TEST_F(CommandTest, LeavesTheFilesOfARun) {
  const auto outcome = gimli(small_training(run));
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.out.find("adaptation steps"), std::string::npos);
  EXPECT_NE(outcome.err.find("gnuplot"), std::string::npos) << "no warning that there are no plots";
  for (const auto* file : {"config.toml", "metrics.jsonl", "checkpoint.pt", "report.md", "report.json"}) {
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
  write(folder.path / "c.toml", "hidden = 6\nshots = 3\nqueries = 5\nquiet = true\n");
  train(run, {"--config", (folder.path / "c.toml").string(), "--no-quiet"});
  const auto config = config_of(run);
  EXPECT_EQ(config.integer("hidden"), 8);
  EXPECT_FALSE(config.flag("quiet"));
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
  fs::remove(run / "report.json");
  train(run, {"--resume"});
  EXPECT_EQ(read_file(run / "checkpoint.pt"), before);
  EXPECT_TRUE(fs::exists(run / "report.json"));
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
  EXPECT_NE(outcome.out.find(read_file(run / "report.md")), std::string::npos) << outcome.out;
  const auto more = gimli({"eval", "--checkpoint", (run / "checkpoint.pt").string(), "--eval-tasks", "5",
                           "--eval-steps", "3", "--out", (folder.path / "e").string()});
  EXPECT_EQ(more.code, 0) << more.err;
  EXPECT_NE(more.out.find("over 5 held-out tasks"), std::string::npos);
  const auto written = nlohmann::json::parse(read_file(folder.path / "e" / "report.json"));
  EXPECT_EQ(written["steps"].size(), 2);
  train(folder.path / "other");
  expect_refusal({"eval", "--checkpoint", run.string(), "--out", (folder.path / "other").string()},
                 "holds another run");
  EXPECT_EQ(gimli({"eval", "--checkpoint", run.string(), "--quiet", "--out", run.string()}).code, 0);
}

TEST_F(CommandTest, ADivergedEvaluationDoesNotEndARun) {
  train(run, {"--iterations", "2", "--inner-lr", "100", "--eval-steps", "300", "--eval-every", "1"});
  EXPECT_NE(read_file(run / "report.md").find(" nan |"), std::string::npos);
  EXPECT_EQ(read_file(run / "report.md").find("-nan"), std::string::npos);
  EXPECT_TRUE(read_metrics(run / "metrics.jsonl")[0]["evaluation_outer_loss"].is_null());
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
  expect_refusal(train_with({"--method", "mmal"}),
                 "maml, fomaml, anil, meta-sgd, reptile, imaml, got 'mmal'; did you mean 'maml'?");
  expect_refusal(train_with({"--preset", "sinusoid-smal"}),
                 "maml has no preset 'sinusoid-smal'; it has anil-omniglot, ");
  expect_refusal(train_with({"--preset", "sinusoid-smal"}), "did you mean 'sinusoid-small'?");
  expect_refusal(train_with({"--preset"}), "--preset needs a value");
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
  refuse("quiet = 1\n", "quiet must be true or false");
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

TEST_F(CommandTest, DataCheckSaysWhatItRead) {
  expect_refusal({"data", "check"}, "dataset");
  expect_refusal({"data", "check", "omniglott"}, "did you mean 'omniglot'");
  expect_refusal({"data", "check", "cifar-10", "--data-root", folder.path.string()}, "data_batch_1.bin");
  write_photographs(folder.path / "mini-imagenet");
  const auto outcome = gimli({"data", "check", "mini-imagenet", "--data-root", folder.path.string()});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("read in"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace gimli::app
