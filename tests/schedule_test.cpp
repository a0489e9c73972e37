#include "gimli/optim/schedule.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "expect.h"
#include "gimli/optim/rules/sgd.h"
#include "optim_fixture.h"

namespace {

using namespace gimli;
using namespace gimli::optim;

double number(const Value& value) { return value.is_number() ? value.number() : value.tensor().item<double>(); }

void expect_course(const Schedule& schedule, const std::vector<double>& expected) {
  for (size_t t = 0; t < expected.size(); ++t) EXPECT_NEAR(number(schedule(t)), expected[t], 1e-15) << "step " << t;
}

// The numbers of torch.optim.lr_scheduler, here as S:
//
//     o = torch.optim.SGD([torch.zeros(1, dtype=torch.float64, requires_grad=True)], lr=0.5)
//     s = make(o)
//     for _ in range(8): print(o.param_groups[0]["lr"]); o.step(); s.step()
TEST(Schedule, agrees_with_python) {
  // make = lambda o: S.StepLR(o, 3, 0.1)
  expect_course(step_decay(0.5, 3, 0.1), {0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.005000000000000001, 0.005000000000000001});
  // make = lambda o: S.MultiStepLR(o, [2, 5, 5, 6], 0.3)
  expect_course(multi_step(0.5, {2, 5, 5, 6}, 0.3), {0.5, 0.5, 0.15, 0.15, 0.15, 0.0135, 0.00405, 0.00405});
  // make = lambda o: S.ExponentialLR(o, 0.9)
  expect_course(exponential_decay(0.5, 0.9), {0.5, 0.45, 0.405, 0.36450000000000005, 0.32805000000000006,
                                              0.2952450000000001, 0.2657205000000001, 0.23914845000000007});
  // make = lambda o: S.CosineAnnealingLR(o, 5, 0.01)
  const std::vector<double> annealed = {
      0.5, 0.45320916362186214, 0.33070916362186215, 0.1792908363781379, 0.0567908363781379, 0.01};
  expect_course(cosine(0.5, 0.01, 5), annealed);
  // make = lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.2, 1.0, 4), S.ExponentialLR(o, 0.9)], [4])
  expect_course(linear_warmup(exponential_decay(0.5, 0.9), 4, 0.2),
                {0.1, 0.2, 0.30000000000000004, 0.4, 0.5, 0.45, 0.405, 0.36450000000000005});
  // make = lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.25, 1.0, 3), S.CosineAnnealingLR(o, 5, 0.01)], [3])
  auto warmed = annealed;
  warmed.insert(warmed.begin(), {0.125, 0.25, 0.375});
  expect_course(linear_warmup(cosine(0.5, 0.01, 5), 3, 0.25), warmed);
}

TEST(Schedule, edges) {
  expect_course(constant(0.5), {0.5, 0.5, 0.5});
  expect_course(cosine(0.5, 0.25, 1), {0.5, 0.25, 0.25, 0.25});
  expect_course(exponential_decay(0.5, 0), {0.5, 0, 0});
  expect_course(step_decay(0.5, 2, 0), {0.5, 0.5, 0, 0});
  expect_course(multi_step(0.5, {}, 0.1), {0.5, 0.5});
  expect_course(multi_step(0.5, {0, 1}, 0.5), {0.25, 0.125, 0.125});
  expect_course(linear_warmup(constant(0.5), 2, 0), {0, 0.25, 0.5, 0.5});
  expect_course(linear_warmup(constant(0.5), 0, 0), {0.5, 0.5});
}

struct Learned {
  const char* name;
  std::vector<double> parameters;
  std::function<Schedule(const Values&)> make;
};

const std::vector<Learned> schedules = {
    {"constant", {0.5}, [](const Values& p) { return constant(p[0]); }},
    {"step_decay", {0.5, 0.75}, [](const Values& p) { return step_decay(p[0], 2, p[1]); }},
    {"multi_step",
     {0.5, 0.75},
     [](const Values& p) {
       return multi_step(p[0], {1, 4, 4}, p[1]);
     }},
    {"exponential_decay", {0.5, 0.75}, [](const Values& p) { return exponential_decay(p[0], p[1]); }},
    {"cosine", {0.5, 0.125}, [](const Values& p) { return cosine(p[0], p[1], 5); }},
    {"linear_warmup",
     {0.5, 0.75, 0.25},
     [](const Values& p) { return linear_warmup(exponential_decay(p[0], p[1]), 3, p[2]); }},
    {"factor 0", {0.5, 0}, [](const Values& p) { return step_decay(p[0], 2, p[1]); }},
    {"start factor 0", {0.5, 0}, [](const Values& p) { return linear_warmup(constant(p[0]), 3, p[1]); }},
};

TensorList leaves(const std::vector<double>& numbers) {
  TensorList list;
  for (const auto number : numbers) list.push_back(scalar(number));
  return list;
}

Values as_values(const TensorList& list) { return Values(list.begin(), list.end()); }

TEST(Schedule, has_the_value_of_numbers_and_derivatives_in_every_parameter) {
  for (const auto& row : schedules) {
    SCOPED_TRACE(row.name);
    const auto inputs = leaves(row.parameters);
    const auto learned = row.make(as_values(inputs));
    const auto fixed = row.make(Values(row.parameters.begin(), row.parameters.end()));
    for (int64_t t = 0; t < 8; ++t) EXPECT_NEAR(number(learned(t)), number(fixed(t)), 1e-16);

    const auto weights = far_values({8}, 3);
    expect_derivatives(
        [&](const TensorList& in) {
          const auto schedule = row.make(as_values(in));
          auto total = at::zeros({}, at::kDouble);
          for (int64_t t = 0; t < 8; ++t) total = total + weights[t] * schedule(t).tensor().pow(2);
          return total;
        },
        inputs);
  }
}

TEST(Schedule, hypergradients_agree_with_central_differences) {
  for (const auto& row : schedules) {
    SCOPED_TRACE(row.name);
    const auto point = std::make_shared<Point>(values({3}, 1));
    const auto meta_parameters = leaves(row.parameters);
    Optimizer sgd(SGD(SGDOptions(0.1)), {point->theta});
    sgd.set("lr", row.make(as_values(meta_parameters)));
    const auto problem =
        Bilevel(point, sgd).steps(6).inner([=] { return (point->theta - 1).square().sum() / 4; }).outer([=] {
          return point->theta.pow(3).sum();
        });
    const auto report = gradcheck(problem, meta_parameters);
    EXPECT_TRUE(report) << report.message;
    for (const auto& gradient : hypergradient(problem, meta_parameters).gradients) {
      EXPECT_NE(gradient.item<double>(), 0);
    }
  }
}

// A schedule counts the inner loop's steps, and one hyperparameter's is as good as another's.
TEST(Schedule, moves_any_hyperparameter) {
  const auto point = std::make_shared<Point>(at::ones({}, at::kFloat));
  Optimizer sgd(SGD(SGDOptions(1)), {point->theta});
  sgd.set("lr", multi_step(0.5, {1}, 0.5)).set("weight_decay", [](int64_t step) { return Value(step == 0 ? 0. : 2.); });
  InnerLoop inner(point, sgd);
  for (int step = 0; step < 2; ++step) inner.step([&] { return point->theta.sum(); });
  EXPECT_EQ(inner.parameters()[0].item<double>(), 0.5 - 0.25 * (1 + 2 * 0.5));
}

TEST(Schedule, takes_a_tensor_for_each_element) {
  const auto start = values({3}, 2).requires_grad_();
  const auto schedule = linear_warmup(cosine(start, 0.5, 4), 2, 0.5);
  for (int64_t t = 0; t < 7; ++t) {
    for (int64_t i = 0; i < 3; ++i) {
      const auto one = linear_warmup(cosine(start[i].item<double>(), 0.5, 4), 2, 0.5)(t).number();
      EXPECT_NEAR(schedule(t).tensor()[i].item<double>(), one, 1e-15);
    }
  }
}

TEST(Schedule, refuses_what_makes_no_sense) {
  const double nan = std::nan("");
  expect_error([=] { constant(nan); }, "constant: expected the start to be finite, got nan");
  expect_error([] { constant(at::Tensor()); },
               "constant: expected the start to be a number or a floating-point tensor, got an undefined tensor");
  expect_error([] { exponential_decay(at::ones({}, at::kLong), 1); },
               "exponential_decay: expected the start to be a number or a");
  expect_error([] { exponential_decay(1, -0.5); },
               "exponential_decay: expected the factor to be finite and at least 0, got -0.5");
  expect_error([] { step_decay(1, 0, 0.5); }, "step_decay: expected a period of at least 1 step, got 0");
  expect_error([] { step_decay(1, 1, HUGE_VAL); },
               "step_decay: expected the factor to be finite and at least 0, got inf");
  expect_error(
      [] {
        multi_step(1, {3, 2}, 0.5);
      },
      "multi_step: expected milestones in ascending order from 0 on, got [3, 2]");
  expect_error([] { multi_step(1, {-1}, 0.5); }, "got [-1]");
  expect_error([] { cosine(1, 0, 0); }, "cosine: expected at least 1 step, got 0");
  expect_error([=] { cosine(1, nan, 3); }, "cosine: expected the end to be finite, got nan");
  expect_error([] { linear_warmup(constant(1), -1, 0.5); }, "linear_warmup: expected 0 steps or more, got -1");
  expect_error([] { linear_warmup(constant(1), 2, 1.5); },
               "linear_warmup: expected the start factor to be from 0 to 1, got 1.5");
  expect_error([] { linear_warmup({}, 2, 0.5); },
               "linear_warmup: expected a schedule to follow the warm-up, got an empty function");
}

}  // namespace
