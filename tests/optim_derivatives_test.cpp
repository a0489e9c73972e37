#include "optim_table.h"

namespace gimli::optim {
namespace {

enum class Given { number, per_group, per_tensor, per_element };

struct ChainCase {
  int64_t updates;
  bool state;  // start from a state that is differentiated too, or from none
  Given hyperparameters;
};

/// Small parameters, so that differences are quick: a matrix for those rules that see one.
TensorList chain_start(const UpdateBaseline& row, bool several) {
  const bool matrix = row.optimizer == "Muon" || row.optimizer == "Adafactor";
  if (several) return {values({1}, 1).reshape(matrix ? at::IntArrayRef{1, 1} : at::IntArrayRef{1}), values({1, 2}, 2)};
  return {matrix ? values({2, 2}, 1) : values({2}, 1)};
}

/// First and second derivatives of a chain of updates with respect to everything that goes in. Returns the names of the
/// hyperparameters whose gradients are not 0.
std::set<std::string> check_chain(const UpdateBaseline& row, const ChainCase& given) {
  const bool several = given.hyperparameters == Given::per_tensor;
  const auto& family = families.at(row.optimizer);
  const auto start = chain_start(row, several);
  const auto optimizer = family.make(row.options, start);
  const auto& group = optimizer.groups()[0];

  auto inputs = start;
  for (int64_t t = 0; t < given.updates; ++t) {
    for (const auto& parameter : start) inputs.push_back(far_values(parameter.sizes(), inputs.size()));
  }
  for (size_t i = 0; i < start.size(); ++i) {
    const auto& slots = group.states[i].slots;
    for (size_t s = 0; given.state && s < slots.size(); ++s) {
      // Positive, since some are second moments, and the later the smaller: a centered one stays positive.
      const auto shape = slots[s].defined() ? slots[s].sizes() : start[i].sizes();
      inputs.push_back((values(shape, s) + 1) * std::pow(0.2, s));
    }
  }
  const auto first_hyperparameter = inputs.size();
  std::vector<std::string> names;
  for (const auto& name : group.names) {
    if (given.hyperparameters == Given::number || at_kink(name, row.options.at(name))) continue;
    names.push_back(name);
    const bool elements = given.hyperparameters == Given::per_element && !family.scalar_only.count(name);
    for (size_t i = 0; i < (several ? start.size() : 1); ++i) {
      inputs.push_back(at::zeros(elements ? start[i].sizes() : at::IntArrayRef(), at::kDouble));
    }
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
      if (given.state && !state.slots.empty()) state = {10, take(state.slots.size())};
    }
    for (const auto& name : names) {
      const double value = row.options.at(name);
      auto tensors = take(several ? start.size() : 1);
      for (auto& tensor : tensors) tensor = value + unit_of(value) * tensor;
      course.optimizer.set(name, several ? Hyperparameter(tensors) : Hyperparameter(tensors[0]));
    }
    for (const auto& gradient : gradients) course.update(gradient);
    return course.total();
  };

  expect_derivatives(function, inputs, GradcheckOptions().step(3e-6));

  std::set<std::string> reached;
  if (given.hyperparameters == Given::number) return reached;
  const TensorList hyperparameters(inputs.begin() + first_hyperparameter, inputs.end());
  const auto found = torch::autograd::grad({function(inputs)}, hyperparameters, {}, {}, false, /*allow_unused=*/true);
  for (size_t h = 0; h < found.size(); ++h) {
    const auto& name = names[several ? h / start.size() : h];
    if (found[h].defined() && found[h].ne(0).all().item<bool>()) reached.insert(name);
  }
  return reached;
}

TEST(Optim, derivatives_of_one_update) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    check_chain(row, {1, true, Given::per_element});
    check_chain(row, {1, false, Given::number});
  }
}

// No graph is cut: a hyperparameter may be without effect in one row, as RAdam's eps is before it is rectified, but it
// has a gradient in another.
TEST(Optim, derivatives_of_three_updates) {
  std::map<std::string, std::set<std::string>> reached;
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    reached[row.optimizer].merge(check_chain(row, {3, true, Given::per_group}));
    reached[row.optimizer].merge(check_chain(row, {3, false, Given::per_tensor}));
    check_chain(row, {3, false, Given::number});
  }
  for (const auto& row : update_baselines) {
    const auto& family = families.at(row.optimizer);
    const auto optimizer = family.make(row.options, chain_start(row, false));
    for (const auto& name : optimizer.groups()[0].names) {
      EXPECT_NE(reached[row.optimizer].count(name), family.flat.count(name)) << row.optimizer << ": " << name;
    }
  }
}

// ---------------------------------------------------------------- edges

// Zero gradients that stay zero, as those of a dead unit do: theta, the hyperparameters and the other gradients move.
TEST(Optim, zero_gradients_have_derivatives) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const bool matrix = row.optimizer == "Muon";
    const auto shape = matrix ? std::vector<int64_t>{1, 3} : std::vector<int64_t>{3};
    const TensorList start{values(shape, 1)};
    const auto optimizer = families.at(row.optimizer).make(row.options, start);
    const auto mask = at::tensor({0.0, 1.0, 0.0}, at::kDouble);
    const auto& names = optimizer.groups()[0].names;
    auto inputs = TensorList{start[0], far_values(shape, 2), far_values(shape, 3)};
    for (size_t h = 0; h < names.size(); ++h) inputs.push_back(at::zeros({}, at::kDouble));
    inputs = requires_grad(inputs);
    // Where g is weight_decay theta, an adaptive update is as steep as that is small: the decay stays what it is.
    const bool steep = row.optimizer != "SGD" && row.optimizer != "ASGD";
    const auto function = [&](const TensorList& in) {
      Course course(optimizer);
      course.parameters = {in[0]};
      for (size_t h = 0; h < names.size(); ++h) {
        const double value = row.options.at(names[h]);
        if ((names[h] == "weight_decay" && value == 0 && steep) || at_kink_of_zero(names[h], value)) continue;
        course.optimizer.set(names[h], value + unit_of(value) * in[3 + h]);
      }
      course.update({in[1] * mask});
      course.update({in[2] * mask});
      return course.total();
    };
    expect_derivatives(function, inputs, GradcheckOptions().step(3e-6));
  }
}

// The gradient itself passes through 0, where Adam's update is lr g / (c |g| + eps): its second derivative jumps there,
// so that differences need a large eps and a tiny step. (The slot of amsgrad has no second derivative there.)
TEST(Optim, derivatives_at_a_zero_gradient) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const bool matrix = row.optimizer == "Muon";
    const auto shape = matrix ? std::vector<int64_t>{1, 2} : std::vector<int64_t>{2};
    const TensorList start{values(shape, 1)};
    auto options = row.options;
    options["weight_decay"] = 0;
    for (const auto* name : {"eps", "eps1", "beta2", "initial_accumulator_value"}) {
      if (has(options, name) && !at_kink_of_zero(name, options[name])) options[name] = 0.5;
    }
    const auto optimizer = families.at(row.optimizer).make(options, start);
    const auto& names = optimizer.groups()[0].names;
    const auto zero = at::tensor({0.0, 0.625}, at::kDouble).reshape(shape);
    auto inputs = TensorList{start[0], zero, zero, zero};
    for (const auto& name : names) inputs.push_back(scalar(options.at(name)));
    inputs = requires_grad(inputs);
    for (size_t t = 1; t <= 3; ++t) inputs[t].requires_grad_(!families.at(row.optimizer).signs);
    const auto function = [&](const TensorList& in) {
      Course course(optimizer);
      course.parameters = {in[0]};
      for (size_t h = 0; h < names.size(); ++h) {
        if (names[h] != "weight_decay" && !at_kink_of_zero(names[h], options.at(names[h])))
          course.optimizer.set(names[h], in[4 + h]);
      }
      for (int64_t t = 0; t < 3; ++t) course.update({in[1 + t] * (1 - 0.25 * t)});
      return course.total(/*with_slots=*/false);
    };
    expect_derivatives(function, inputs, GradcheckOptions().step(1e-8).absolute(1e-6).relative(1e-6));
  }
}

// Every gradient is 0 from the first update on: nothing may become NaN, to second order.
TEST(Optim, all_gradients_zero_stay_finite) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const TensorList start = requires_grad(chain_start(row, false));
    auto optimizer = families.at(row.optimizer).make(row.options, start);
    auto inputs = start;
    for (const auto& name : optimizer.groups()[0].names) {
      inputs.push_back(scalar(row.options.at(name)));
      optimizer.set(name, inputs.back());
    }
    Course course(optimizer);
    course.parameters = start;
    for (int64_t t = 0; t < 3; ++t) {
      inputs.push_back(at::zeros_like(start[0]).requires_grad_());
      course.update({inputs.back()});
    }
    const auto finite = [](const TensorList& list) {
      return std::all_of(list.begin(), list.end(),
                         [](const auto& x) { return !x.defined() || x.isfinite().all().template item<bool>(); });
    };
    EXPECT_TRUE(finite(course.parameters));
    const auto first = torch::autograd::grad({course.total()}, inputs, {}, true, true, /*allow_unused=*/true);
    EXPECT_TRUE(finite(first)) << first;
    auto sum = start[0].sum() * 0;
    for (const auto& gradient : first) {
      if (gradient.defined()) sum = sum + gradient.sum();
    }
    EXPECT_TRUE(finite(torch::autograd::grad({sum}, inputs, {}, {}, false, /*allow_unused=*/true)));
  }
}

TEST(Optim, zero_valued_tensors_keep_the_value) {
  for (const auto& row : update_baselines) {
    SCOPED_TRACE(title(row));
    const auto start = chain_start(row, false);
    const auto plain = families.at(row.optimizer).make(row.options, start);
    auto tensors = plain;
    for (const auto& name : plain.groups()[0].names) {
      const auto value = row.options.at(name);
      if (value == 0) tensors.set(name, scalar(value));
    }
    Course expected(plain), actual(tensors);
    for (int64_t t = 0; t < 4; ++t) {
      expected.update({values(start[0].sizes(), t + 1)});
      actual.update({values(start[0].sizes(), t + 1)});
    }
    expect_near(actual.parameters[0], expected.parameters[0], 1e-14);
  }
}

// ---------------------------------------------------------------- the loop

void expect_python(const LoopBaseline& row, const Result& result, const std::vector<std::string>& names) {
  EXPECT_NEAR(result.outer_loss.item<double>(), row.outer_loss, 1e-13);
  ASSERT_EQ(result.gradients.size(), names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    const auto expected = std::find_if(row.derivatives.begin(), row.derivatives.end(),
                                       [&](const Derivative& derivative) { return derivative.of == names[i]; });
    ASSERT_NE(expected, row.derivatives.end()) << names[i];
    const auto ours = result.gradients[i].flatten()[0].item<double>();
    EXPECT_NEAR(ours, expected->value, 1e-12 + 1e-12 * std::abs(expected->value) + 10 * expected->error) << names[i];
  }
}

TEST(Optim, hypergradients_agree_with_python) {
  for (const auto& row : loop_baselines) {
    SCOPED_TRACE(title(row));
    Loop loop(row);
    const auto weights = loop.net->parameters();
    std::vector<std::string> names{"0.weight", "0.bias", "2.weight", "2.bias"};
    expect_python(row, hypergradient(loop.problem(), weights), names);

    auto meta_parameters = loop.learn_hyperparameters(row.options);
    meta_parameters.insert(meta_parameters.end(), weights.begin(), weights.end());
    names.insert(names.begin(), loop.names.begin(), loop.names.end());
    const auto learned = hypergradient(loop.problem(), meta_parameters);
    expect_python(row, learned, names);

    InnerLoop inner(loop.net, *loop.optimizer);
    for (int64_t k = 0; k < loop.steps; ++k) inner.step([&] { return loop.loss(1, 2); });
    inner.run([&] { return loop.loss(3, 4); }).backward();
    for (size_t i = 0; i < meta_parameters.size(); ++i) {
      expect_near(meta_parameters[i].grad(), learned.gradients[i], 1e-13);
    }
  }
}

TEST(Optim, hypergradients_agree_with_gradcheck) {
  const auto options = GradcheckOptions().step(1e-6);
  for (const auto& row : loop_baselines) {
    SCOPED_TRACE(title(row));
    Loop loop(row);
    auto meta_parameters = loop.learn_scaled(row.options);
    for (const auto& weight : loop.net->parameters()) meta_parameters.push_back(weight);
    const auto report = gradcheck(loop.problem(), meta_parameters, {}, Unroll(), options);
    EXPECT_TRUE(report) << report.message;
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
    auto meta_parameters = loop.learn_scaled(row.options);
    for (const auto& weight : loop.net->parameters()) meta_parameters.push_back(weight);
    const auto result = hypergradient(loop.problem(), meta_parameters);
    for (const auto& gradient : result.gradients) EXPECT_TRUE(gradient.isfinite().all().item<bool>());
    const auto report = gradcheck(loop.problem(), meta_parameters, {}, Unroll(), GradcheckOptions().step(1e-6));
    EXPECT_TRUE(report) << report.message;
  }
}

// ---------------------------------------------------------------- appendix A of the paper

// A.1 on the loss theta' H theta / 2 - b' theta: with M_t = I - alpha_t H, equation by equation,
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
  InnerLoop inner(point, sgd, InnerLoopOptions().history(true));
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
  InnerLoop same(point, sgd);
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

// A.2 on the same loss. With G_t = H theta_t - b, S_t = sum of G_i^2 up to t and eps = 0, element by element:
//   theta_(t+1) = theta_t - eta G_t / sqrt(S_t)
//   d theta_(t+1) = d theta_t - eta dG_t / sqrt(S_t) + eta G_t (sum_(i <= t) G_i dG_i) / S_t^(3/2)
// and one eta of every step adds -G_t / sqrt(S_t). The paper's equation keeps of the sum the term i = t alone.
TEST(Optim, adagrad_has_the_derivative_of_appendix_a) {
  const auto root = values({3, 3}, 4);
  const auto H = root.matmul(root.t()) + at::eye(3, at::kDouble);
  const auto b = values({3}, 5), c = values({3}, 6);
  const auto point = std::make_shared<Point>(values({3}, 7));
  constexpr int64_t steps = 4;
  const auto eta = scalar(0.3);
  Optimizer adagrad(Adagrad(AdagradOptions(0.3).eps(0)), {point->theta});
  adagrad.set("lr", eta);
  InnerLoop inner(point, adagrad);
  for (int64_t t = 0; t < steps; ++t) {
    inner.step([&] { return 0.5 * point->theta.dot(H.mv(point->theta)) - b.dot(point->theta); });
  }
  inner.run([&] { return c.dot(point->theta); }).backward();

  auto theta = point->theta.detach();
  auto by_start = at::eye(3, at::kDouble), by_eta = at::zeros({3}, at::kDouble);  // the Jacobians, carried forward
  auto S = at::zeros({3}, at::kDouble), dS_start = at::zeros({3, 3}, at::kDouble), dS_eta = at::zeros({3}, at::kDouble);
  const auto column = [](const at::Tensor& x) { return x.unsqueeze(1); };
  for (int64_t t = 0; t < steps; ++t) {
    const auto G = H.mv(theta) - b, dG_start = H.matmul(by_start), dG_eta = H.mv(by_eta);
    S = S + G * G;
    dS_start = dS_start + column(G) * dG_start;  // half of the derivative of S
    dS_eta = dS_eta + G * dG_eta;
    theta = theta - 0.3 * G / S.sqrt();
    by_start = by_start - 0.3 * dG_start / column(S.sqrt()) + 0.3 * column(G) * dS_start / column(S.pow(1.5));
    by_eta = by_eta - G / S.sqrt() - 0.3 * dG_eta / S.sqrt() + 0.3 * G * dS_eta / S.pow(1.5);
  }
  expect_near(inner.parameters()[0], theta, 1e-13);
  expect_near(point->theta.grad(), by_start.t().mv(c), 1e-13);
  expect_near(eta.grad(), c.dot(by_eta), 1e-13);
}

}  // namespace
}  // namespace gimli::optim
