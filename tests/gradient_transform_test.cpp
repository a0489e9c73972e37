#include "optim_table.h"

namespace gimli::optim {
namespace {

TEST(GradientTransform, clip_by_norm_agrees_with_torch) {
  for (const double max_norm : {0.5, 1.0, 100.0}) {
    const TensorList gradients{values({3, 2}, 1), at::Tensor(), values({4}, 2)};
    const auto parameters = requires_grad({values({3, 2}, 0), values({5}, 0), values({4}, 0)});
    for (size_t i = 0; i < 3; ++i) {
      if (gradients[i].defined()) parameters[i].mutable_grad() = gradients[i].clone();
    }
    torch::nn::utils::clip_grad_norm_(parameters, max_norm);
    const auto clipped = clip_by_norm(max_norm)(gradients, {}, 0);
    EXPECT_FALSE(clipped[1].defined());
    expect_near(clipped[0], parameters[0].grad(), 1e-14);
    expect_near(clipped[2], parameters[2].grad(), 1e-14);

    const auto inputs = requires_grad({gradients[0], gradients[2]});
    const auto function = [&](const TensorList& in) {
      const auto out = clip_by_norm(max_norm)({in[0], at::Tensor(), in[1]}, {}, 0);
      return (out[0] * values({3, 2}, 3)).sum() + (out[2] * values({4}, 4)).sum();
    };
    const auto first = gradcheck(function, inputs), second = gradgradcheck(function, inputs);
    EXPECT_TRUE(first) << first.message;
    EXPECT_TRUE(second) << second.message;
  }
}

TEST(GradientTransform, clip_by_norm_of_nothing) {
  EXPECT_FALSE(clip_by_norm(1)({at::Tensor()}, {}, 0)[0].defined());
  const auto zero = at::zeros({2}, at::kDouble).requires_grad_();
  const auto clipped = clip_by_norm(1)({zero}, {}, 0)[0];
  clipped.sum().backward();
  EXPECT_TRUE(at::equal(clipped, zero));
  EXPECT_TRUE(at::equal(zero.grad(), at::ones({2}, at::kDouble)));
  expect_error([] { clip_by_norm(0); }, "clip_by_norm: expected a maximal norm above 0, got 0");
}

TEST(GradientTransform, clip_by_value_and_stop_gradient) {
  const auto g = at::tensor({-2.0, -0.25, 0.5, 3.0}, at::kDouble).requires_grad_();
  const auto clipped = clip_by_value(1)({g, at::Tensor()}, {}, 0);
  EXPECT_TRUE(at::equal(clipped[0], at::tensor({-1.0, -0.25, 0.5, 1.0}, at::kDouble)));
  EXPECT_FALSE(clipped[1].defined());
  clipped[0].sum().backward();
  EXPECT_TRUE(at::equal(g.grad(), at::tensor({0.0, 1.0, 1.0, 0.0}, at::kDouble)));
  expect_error([] { clip_by_value(-1); }, "clip_by_value: expected a maximal value above 0, got -1");

  const auto stopped = stop_gradient()({g, at::Tensor()}, {}, 0);
  EXPECT_FALSE(stopped[0].requires_grad());
  EXPECT_TRUE(at::equal(stopped[0], g));
  EXPECT_FALSE(stopped[1].defined());
}

TEST(GradientTransform, stopping_every_gradient_is_first_order) {
  const auto& row = loop_baselines.back();
  Loop loop(row);
  auto meta_parameters = loop.learn_hyperparameters(row.options);
  for (const auto& weight : loop.net->parameters()) meta_parameters.push_back(weight);
  const auto expected = hypergradient(loop.problem(), meta_parameters, {}, Unroll::first_order());
  const auto stopped = hypergradient(loop.problem().gradient_transform(stop_gradient()), meta_parameters);
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(stopped.gradients[i], expected.gradients[i]));
  }
}

}  // namespace
}  // namespace gimli::optim
