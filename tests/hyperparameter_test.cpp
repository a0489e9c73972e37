#include "optim_table.h"

namespace gimli::optim {
namespace {

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
    if (row.optimizer == "Muon") continue;  // takes matrices alone
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
  expect_error([&] { update(Hyperparameter([](int64_t) { return TensorList(3, scalar(1)); })); }, "got 3 tensors");
  expect_error([&] { sgd.set("lr", std::function<Value(int64_t)>()); }, "'lr': got an empty function of the step");
  expect_error([&] { sgd.set("momentum", -0.5); }, "SGD: expected momentum in [0, 1), got -0.5");
  Course low(Optimizer(SGD(0.1), {values({2}, 0).to(at::kBFloat16)}).set("lr", at::ones({2})));
  expect_error([&] { low.update({values({2}, 1).to(at::kBFloat16)}); }, "one value an element takes parameters of");

  Optimizer both{Optimizer(SGD(0.1), {start[0]}), Optimizer(SGD(0.2), start)};
  expect_error([&] { both.set("lr", TensorList{scalar(1)}); }, "got 1 tensors");
  EXPECT_TRUE(both.groups()[0].value("lr").is_number());  // nothing changed
}

// ---------------------------------------------------------------- learned hyperparameters

struct LearnCase {
  std::string name;
  LearnOptions options;
  std::vector<std::vector<int64_t>> shapes;  // of lr's meta-parameters, for parameters [2] and [3] in one group
};

class Learn : public testing::TestWithParam<LearnCase> {};

TEST_P(Learn, starts_at_the_value_and_has_exact_hypergradients) {
  const auto& [name, options, shapes] = GetParam();
  auto net = torch::nn::Linear(3, 2);
  net->to(at::kDouble);
  {
    torch::NoGradGuard no_gradient;
    net->weight.copy_(values({2, 3}, 1));
    net->bias.copy_(values({2}, 2));
  }
  const torch::optim::Adam adam(net->parameters(), torch::optim::AdamOptions(0.1).betas({0.8, 0.9}));
  Optimizer inner(adam);
  const auto learned = learn(inner, {"lr", "beta1", "beta2"}, options);
  ASSERT_EQ(learned.tensors().size(), 3 * shapes.size());
  for (size_t i = 0; i < shapes.size(); ++i) EXPECT_EQ(learned.tensors()[i].sizes().vec(), shapes[i]);
  const auto now = learned.values();
  EXPECT_EQ(now.names, learned.names());
  expect_near(now.tensors[0], at::full(shapes[0], 0.1, at::kDouble), 1e-15);

  const auto loss = [&](int64_t x) { return at::mse_loss(net->forward(values({4, 3}, x)), values({4, 2}, x + 1)); };
  const auto problem = [&](const Optimizer& optimizer) {
    return Bilevel(net, optimizer).steps(3).inner(loss).outer([&] { return loss(9); });
  };
  EXPECT_NEAR(evaluate(problem(inner)).outer_loss.item<double>(), evaluate(problem(adam)).outer_loss.item<double>(),
              1e-15);
  const auto report = gradcheck(problem(inner), learned.tensors());
  EXPECT_TRUE(report) << report.message;
}

INSTANTIATE_TEST_SUITE_P(
    Hyperparameters, Learn,
    testing::Values(
        LearnCase{"per_group", {}, {{}}},
        LearnCase{"per_tensor", LearnOptions().granularity(Granularity::per_tensor), {{2}}},
        LearnCase{"per_element", LearnOptions().granularity(Granularity::per_element), {{2, 3}, {2}}},
        LearnCase{"per_step", LearnOptions().steps(2), {{2}}},
        LearnCase{"per_tensor_and_step", LearnOptions().granularity(Granularity::per_tensor).steps(3), {{3, 2}}},
        LearnCase{
            "per_element_and_step", LearnOptions().granularity(Granularity::per_element).steps(3), {{3, 2, 3}, {3, 2}}},
        LearnCase{"unconstrained", LearnOptions().domain(Domain::real), {{}}}),
    [](const auto& info) { return info.param.name; });

TEST(Learn, keeps_the_domain_and_writes_back) {
  const auto parameters = requires_grad({values({2}, 0), values({3}, 1)});
  std::vector<torch::optim::OptimizerParamGroup> groups{TensorList{parameters[0]}, TensorList{parameters[1]}};
  torch::optim::Adam adam(groups, torch::optim::AdamOptions(0.1));
  Optimizer inner(adam);
  const auto learned = learn(inner, {"lr", "beta2"}, LearnOptions().granularity(Granularity::per_tensor));
  EXPECT_EQ(learned.names(), (std::vector<std::string>{"lr.0", "lr.1", "beta2.0", "beta2.1"}));
  {
    torch::NoGradGuard no_gradient;
    for (const auto& tensor : learned.tensors()) tensor.sub_(20);
    learned.tensors()[1].fill_(std::log(0.25));
  }
  learned.copy_to(adam);
  const auto options = [&](size_t g) {
    return static_cast<torch::optim::AdamOptions&>(adam.param_groups()[g].options());
  };
  EXPECT_GT(options(0).lr(), 0);
  EXPECT_LT(options(0).lr(), 1e-8);
  EXPECT_NEAR(options(1).lr(), 0.25, 1e-15);
  EXPECT_GT(std::get<1>(options(0).betas()), 0);
  EXPECT_EQ(std::get<0>(options(0).betas()), 0.9);
}

TEST(Learn, every_continuous_option_of_libtorch_is_written_back) {
  for (const auto& row : update_baselines) {
    const auto& family = families.at(row.optimizer);
    if (!family.make_torch) continue;
    SCOPED_TRACE(title(row));
    const auto parameters = requires_grad({values({2}, 0), values({2}, 1)});
    const auto before = Optimizer(*family.make_torch(row.options, parameters)).groups()[0];
    for (const auto& name : before.names) {
      if (has(row.options, "nesterov") && name == "dampening") continue;  // goes without
      const auto optimizer = family.make_torch(row.options, parameters);
      Optimizer inner(*optimizer);
      const auto learned = learn(inner, {name}, LearnOptions().domain(Domain::real));
      {
        torch::NoGradGuard no_gradient;
        for (const auto& tensor : learned.tensors()) tensor.mul_(0.5).add_(0.015625);
      }
      learned.copy_to(*optimizer);
      EXPECT_EQ(Optimizer(*optimizer).groups()[0].value(name).number(), 0.5 * before.value(name).number() + 0.015625)
          << name;
    }
  }
}

TEST(Learn, refuses_what_it_cannot_learn_or_write) {
  const auto parameters = requires_grad({values({2}, 0), values({3}, 1)});
  torch::optim::SGD sgd(parameters, torch::optim::SGDOptions(0.1));
  Optimizer inner(sgd);
  expect_error([&] { learn(inner, {"momentum"}); },
               "learn: 'momentum' of group 0 is 0, expected a start between 0 and 1; set one, or learn it with the "
               "domain real");
  expect_error([&] { learn(inner, {"weight_decay"}); }, "expected a start above 0");
  expect_error([&] { learn(inner, {"lr", "nesterov"}); }, "no parameter group has a hyperparameter 'nesterov'");
  expect_error([&] { learn(inner, {"lr"}, LearnOptions().steps(0)); }, "learn: expected at least 1 step, got 0");
  expect_error([&] { learn(inner, {"lr", "lr"}); }, "learn: 'lr' is named more than once");
  EXPECT_TRUE(inner.groups()[0].value("lr").is_number());  // nothing changed
  torch::optim::Adam adam(parameters, torch::optim::AdamOptions(0.7));
  Optimizer again(sgd);
  const auto of_sgd = learn(again, {"lr"});
  expect_error([&] { of_sgd.copy_to(adam); }, "'lr.0' was learned for SGD, the optimizer is Adam");
  EXPECT_EQ(static_cast<torch::optim::AdamOptions&>(adam.param_groups()[0].options()).lr(), 0.7);
  EXPECT_EQ(learn(inner, {"momentum"}, LearnOptions().domain(Domain::real)).tensors().size(), 1u);
  expect_error([&] { learn(inner, {"momentum"}); }, "learn: 'momentum' of group 0 is not a number any more");

  const auto refused = [&](const LearnOptions& options, const std::string& words) {
    Optimizer again(sgd);
    const auto learned = learn(again, {"lr"}, options);
    expect_error([&] { learned.copy_to(sgd); }, words);
  };
  refused(LearnOptions().steps(2), "has one number a group, these are one a step");
  refused(LearnOptions().granularity(Granularity::per_element), "these are one an element");
  refused(LearnOptions().granularity(Granularity::per_tensor), "'lr.0' has 2 values for one group");
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
    return g.values[index].number();
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

TEST(Optimizer, starts_from_the_state_it_is_given) {
  // As if two updates with gradients 1 and 2 had been made: the third is that of torch's Adam.
  const auto parameter = torch::full({2}, 0.5, torch::kDouble).requires_grad_();
  torch::optim::Adam outer({parameter}, torch::optim::AdamOptions(0.1));
  for (const double gradient : {1., 2.}) {
    parameter.mutable_grad() = torch::full_like(parameter, gradient);
    outer.step();
  }
  const auto& moments =
      static_cast<const torch::optim::AdamParamState&>(*outer.state().at(parameter.unsafeGetTensorImpl()));
  Optimizer inner(Adam(0.1), {parameter});
  inner.start_from(parameter, {moments.step(), {moments.exp_avg(), moments.exp_avg_sq()}});
  EXPECT_FALSE(inner.groups()[0].states[0].slots[0].is_alias_of(moments.exp_avg()));

  const auto expected = Optimizer(outer);
  const auto& a = inner.groups()[0].states[0];
  const auto& b = expected.groups()[0].states[0];
  EXPECT_EQ(a.step, b.step);
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(torch::equal(a.slots[i], b.slots[i]));

  const auto other = torch::zeros({3}, torch::kDouble).requires_grad_();
  expect_error([&] { inner.start_from(other, {}); }, "no group holds the parameter of shape [3]");
  expect_error([&] { inner.start_from(parameter, {1, {moments.exp_avg()}}); }, "Adam remembers 2 tensors");
  expect_error([&] { inner.start_from(parameter, {1, {other, other}}); }, "slot 0 of Adam has shape [2], got [3]");
}

}  // namespace
}  // namespace gimli::optim
