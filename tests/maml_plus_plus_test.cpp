#include "app/experiments/maml_plus_plus.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <numeric>

#include "app/metrics.h"
#include "app/network.h"
#include "app/published.h"
#include "app_fixture.h"
#include "photographs.h"

namespace gimli::app {
namespace {

// The annealing of Antoniou et al.: every step but the last loses 1 / (K E) an epoch, down to 0.03 / K, and the last
// one gains what they lose.
TEST(StepLossWeightsTest, FollowTheClosedForm) {
  for (const int64_t steps : {1, 2, 5, 8}) {
    for (const int64_t epochs : {1, 10, 15}) {
      for (int64_t epoch = 0; epoch < 2 * epochs; ++epoch) {
        const auto weights = step_loss_weights(steps, epoch, epochs);
        ASSERT_EQ(weights.size(), static_cast<size_t>(steps));
        const double k = static_cast<double>(steps), decay = 1 / k / static_cast<double>(epochs);
        for (int64_t i = 0; i + 1 < steps; ++i) {
          EXPECT_NEAR(weights[i], std::max(1 / k - static_cast<double>(epoch) * decay, 0.03 / k), 1e-15);
        }
        EXPECT_NEAR(weights.back(),
                    std::min(1 / k + static_cast<double>(epoch) * (k - 1) * decay, 1 - (k - 1) * 0.03 / k), 1e-15);
        EXPECT_NEAR(std::accumulate(weights.begin(), weights.end(), 0.), 1, 1e-15);
      }
    }
  }
}

TEST(PublishedTest, HasEveryRowOfTheTable) {
  EXPECT_EQ(published_results().size(), 38u);
  EXPECT_EQ(find_published("omniglot", 20, 1, "vgg", "sgd")->accuracy, 97.21);
  EXPECT_EQ(find_published("omniglot", 5, 1, "vgg", "sgd")->accuracy, 99.62);
  EXPECT_FALSE(find_published("omniglot", 5, 1, "resnet-12", "sgd")) << "the paper has no such row";
  const auto names = network_names();
  for (const auto& row : published_results()) {
    EXPECT_NE(std::find(names.begin(), names.end(), row.model), names.end()) << row.model;
  }
}

class MamlPlusPlusTest : public testing::Test {
 protected:
  MamlPlusPlusTest() { write_photographs(folder.path / "mini-imagenet"); }

  Arguments training(const fs::path& out, const Arguments& more = {}) const {
    return Arguments{"train",
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
                     "--inner-steps",
                     "2",
                     "--epochs",
                     "3",
                     "--epoch-iterations",
                     "2",
                     "--multi-step-epochs",
                     "2",
                     "--validation-tasks",
                     "2",
                     "--best-epochs",
                     "2",
                     "--eval-tasks",
                     "6",
                     "--threads",
                     "1",
                     "--checkpoint-every",
                     "1",
                     "--quiet",
                     "--data-root",
                     folder.path.string(),
                     "--out",
                     out.string()} +
           more;
  }

  EmptyPath no_gnuplot;
  TemporaryFolder folder;
};

TEST_F(MamlPlusPlusTest, EveryVariantTrainsAndGoesOnToTheBit) {
  const std::vector<std::pair<std::string, Arguments>> rows{
      {"sgd", {}},
      {"adam", {"--inner-optimizer", "adam", "--inner-lr", "0.01"}},
      {"fixed_rates", {"--no-learn-rates"}},
      {"per_step_norm", {"--per-step-norm", "--adapt-norm"}},
      {"first_order_first", {"--first-order-epochs", "1", "--outer-clip", "0"}},
  };
  for (const auto& [name, more] : rows) {
    SCOPED_TRACE(name);
    const auto whole = folder.path / name;
    ASSERT_EQ(gimli(training(whole, more)).code, 0);
    const auto lines = read_metrics(whole / "metrics.jsonl");
    ASSERT_GE(lines.size(), 4u);
    EXPECT_FALSE(lines[0].contains("evaluation_accuracy"));
    EXPECT_TRUE(lines[1].contains("evaluation_accuracy"));
    EXPECT_EQ(lines[1].contains("learned"), name != "fixed_rates");

    const auto schema = maml_plus_plus().schema;
    expect_resumes_to_the_bit(maml_plus_plus(), Config(schema, read_config(schema, whole / "config.toml")), 3);
  }
}

TEST(NetworkTest, EveryNetworkClassifiesDrawingsAndPhotographs) {
  for (const auto& name : network_names()) {
    SCOPED_TRACE(name);
    for (const NetworkOptions& options : {NetworkOptions{.classes = 3, .hidden = 4},
                                          NetworkOptions{.channels = 3, .image_size = 84, .classes = 4, .hidden = 4}}) {
      const auto network = make_network(name, options);
      const auto images = torch::rand({2, options.channels, options.image_size, options.image_size});
      EXPECT_EQ(network.forward(images, 0).sizes(), (at::IntArrayRef{2, options.classes}));
    }
  }
  EXPECT_THROW(make_network("vgh", {}), c10::Error);
}

TEST_F(MamlPlusPlusTest, RefusesANormalizationForEachStepThatTheNetworkLacks) {
  expect_refusal(training(folder.path / "run", {"--model", "resnet-4", "--per-step-norm"}),
                 "resnet-4 has no normalization for each step; vgg has");
}

}  // namespace
}  // namespace gimli::app
