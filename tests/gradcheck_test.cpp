#include "gimli/gradcheck.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "gimli/optim/rules/sgd.h"

namespace {

using gimli::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

at::Tensor vector(std::vector<double> numbers) { return torch::tensor(numbers, at::kDouble).requires_grad_(); }

/// x^3 with the right derivative except at the third element.
struct WrongFirst : torch::autograd::Function<WrongFirst> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.pow(3);
  }
  static tensor_list backward(AutogradContext* context, tensor_list gradients) {
    const auto x = context->get_saved_variables()[0];
    const auto wrong = at::arange(x.numel()).eq(2);
    return {gradients[0] * 3 * x * x * (1 + 1e-3 * wrong)};
  }
};

/// x^3 with the right first derivative, of which a part is cut from the graph.
struct WrongSecond : torch::autograd::Function<WrongSecond> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.pow(3);
  }
  static tensor_list backward(AutogradContext* context, tensor_list gradients) {
    const auto x = context->get_saved_variables()[0];
    return {gradients[0] * 3 * x * x.detach()};
  }
};

TEST(Gradcheck, passes_right_derivatives) {
  const TensorList inputs{vector({0.5, -1, 2}), vector({3}), vector({7})};
  const auto function = [](const TensorList& in) { return (in[0].sin() * in[1].exp()).sum(); };  // in[2] is not used
  for (const auto& report : {gimli::gradcheck(function, inputs), gimli::gradgradcheck(function, inputs)}) {
    EXPECT_TRUE(report) << report.message;
    EXPECT_TRUE(report.message.empty());
    EXPECT_GT(report.worst_error, 0);
    EXPECT_LT(report.worst_error, 1e-6);
  }
}

TEST(Gradcheck, takes_transposed_inputs_and_constants) {
  const auto x = torch::arange(6, at::kDouble).reshape({2, 3}).t().detach().requires_grad_();
  const auto constant = torch::tensor({1.0, 2.0, 3.0}, at::kDouble).unsqueeze(1);
  const auto function = [](const TensorList& in) { return (in[0].pow(3) * in[1]).sum(); };
  const auto report = gimli::gradcheck(function, {x, constant}, gimli::GradcheckOptions().relative(1e-5));
  EXPECT_TRUE(report) << report.message;
}

TEST(Gradcheck, names_the_wrong_element) {
  const TensorList inputs{vector({1, 2}), vector({1, 2, 3, 4})};
  const auto function = [](const TensorList& in) { return in[0].sum() + WrongFirst::apply(in[1]).sum(); };
  const auto report = gimli::gradcheck(function, inputs);
  EXPECT_FALSE(report);
  EXPECT_EQ(report.message.find("input 1, element 2: derivative 27.027, by central differences 27"), 0u)
      << report.message;
  EXPECT_NEAR(report.worst_error, 0.027, 1e-5);
}

TEST(Gradcheck, fails_on_nan) {
  const auto function = [](const TensorList& in) { return (in[0] * 0).sqrt().sum() + in[0].sum(); };
  const auto report = gimli::gradcheck(function, {vector({1, 2})});
  EXPECT_FALSE(report);
  EXPECT_EQ(report.message.find("input 0, element 0: derivative "), 0u) << report.message;
  EXPECT_TRUE(std::isnan(report.worst_error));
}

TEST(Gradcheck, finds_a_wrong_second_derivative) {
  const TensorList inputs{vector({1, 2})};
  const auto function = [](const TensorList& in) { return WrongSecond::apply(in[0]).sum(); };
  EXPECT_TRUE(gimli::gradcheck(function, inputs));
  const auto report = gimli::gradgradcheck(function, inputs);
  EXPECT_FALSE(report);
  EXPECT_EQ(report.message.find("input 0, element "), 0u) << report.message;
}

TEST(Gradcheck, refuses_low_precision_and_vectors) {
  const auto sum = [](const TensorList& in) { return in[0].sum(); };
  const auto single = torch::ones({2}, at::kFloat).requires_grad_();
  EXPECT_THROW(gimli::gradcheck(sum, {single}), c10::Error);
  EXPECT_THROW(gimli::gradgradcheck(sum, {single}), c10::Error);
  EXPECT_THROW(gimli::gradcheck([](const TensorList& in) { return in[0] * 2; }, {vector({1, 2})}), c10::Error);
}

struct Point : torch::nn::Module {
  explicit Point(const at::Tensor& value) { theta = register_parameter("theta", value); }
  at::Tensor theta;
};

struct GradcheckBilevel : testing::Test {
  std::shared_ptr<Point> point = std::make_shared<Point>(vector({0.1, -0.7}));
  at::Tensor weight = vector({0.3, 1.1});
  TensorList meta_parameters{point->theta, weight};
  gimli::Bilevel problem = gimli::Bilevel(point, gimli::optim::Optimizer(gimli::optim::SGD(0.1), {point->theta}))
                               .steps(3)
                               .inner([this] { return (weight * point->theta.cosh()).sum(); })
                               .outer([this] { return (point->theta - 1).square().sum(); });

  void expect_untouched() {
    EXPECT_TRUE(at::equal(point->theta, vector({0.1, -0.7})));
    EXPECT_TRUE(at::equal(weight, vector({0.3, 1.1})));
    EXPECT_FALSE(point->theta.grad().defined());
  }
};

TEST_F(GradcheckBilevel, passes_the_exact_and_fails_the_first_order_gradient) {
  const auto exact = gimli::gradcheck(problem, meta_parameters);
  EXPECT_TRUE(exact) << exact.message;
  expect_untouched();
  EXPECT_FALSE(gimli::gradcheck(problem, {point->theta}, {}, gimli::Unroll::first_order()));
  expect_untouched();
}

TEST_F(GradcheckBilevel, restores_the_meta_parameters_if_a_closure_throws) {
  int calls = 0;
  problem.outer([&calls, this] {
    if (++calls == 4) throw std::runtime_error("no more");  // while the second element is moved
    return point->theta.square().sum();
  });
  EXPECT_THROW(gimli::gradcheck(problem, meta_parameters), std::runtime_error);
  EXPECT_EQ(calls, 4);
  expect_untouched();
}

TEST_F(GradcheckBilevel, refuses_low_precision) {
  const auto single = std::make_shared<Point>(torch::ones({2}).requires_grad_());
  const auto other = gimli::Bilevel(single, gimli::optim::Optimizer(gimli::optim::SGD(0.1), {single->theta}))
                         .inner([&] { return single->theta.square().sum(); })
                         .outer([&] { return single->theta.square().sum(); });
  try {
    gimli::gradcheck(other, {single->theta});
    FAIL() << "no error";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("gradcheck: input 0 is Float, expected Double"), std::string::npos);
  }
}

}  // namespace
