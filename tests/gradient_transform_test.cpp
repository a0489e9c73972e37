#include "gimli/optim/gradient_transform.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <thread>

#include "expect.h"
#include "gimli/optim/rules/sgd.h"
#include "optim_fixture.h"

namespace {

using namespace gimli;
using namespace gimli::optim;

at::Tensor rows_scaled(const at::Tensor& x) { return x * at::tensor({1.0, 0.1, 4.0}, at::kDouble).unsqueeze(1); }

// ---------------------------------------------------------------- all of them

struct Transform {
  const char* name;
  std::vector<double> settings;
  std::function<GradientTransform(const Values&)> make;
};

const std::vector<Transform> transforms = {
    {"clip_by_norm", {0.5}, [](const Values& s) { return clip_by_norm(s[0]); }},
    {"clip_by_norm that does nothing", {100}, [](const Values& s) { return clip_by_norm(s[0]); }},
    {"clip_by_value", {0.4}, [](const Values& s) { return clip_by_value(s[0]); }},
    {"adaptive_clip", {0.5, 0.25}, [](const Values& s) { return adaptive_clip(s[0], s[1]); }},
    {"adaptive_clip that does nothing", {100, 0.25}, [](const Values& s) { return adaptive_clip(s[0], s[1]); }},
    {"weight_decay", {0.3}, [](const Values& s) { return weight_decay(s[0]); }},
    {"noise", {0.2}, [](const Values& s) { return noise(s[0], 7); }},
    {"stop_gradient", {}, [](const Values&) { return stop_gradient(); }},
};

Values as_values(TensorList::const_iterator begin, TensorList::const_iterator end) { return Values(begin, end); }

/// Three parameters of which the second is unused.
struct Case {
  explicit Case(const Transform& transform) {
    inputs = {values({3, 2}, 2), values({4}, 3), rows_scaled(values({3, 2}, 0)), values({4}, 1)};
    for (const auto setting : transform.settings) inputs.push_back(scalar(setting));
    inputs = requires_grad(inputs);
  }

  static TensorList gradients(const TensorList& in) { return {in[0], at::Tensor(), in[1]}; }
  static TensorList parameters(const TensorList& in) { return {in[2], at::ones({2}, at::kDouble), in[3]}; }

  TensorList inputs;
};

TEST(GradientTransform, derivatives_in_gradients_parameters_and_settings) {
  for (const auto& row : transforms) {
    SCOPED_TRACE(row.name);
    const bool stops = row.settings.empty();
    const auto inputs = Case(row).inputs;
    const auto function = [&](const TensorList& in) {
      const auto transform = row.make(as_values(in.begin() + 4, in.end()));
      const auto out = transform(Case::gradients(in), Case::parameters(in), 3);
      EXPECT_FALSE(out[1].defined());
      return (out[0] * values({3, 2}, 3)).sum() + (out[2].square() * values({4}, 4)).sum();
    };
    if (stops) {
      EXPECT_FALSE(function(inputs).requires_grad());
    } else {
      expect_derivatives(function, inputs);
    }
  }
}

TEST(GradientTransform, tensors_have_the_values_of_numbers_in_any_type) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    for (const auto& row : transforms) {
      SCOPED_TRACE(row.name);
      const TensorList gradients{values({3, 2}, 2).to(type), at::Tensor(), values({}, 3).to(type)};
      const TensorList parameters{values({3, 2}, 0).to(type), values({2}, 0).to(type), values({}, 1).to(type)};
      const auto settings = Case(row).inputs;
      const auto fixed = row.make(Values(row.settings.begin(), row.settings.end()))(gradients, parameters, 2);
      const auto learned = row.make(as_values(settings.begin() + 4, settings.end()))(gradients, parameters, 2);
      for (const size_t i : {0, 2}) {
        EXPECT_EQ(learned[i].scalar_type(), type);
        EXPECT_EQ(fixed[i].scalar_type(), type);
        EXPECT_TRUE(at::equal(learned[i], fixed[i]));
      }
      EXPECT_FALSE(fixed[1].defined());
      const TensorList nothing(3);
      for (const auto& gradient : row.make(Values(row.settings.begin(), row.settings.end()))(nothing, parameters, 2)) {
        EXPECT_FALSE(gradient.defined());
      }
    }
  }
}

// Where the gradients are 0, wholly or in one unit, as those of dead units are.
TEST(GradientTransform, derivatives_at_zero_gradients_and_parameters) {
  for (const auto& row : transforms) {
    if (row.settings.empty()) continue;
    SCOPED_TRACE(row.name);
    for (const bool all : {true, false}) {
      auto inputs = Case(row).inputs;
      {
        torch::NoGradGuard no_gradient;
        inputs[0][1].zero_();  // a unit of the gradient, and
        inputs[2][1].zero_();  // of the weights
        if (all) {
          for (int i = 0; i < 4; ++i) inputs[i].zero_();
        }
      }
      expect_derivatives(
          [&](const TensorList& in) {
            const auto transform = row.make(as_values(in.begin() + 4, in.end()));
            const auto out = transform(Case::gradients(in), Case::parameters(in), 3);
            return (out[0] * values({3, 2}, 3)).sum() + (out[2] * values({4}, 4)).sum();
          },
          inputs);
    }
  }
}

TEST(GradientTransform, settings_are_learned_through_a_loop) {
  for (const auto& row : transforms) {
    if (row.settings.empty()) continue;
    SCOPED_TRACE(row.name);
    const auto point = std::make_shared<Point>(rows_scaled(values({3, 2}, 1)));
    TensorList meta_parameters;
    for (const auto setting : row.settings) meta_parameters.push_back(scalar(setting));
    const auto transform = row.make(as_values(meta_parameters.begin(), meta_parameters.end()));
    meta_parameters.push_back(point->theta);
    const auto problem = Bilevel(point, Optimizer(SGD(SGDOptions(0.1).momentum(0.5)), {point->theta}))
                             .steps(4)
                             .gradient_transform(transform)
                             .inner([=] { return (point->theta - 1).square().sum(); })
                             .outer([=] { return point->theta.pow(3).sum(); });
    const auto report = gradcheck(problem, meta_parameters);
    EXPECT_TRUE(report) << report.message;
    const auto twice = hypergradient(problem, meta_parameters);
    expect_equal(twice.gradients, hypergradient(problem, meta_parameters).gradients);
  }
}

// ---------------------------------------------------------------- one by one

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
  }
}

TEST(GradientTransform, clip_by_norm_of_zeros) {
  const auto zero = at::zeros({2}, at::kDouble).requires_grad_();
  const auto clipped = clip_by_norm(1)({zero}, {}, 0)[0];
  clipped.sum().backward();
  EXPECT_TRUE(at::equal(clipped, zero));
  EXPECT_TRUE(at::equal(zero.grad(), at::ones({2}, at::kDouble)));
}

TEST(GradientTransform, clip_by_value_clamps) {
  const auto g = at::tensor({-2.0, -0.25, 0.5, 3.0}, at::kDouble).requires_grad_();
  const auto limit = scalar(1);
  const auto clipped = clip_by_value(limit)({g, at::Tensor()}, {}, 0);
  EXPECT_TRUE(at::equal(clipped[0], at::tensor({-1.0, -0.25, 0.5, 1.0}, at::kDouble)));
  clipped[0].dot(at::tensor({1.0, 2.0, 4.0, 8.0}, at::kDouble)).backward();
  EXPECT_TRUE(at::equal(g.grad(), at::tensor({0.0, 2.0, 4.0, 0.0}, at::kDouble)));
  EXPECT_EQ(limit.grad().item<double>(), 8 - 1);
}

// Row by row: one above its limit, one whose weights are below eps, one below its limit.
TEST(GradientTransform, adaptive_clip_has_its_closed_form) {
  const auto w = at::tensor({3.0, 4.0, 0.3, 0.4, 3.0, 4.0}, at::kDouble).reshape({3, 2});
  const auto g = at::tensor({6.0, 8.0, 6.0, 8.0, 0.6, 0.8}, at::kDouble).reshape({3, 2});
  const auto rows = adaptive_clip(0.5, 1)({g}, {w}, 0)[0];
  const auto factors = at::tensor({0.5 * 5 / 10, 0.5 * 1 / 10, 1.0}, at::kDouble);
  expect_near(rows, g * factors.unsqueeze(1), 1e-15);

  const auto filters = adaptive_clip(0.5, 1)({g.reshape({3, 1, 2, 1})}, {w.reshape({3, 1, 2, 1})}, 0)[0];
  EXPECT_TRUE(at::equal(filters, rows.reshape({3, 1, 2, 1})));

  const auto vector = adaptive_clip(0.5, 1)({g.flatten()}, {w.flatten()}, 0)[0];
  expect_near(vector, g.flatten() * (0.5 * w.norm() / g.norm()), 1e-15);
  const auto scalars = adaptive_clip(0.5, 1)({at::tensor(-8.0)}, {at::tensor(4.0)}, 0)[0];
  EXPECT_EQ(scalars.item<double>(), -2);
}

// t = optax.adaptive_grad_clip(0.5, eps=0.25), whose units are columns: it gets our [out, in] as [in, out], and our
// [out, in, height, width] as [height, width, in, out]; print(t.update(g, t.init(w), w)[0]), transposed back.
TEST(GradientTransform, adaptive_clip_agrees_with_optax) {
  const TensorList weights{rows_scaled(values({3, 2}, 0)), values({4}, 1), values({3, 2, 1, 2}, 2)};
  const TensorList gradients{values({3, 2}, 2), values({4}, 3), values({3, 2, 1, 2}, 4)};
  const TensorList expected{
      at::tensor({-0.09375, 0.34375, -0.11858541225631423, -0.03952847075210474, 0.21875, 0.65625}, at::kDouble),
      at::tensor({0.11488154619980558, 0.34464463859941674, -0.1805281440282659, 0.04923494837134525}, at::kDouble),
      at::tensor({0.2528929609327383, -0.22314084788182786, -0.014876056525455192, 0.1933887348309175,
                  -0.23422853522651216, -0.0616390882175032, 0.11095035879150575, -0.2835398058005147,
                  -0.14583508815206564, 0.08101949341781425, 0.30787407498769415, -0.21065068288631705},
                 at::kDouble)};
  const auto clipped = adaptive_clip(0.5, 0.25)(gradients, weights, 0);
  for (size_t i = 0; i < 3; ++i) expect_near(clipped[i].flatten(), expected[i], 1e-15);
}

TEST(GradientTransform, weight_decay_adds_the_parameters) {
  const TensorList parameters{values({3, 2}, 0), values({4}, 1)};
  const auto decayed = weight_decay(0.25)({values({3, 2}, 2), at::Tensor()}, parameters, 0);
  EXPECT_TRUE(at::equal(decayed[0], values({3, 2}, 2) + 0.25 * parameters[0]));
  EXPECT_FALSE(decayed[1].defined());
}

TEST(GradientTransform, noise_depends_on_the_seed_the_step_and_the_position_alone) {
  const auto zeros = at::zeros({5}, at::kDouble);
  const auto draw = [&](uint64_t seed, int64_t step, size_t position) {
    TensorList gradients(3);
    gradients[position] = zeros;
    return noise(1, seed)(gradients, {}, step)[position];
  };
  TensorList draws;
  for (const uint64_t seed : {0, 1}) {
    for (const int64_t step : {0, 1, 2}) {
      for (const size_t position : {0, 1, 2}) draws.push_back(draw(seed, step, position));
    }
  }
  for (size_t i = 0; i < draws.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_FALSE(at::equal(draws[i], draws[j])) << i << " and " << j;
  }
  at::manual_seed(5);
  at::Tensor elsewhere;
  std::thread([&] { elsewhere = draw(1, 2, 2); }).join();
  const auto global = at::rand({2});
  EXPECT_TRUE(at::equal(elsewhere, draws.back()));
  at::manual_seed(5);
  EXPECT_TRUE(at::equal(global, at::rand({2})));  // libtorch's generator is left alone
  EXPECT_EQ(noise(1, 0)({at::zeros({2, 3}, at::kFloat)}, {}, 0)[0].scalar_type(), at::kFloat);
}

struct Target {
  double value;
};

TEST(GradientTransform, noise_in_a_loop_is_the_same_on_any_thread_and_in_any_replay) {
  const auto point = std::make_shared<Point>(values({3}, 1));
  const std::vector<Target> targets{{0.5}, {0.75}, {1}, {1.25}, {1.5}};
  const auto problem = Bilevel(point, Optimizer(SGD(SGDOptions(0.1)), {point->theta}))
                           .steps(4)
                           .gradient_transform(noise(0.5, 1))
                           .inner([=](const Target& target) { return (point->theta - target.value).square().sum(); })
                           .outer([=](const Target&) { return point->theta.pow(3).sum(); });
  const auto expected = hypergradient(problem, {point->theta}, targets, Unroll(), Threads(1));
  const auto threads = hypergradient(problem, {point->theta}, targets, Unroll(), Threads(3));
  expect_equal(threads.gradients, expected.gradients);
  EXPECT_TRUE(at::equal(threads.outer_losses, expected.outer_losses));

  // A loop that goes on from its middle.
  const auto loss = [&] { return point->theta.square().sum(); };
  const Optimizer sgd(SGD(SGDOptions(0.1)), {point->theta});
  const auto options = InnerLoopOptions().gradient_transforms({noise(0.5, 1)});
  InnerLoop whole(point, sgd, options), rest(point, sgd, options);
  for (int k = 0; k < 2; ++k) whole.step(loss);
  rest.set_state(whole.state().detach());
  for (int k = 0; k < 2; ++k) {
    whole.step(loss);
    rest.step(loss);
  }
  expect_equal(rest.parameters(), whole.parameters());
}

TEST(GradientTransform, noise_is_standard_normal) {
  constexpr int64_t n = 20000;
  const auto x = noise(0.5, 3)({at::zeros({n}, at::kDouble)}, {}, 0)[0] / 0.5;
  const auto moment = [&](int64_t k) { return x.pow(k).mean().item<double>(); };
  const auto deviations = [&](double variance) { return 4 * std::sqrt(variance / n); };  // four of the mean's
  EXPECT_NEAR(moment(1), 0, deviations(1));
  EXPECT_NEAR(moment(2), 1, deviations(2));
  EXPECT_NEAR(moment(3), 0, deviations(15));
  EXPECT_NEAR(moment(4), 3, deviations(96));

  const auto sigma = scalar(0.5);
  const auto noisy = noise(sigma, 3)({at::ones({n}, at::kDouble)}, {}, 0)[0];
  EXPECT_NEAR(torch::autograd::grad({noisy.sum()}, {sigma})[0].item<double>(), x.sum().item<double>(), 1e-9);
}

TEST(GradientTransform, stop_gradient_is_first_order) {
  const auto point = std::make_shared<Point>(values({3}, 1));
  const auto lr = scalar(0.1);
  Optimizer sgd(SGD(SGDOptions(0.1).momentum(0.9)), {point->theta});
  sgd.set("lr", lr);
  const auto problem = Bilevel(point, sgd).steps(3).inner([=] { return point->theta.pow(4).sum(); }).outer([=] {
    return point->theta.pow(3).sum();
  });
  const TensorList meta_parameters{lr, point->theta};
  const auto expected = hypergradient(problem, meta_parameters, {}, Unroll::first_order());
  const auto stopped = hypergradient(Bilevel(problem).gradient_transform(stop_gradient()), meta_parameters);
  expect_equal(stopped.gradients, expected.gradients);
}

TEST(GradientTransform, refuses_settings_that_make_no_sense) {
  expect_error([] { clip_by_norm(0); }, "clip_by_norm: expected the maximal norm to be finite and above 0, got 0");
  expect_error([] { clip_by_value(-1); }, "clip_by_value: expected the maximal value to be finite and above 0, got -1");
  expect_error([] { adaptive_clip(0); }, "adaptive_clip: expected the clipping to be finite and above 0, got 0");
  expect_error([] { adaptive_clip(0.1, std::nan("")); },
               "adaptive_clip: expected the eps to be finite and above 0, got nan");
  expect_error([] { weight_decay(-1); }, "weight_decay: expected the factor to be finite and at least 0, got -1");
  expect_error([] { noise(HUGE_VAL, 0); },
               "noise: expected the standard deviation to be finite and at least 0, got inf");
  expect_error([] { clip_by_norm(at::ones({2})); },
               "clip_by_norm: expected the maximal norm to be a number or a 0-dimensional floating-point tensor, got "
               "Float of shape [2]");
  expect_error([] { noise(at::ones({}, at::kLong), 0); }, "got Long of shape []");
  expect_error([] { weight_decay(at::Tensor()); }, "got an undefined tensor");
}

}  // namespace
