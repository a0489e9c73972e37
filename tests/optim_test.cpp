#include <gtest/gtest.h>
#include <torch/torch.h>

#include "expect.h"
#include "gimli/gradcheck.h"
#include "gimli/optim/adam.h"
#include "gimli/optim/registry.h"
#include "gimli/optim/sgd.h"
#include "optim_baselines.h"
#include "optim_fixture.h"

namespace {

using gimli::expect_error;
using gimli::TensorList;
using namespace gimli::optim;

// ---------------------------------------------------------------- the optimizers: a new one is a new row

using TorchOptimizer = std::unique_ptr<torch::optim::Optimizer>;

struct Family {
  std::function<Optimizer(const Options&, TensorList)> make;
  /// libtorch's own, with two parameter groups: the first parameter, and the others with different options.
  std::function<TorchOptimizer(const Options&, const TensorList&)> make_torch;
};

bool has(const Options& options, const std::string& name) { return options.count(name) > 0; }

template <class Torch, class TorchOptions>
TorchOptimizer two_groups(TorchOptions options, const TensorList& parameters) {
  auto others = options;
  others.lr(2 * options.lr()).weight_decay(options.weight_decay() + 0.05);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(TensorList{parameters[0]}, std::make_unique<TorchOptions>(options));
  groups.emplace_back(TensorList(parameters.begin() + 1, parameters.end()), std::make_unique<TorchOptions>(others));
  return std::make_unique<Torch>(groups, options);
}

template <class To>
To sgd_options(const Options& from) {
  return To(from.at("lr"))
      .momentum(from.at("momentum"))
      .dampening(from.at("dampening"))
      .weight_decay(from.at("weight_decay"))
      .nesterov(has(from, "nesterov"));
}

template <class To>
To adam_options(const Options& from) {
  return To(from.at("lr"))
      .betas({from.at("beta1"), from.at("beta2")})
      .eps(from.at("eps"))
      .weight_decay(from.at("weight_decay"))
      .amsgrad(has(from, "amsgrad"));
}

const std::map<std::string, Family> families = {
    {"SGD",
     {[](const Options& from, TensorList parameters) {
        return Optimizer(SGD(sgd_options<SGDOptions>(from).maximize(has(from, "maximize"))), std::move(parameters));
      },
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::SGD>(sgd_options<torch::optim::SGDOptions>(from), parameters);
      }}},
    {"Adam",
     {[](const Options& from, TensorList parameters) {
        return Optimizer(Adam(adam_options<AdamOptions>(from).maximize(has(from, "maximize"))), std::move(parameters));
      },
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::Adam>(adam_options<torch::optim::AdamOptions>(from), parameters);
      }}},
    {"AdamW",
     {[](const Options& from, TensorList parameters) {
        return Optimizer(AdamW(adam_options<AdamOptions>(from).maximize(has(from, "maximize"))), std::move(parameters));
      },
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::AdamW>(adam_options<torch::optim::AdamWOptions>(from), parameters);
      }}},
};

// ---------------------------------------------------------------- helpers

template <class Baseline>
std::string title(const Baseline& row) {
  auto text = row.optimizer;
  for (const auto& [name, value] : row.options) text += c10::str(" ", name, " ", value);
  return text;
}

// ---------------------------------------------------------------- values

TEST(Optim, agrees_with_python) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    Course course(families.at(row.optimizer).make(row.options, {values({3, 2}, 0), values({4}, 1)}));
    size_t next = 0;
    for (int64_t t = 0; t < 20; ++t) {
      const auto factor = std::pow(0.5, t % 4);
      course.update({values({3, 2}, 2 + 3 * t) * factor, values({4}, 3 + 3 * t) * factor});
      if (t != 0 && t != 1 && t != 19) continue;
      const auto expected = torch::tensor(row.parameters[next++], at::kDouble);
      expect_near(at::cat({course.parameters[0].flatten(), course.parameters[1]}), expected, 1e-12);
    }
  }
}

class Libtorch : public testing::TestWithParam<std::tuple<int64_t, at::ScalarType>> {};

// The last parameter gets no gradient in every other update.
TensorList gradients_at(const TensorList& parameters, int64_t t) {
  TensorList gradients;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const bool unused = i + 1 == parameters.size() && t % 2 == 1;
    const auto& like = parameters[i];
    gradients.push_back(unused ? at::Tensor() : values(like.sizes(), 3 * t + i + 2).to(like.scalar_type()));
  }
  return gradients;
}

void step_torch(torch::optim::Optimizer& optimizer, const TensorList& parameters, int64_t t) {
  const auto gradients = gradients_at(parameters, t);
  for (size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = gradients[i];
  optimizer.step();
}

TEST_P(Libtorch, agrees_side_by_side_and_after_copying_back) {
  const auto [steps_before, dtype] = GetParam();
  const double tolerance = dtype == at::kDouble ? 1e-12 : 1e-6;
  for (const auto& row : update_baselines) {
    if (has(row.options, "maximize")) continue;  // libtorch's have no such option
    SCOPED_TRACE(title(row));
    const auto& family = families.at(row.optimizer);
    const auto fresh = [&, type = dtype] {
      return requires_grad({values({4}, 0).to(type), values({3, 2}, 1).to(type).t(),
                            values({1, 2, 2, 3}, 2).to(type).contiguous(at::MemoryFormat::ChannelsLast),
                            values({2}, 3).to(type)});
    };
    const auto ours = fresh();
    const auto torch_optimizer = family.make_torch(row.options, ours);
    for (int64_t t = 0; t < steps_before; ++t) step_torch(*torch_optimizer, ours, t);

    Course course(*torch_optimizer);
    const auto untouched = requires_grad(ours);
    for (int64_t t = steps_before; t < steps_before + 5; ++t) course.update(gradients_at(ours, t));
    for (size_t i = 0; i < ours.size(); ++i) EXPECT_TRUE(at::equal(ours[i], untouched[i]));

    auto back = requires_grad(course.parameters);
    const auto back_optimizer = family.make_torch(row.options, back);
    for (size_t i = 0; i < back.size(); ++i) copy_state(course.states[i], back[i], *back_optimizer);

    for (int64_t t = steps_before; t < steps_before + 5; ++t) step_torch(*torch_optimizer, ours, t);
    for (size_t i = 0; i < ours.size(); ++i) {
      expect_near(course.parameters[i], ours[i], tolerance);
      EXPECT_EQ(course.parameters[i].strides(), ours[i].strides());
    }
    for (int64_t t = steps_before + 5; t < steps_before + 8; ++t) {
      step_torch(*torch_optimizer, ours, t);
      step_torch(*back_optimizer, back, t);
    }
    for (size_t i = 0; i < ours.size(); ++i) expect_near(back[i], ours[i], tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(FreshAndUsed, Libtorch,
                         testing::Combine(testing::Values(0, 1, 3), testing::Values(at::kDouble, at::kFloat)));

TEST(Optim, copied_state_is_detached_and_momentum_can_begin_later) {
  const auto parameters = requires_grad({values({3}, 0)});
  torch::optim::SGD plain(parameters, torch::optim::SGDOptions(0.1));
  Course course(plain);
  course.update({values({3}, 1)});
  copy_state(course.states[0], parameters[0], plain);
  static_cast<torch::optim::SGDOptions&>(plain.param_groups()[0].options()).momentum(0.9);
  parameters[0].mutable_grad() = values({3}, 2);
  plain.step();
  const auto* state = static_cast<const torch::optim::SGDParamState*>(find_state(plain, parameters[0]));
  ASSERT_NE(state, nullptr);
  EXPECT_TRUE(at::equal(state->momentum_buffer(), values({3}, 2)));

  ParameterState attached{1, {values({3}, 3).requires_grad_() * 2}};
  copy_state(attached, parameters[0], plain);
  state = static_cast<const torch::optim::SGDParamState*>(find_state(plain, parameters[0]));
  EXPECT_FALSE(state->momentum_buffer().requires_grad());
  EXPECT_FALSE(state->momentum_buffer().is_alias_of(attached.slots[0]));
}

TEST(Optim, amsgrad_follows_the_option_when_it_is_switched_off) {
  const auto parameters = requires_grad({values({3}, 0)});
  torch::optim::Adam adam(parameters, torch::optim::AdamOptions(0.1).betas({0.9, 0.5}).amsgrad(true));
  for (int64_t t = 0; t < 3; ++t) {
    parameters[0].mutable_grad() = values({3}, t) * std::pow(0.5, t);
    adam.step();
  }
  static_cast<torch::optim::AdamOptions&>(adam.param_groups()[0].options()).amsgrad(false);
  Course course(adam);
  parameters[0].mutable_grad() = values({3}, 7) / 16;
  course.update({parameters[0].grad()});
  adam.step();
  expect_near(course.parameters[0], parameters[0], 1e-12);
}

// ---------------------------------------------------------------- derivatives

enum class Given { number, per_group, per_tensor, per_element };

struct ChainCase {
  int64_t updates;
  bool state;  // start from a state that is differentiated too, or from none
  Given hyperparameters;
};

/// First and second derivatives of a chain of updates with respect to everything that goes in.
void check_chain(const UpdateBaseline& row, const ChainCase& given) {
  const bool several = given.hyperparameters == Given::per_tensor;
  const auto start = several ? TensorList{values({1}, 1), values({1}, 2)} : TensorList{values({2}, 1)};
  const auto optimizer = families.at(row.optimizer).make(row.options, start);
  const auto& group = optimizer.groups()[0];

  auto inputs = start;
  for (int64_t t = 0; t < given.updates; ++t) {
    for (const auto& parameter : start) inputs.push_back(far_values(parameter.sizes(), inputs.size()));
  }
  for (const auto& state : group.states) {
    for (size_t s = 0; given.state && s < state.slots.size(); ++s) {
      inputs.push_back(values(start[0].sizes(), s) + 1);  // positive: some are second moments
    }
  }
  const auto first_hyperparameter = inputs.size();
  for (size_t h = 0; h < group.names.size() && given.hyperparameters != Given::number; ++h) {
    const auto shape = given.hyperparameters == Given::per_element ? start[0].sizes() : at::IntArrayRef();
    for (size_t i = 0; i < start.size(); ++i) inputs.push_back(at::zeros(shape, at::kDouble));
  }
  inputs = requires_grad(inputs);

  const auto function = [&](const TensorList& in) {
    auto next = in.begin();
    const auto take = [&](size_t count) {
      next += count;
      return TensorList(next - count, next);
    };
    Course course(optimizer);
    course.parameters = take(start.size());
    std::vector<TensorList> gradients(given.updates);
    for (auto& gradient : gradients) gradient = take(start.size());
    for (auto& state : course.states) {
      if (given.state) state = {2, take(state.slots.size())};
    }
    for (const auto& name : group.names) {
      if (given.hyperparameters == Given::number) break;
      // Differences are taken in units of 1 - value: a step of 1e-5 would be coarse for beta2 = 0.999.
      const double value = row.options.at(name);
      auto tensors = take(start.size());
      for (auto& tensor : tensors) tensor = value + (1 - value) * tensor;
      course.optimizer.set(name, several ? Hyperparameter(tensors) : Hyperparameter(tensors[0]));
    }
    for (const auto& gradient : gradients) course.update(gradient);
    return course.total();
  };

  const auto options = gimli::GradcheckOptions().step(3e-6);
  const auto first = gimli::gradcheck(function, inputs, options);
  EXPECT_TRUE(first) << first.message;
  const auto second = gimli::gradgradcheck(function, inputs, options);
  EXPECT_TRUE(second) << second.message;

  if (given.updates == 1) return;
  const TensorList hyperparameters(inputs.begin() + first_hyperparameter, inputs.end());
  if (hyperparameters.empty()) return;
  for (const auto& gradient : torch::autograd::grad({function(inputs)}, hyperparameters)) {
    EXPECT_TRUE(gradient.ne(0).all().item<bool>()) << "a hyperparameter has gradient 0";
  }
}

TEST(Optim, derivatives_of_one_update) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    check_chain(row, {1, true, Given::per_element});
    check_chain(row, {1, false, Given::number});
  }
}

TEST(Optim, derivatives_of_three_updates) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    check_chain(row, {3, true, Given::per_group});
    check_chain(row, {3, false, Given::per_tensor});
    check_chain(row, {3, false, Given::number});
  }
}

// ---------------------------------------------------------------- the loop

using Activation = at::Tensor (*)(const at::Tensor&);

/// The inner loop of optim_baselines.py.
struct Loop {
  explicit Loop(const LoopBaseline& row, Activation activation = at::tanh)
      : net(torch::nn::Linear(2, 3), torch::nn::Functional(activation), torch::nn::Linear(3, 1)) {
    net->to(at::kDouble);
    torch::NoGradGuard no_gradient;
    for (size_t i = 0; i < 4; ++i) {
      auto parameter = net->parameters()[i];
      parameter.copy_(values(parameter.sizes(), 5 + i));
    }
    optimizer = std::make_unique<Optimizer>(families.at(row.optimizer).make(row.options, net->parameters()));
  }

  /// Makes every hyperparameter a tensor, and returns them.
  TensorList learn_hyperparameters(const Options& options) {
    TensorList result;
    for (const auto& name : optimizer->groups()[0].names) {
      result.push_back(scalar(options.at(name)));
      optimizer->set(name, result.back());
    }
    return result;
  }

  at::Tensor loss(int64_t x, int64_t y) { return at::mse_loss(net->forward(values({5, 2}, x)), values({5, 1}, y)); }

  gimli::Bilevel problem() {
    return gimli::Bilevel(net, *optimizer).steps(5).inner([this] { return loss(1, 2); }).outer([this] {
      return loss(3, 4);
    });
  }

  torch::nn::Sequential net;
  std::unique_ptr<Optimizer> optimizer;
};

void expect_derivatives(const LoopBaseline& row, const gimli::Result& result, size_t first) {
  EXPECT_NEAR(result.outer_loss.item<double>(), row.outer_loss, 1e-13);
  ASSERT_EQ(result.gradients.size(), row.derivatives.size() - first);
  for (size_t i = first; i < row.derivatives.size(); ++i) {
    const auto& [of, value, error] = row.derivatives[i];
    const auto ours = result.gradients[i - first].flatten()[0].item<double>();
    EXPECT_NEAR(ours, value, 1e-12 + 1e-12 * std::abs(value) + 10 * error) << of;
  }
}

TEST(Optim, hypergradients_agree_with_python) {
  for (const auto& row : loop_baselines) {
    SCOPED_TRACE(title(row));
    Loop loop(row);
    const auto weights = loop.net->parameters();
    const auto fixed = gimli::hypergradient(loop.problem(), weights);
    expect_derivatives(row, fixed, row.derivatives.size() - weights.size());

    auto meta_parameters = loop.learn_hyperparameters(row.options);
    meta_parameters.insert(meta_parameters.end(), weights.begin(), weights.end());
    const auto learned = gimli::hypergradient(loop.problem(), meta_parameters);
    expect_derivatives(row, learned, 0);

    gimli::InnerLoop inner(loop.net, *loop.optimizer);
    for (int k = 0; k < 5; ++k) inner.step([&] { return loop.loss(1, 2); });
    inner.run([&] { return loop.loss(3, 4); }).backward();
    for (size_t i = 0; i < meta_parameters.size(); ++i) {
      expect_near(meta_parameters[i].grad(), learned.gradients[i], 1e-13);
    }
  }
}

TEST(Optim, hypergradients_agree_with_gradcheck) {
  const auto options = gimli::GradcheckOptions().step(1e-6);
  for (const auto& row : loop_baselines) {
    SCOPED_TRACE(title(row));
    Loop loop(row);
    auto meta_parameters = loop.learn_hyperparameters(row.options);
    for (const auto& weight : loop.net->parameters()) meta_parameters.push_back(weight);
    const auto report = gimli::gradcheck(loop.problem(), meta_parameters, {}, gimli::Unroll(), options);
    EXPECT_TRUE(report) << report.message;
  }
}

// Appendix A.1 of the paper on the loss theta' H theta / 2 - b' theta: with M_t = I - alpha_t H, equation by equation,
// d theta_(t+1) / d theta_t = M_t and d theta_(t+1) / d alpha_t = -(H theta_t - b).
TEST(Optim, sgd_has_the_derivative_of_appendix_a) {
  const auto root = values({3, 3}, 4);
  const auto H = root.matmul(root.t()) + at::eye(3, at::kDouble);
  const auto b = values({3}, 5), c = values({3}, 6);
  const auto point = std::make_shared<Point>(values({3}, 7));
  constexpr int64_t steps = 4;
  TensorList alphas;
  for (int64_t t = 0; t < steps; ++t) alphas.push_back(scalar(0.1 + 0.05 * t));

  Optimizer sgd(SGD(SGDOptions(0.1)), {point->theta});
  sgd.set("lr", Hyperparameter([&](int64_t step) { return alphas[step]; }));
  gimli::InnerLoop inner(point, sgd, gimli::InnerLoopOptions().history(true));
  for (int64_t t = 0; t < steps; ++t) {
    inner.step([&] { return 0.5 * point->theta.dot(H.mv(point->theta)) - b.dot(point->theta); });
  }
  inner.run([&] { return c.dot(point->theta); }).backward();

  auto back = c;  // d outer / d theta_t, from the last step to the first
  for (int64_t t = steps - 1; t >= 0; --t) {
    const auto gradient = H.mv(inner.parameters(t)[0].detach()) - b;
    expect_near(alphas[t].grad(), -back.dot(gradient), 1e-13);
    back = back - alphas[t].detach() * H.mv(back);
  }
  expect_near(point->theta.grad(), back, 1e-13);

  // The closed form theta_T = theta* + (I - alpha H)^T (theta_0 - theta*) for one learning rate.
  const auto alpha = scalar(0.2);
  sgd.set("lr", alpha);
  point->theta.mutable_grad() = at::Tensor();
  gimli::InnerLoop same(point, sgd);
  for (int64_t t = 0; t < steps; ++t) {
    same.step([&] { return 0.5 * point->theta.dot(H.mv(point->theta)) - b.dot(point->theta); });
  }
  same.run([&] { return c.dot(point->theta); }).backward();
  const auto M = at::eye(3, at::kDouble) - 0.2 * H;
  const auto optimum = at::linalg_solve(H, b);
  const auto distance = point->theta.detach() - optimum;
  expect_near(same.parameters()[0], optimum + M.matrix_power(steps).mv(distance), 1e-13);
  expect_near(point->theta.grad(), M.matrix_power(steps).mv(c), 1e-13);
  expect_near(alpha.grad(), -steps * c.dot(H.mv(M.matrix_power(steps - 1).mv(distance))), 1e-13);
}

// ---------------------------------------------------------------- edges

Options with(Options options, const std::string& name, double value) {
  options[name] = value;
  return options;
}

// Zero gradients that stay zero, as those of a dead unit do: theta, the hyperparameters and the other gradients move.
TEST(Optim, zero_gradients_have_derivatives) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const TensorList start{values({3}, 1)};
    const auto optimizer = families.at(row.optimizer).make(row.options, start);
    const auto mask = at::tensor({0.0, 1.0, 0.0}, at::kDouble);
    const auto& names = optimizer.groups()[0].names;
    auto inputs = TensorList{start[0], far_values({3}, 2), far_values({3}, 3)};
    for (size_t h = 0; h < names.size(); ++h) inputs.push_back(at::zeros({}, at::kDouble));
    inputs = requires_grad(inputs);
    const auto function = [&](const TensorList& in) {
      Course course(optimizer);
      course.parameters = {in[0]};
      for (size_t h = 0; h < names.size(); ++h) {
        const double value = row.options.at(names[h]);
        // Where g is weight_decay theta, Adam's update is as steep as that is small: the decay stays what it is.
        if (names[h] != "weight_decay" || row.optimizer != "Adam") {
          course.optimizer.set(names[h], value + (1 - value) * in[3 + h]);
        }
      }
      course.update({in[1] * mask});
      course.update({in[2] * mask});
      return course.total();
    };
    const auto first = gimli::gradcheck(function, inputs, gimli::GradcheckOptions().step(3e-6));
    EXPECT_TRUE(first) << first.message;
    const auto second = gimli::gradgradcheck(function, inputs, gimli::GradcheckOptions().step(3e-6));
    EXPECT_TRUE(second) << second.message;
  }
}

// The gradient itself passes through 0, where Adam's update is lr g / (c |g| + eps): its second derivative jumps there,
// so that differences need a large eps and a tiny step. (The slot of amsgrad has no second derivative there.)
TEST(Optim, derivatives_at_a_zero_gradient) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const TensorList start{values({2}, 1)};
    auto options = row.options;
    options["weight_decay"] = 0;
    if (has(options, "eps")) options = with(with(options, "eps", 0.5), "beta2", 0.5);
    const auto optimizer = families.at(row.optimizer).make(options, start);
    const auto& names = optimizer.groups()[0].names;
    const auto zero = at::tensor({0.0, 0.625}, at::kDouble);
    auto inputs = TensorList{start[0], zero, zero, zero};
    for (const auto& name : names) inputs.push_back(scalar(options.at(name)));
    inputs = requires_grad(inputs);
    const auto function = [&](const TensorList& in) {
      Course course(optimizer);
      course.parameters = {in[0]};
      for (size_t h = 0; h < names.size(); ++h) {
        if (names[h] != "weight_decay") course.optimizer.set(names[h], in[4 + h]);
      }
      for (int64_t t = 0; t < 3; ++t) course.update({in[1 + t]});
      return course.total(/*with_slots=*/false);
    };
    const auto tolerance = gimli::GradcheckOptions().step(1e-8).absolute(1e-6).relative(1e-6);
    const auto first = gimli::gradcheck(function, inputs, tolerance);
    EXPECT_TRUE(first) << first.message;
    const auto second = gimli::gradgradcheck(function, inputs, tolerance);
    EXPECT_TRUE(second) << second.message;
  }
}

TEST(Optim, dead_units_leave_the_hypergradient_finite_and_right) {
  for (const auto& row : loop_baselines) {
    SCOPED_TRACE(title(row));
    if (has(row.options, "maximize")) continue;
    Loop loop(row, at::relu);
    {
      torch::NoGradGuard no_gradient;
      loop.net->parameters()[1][0] = -9;  // the first hidden unit is 0 on all data
    }
    auto meta_parameters = loop.learn_hyperparameters(row.options);
    for (const auto& weight : loop.net->parameters()) meta_parameters.push_back(weight);
    const auto result = gimli::hypergradient(loop.problem(), meta_parameters);
    for (const auto& gradient : result.gradients) EXPECT_TRUE(gradient.isfinite().all().item<bool>());
    const auto report =
        gimli::gradcheck(loop.problem(), meta_parameters, {}, gimli::Unroll(), gimli::GradcheckOptions().step(1e-6));
    EXPECT_TRUE(report) << report.message;
  }
}

TEST(Optim, zero_valued_tensors_keep_the_value) {
  const TensorList start{values({4}, 0)};
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const auto plain = families.at(row.optimizer).make(row.options, start);
    auto tensors = plain;
    for (const auto& name : plain.groups()[0].names) {
      const auto value = row.options.at(name);
      if (value == 0) tensors.set(name, scalar(value));
    }
    Course expected(plain), actual(tensors);
    for (int64_t t = 0; t < 4; ++t) {
      expected.update({values({4}, t + 1)});
      actual.update({values({4}, t + 1)});
    }
    expect_near(actual.parameters[0], expected.parameters[0], 1e-14);
  }
}

TEST(Optim, maximize_climbs) {
  for (const auto& [name, family] : families) {
    SCOPED_TRACE(name);
    const auto row = std::find_if(update_baselines.begin(), update_baselines.end(), [&, wanted = name](const auto& r) {
      return r.optimizer == wanted && has(r.options, "maximize");
    });
    ASSERT_NE(row, update_baselines.end());
    const auto point = std::make_shared<Point>(values({3}, 7));
    const auto loss = [&] { return point->theta.square().sum(); };
    gimli::InnerLoop inner(point, family.make(with(row->options, "lr", 0.01), {point->theta}));
    const auto first = inner.step(loss), second = inner.step(loss), third = inner.step(loss);
    EXPECT_LT(first.item<double>(), second.item<double>());
    EXPECT_LT(second.item<double>(), third.item<double>());
  }
}

TEST(Optim, sgd_refuses_nesterov_without_momentum) {
  expect_error([] { SGD(SGDOptions(0.1).nesterov(true)); }, "SGD: nesterov needs a momentum above 0 and no dampening");
}

// ---------------------------------------------------------------- hyperparameters

TEST(Hyperparameter, may_change_with_the_step_and_the_parameter) {
  const TensorList start{values({2}, 0), values({3}, 1)};
  const TensorList ones{at::ones({2}, at::kDouble), at::ones({3}, at::kDouble)};
  const auto moved = [&](const Hyperparameter& lr) {
    Course course(Optimizer(SGD(SGDOptions(0)), start).set("lr", lr));
    course.update(ones);
    course.update(ones);
    return TensorList{start[0] - course.parameters[0], start[1] - course.parameters[1]};
  };
  expect_near(moved(0.25)[1], 0.5 * ones[1], 1e-15);
  expect_near(moved(Hyperparameter([](int64_t step) { return step == 0 ? 0.5 : 0.125; }))[0], 0.625 * ones[0], 1e-15);
  const auto lists = moved(Hyperparameter([](int64_t step) { return TensorList{scalar(step), scalar(0.5)}; }));
  expect_near(lists[0], ones[0], 1e-15);
  expect_near(lists[1], ones[1], 1e-15);
  expect_near(moved(TensorList{scalar(0.5), values({3}, 2)})[1], 2 * values({3}, 2), 1e-15);
  expect_near(moved(at::tensor(0.5f))[0], ones[0], 1e-15);  // converted to the parameter's type
}

TEST(Hyperparameter, leaves_a_scalar_parameter_its_type) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const auto plain = families.at(row.optimizer).make(row.options, {values({}, 0).to(at::kFloat)});
    auto tensors = plain;
    for (const auto& name : plain.groups()[0].names) tensors.set(name, scalar(row.options.at(name)));
    Course expected(plain), actual(tensors);
    for (int64_t t = 0; t < 3; ++t) {
      expected.update({values({}, t + 1).to(at::kFloat)});
      actual.update({values({}, t + 1).to(at::kFloat)});
    }
    EXPECT_EQ(actual.parameters[0].scalar_type(), at::kFloat);
    for (const auto& slot : actual.states[0].slots) {
      EXPECT_TRUE(!slot.defined() || slot.scalar_type() == at::kFloat);
    }
    expect_near(actual.parameters[0], expected.parameters[0], 1e-6);
  }
}

TEST(Hyperparameter, refuses_what_does_not_fit) {
  const TensorList start{values({2}, 0), values({3}, 1)};
  Optimizer sgd(SGD(SGDOptions(0.1)), start);
  expect_error([&] { sgd.set("lrr", 0.1); }, "no parameter group has a hyperparameter 'lrr'");
  expect_error([&] { sgd.set(0, "lrr", 0.1); },
               "SGD has no hyperparameter 'lrr'; it has: lr, momentum, dampening, weight_decay");
  expect_error([&] { sgd.set(1, "lr", 0.1); }, "no parameter group 1, there are 1");
  expect_error([&] { sgd.set("lr", TensorList{scalar(1)}); }, "'lr': got 1 tensors, expected one for each of");
  expect_error([&] { sgd.set("lr", TensorList(3, scalar(1))); }, "hyperparameter 'lr': got 3 tensors");

  const auto update = [&](const Hyperparameter& lr) {
    Course course(Optimizer(sgd).set("lr", lr));
    course.update({values({2}, 2), values({3}, 3)});
  };
  const std::string expected = "hyperparameter 'lr': expected a floating-point tensor that expands to the shape ";
  expect_error([&] { update(at::ones({4}, at::kDouble)); }, expected + "[2] of its parameter, got Double of shape [4]");
  expect_error([&] { update(at::ones({1, 1, 2}, at::kDouble)); }, expected + "[2]");
  expect_error([&] { update(TensorList{scalar(1), values({2}, 0)}); }, expected + "[3]");
  expect_error([&] { update(at::ones({}, at::kLong)); }, "got Long of shape []");
  expect_error([&] { update(at::Tensor()); }, "got an undefined tensor");
  expect_error([&] { update(Hyperparameter([](int64_t) { return TensorList{scalar(1)}; })); }, "got 1 tensors");
}

TEST(Optimizer, sets_all_groups_or_one_and_joins) {
  const TensorList a{values({2}, 0)}, b{values({3}, 1)};
  Optimizer both{Optimizer(SGD(SGDOptions(0.1)), a), Optimizer(Adam(), b)};
  ASSERT_EQ(both.groups().size(), 2u);
  EXPECT_EQ(both.groups()[0].rule->name(), "SGD");
  EXPECT_EQ(both.groups()[1].rule->name(), "Adam");

  const auto value = [&](size_t group, const std::string& name) {
    const auto& g = both.groups()[group];
    const auto index = std::find(g.names.begin(), g.names.end(), name) - g.names.begin();
    return g.values[index].at(0, {0}, g.parameters, name)[0].number();
  };
  both.set("lr", 0.5);
  EXPECT_EQ(value(0, "lr"), 0.5);
  EXPECT_EQ(value(1, "lr"), 0.5);
  both.set(1, "lr", 0.25);
  EXPECT_EQ(value(0, "lr"), 0.5);
  EXPECT_EQ(value(1, "lr"), 0.25);
  both.set("eps", 0.125);  // Adam alone has it
  EXPECT_EQ(value(1, "eps"), 0.125);

  Course course(both), alone(Optimizer(Adam(AdamOptions(0.25).eps(0.125)), b));
  course.update({values({2}, 2), values({3}, 3)});
  alone.update({values({3}, 3)});
  EXPECT_TRUE(at::equal(course.parameters[0], a[0] - 0.5 * values({2}, 2)));
  EXPECT_TRUE(at::equal(course.parameters[1], alone.parameters[0]));
}

// ---------------------------------------------------------------- a third party's optimizer

struct FadingOptions : torch::optim::OptimizerCloneableOptions<FadingOptions> {
  FadingOptions(double lr) : lr_(lr) {}
  TORCH_ARG(double, lr);
};

struct FadingState : torch::optim::OptimizerCloneableParamState<FadingState> {
  TORCH_ARG(int64_t, step) = 0;
};

/// theta <- theta - lr / (t + 1) g.
struct Fading : torch::optim::Optimizer {
  Fading(TensorList parameters, FadingOptions options)
      : torch::optim::Optimizer(std::move(parameters), std::make_unique<FadingOptions>(options)) {}

  at::Tensor step(LossClosure = nullptr) override {
    torch::NoGradGuard no_gradient;
    for (auto& group : param_groups()) {
      const auto lr = static_cast<const FadingOptions&>(group.options()).lr();
      for (auto& parameter : group.params()) {
        auto& state = this->state()[parameter.unsafeGetTensorImpl()];
        if (!state) state = std::make_unique<FadingState>();
        auto& t = static_cast<FadingState&>(*state).step();
        parameter.sub_(parameter.grad(), lr / static_cast<double>(++t));
      }
    }
    return {};
  }
};

/// Unknown to gimli, though its base is known.
struct FadingMore final : Fading {
  using Fading::Fading;
};

class FadingRule final : public UpdateRule {
 public:
  FadingRule(double lr, double factor) : lr_(lr), factor_(factor) {}

  std::string name() const override { return "Fading"; }
  std::vector<HyperparameterSpec> hyperparameters() const override { return {{"lr", lr_, Domain::positive}}; }
  ParameterState init(const at::Tensor&) const override { return {}; }
  Iterate update(const at::Tensor& theta, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override {
    const auto rate = hyperparameters[0] * factor_ / static_cast<double>(state.step + 1);
    return {add_scaled(theta, -rate, gradient), {state.step + 1, {}}};
  }

 private:
  double lr_, factor_;
};

void register_fading(double factor) {
  register_optimizer<Fading, FadingOptions, FadingState>(
      [factor](const FadingOptions& from) { return FadingRule(from.lr(), factor); },
      [](const FadingState& from) {
        return ParameterState{from.step(), {}};
      },
      [](const ParameterState& from) {
        FadingState to;
        to.step(from.step);
        return to;
      });
}

TEST(Registry, takes_a_third_partys_optimizer) {
  register_fading(1);
  const auto point = std::make_shared<Point>(values({3}, 0));
  const auto loss = [&] { return point->theta.pow(4).sum(); };
  const auto step = [&](torch::optim::Optimizer& optimizer) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  };
  Fading fading({point->theta}, FadingOptions(0.1));
  step(fading);

  Optimizer optimizer(fading);
  const auto lr = scalar(0.1);
  optimizer.set("lr", lr);
  const auto problem = gimli::Bilevel(point, optimizer).steps(3).inner(loss).outer(loss);
  const auto report = gimli::gradcheck(problem, {point->theta, lr});
  EXPECT_TRUE(report) << report.message;

  gimli::InnerLoop inner(point, optimizer);
  inner.step(loss);
  inner.step(loss);
  const auto reached = inner.parameters()[0].detach();
  Fading copy({point->theta}, FadingOptions(0.1));
  inner.copy_state_to(copy);
  step(fading);
  step(fading);
  expect_near(reached, point->theta, 1e-14);
  const auto* state = static_cast<const FadingState*>(find_state(copy, point->theta));
  ASSERT_NE(state, nullptr);
  EXPECT_EQ(state->step(), 3);
}

TEST(Registry, replaces_and_refuses) {
  const TensorList parameters = requires_grad({values({3}, 0)});
  Fading fading(parameters, FadingOptions(0.5));
  for (const double factor : {1.0, 2.0}) {
    register_fading(factor);
    Course course(fading);
    course.update({values({3}, 1)});
    EXPECT_TRUE(at::equal(course.parameters[0], values({3}, 0) - 0.5 * factor * values({3}, 1)));
  }
  FadingMore more(parameters, FadingOptions(0.5));
  expect_error([&] { Optimizer{more}; },
               "FadingMore is not supported; register an update rule for it with "
               "gimli::optim::register_optimizer");
}

}  // namespace
