#include "app/preset.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "app/ablation.h"
#include "app_fixture.h"
#include "cifar10_files.h"
#include "expect.h"
#include "omniglot_files.h"
#include "photographs.h"

namespace gimli::app {
namespace {

const Schema& schema_of(const Preset& preset) {
  return preset.experiment == "ablation" ? ablation_schema() : find_experiment(preset.experiment).schema;
}

int64_t iterations_of(const Config& config) {
  return config.has("iterations") ? config.integer("iterations")
                                  : config.integer("epochs") * config.integer("epoch_iterations");
}

TEST(PresetTest, EveryPresetIsAConfigurationOfItsExperiment) {
  std::set<std::pair<std::string, std::string>> names;
  for (const auto& preset : presets()) {
    SCOPED_TRACE(preset.experiment + " " + preset.name);
    EXPECT_TRUE(names.insert({preset.experiment, preset.name}).second);
    EXPECT_FALSE(preset.summary.empty());
    EXPECT_EQ(preset.summary.find('\n'), std::string::npos);
    EXPECT_TRUE(preset.toml.starts_with("# " + preset.summary + "\n"));
    const auto& schema = schema_of(preset);
    const auto values = parse_config(schema, preset.toml, preset.name);
    EXPECT_EQ(values.count("dataset"), 1) << "it does not say what it is about";
    EXPECT_EQ(values.count("out") + values.count("threads") + values.count("device") + values.count("seed"), 0)
        << "it sets what is the user's to choose";
    const Config config(schema, values);
    EXPECT_GT(iterations_of(config), 0);
    EXPECT_EQ(&find_preset(preset.experiment, preset.name), &preset);
  }
}

TEST(PresetTest, EveryExperimentHasASmallOne) {
  for (const auto& entry : experiments()) {
    const auto is_small = [&](const Preset& preset) {
      return preset.experiment == entry.name && preset.name.ends_with("-small");
    };
    EXPECT_TRUE(std::any_of(presets().begin(), presets().end(), is_small)) << entry.name;
  }
  for (const auto& small : presets()) {
    if (!small.name.ends_with("-small")) continue;
    SCOPED_TRACE(small.experiment + " " + small.name);
    const auto& schema = schema_of(small);
    const auto& whole = find_preset(small.experiment, small.name.substr(0, small.name.size() - 6));
    const auto iterations = [&](const Preset& preset) {
      return iterations_of(Config(schema, parse_config(schema, preset.toml, preset.name)));
    };
    EXPECT_LT(iterations(small), iterations(whole));
  }
}

TEST(PresetTest, RefusesWhatIsNotThere) {
  expect_error([] { find_preset("maml", "sinusoid-smal"); },
               "maml has no preset 'sinusoid-smal'; it has anil-omniglot, ");
  expect_error([] { find_preset("maml", "sinusoid-smal"); }, "; did you mean 'sinusoid-small'?");
  expect_error([] { find_preset("nothing", "sinusoid"); }, "nothing has no preset 'sinusoid'; it has none");
}

/// In the place of what makes presets take long.
const Values kTiny{
    {"threads", int64_t{1}},     {"quiet", true},
    {"shots", int64_t{1}},       {"queries", int64_t{1}},
    {"hidden", int64_t{4}},      {"tasks", int64_t{1}},
    {"inner_steps", int64_t{2}}, {"validation_tasks", int64_t{2}},
    {"eval_tasks", int64_t{2}},  {"training_images", int64_t{6}},
    {"test_images", int64_t{2}}, {"epoch_iterations", int64_t{1}},
    {"meta_batch", int64_t{2}},  {"meta_batches", int64_t{1}},
};

/// With files of each data set in its layout.
class PresetRunTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = std::make_unique<TemporaryFolder>();
    data::write_whole_omniglot(folder->path / "omniglot");
    write_photographs(folder->path / "mini-imagenet");
    write_cifar10(folder->path, 40, 20);
  }
  static void TearDownTestSuite() { folder.reset(); }

  static Config tiny(const Preset& preset) {
    const auto& schema = find_experiment(preset.experiment).schema;
    auto values = parse_config(schema, preset.toml, preset.name);
    for (const auto& [key, value] : kTiny) {
      if (schema.find(key)) values[key] = value;
    }
    const auto dataset = std::get<std::string>(values.at("dataset"));
    if (dataset != "sinusoid") values["data_root"] = folder->path.string();
    if (dataset == "mini-imagenet") values["ways"] = int64_t{2};
    return Config(schema, values);
  }

  EmptyPath no_gnuplot;
  static inline std::unique_ptr<TemporaryFolder> folder;
};

TEST_F(PresetRunTest, EveryOtherPresetTrains) {
  // These run theirs up to the reports in tests of their own.
  const std::set<std::string> others{"ablation", "learned-optimizer", "learned-loss", "hyperparameters"};
  for (const auto& preset : presets()) {
    if (others.contains(preset.experiment)) continue;
    SCOPED_TRACE(preset.experiment + " " + preset.name);
    const auto experiment = find_experiment(preset.experiment).make(tiny(preset));
    for (int64_t iteration = 0; iteration < 2; ++iteration) {
      const auto done = experiment->iterate(iteration);
      ASSERT_TRUE(done);
      for (const auto& [name, value] : done->metrics.items()) {
        EXPECT_TRUE(!value.is_number() || std::isfinite(value.get<double>())) << name;
      }
    }
    const auto [names, tensors] = experiment->state().tensors;
    for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(tensors[i].isfinite().all().item<bool>()) << names[i];
  }
}

TEST_F(PresetRunTest, EveryAblationPresetTrains) {
  for (const auto& preset : presets()) {
    if (preset.experiment != "ablation") continue;
    SCOPED_TRACE(preset.name);
    const auto outcome = gimli({"ablate",
                                "maml++",
                                "--preset",
                                preset.name,
                                "--data-root",
                                folder->path.string(),
                                "--out",
                                (folder->path / preset.name).string(),
                                "--models",
                                "vgg",
                                "--ways",
                                "2",
                                "--shots",
                                "1",
                                "--seeds",
                                "0",
                                "--queries",
                                "1",
                                "--hidden",
                                "4",
                                "--tasks",
                                "1",
                                "--inner-steps",
                                "2",
                                "--epochs",
                                "1",
                                "--epoch-iterations",
                                "2",
                                "--multi-step-epochs",
                                "1",
                                "--validation-tasks",
                                "2",
                                "--best-epochs",
                                "1",
                                "--eval-tasks",
                                "2",
                                "--threads",
                                "1",
                                "--quiet"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("adam"), std::string::npos) << outcome.out;
  }
}

}  // namespace
}  // namespace gimli::app
