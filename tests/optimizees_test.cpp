#include "app/optimizees.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "expect.h"

namespace gimli::app {
namespace {

constexpr auto kDouble = at::kDouble;

Optimizee quadratics(int64_t first, int64_t count, int64_t dimensions = 3) {
  return Quadratics(1, dimensions, kDouble).draw(first, count)[0];
}

/// The losses where theta is `value` everywhere.
at::Tensor losses_at(const Optimizee& optimizee, const at::Tensor& value) {
  torch::NoGradGuard no_gradient;
  auto theta = optimizee.module->parameters()[0];
  const auto kept = theta.clone();
  theta.copy_(value.expand_as(theta));
  const auto losses = optimizee.losses(0);
  theta.copy_(kept);
  return losses;
}

TEST(QuadraticsTest, AreTheSquaredDistanceOfNormalMatricesAndTargets) {
  constexpr int64_t count = 4000, d = 5;
  const auto problems = quadratics(0, count, d);
  const auto theta = problems.module->parameters()[0];
  ASSERT_EQ(theta.sizes(), (std::vector<int64_t>{count, d}));
  EXPECT_NEAR(theta.detach().std().item<double>(), 0.01, 1e-4);

  const auto direction = at::eye(d, kDouble)[2];
  TensorList f;
  for (int64_t k = 0; k < 4; ++k) f.push_back(losses_at(problems, static_cast<double>(k) * direction));
  // f(k e) = k^2 |W e|^2 - 2 k y^T W e + |y|^2, and the squares of d standard normals sum to d on average, the products
  // to 0.
  const auto curvature = (f[2] - 2 * f[1] + f[0]) / 2, slope = f[1] - f[0] - curvature;
  EXPECT_TRUE(at::allclose(f[3], 9 * curvature + 3 * slope + f[0]));
  const double four_deviations = 4 * std::sqrt(2. * d / count);
  EXPECT_NEAR(f[0].mean().item<double>(), d, four_deviations);
  EXPECT_NEAR(curvature.mean().item<double>(), d, four_deviations);
  EXPECT_NEAR(slope.mean().item<double>(), 0, 2 * four_deviations);
  EXPECT_NEAR((f[0].var() / (2 * d)).item<double>(), 1, 0.2);
}

TEST(QuadraticsTest, DoNotDependOnWhatIsDrawnWithThem) {
  const auto together = quadratics(0, 4);
  const auto point = at::linspace(-1, 1, 3, kDouble);
  const auto losses = losses_at(together, point);
  for (int64_t i = 0; i < 4; ++i) {
    const auto alone = quadratics(i, 1);
    EXPECT_TRUE(at::equal(alone.module->parameters()[0][0], together.module->parameters()[0][i]));
    EXPECT_TRUE(at::allclose(losses_at(alone, point)[0], losses[i], 1e-14));
    for (int64_t j = 0; j < i; ++j) EXPECT_GT((losses[i] - losses[j]).abs().item<double>(), 1e-3);
  }
  EXPECT_FALSE(
      at::equal(losses_at(Quadratics(2, 3, kDouble).draw(0, 4)[0], point), losses_at(quadratics(0, 4), point)));
}

LabelledImages rows_of_images(int64_t count) {
  torch::manual_seed(4);
  return {torch::rand({count, 6}, kDouble), torch::arange(count) % 10};
}

TEST(PerceptronsTest, AreTheCrossEntropyOfAHiddenLayerOfSigmoids) {
  const auto images = rows_of_images(1);  // of one image, every batch is the same
  const auto drawn = Perceptrons(1, images, 4, 5).draw(0, 3);
  ASSERT_EQ(drawn.size(), 3u);
  for (const auto& problem : drawn) {
    const auto w = problem.module->parameters();
    ASSERT_EQ(w.size(), 4u);
    ASSERT_EQ(w[0].sizes(), (std::vector<int64_t>{4, 6}));
    ASSERT_EQ(w[2].sizes(), (std::vector<int64_t>{10, 4}));
    const auto hidden = 1 / (1 + (-(w[0].matmul(images.pixels[0]) + w[1])).exp());
    const auto logits = w[2].matmul(hidden) + w[3];
    const auto losses = problem.losses(0);
    ASSERT_EQ(losses.sizes(), std::vector<int64_t>{1});
    EXPECT_NEAR(losses[0].item<double>(), (logits.exp().sum().log() - logits[0]).item<double>(), 1e-12);
  }
}

TEST(PerceptronsTest, SeeOtherImagesInEachStepAndStartElsewhereInEachProblem) {
  const Perceptrons problems(1, rows_of_images(100), 20, 16);
  const auto drawn = problems.draw(3, 2);
  EXPECT_EQ(drawn[0].losses(7).item<double>(), problems.draw(3, 1)[0].losses(7).item<double>());
  EXPECT_NE(drawn[0].losses(7).item<double>(), drawn[0].losses(8).item<double>());
  EXPECT_FALSE(at::equal(drawn[0].module->parameters()[0], drawn[1].module->parameters()[0]));
  EXPECT_NEAR(at::cat({drawn[0].module->parameters()[0].flatten(), drawn[0].module->parameters()[2].flatten()})
                  .std()
                  .item<double>(),
              0.01, 1e-3);
  expect_equal(drawn[1].module->parameters(), problems.draw(4, 1)[0].module->parameters());
}

}  // namespace
}  // namespace gimli::app
