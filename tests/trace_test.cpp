#include <gtest/gtest.h>
#include <torch/torch.h>

#include "expect.h"
#include "gimli/operators/batch_norm.h"
#include "gimli/operators/convolution.h"
#include "gimli/operators/layer_norm.h"
#include "gimli/operators/max_pool.h"
#include "gimli/trace.h"

namespace gimli {
namespace {

using torch::Tensor;

/// A function of its inputs, with its own tensors.
struct Row {
  std::string name;
  std::function<TensorList(const TensorList& inputs)> function;
  std::vector<std::vector<int64_t>> sizes;
};

TensorList random_inputs(const std::vector<std::vector<int64_t>>& sizes, at::ScalarType type) {
  TensorList list;
  for (const auto& each : sizes) list.push_back(torch::randn(each, type));
  return list;
}

void expect_close(const TensorList& actual, const TensorList& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].sizes(), expected[i].sizes());
    if (!expected[i].is_floating_point() || expected[i].numel() == 0) {
      EXPECT_TRUE(at::equal(actual[i], expected[i])) << "tensor " << i;
      continue;
    }
    const double tolerance = actual[i].scalar_type() == torch::kDouble ? 1e-12 : 1e-5;
    const auto scale = 1 + expected[i].nan_to_num().abs().max().item<double>();
    EXPECT_TRUE(at::allclose(actual[i], expected[i], 0, tolerance * scale, /*equal_nan=*/true))
        << "tensor " << i << ":\n"
        << actual[i] << "\nexpected\n"
        << expected[i];
    EXPECT_EQ(actual[i].sizes(), expected[i].sizes());
  }
}

TensorList second_derivatives(const std::function<Tensor(const TensorList&)>& loss, const TensorList& inputs) {
  TensorList leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().requires_grad_());
  const auto first = torch::autograd::grad({loss(leaves)}, leaves, {}, true, true);
  auto sum = torch::zeros({}, inputs[0].options());
  for (const auto& gradient : first) sum = sum + gradient.square().sum();
  return torch::autograd::grad({sum}, leaves);
}

const std::vector<Row> rows{
    {"pointwise", [](const TensorList& in) { return TensorList{(in[0] * 2 + in[1]).sin().exp()}; }, {{3, 4}, {4}}},
    {"views_and_products",
     [](const TensorList& in) {
       return TensorList{in[0].t().matmul(in[1]).view({2, -1}).select(0, 1), in[0].unsqueeze(0).expand({3, 4, 4})};
     },
     {{4, 4}, {4, 6}}},
    {"in_place",
     [](const TensorList& in) {
       auto sum = torch::zeros({4});
       sum.add_(in[0]).mul_(3);
       auto part = torch::empty({2, 4});
       part[0].copy_(sum);
       part[1].fill_(2);
       return TensorList{part, sum};
     },
     {{4}}},
    {"lists",
     [](const TensorList& in) {
       return TensorList{torch::cat({in[0], in[1], in[0]}), torch::stack({in[0], in[0]}, 1)};
     },
     {{3, 2}, {2, 2}}},
    {"indices",
     [](const TensorList& in) {
       return TensorList{in[0].index({torch::tensor({2, 0})}), in[0].argmax(1), in[0].gt(0)};
     },
     {{3, 5}}},
    {"types",
     [](const TensorList& in) {
       return TensorList{in[0].to(torch::kDouble).sum(), (in[0] > 0).to(torch::kFloat).mean()};
     },
     {{3, 5}}},
    {"factories",
     [](const TensorList& in) { return TensorList{in[0] + torch::arange(4) + torch::ones({4}) * torch::full({}, 3.)}; },
     {{4}}},
    // Of these, forms that write into given memory resize it, or there are none.
    {"losses",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) {
             const auto y = x[0].matmul(x[1]);
             return torch::mse_loss(y, x[2]) + torch::smooth_l1_loss(y, x[2]) +
                    torch::nll_loss(torch::log_softmax(y, 1), torch::arange(4));
           },
           in);
     },
     {{4, 3}, {3, 5}, {4, 5}}},
    {"running_statistics",
     [](const TensorList& in) {
       auto mean = torch::zeros({3}, in[0].options()), variance = torch::ones({3}, in[0].options());
       for (int i = 0; i < 2; ++i) torch::batch_norm(in[0], {}, {}, mean, variance, true, 0.3, 1e-5, false);
       return TensorList{mean, variance};
     },
     {{5, 3, 2}}},
    {"double_backward",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) { return torch::tanh(x[0].matmul(x[1]) + x[2]).square().mean(); }, in);
     },
     {{5, 3}, {3, 4}, {4}}},
    {"convolutions",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) {
             const auto y =
                 torch::batch_norm(torch::conv2d(x[0], x[1], x[2], 1, 1), {}, {}, {}, {}, true, 0.1, 1e-5, false);
             return torch::cross_entropy_loss(torch::max_pool2d(torch::relu(y), 2).flatten(1), torch::arange(3));
           },
           in);
     },
     {{3, 2, 4, 4}, {4, 2, 3, 3}, {4}}},
    {"own_operators",
     [](const TensorList& in) {
       auto mean = torch::zeros({4}, in[0].options()), variance = torch::ones({4}, in[0].options());
       auto list = second_derivatives(
           [&](const TensorList& x) {
             const auto y = operators::convolution({x[0], x[1], x[2], {1, 1}, {1, 1}, {1, 1}, 1});
             const auto z = operators::batch_norm({y, x[3], x[2], mean, variance, 0.3, 1e-5});
             const auto pooled = operators::max_pool({operators::relu(z), {2, 2}, {2, 2}, {0, 0}, {1, 1}, false});
             return operators::layer_norm({pooled, {2, 3}, {}, {}, 1e-5}).pow(3).sum();
           },
           in);
       list.insert(list.end(), {mean, variance});
       return list;
     },
     {{3, 2, 4, 6}, {4, 2, 3, 3}, {4}, {4}}},
    // As nn::MultiheadAttention asks.
    {"whether_two_are_one",
     [](const TensorList& in) { return TensorList{at::equal(in[0], in[0]) ? in[0] * 2 : in[0]}; },
     {{3, 2}}},
    {"attention",
     [](const TensorList& in) {
       return second_derivatives(
           [](const TensorList& x) {
             const auto scores = torch::softmax(x[0].matmul(x[1].transpose(-1, -2)), -1);
             return torch::layer_norm(scores.matmul(x[1]), {4}).pow(3).sum();
           },
           in);
     },
     {{2, 3, 4}, {2, 3, 4}}},
};

class TraceTest : public testing::TestWithParam<Row> {};
INSTANTIATE_TEST_SUITE_P(Table, TraceTest, testing::ValuesIn(rows), [](const auto& info) { return info.param.name; });

TEST_P(TraceTest, ReplaysOnOtherDataWithDifferenceZero) {
  torch::manual_seed(1);
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    const auto first = random_inputs(GetParam().sizes, type);
    const auto recording = Trace::record([&] { return GetParam().function(first); }, {first, {}});
    ASSERT_TRUE(recording.trace) << recording.refusal;
    expect_equal(recording.outputs, GetParam().function(first));
    const auto memory = recording.trace->allocate();
    for (int round = 0; round < 3; ++round) {
      const auto other = random_inputs(GetParam().sizes, type);
      expect_equal(recording.trace->replay(*memory, other), GetParam().function(other));
    }
  }
}

// ---------------------------------------------------------------- own kernels

/// Operators of which so many of gimli's own kernels are left, and none of libtorch's; -1 where some are.
struct OwnRow {
  std::string name;
  std::function<TensorList(const TensorList& inputs)> function;
  std::vector<std::vector<int64_t>> sizes;
  int64_t kernels = 1;
};

Tensor squared_error_of_layers(const TensorList& in) {
  const auto hidden = torch::relu(torch::linear(in[0], in[1], in[2]));
  return torch::mse_loss(torch::linear(torch::relu(torch::linear(hidden, in[3])), in[4]), in[5]);
}

const std::vector<OwnRow> own_rows{
    {"rows_and_columns", [](const TensorList& in) { return TensorList{in[0] + in[1].t()}; }, {{7, 5}, {5, 7}}},
    {"broadcast", [](const TensorList& in) { return TensorList{torch::sub(in[0], in[1], 3)}; }, {{4, 1, 37}, {5, 1}}},
    {"broadcast_within", [](const TensorList& in) { return TensorList{in[0] * in[1]}; }, {{9, 21}, {9, 1}}},
    {"numbers", [](const TensorList& in) { return TensorList{torch::rsub(in[0] * 2, 3) / 7}; }, {{33}}, 3},
    {"a_number_of_another_type",
     [](const TensorList& in) {
       return TensorList{in[0] * torch::full({}, 0.3, torch::kDouble),
                         in[0] + torch::full({}, 0.3, torch::dtype(torch::kFloat)), in[0] * in[1].to(torch::kFloat)};
     },
     {{19}, {}},
     -1},
    {"gaps", [](const TensorList& in) { return TensorList{in[0].select(1, 1) - in[0].select(1, 0)}; }, {{6, 2, 5}}},
    {"every_other_element", [](const TensorList& in) { return TensorList{in[0].slice(0, 0, 40, 2).neg()}; }, {{40}}},
    {"nothing",
     [](const TensorList& in) {
       return TensorList{in[0] + in[0], in[0].sum(0)};
     },
     {{0, 3}},
     2},
    {"one_number",
     [](const TensorList& in) {
       return TensorList{in[0] - in[1], in[1].sum()};
     },
     {{}, {1}},
     2},
    {"powers",
     [](const TensorList& in) {
       const auto x = in[0].abs();
       return TensorList{x.pow(2), in[0].pow(3), x.sqrt(), x.rsqrt(), x.pow(-1), x.pow(-0.5), in[0].sgn(), -in[0]};
     },
     {{3, 11}},
     9},
    {"elementary_functions",
     [](const TensorList& in) {
       const auto x = in[0] * 3;
       return TensorList{x.exp(), x.abs().log(), torch::sigmoid(x), torch::tanh(x), torch::lerp(x, in[0], 0.3)};
     },
     {{5, 29}},
     7},
    // Infinities, NaN and what underflows.
    {"elementary_functions_at_the_edges",
     [](const TensorList& in) {
       const auto size = in[0].scalar_type() == torch::kDouble ? 200 : 24;
       const auto x = torch::sinh(in[0] * size);
       return TensorList{torch::exp(-x.abs()).log(), torch::sigmoid(x), torch::tanh(x), (x - x).log(),
                         (x / (x - x)).exp()};
     },
     {{50}},
     -1},
    {"softmax",
     [](const TensorList& in) {
       const auto y = torch::softmax(in[0] * 4, 1), z = torch::log_softmax(in[0] * 4, -1);
       return TensorList{y, z, at::_softmax_backward_data(in[1], y, -1, y.scalar_type()),
                         at::_log_softmax_backward_data(in[1], z, 1, z.scalar_type()), torch::softmax(in[0][0], 0)};
     },
     {{6, 21}, {6, 21}},
     7},
    {"extremes",
     [](const TensorList& in) {
       return TensorList{torch::maximum(in[0], in[1]), torch::minimum(in[0], in[1])};
     },
     {{23}, {23}},
     2},
    {"not_a_number",
     [](const TensorList& in) {
       const auto x = in[0].sqrt();
       return TensorList{torch::maximum(x, in[1]), torch::minimum(in[1], x), torch::relu(x), x.abs(), x.sgn()};
     },
     {{40}, {40}},
     6},
    {"ratios",
     [](const TensorList& in) {
       return TensorList{torch::addcmul(in[0], in[1], in[2], 2), torch::addcdiv(in[0], in[1], in[2])};
     },
     {{2, 9}, {2, 9}, {9}},
     2},
    {"in_place",
     [](const TensorList& in) {
       auto x = in[0].clone();
       x.mul_(3).add_(in[1], 2).div_(2);
       auto parts = torch::empty({2, 7}, x.options());
       parts[0].copy_(x[1]);
       parts[1].fill_(2);
       return TensorList{x, parts};
     },
     {{5, 7}, {5, 7}},
     6},
    {"sums",
     [](const TensorList& in) {
       return TensorList{in[0].sum(),     in[0].sum(0),         in[0].sum(1),      in[0].sum(2, true),
                         in[0].mean(),    in[0].mean({0, 1}),   in[0].sum({1, 2}), in[0][0].t().sum(0),
                         in[0][0].sum(1), in[0][0].sum({0, -1})};
     },
     {{4, 33, 21}},
     10},
    {"slopes",
     [](const TensorList& in) {
       return TensorList{at::sigmoid_backward(in[0], in[1]), at::tanh_backward(in[0], in[1]),
                         at::threshold_backward(in[0], in[1], 0.5)};
     },
     {{3, 30}, {3, 30}},
     3},
    {"squared_errors",
     [](const TensorList& in) {
       return TensorList{torch::mse_loss(in[0], in[1]), torch::mse_loss(in[0], in[1], at::Reduction::Sum),
                         at::mse_loss_backward(in[2], in[0], in[1], at::Reduction::Mean)};
     },
     {{6, 19}, {6, 19}, {}},
     3},
    {"products",
     [](const TensorList& in) {
       return TensorList{in[0].mm(in[1]),         in[0].mm(in[2].t()),
                         in[1].t().mm(in[0].t()), in[2].mm(in[0].t()),
                         in[0].mm(in[3]),         in[3].t().mm(in[1]),
                         in[0].t().mm(in[0]),     in[3].mm(in[3].t()),
                         in[3].t().mm(in[3]),     in[0].slice(1, 0, 40, 3).mm(in[1].slice(0, 0, 40, 3))};
     },
     {{13, 41}, {41, 37}, {37, 41}, {41, 1}},
     10},
    {"products_of_batches",
     [](const TensorList& in) {
       return TensorList{in[0].bmm(in[1]), in[1].transpose(1, 2).bmm(in[0].transpose(1, 2)),
                         torch::baddbmm(in[2], in[0], in[1], 2, 3)};
     },
     {{3, 5, 20}, {3, 20, 9}, {3, 1, 9}},
     3},
    {"product_and_sum",
     [](const TensorList& in) {
       return TensorList{in[0].mm(in[1]) + in[2], torch::sub(in[3], in[0].mm(in[1]), 2),
                         torch::addmm(in[2], in[0], in[1]), in[4] + in[0].mm(in[1]).t(),
                         in[3] + in[0].mm(in[1]) + in[0].mm(in[5].t())};
     },
     {{10, 40}, {40, 33}, {33}, {10, 33}, {33, 10}, {33, 40}},
     6},
    {"product_and_relu",
     [](const TensorList& in) {
       return TensorList{torch::relu(torch::addmm(in[2], in[0], in[1])),
                         at::threshold_backward(in[3] + in[0].mm(in[1]), in[3], 0),
                         at::threshold_backward(in[0].mm(in[1]).t(), in[4], 0)};
     },
     {{10, 40}, {40, 33}, {33}, {10, 33}, {33, 10}},
     3},
    {"products_that_are_read_twice",
     [](const TensorList& in) {
       const auto product = in[0].mm(in[1]);
       const auto sum = product + in[2];
       return TensorList{sum, torch::relu(product), product + product};
     },
     {{4, 5}, {5, 6}, {4, 6}},
     4},
    {"what_is_written_over",
     [](const TensorList& in) {
       auto x = in[0].clone();
       const auto product = x.mm(in[1]);
       x.zero_();
       auto added = in[2].clone();
       const auto sum = product + added;
       added.add_(product.mm(in[1]));
       return TensorList{sum, x, added};
     },
     {{4, 4}, {4, 4}, {4, 4}},
     6},
    {"parts_that_are_written_over",
     [](const TensorList& in) {
       auto x = torch::zeros({8}, in[0].options()), y = in[0].clone();
       x[0].fill_(5);
       x.slice(0, 2, 4).copy_(in[0]);
       y[0].add_(1);
       return TensorList{x * 2, y + x[0]};
     },
     {{2}},
     7},
    {"sums_with_zero",
     [](const TensorList& in) {
       const auto x = in[0] * 2, zero = torch::zeros_like(x);
       auto changed = zero + x;
       changed.mul_(in[0]);
       return TensorList{x + zero, torch::sub(zero, x), changed, zero + in[0]};
     },
     {{3, 4}},
     4},
    {"second_derivatives",
     [](const TensorList& in) { return second_derivatives(squared_error_of_layers, in); },
     {{10, 3}, {40, 3}, {40}, {21, 40}, {1, 21}, {10, 1}},
     49},
};

class OwnKernels : public testing::TestWithParam<OwnRow> {};
INSTANTIATE_TEST_SUITE_P(Table, OwnKernels, testing::ValuesIn(own_rows),
                         [](const auto& info) { return info.param.name; });

TEST_P(OwnKernels, DifferByRounding) {
  torch::manual_seed(1);
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    const auto first = random_inputs(GetParam().sizes, type);
    const auto recording = Trace::record([&] { return GetParam().function(first); }, {first, {}});
    ASSERT_TRUE(recording.trace) << recording.refusal;
    const auto own = recording.trace->on_own_kernels();
    if (GetParam().kernels >= 0) {
      EXPECT_EQ(own->own_size(), own->size());
      EXPECT_EQ(own->size(), GetParam().kernels);
    }
    EXPECT_LE(own->memory_bytes(), recording.trace->memory_bytes());
    const auto memory = own->allocate();
    for (int round = 0; round < 2; ++round) {
      const auto other = random_inputs(GetParam().sizes, type);
      expect_close(own->replay(*memory, other), GetParam().function(other));
    }
  }
}

TEST_P(TraceTest, OnOwnKernelsDiffersByRounding) {
  torch::manual_seed(1);
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    const auto first = random_inputs(GetParam().sizes, type);
    const auto own = Trace::record([&] { return GetParam().function(first); }, {first, {}}).trace->on_own_kernels();
    const auto memory = own->allocate();
    for (int round = 0; round < 2; ++round) {
      const auto other = random_inputs(GetParam().sizes, type);
      expect_close(own->replay(*memory, other), GetParam().function(other));
    }
  }
}

// ---------------------------------------------------------------- recordings

TEST(Trace, reads_shared_tensors_as_they_are) {
  const auto weight = torch::randn({3, 3}), x = torch::randn({2, 3});
  const auto function = [&] { return TensorList{x.matmul(weight)}; };
  const auto recording = Trace::record(function, {{x}, {weight}});
  const auto memory = recording.trace->allocate();
  weight.mul_(2);
  expect_equal(recording.trace->replay(*memory, {x}), function());
}

TEST(Trace, lays_memory_out_once_and_uses_it_again) {
  const auto x = torch::randn({1000});
  const auto recording = Trace::record(
      [&] {
        auto y = x;
        for (int i = 0; i < 100; ++i) y = y.sin();
        return TensorList{y};
      },
      {{x}, {}});
  EXPECT_EQ(recording.trace->size(), 100);
  EXPECT_LE(recording.trace->memory_bytes(), 3 * 4096);
}

TEST(Trace, says_why_there_is_none) {
  const auto x = torch::randn({4}), other = torch::randn({4});
  const auto refusal = [&](const std::function<Tensor()>& function) {
    const auto recording = Trace::record([&] { return TensorList{function()}; }, {{x}, {}});
    EXPECT_FALSE(recording.trace);
    EXPECT_TRUE(recording.outputs[0].defined());
    return recording.refusal;
  };
  const auto contains = [](const std::string& text, const std::string& words) {
    return text.find(words) != std::string::npos;
  };
  EXPECT_PRED2(contains, refusal([&] { return x + other; }),
               "reads a tensor of shape [4] that is not among its inputs");
  EXPECT_PRED2(contains, refusal([&] { return x + torch::rand({4}); }), "random");
  EXPECT_PRED2(contains, refusal([&] { return x * x.sum().item<double>(); }), "looks at values");
  EXPECT_PRED2(contains, refusal([&] { return x.index({x > 0}); }), "looks at values");
  EXPECT_PRED2(contains, refusal([&] { return torch::empty_like(x).resize_({8}).fill_(1); }),
               "changes a tensor's shape");
}

TEST(Trace, throws_what_its_function_throws) {
  const auto x = torch::randn({4});
  expect_error([&] { Trace::record([&]() -> TensorList { TORCH_CHECK(false, "no ", x.dim()); }, {{x}, {}}); }, "no 1");
  EXPECT_FALSE(Trace::is_recording());
  EXPECT_TRUE(Trace::record([&] { return TensorList{x.sin()}; }, {{x}, {}}).trace);
}

}  // namespace
}  // namespace gimli
