#include "optim_table.h"

namespace gimli::optim {
namespace {

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
      },
      {{"lr", [](FadingOptions& to, double x) { to.lr(x); }}});
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
  const auto problem = Bilevel(point, optimizer).steps(3).inner(loss).outer(loss);
  const auto report = gradcheck(problem, {point->theta, lr});
  EXPECT_TRUE(report) << report.message;

  InnerLoop inner(point, optimizer);
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

  Optimizer again(fading);
  const auto learned = learn(again, {"lr"}, LearnOptions().domain(Domain::real));
  learned.tensors()[0].detach().fill_(0.25);
  learned.copy_to(fading);
  EXPECT_EQ(static_cast<FadingOptions&>(fading.param_groups()[0].options()).lr(), 0.25);
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
}  // namespace gimli::optim
