#include "app/ablation.h"

#include <gtest/gtest.h>

#include "app/file.h"
#include "app/network.h"
#include "app_fixture.h"
#include "photographs.h"

namespace gimli::app {
namespace {

class AblationTest : public testing::Test {
 protected:
  AblationTest() { write_photographs(folder.path / "data" / "mini-imagenet"); }

  Arguments ablation(const Arguments& more) const {
    return Arguments{"ablate",
                     "maml++",
                     "--dataset",
                     "mini-imagenet",
                     "--ways",
                     "2",
                     "--shots",
                     "1",
                     "--queries",
                     "2",
                     "--hidden",
                     "4",
                     "--models",
                     "vgg",
                     "--inner-steps",
                     "1",
                     "--epochs",
                     "1",
                     "--epoch-iterations",
                     "2",
                     "--validation-tasks",
                     "2",
                     "--best-epochs",
                     "1",
                     "--eval-tasks",
                     "2",
                     "--threads",
                     "1",
                     "--quiet",
                     "--data-root",
                     (folder.path / "data").string(),
                     "--out",
                     out.string()} +
           more;
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
  fs::path out = folder.path / "ablation";
  fs::path first = out / "2-way-1-shot" / "vgg-sgd-seed-0";
};

TEST_F(AblationTest, TrainsWhatIsNotDoneAndSetsItBesideThePaper) {
  ASSERT_EQ(gimli(ablation({"--inner-optimizers", "sgd", "--seeds", "0"})).code, 0);
  const auto done = fs::last_write_time(first / "report.json");
  fs::remove(out / "ablation.md");

  const auto outcome = gimli(ablation({"--inner-optimizers", "sgd,adam", "--seeds", "0,1"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(fs::last_write_time(first / "report.json"), done) << "it was trained again";
  const auto numbers = nlohmann::json::parse(read_file(out / "ablation.json"));
  ASSERT_EQ(numbers.size(), 2u);
  for (const auto& row : numbers) EXPECT_EQ(row["accuracies"].size(), 2u);
  EXPECT_NE(outcome.out.find(read_file(out / "ablation.md")), std::string::npos);

  const auto adam =
      Config(find_experiment("maml++").schema,
             read_config(find_experiment("maml++").schema, out / "2-way-1-shot" / "vgg-adam-seed-1" / "config.toml"));
  EXPECT_EQ(adam.text("inner_optimizer"), "adam");
  EXPECT_EQ(adam.number("inner_lr"), 0.01);
  EXPECT_EQ(adam.integer("seed"), 1);
}

TEST_F(AblationTest, GoesOnWithARunThatWasStopped) {
  const auto once = ablation({"--inner-optimizers", "sgd", "--seeds", "0"});
  ASSERT_EQ(gimli(once).code, 0);
  const auto report = read_file(first / "report.json");
  fs::remove(first / "report.json");  // as if it had been killed before its report
  ASSERT_EQ(gimli(once).code, 0);
  EXPECT_EQ(read_file(first / "report.json"), report);
}

TEST_F(AblationTest, RefusesToMixSettings) {
  ASSERT_EQ(gimli(ablation({"--inner-optimizers", "sgd", "--seeds", "0"})).code, 0);
  expect_refusal(ablation({"--inner-optimizers", "sgd", "--seeds", "0", "--tasks", "3"}), "tasks = 2, but tasks = 3");
  expect_refusal(ablation({"--models", "vgh"}), "did you mean 'vgg'");
  expect_refusal({"ablate"}, "gimli ablate maml++");
}

}  // namespace
}  // namespace gimli::app
