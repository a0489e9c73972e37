#include "optim_table.h"

namespace gimli::optim {
namespace {

enum class Layout { contiguous, transposed, channels_last };

at::Tensor laid_out(const at::Tensor& x, Layout layout) {
  if (layout == Layout::transposed && x.dim() == 2) return x.t().contiguous().t();
  if (layout == Layout::channels_last && x.dim() == 4) return x.contiguous(at::MemoryFormat::ChannelsLast);
  return x;
}

/// The rule of the row, with the first parameter in a group of its own, and the others under other options.
Optimizer grouped(const UpdateBaseline& row, const TensorList& parameters) {
  const auto& family = families.at(row.optimizer);
  if (row.optimizer == "LBFGS") return family.make(row.options, parameters);
  auto others = row.options;
  others["lr"] *= 2;
  if (has(others, "weight_decay")) others["weight_decay"] += 0.05;
  return {family.make(row.options, {parameters[0]}),
          family.make(others, TensorList(parameters.begin() + 1, parameters.end()))};
}

/// A flat slot of the baseline in the shape that the rule gives it: that of its first state, else the parameter's.
at::Tensor slot_of(const std::vector<double>& flat, const at::Tensor& first, const at::Tensor& parameter) {
  if (flat.empty()) return {};
  const auto x = torch::tensor(flat, at::kDouble);
  if (first.defined()) return x.reshape(first.sizes());
  return x.numel() == parameter.numel() ? x.reshape(parameter.sizes()) : x.reshape({});
}

struct Case {
  std::string name;
  int64_t steps_before;  ///< 3: begins in the state that Python has after 3 updates
  at::ScalarType dtype;
  Layout layout;
  double tolerance;
};

void PrintTo(const Case& given, std::ostream* stream) { *stream << given.name; }

class Python : public testing::TestWithParam<Case> {};

void expect_agreement(const UpdateBaseline& row, const Case& given) {
  SCOPED_TRACE(title(row));
  const auto& family = families.at(row.optimizer);
  TensorList parameters;
  int64_t begin = 0;
  for (size_t i = 0; i < family.shapes.size(); ++i) {
    auto value = values(family.shapes[i], static_cast<int64_t>(i));
    if (given.steps_before > 0) {
      value = torch::tensor(row.parameters[2], at::kDouble).narrow(0, begin, value.numel()).view(value.sizes());
      begin += value.numel();
    }
    parameters.push_back(laid_out(value.to(given.dtype), given.layout));
  }
  Course course(grouped(row, parameters));
  for (size_t i = 0; given.steps_before > 0 && i < parameters.size(); ++i) {
    TensorList slots;
    for (size_t s = 0; s < row.states[i].size(); ++s) {
      const auto& first = course.states[i].slots;
      auto slot = slot_of(row.states[i][s], s < first.size() ? first[s] : at::Tensor(), parameters[i]);
      if (slot.defined() && slot.dim() > 0) slot = laid_out(slot.to(given.dtype), given.layout);
      slots.push_back(slot);
    }
    course.states[i] = {given.steps_before, slots};
  }

  const auto strides = course.parameters.back().strides().vec();
  const std::map<int64_t, size_t> checkpoints{{0, 0}, {1, 1}, {2, 2}, {19, 3}};
  for (int64_t t = given.steps_before; t < 20; ++t) {
    TensorList gradients;
    for (size_t i = 0; i < parameters.size(); ++i) {
      gradients.push_back(laid_out(
          (values(family.shapes[i], 3 + 3 * t + static_cast<int64_t>(i)) * std::pow(0.5, t % 4)).to(given.dtype),
          given.layout));
    }
    course.update(gradients);
    const auto checkpoint = checkpoints.find(t);
    if (checkpoint == checkpoints.end()) continue;
    TensorList flat;
    for (const auto& parameter : course.parameters) flat.push_back(parameter.flatten());
    expect_near(at::cat(flat).to(at::kDouble), torch::tensor(row.parameters[checkpoint->second], at::kDouble),
                given.tolerance);
  }
  EXPECT_EQ(course.parameters.back().strides().vec(), strides);
  EXPECT_EQ(course.parameters.back().scalar_type(), given.dtype);
}

TEST_P(Python, agrees) {
  for (const auto& row : update_baselines) expect_agreement(row, GetParam());
}

INSTANTIATE_TEST_SUITE_P(All, Python,
                         testing::Values(Case{"fresh", 0, at::kDouble, Layout::contiguous, 1e-12},
                                         Case{"used", 3, at::kDouble, Layout::contiguous, 1e-12},
                                         Case{"transposed", 0, at::kDouble, Layout::transposed, 1e-12},
                                         Case{"channels_last", 3, at::kDouble, Layout::channels_last, 1e-12},
                                         Case{"float", 0, at::kFloat, Layout::contiguous, 2e-5},
                                         Case{"float_used", 3, at::kFloat, Layout::channels_last, 2e-5}),
                         [](const auto& info) { return info.param.name; });

TEST(Optim, covers_every_family) {
  std::set<std::string> updated, looped;
  for (const auto& row : update_baselines) updated.insert(row.optimizer);
  for (const auto& row : loop_baselines) looped.insert(row.optimizer);
  for (const auto& [name, family] : families) {
    EXPECT_TRUE(updated.count(name)) << name;
    EXPECT_TRUE(looped.count(name)) << name;
  }
}

// In bfloat16 a last bit may differ between matrix kernels; 2^-8 of the update's size is one.
TEST(Optim, muon_agrees_where_python_rounds_to_bfloat16) {
  for (const auto& row : rounded_baselines) {
    SCOPED_TRACE(title(row));
    const Muon muon(muon_options(row.options).orthogonalization_dtype(at::kBFloat16));
    const auto others = [&] {
      auto options = row.options;
      options["lr"] *= 2;
      options["weight_decay"] += 0.05;
      return Muon(muon_options(options).orthogonalization_dtype(at::kBFloat16));
    }();
    Course course(
        Optimizer{Optimizer(muon, {values({3, 2}, 0)}), Optimizer(others, {values({2, 3}, 1), values({2, 2}, 2)})});
    course.update({values({3, 2}, 3), values({2, 3}, 4), values({2, 2}, 5)});
    TensorList flat;
    for (const auto& parameter : course.parameters) flat.push_back(parameter.flatten());
    const auto expected = torch::tensor(row.parameters[0], at::kDouble);
    EXPECT_LE((at::cat(flat) - expected).abs().max().item<double>(), 2 * row.options.at("lr") * std::pow(2, -7));
  }
}

TEST(Optim, has_the_defaults_of_python) {
  for (const auto& row : default_baselines) {
    SCOPED_TRACE(row.optimizer);
    const std::map<std::string, std::shared_ptr<UpdateRule>> rules{{"SGD", std::make_shared<SGD>(SGDOptions(1e-3))},
                                                                   {"Adam", std::make_shared<Adam>()},
                                                                   {"AdamW", std::make_shared<AdamW>()},
                                                                   {"Adamax", std::make_shared<Adamax>()},
                                                                   {"NAdam", std::make_shared<NAdam>()},
                                                                   {"RAdam", std::make_shared<RAdam>()},
                                                                   {"Adadelta", std::make_shared<Adadelta>()},
                                                                   {"Adagrad", std::make_shared<Adagrad>()},
                                                                   {"RMSprop", std::make_shared<RMSprop>()},
                                                                   {"ASGD", std::make_shared<ASGD>()},
                                                                   {"Rprop", std::make_shared<Rprop>()},
                                                                   {"Adafactor", std::make_shared<Adafactor>()},
                                                                   {"Muon", std::make_shared<Muon>()},
                                                                   {"LBFGS", std::make_shared<LBFGS>()}};
    Options ours;
    for (const auto& spec : rules.at(row.optimizer)->hyperparameters()) ours[spec.name] = spec.value;
    EXPECT_EQ(ours, row.options);
  }
}

// ---------------------------------------------------------------- libtorch's own optimizers

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
  optimizer.step([] { return at::zeros({}); });
}

/// The states of a group that begins at `begin`, into the optimizer that holds its parameters.
void copy_back(const Course& course, const TensorList& parameters, torch::optim::Optimizer& optimizer) {
  size_t i = 0;
  for (const auto& group : optimizer.param_groups()) {
    std::vector<ParameterState> states;
    TensorList held;
    for (size_t k = 0; k < group.params().size(); ++k, ++i) {
      if (course.states[i].step == 0) continue;
      states.push_back(course.states[i]);
      held.push_back(parameters[i]);
    }
    copy_states(states, held, optimizer);
  }
}

TEST_P(Libtorch, agrees_side_by_side_and_after_copying_back) {
  const auto [steps_before, dtype] = GetParam();
  const double tolerance = dtype == at::kDouble ? 1e-12 : 1e-5;
  for (const auto& row : update_baselines) {
    const auto& family = families.at(row.optimizer);
    if (!family.make_torch || has(row.options, "maximize")) continue;  // libtorch's have no such option
    SCOPED_TRACE(title(row));
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
    copy_back(course, back, *back_optimizer);

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
  copy_states(course.states, parameters, plain);
  static_cast<torch::optim::SGDOptions&>(plain.param_groups()[0].options()).momentum(0.9);
  parameters[0].mutable_grad() = values({3}, 2);
  plain.step();
  const auto* state = static_cast<const torch::optim::SGDParamState*>(find_state(plain, parameters[0]));
  ASSERT_NE(state, nullptr);
  EXPECT_TRUE(at::equal(state->momentum_buffer(), values({3}, 2)));

  ParameterState attached{1, {values({3}, 3).requires_grad_() * 2}};
  copy_states({attached}, parameters, plain);
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

// One step(closure) of torch.optim makes max_iter iterations, each of which is an inner step.
TEST(Optim, lbfgs_makes_an_iteration_a_step_and_takes_no_line_search) {
  const auto H = at::diag(at::tensor({1.0, 3.0, 9.0}, at::kDouble));
  const auto point = std::make_shared<Point>(values({3}, 7));
  const auto loss = [&] { return 0.5 * point->theta.dot(H.mv(point->theta)) + point->theta.pow(4).sum(); };
  torch::optim::LBFGS lbfgs({point->theta}, torch::optim::LBFGSOptions(0.4).max_iter(6));
  InnerLoop inner(point, lbfgs);
  for (int k = 0; k < 12; ++k) inner.step(loss);
  for (int k = 0; k < 2; ++k) {
    lbfgs.step([&] {
      lbfgs.zero_grad();
      const auto value = loss();
      value.backward();
      return value;
    });
  }
  expect_near(inner.parameters()[0], point->theta, 1e-12);

  torch::optim::LBFGS searching({point->theta}, torch::optim::LBFGSOptions(1).line_search_fn("strong_wolfe"));
  expect_error([&] { Optimizer{searching}; }, "LBFGS: a line search (strong_wolfe) is not differentiable");
}

// Where it is at a minimum to its tolerances torch.optim stays, and so does it; it makes no NaN disappear.
TEST(Optim, lbfgs_has_the_tolerances_of_torch) {
  using Tolerances = std::pair<double, double>;
  for (const auto& [gradient, change] : {Tolerances{1e-7, 1e-9}, {0.1, 1e-9}, {1e-7, 0.05}, {1e-7, 10}, {10, 1e-9}}) {
    const auto H = at::diag(at::tensor({1.0, 3.0, 9.0}, at::kDouble));
    const auto point = std::make_shared<Point>(values({3}, 7));
    const auto loss = [&] { return 0.5 * point->theta.dot(H.mv(point->theta)); };
    torch::optim::LBFGS lbfgs(
        {point->theta}, torch::optim::LBFGSOptions(0.9).max_iter(1).tolerance_grad(gradient).tolerance_change(change));
    InnerLoop inner(point, lbfgs);
    for (int k = 0; k < 8; ++k) {
      inner.step(loss);
      lbfgs.step([&] {
        lbfgs.zero_grad();
        const auto value = loss();
        value.backward();
        return value;
      });
      expect_near(inner.parameters()[0], point->theta, 1e-12);
    }
  }
  Course course(Optimizer(LBFGS(), {values({2}, 0)}));
  course.update({at::tensor({std::nan(""), 1.0}, at::kDouble)});
  EXPECT_TRUE(course.parameters[0].isnan().any().item<bool>());
}

TEST(Optim, adafactor_takes_the_machine_epsilon_of_the_dtype) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const double epsilon = dtype == at::kDouble ? std::pow(2, -52) : std::pow(2, -23);
    const auto start = values({2, 2}, 0).to(dtype), gradient = values({2, 2}, 1).to(dtype) * epsilon;
    Course given(Optimizer(Adafactor(AdafactorOptions().eps1(epsilon)), {start}));
    Course own(Optimizer(Adafactor(), {start}));
    given.update({gradient});
    own.update({gradient});
    EXPECT_TRUE(at::equal(given.parameters[0], own.parameters[0]));
    EXPECT_FALSE(at::equal(own.parameters[0], start));
  }
}

// Squares of numbers of this size are infinite in half precision.
TEST(Optim, norms_do_not_overflow_in_half_precision) {
  const auto large = at::full({2, 2}, 300, at::kHalf), small = at::full({2, 2}, 1, at::kHalf);
  for (const auto& rule : {Optimizer(LAMB(0.1), {large}), Optimizer(Adafactor(0.01), {large})}) {
    Course course(rule);
    course.update({small});
    const auto change = (large - course.parameters[0]).to(at::kFloat);
    EXPECT_TRUE(change.gt(1).logical_and(change.lt(60)).all().item<bool>()) << change;
  }
  EXPECT_TRUE(at::allclose(clip_by_norm(1)({large}, {large}, 0)[0].to(at::kFloat), at::full({2, 2}, 0.5f), 1e-3));
  EXPECT_TRUE(at::allclose(adaptive_clip(0.1)({large}, {small}, 0)[0].to(at::kFloat), at::full({2, 2}, 0.1f), 1e-3));
}

TEST(Optim, copied_state_has_what_the_options_of_its_new_place_need) {
  const auto parameters = requires_grad({values({3}, 0)});
  const auto step_after = [&](auto from, auto to) {
    Course course(from);
    course.update({values({3}, 1)});
    copy_states(course.states, parameters, to);
    parameters[0].mutable_grad() = values({3}, 2);
    to.step();
    EXPECT_TRUE(parameters[0].isfinite().all().item<bool>());
  };
  using torch::optim::AdamOptions;
  step_after(torch::optim::Adam(parameters), torch::optim::Adam(parameters, AdamOptions().amsgrad(true)));
  using torch::optim::RMSpropOptions;
  step_after(torch::optim::RMSprop(parameters), torch::optim::RMSprop(parameters, RMSpropOptions().centered(true)));
  step_after(torch::optim::RMSprop(parameters), torch::optim::RMSprop(parameters, RMSpropOptions().momentum(0.5)));
}

TEST(Optim, maximize_climbs) {
  for (const auto& row : update_baselines) {
    if (!has(row.options, "maximize")) continue;
    SCOPED_TRACE(title(row));
    const auto point = std::make_shared<Point>(values({3}, 7));
    const auto loss = [&] { return point->theta.square().sum(); };
    auto options = row.options;
    options["lr"] = 0.01;
    options["weight_decay"] = 0;
    InnerLoop inner(point, families.at(row.optimizer).make(options, {point->theta}));
    const auto first = inner.step(loss), second = inner.step(loss), third = inner.step(loss);
    EXPECT_LT(first.item<double>(), second.item<double>());
    EXPECT_LT(second.item<double>(), third.item<double>());
  }
}

TEST(Optim, refuses_what_a_rule_cannot_take) {
  expect_error([] { SGD(SGDOptions(0.1).nesterov(true)); }, "SGD: nesterov needs a momentum above 0 and no dampening");
  expect_error([] { Optimizer(Muon(), {values({3}, 0)}); }, "Muon: expected matrices, got a parameter of shape [3]");
  expect_error([] { Muon(MuonOptions().adjust_lr_fn("none")); },
               "Muon: expected adjust_lr_fn \"original\" or \"match_rms_adamw\", got \"none\"");
  expect_error([] { Muon(MuonOptions().ns_steps(100)); }, "Muon: expected 0 to 99 ns_steps, got 100");
  expect_error([] { LBFGS(LBFGSOptions().history_size(0)); }, "LBFGS: expected a history_size of at least 1, got 0");
  expect_error([] { Adafactor(AdafactorOptions().beta2_decay(0.8)); },
               "Adafactor: expected a beta2_decay of at most 0, got 0.8");
  expect_error([] { Adafactor(AdafactorOptions().d(0.5)); }, "Adafactor: expected d of at least 1, got 0.5");
  expect_error(
      [] {
        Rprop(RpropOptions().etas({1.2, 0.5}));
      },
      "Rprop: expected etas below and above 1, got 1.2 and 0.5");
  expect_error([] { Rprop(RpropOptions().step_sizes({2, 1})); }, "Rprop: expected step_sizes in ascending order");
  expect_error(
      [] {
        Optimizer(Adam(AdamOptions().betas({0.9, 1})), {values({2}, 0)});
      },
      "Adam: expected beta2 in [0, 1), got 1");
  expect_error([] { Optimizer(SGD(SGDOptions(-0.1)), {values({2}, 0)}); }, "SGD: expected lr of at least 0, got -0.1");
  expect_error([] { Optimizer(SGD(SGDOptions(NAN)), {values({2}, 0)}); }, "SGD: expected lr of at least 0, got nan");
  expect_error([] { Optimizer(SGD(0.1), {at::ones({2}, at::kComplexDouble)}); },
               "SGD: expected parameters of floating point, got ComplexDouble as number 0");
  for (const auto& [name, family] : families) {
    const auto row = std::find_if(update_baselines.begin(), update_baselines.end(),
                                  [wanted = name](const auto& r) { return r.optimizer == wanted; });
    for (const auto& scalar_only : family.scalar_only) {
      Course course(family.make(row->options, {values({2, 2}, 0)}).set(scalar_only, at::ones({2, 2}, at::kDouble)));
      expect_error([&] { course.update({values({2, 2}, 1)}); }, "expected one value a tensor, got one of shape [2, 2]");
    }
  }
}

}  // namespace
}  // namespace gimli::optim
