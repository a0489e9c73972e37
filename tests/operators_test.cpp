#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "expect.h"
#include "gimli/gradcheck.h"
#include "gimli/inner_loop.h"
#include "gimli/memory_meter.h"
#include "gimli/operators/batch_norm.h"
#include "gimli/operators/convolution.h"
#include "gimli/operators/layer_norm.h"
#include "gimli/operators/max_pool.h"
#include "gimli/operators/max_pool_kernels.h"
#include "gimli/operators/norm_kernels.h"
#include "gimli/operators/replacement.h"
#include "gimli/operators/winograd.h"
#include "gimli/operators/winograd_kernels.h"
#include "gimli/processor.h"
#include "own_operators.h"

namespace gimli {
namespace {

constexpr auto kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

/// Runs what it is given with libtorch's operators.
template <class Function>
auto with_libtorchs(Function function) {
  const OwnOperators off(false);
  return function();
}

using Function = std::function<at::Tensor(const TensorList&)>;

/// An operator of gimli's, libtorch's, and one whose derivatives of all orders are right, of the same inputs.
struct Row {
  std::string name;
  Function own, libtorchs, defined;
  std::function<TensorList()> inputs;
  bool few = false;  ///< of so few elements that central differences of all of them are quick
};

std::ostream& operator<<(std::ostream& out, const Row& row) { return out << row.name; }

at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

using Layout = std::function<at::Tensor(const at::Tensor&)>;
at::Tensor as_it_is(const at::Tensor& x) { return x; }
Layout as(at::MemoryFormat format) {
  return [=](const at::Tensor& x) { return x.contiguous(format); };
}

struct Norm {
  Layout layout = as_it_is;
  bool affine = true, few = false, rectified = false;
};

at::Tensor own_relu(const at::Tensor& y) { return operators::has_relu(y) ? operators::relu(y) : at::relu(y); }

Row norm_row(const std::string& name, std::vector<int64_t> sizes, Norm norm = {}) {
  const bool affine = norm.affine, rectified = norm.rectified;
  const auto of = [affine](const TensorList& in) {
    return affine ? std::pair(in[1], in[2]) : std::pair(at::Tensor(), at::Tensor());
  };
  return {(rectified ? "relu_of_batch_norm_" : "batch_norm_") + name,
          [=](const TensorList& in) {
            const auto [weight, bias] = of(in);
            const auto y = operators::batch_norm({in[0], weight, bias, {}, {}, 0.1, 1e-5});
            return rectified ? own_relu(y) : y;
          },
          [=](const TensorList& in) {
            const auto [weight, bias] = of(in);
            const auto y = at::batch_norm(in[0], weight, bias, {}, {}, true, 0.1, 1e-5, false);
            return rectified ? at::relu(y) : y;
          },
          [=](const TensorList& in) {
            std::vector<int64_t> over{0}, shape(in[0].dim(), 1);
            for (int64_t d = 2; d < in[0].dim(); ++d) over.push_back(d);
            shape[1] = in[0].size(1);
            const auto centred = in[0] - in[0].mean(over, true);
            const auto z = centred / (centred.square().mean(over, true) + 1e-5).sqrt();
            const auto y = affine ? z * in[1].view(shape) + in[2].view(shape) : z;
            return rectified ? at::relu(y) : y;
          },
          [=] {
            TensorList in{norm.layout(2 * random(sizes) + 0.5)};
            if (affine) in.insert(in.end(), {random({in[0].size(1)}), random({in[0].size(1)})});
            return in;
          },
          norm.few};
}

/// Of each example, over all dimensions from `from` on, or over those and groups of channels.
Row layer_row(const std::string& name, std::vector<int64_t> sizes, int64_t from, int64_t groups = 0, bool few = false) {
  const std::vector<int64_t> shape(sizes.begin() + from, groups ? sizes.begin() + from + 1 : sizes.end());
  return {(groups ? "group_norm_" : "layer_norm_") + name,
          [=](const TensorList& in) {
            if (groups) return operators::group_norm({in[0], groups, in[1], in[2], 1e-5});
            return operators::layer_norm({in[0], shape, in[1], in[2], 1e-5});
          },
          [=](const TensorList& in) {
            if (groups) return at::group_norm(in[0], groups, in[1], in[2], 1e-5, false);
            return at::layer_norm(in[0], shape, in[1], in[2], 1e-5, false);
          },
          [=](const TensorList& in) {
            const auto count = groups ? sizes[0] * groups : in[0].numel() / c10::multiply_integers(shape);
            const auto x = in[0].reshape({count, -1});
            const auto centred = x - x.mean(1, true);
            const auto z = (centred / (centred.square().mean(1, true) + 1e-5).sqrt()).view(sizes);
            std::vector<int64_t> of(sizes.size(), 1);
            std::copy(shape.begin(), shape.end(), of.begin() + from);
            return z * in[1].view(of) + in[2].view(of);
          },
          [=] {
            return TensorList{2 * random(sizes) + 0.5, random(shape), random(shape)};
          },
          few};
}

struct Geometry {
  std::vector<int64_t> stride{1, 1}, padding{1, 1}, dilation{1, 1};
  int64_t groups = 1;
  bool bias = true;
};

Row convolution_row(const std::string& name, std::vector<int64_t> x, std::vector<int64_t> weight, Geometry g,
                    bool channels_last = false, bool few = false) {
  const auto bias = [=](const TensorList& in) { return g.bias ? in[2] : at::Tensor(); };
  const auto libtorchs = [=](const TensorList& in) {
    const std::vector<int64_t> none(g.stride.size(), 0);
    return at::convolution(in[0], in[1], bias(in), g.stride, g.padding, g.dilation, false, none, g.groups);
  };
  return {"convolution_" + name,
          [=](const TensorList& in) {
            return operators::convolution({in[0], in[1], bias(in), g.stride, g.padding, g.dilation, g.groups});
          },
          libtorchs,
          libtorchs,
          [=] {
            TensorList in{random(x), random(weight)};
            if (channels_last) in[0] = in[0].contiguous(at::MemoryFormat::ChannelsLast);
            if (g.bias) in.push_back(random({weight[0]}));
            return in;
          },
          few};
}

at::Tensor own_max_pool(const at::Tensor& x) { return operators::max_pool({x, {2, 2}, {2, 2}, {0, 0}, {1, 1}, false}); }

Row max_pool_row(const std::string& name, std::vector<int64_t> sizes, Layout layout = as_it_is, bool few = false) {
  const auto libtorchs = [](const TensorList& in) { return at::max_pool2d(in[0], 2); };
  return {"max_pool_" + name, [](const TensorList& in) { return own_max_pool(in[0]); }, libtorchs,
          libtorchs,          [=] { return TensorList{layout(random(sizes))}; },        few};
}

const std::vector<Row> rows{
    norm_row("planes", {4, 5, 6, 7}),
    norm_row("small_planes", {3, 2, 2, 3}, {.few = true}),
    norm_row("planes_of_one", {9, 35, 1, 1}),
    norm_row("channels_last", {3, 37, 5, 4}, {as(at::MemoryFormat::ChannelsLast)}),
    norm_row("volumes", {3, 4, 2, 3, 4}),
    norm_row("volumes_channels_last", {2, 9, 2, 3, 4}, {as(at::MemoryFormat::ChannelsLast3d)}),
    norm_row("sequences", {4, 3, 11}),
    norm_row("vectors", {7, 19}),
    norm_row("few_vectors", {5, 3}, {.few = true}),
    norm_row("strided", {8, 6, 14, 5}, {[](const at::Tensor& x) { return x.transpose(0, 3).slice(2, 0, 10, 2); }}),
    norm_row("without_affine", {4, 5, 3, 3}, {.affine = false, .few = true}),
    norm_row("large", {16, 24, 14, 14}),
    norm_row("planes", {4, 5, 6, 7}, {.rectified = true}),
    norm_row("small_planes", {3, 2, 2, 3}, {.few = true, .rectified = true}),
    norm_row("channels_last", {3, 37, 5, 4}, {.layout = as(at::MemoryFormat::ChannelsLast), .rectified = true}),
    norm_row("vectors", {7, 19}, {.rectified = true}),
    norm_row("without_affine", {4, 5, 3, 3}, {.affine = false, .few = true, .rectified = true}),
    layer_row("tokens", {3, 7, 16}, 2),
    layer_row("images", {4, 2, 3, 3}, 1, 0, true),
    layer_row("vectors", {5, 11}, 1),
    layer_row("of_four", {3, 8, 5, 5}, 1, 4),
    layer_row("of_one", {3, 6, 7}, 1, 1),
    layer_row("of_two", {2, 4, 2, 2}, 1, 2, true),
    convolution_row("plain", {3, 4, 6, 5}, {5, 4, 3, 3}, {}),
    convolution_row("few", {2, 2, 3, 3}, {2, 2, 3, 3}, {}, false, true),
    convolution_row("without_bias", {3, 4, 6, 5}, {5, 4, 3, 3}, {.bias = false}),
    convolution_row("strided", {2, 3, 9, 8}, {4, 3, 3, 2}, {.stride = {2, 3}, .padding = {0, 1}}),
    convolution_row("dilated", {2, 3, 9, 8}, {4, 3, 3, 2}, {.padding = {2, 1}, .dilation = {2, 3}}),
    convolution_row("grouped", {2, 4, 5, 5}, {6, 2, 3, 3}, {.groups = 2}, false, true),
    convolution_row("depthwise", {2, 4, 5, 5}, {8, 1, 3, 3}, {.groups = 4}),
    convolution_row("channels_last", {2, 16, 6, 6}, {16, 16, 3, 3}, {}, true),
    convolution_row("winograd", {3, 40, 13, 14}, {33, 40, 3, 3}, {}),
    convolution_row("winograd_channels_last", {3, 40, 13, 14}, {33, 40, 3, 3}, {.bias = false}, true),
    convolution_row("winograd_padded", {4, 33, 9, 14}, {35, 33, 3, 3}, {.padding = {2, 0}}),
    convolution_row("pointwise", {2, 5, 4, 4}, {3, 5, 1, 1}, {.padding = {0, 0}}),
    convolution_row("1d", {2, 3, 9}, {4, 3, 3}, {{1}, {1}, {1}}),
    convolution_row("3d", {2, 3, 4, 5, 3}, {4, 3, 2, 3, 2}, {{1, 1, 1}, {0, 1, 1}, {1, 1, 1}}),
    max_pool_row("plain", {3, 4, 28, 28}),
    max_pool_row("few", {2, 2, 4, 6}, as_it_is, true),
    max_pool_row("odd", {3, 2, 7, 5}),
    max_pool_row("wide", {1, 2, 3, 67}),
    max_pool_row("of_one", {2, 3, 2, 2}),
    max_pool_row("channels_last", {2, 19, 6, 5}, as(at::MemoryFormat::ChannelsLast)),
    max_pool_row("strided", {6, 5, 12, 4}, [](const at::Tensor& x) { return x.transpose(0, 3).slice(2, 0, 12, 2); }),
};

class OperatorsTest : public testing::TestWithParam<Row> {
 protected:
  OperatorsTest() { torch::manual_seed(5); }
};

INSTANTIATE_TEST_SUITE_P(Table, OperatorsTest, testing::ValuesIn(rows),
                         [](const auto& info) { return info.param.name; });

/// The value, and the gradients of orders 1 to 3 by the inputs, each of a nonlinear function of those of the order
/// before.
std::vector<TensorList> derivatives(const Function& function, const TensorList& inputs) {
  torch::manual_seed(17);
  std::vector<TensorList> orders{{function(inputs)}};
  while (orders.size() < 4) {
    auto sum = at::zeros({}, inputs[0].options());
    for (const auto& tensor : orders.back()) {
      if (tensor.defined())
        sum = sum + (at::randn(tensor.sizes(), tensor.options()) * tensor + 0.1 * tensor.square()).sum();
    }
    orders.push_back(torch::autograd::grad({sum}, inputs, {}, true, /*create_graph=*/orders.size() < 3, true));
  }
  return orders;
}

double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / (b.norm() + 1e-30)).item<double>();
}

TEST_P(OperatorsTest, AgreesWithItsDefinitionToTheThirdOrder) {
  auto inputs = GetParam().inputs();
  for (auto& input : inputs) input.requires_grad_();
  const auto actual = derivatives(GetParam().own, inputs), expected = derivatives(GetParam().defined, inputs);
  for (size_t order = 0; order < actual.size(); ++order) {
    for (size_t i = 0; i < actual[order].size(); ++i) {
      EXPECT_LE(relative_difference(actual[order][i], expected[order][i]), 1e-11) << "order " << order << ", " << i;
    }
  }
}

// In float32, each against libtorch's in float64: as near as libtorch's own.
TEST_P(OperatorsTest, IsAsExactAsLibtorchsInFloat32) {
  const auto inputs = GetParam().inputs();
  TensorList wide, narrow;
  for (const auto& input : inputs) {
    narrow.push_back(input.to(at::kFloat).requires_grad_());
    wide.push_back(narrow.back().detach().to(at::kDouble).requires_grad_());
  }
  const auto second = [](const Function& function, const TensorList& in) {
    torch::manual_seed(17);
    const auto y = function(in);
    const auto weights = at::randn(y.sizes(), at::kDouble).to(y.scalar_type());
    const auto first = torch::autograd::grad({(y * weights + y.square()).sum()}, in, {}, true, true);
    auto sum = at::zeros({}, y.options());
    for (const auto& tensor : first)
      sum = sum + (at::randn(tensor.sizes(), at::kDouble).to(y.scalar_type()) * tensor).sum();
    return torch::autograd::grad({sum}, in, {}, false, false, true);
  };
  const auto exact = second(GetParam().libtorchs, wide), own = second(GetParam().own, narrow),
             theirs = second(GetParam().libtorchs, narrow);
  for (size_t i = 0; i < exact.size(); ++i) {
    if (!exact[i].defined()) continue;
    const auto bound = std::max(2 * relative_difference(theirs[i].to(at::kDouble), exact[i]), 1e-6);
    EXPECT_LE(relative_difference(own[i].to(at::kDouble), exact[i]), bound) << i;
    EXPECT_EQ(own[i].scalar_type(), at::kFloat);
  }
}

TEST_P(OperatorsTest, AgreesWithCentralDifferences) {
  if (!GetParam().few) return;
  auto inputs = GetParam().inputs();
  for (auto& input : inputs) input.requires_grad_();
  const auto scalar = [&](const TensorList& in) {
    const auto y = GetParam().own(in);
    return (y * at::sin(at::arange(y.numel(), y.options())).view(y.sizes()) + 0.3 * y.pow(3)).sum();
  };
  const auto first = gradcheck(scalar, inputs), second = gradgradcheck(scalar, inputs);
  EXPECT_TRUE(first) << first.message;
  EXPECT_TRUE(second) << second.message;
}

// Every combination of inputs that require a gradient has those derivatives that libtorch's has.
TEST_P(OperatorsTest, HasTheDerivativesThatLibtorchsHas) {
  const auto values = GetParam().inputs();
  for (uint32_t part = 1; part < 1u << values.size(); ++part) {
    const auto of = [&](const Function& function) {
      auto all = clones(values);
      TensorList wanted;
      for (size_t i = 0; i < all.size(); ++i) {
        if (part >> i & 1) wanted.push_back(all[i].requires_grad_());
      }
      torch::manual_seed(3);
      const auto y = function(all);
      auto weights = at::randn_like(y).requires_grad_();
      auto first = torch::autograd::grad({y}, wanted, {weights}, true, true, true);
      wanted.push_back(weights);
      auto sum = at::zeros({}, y.options());
      for (const auto& tensor : first) sum = sum + (tensor * tensor).sum();
      auto second = torch::autograd::grad({sum}, wanted, {}, false, false, true);
      first.insert(first.end(), second.begin(), second.end());
      return first;
    };
    const auto actual = of(GetParam().own), expected = of(GetParam().libtorchs);
    for (size_t i = 0; i < actual.size(); ++i) {
      const auto zeros = [&](const at::Tensor& t, const at::Tensor& like) {
        return t.defined() ? t : at::zeros_like(like);
      };
      if (!actual[i].defined() && !expected[i].defined()) continue;
      const auto a = zeros(actual[i], expected[i]), b = zeros(expected[i], actual[i]);
      EXPECT_LE((a - b).abs().max().item<double>(), 1e-9) << "part " << part << ", " << i;
    }
  }
}

TEST(BatchNorm, moves_running_statistics_as_libtorch) {
  torch::manual_seed(2);
  for (const auto type : {at::kDouble, at::kFloat}) {
    const auto x = random({4, 3, 5, 5}).to(type);
    auto mean = random({3}).to(type), variance = at::rand({3}, type), mean_too = mean.clone(),
         variance_too = variance.clone();
    operators::batch_norm({x, {}, {}, mean, variance, 0.3, 1e-5});
    at::batch_norm(x, {}, {}, mean_too, variance_too, true, 0.3, 1e-5, false);
    EXPECT_TRUE(at::allclose(mean, mean_too, 1e-6, 1e-7));
    EXPECT_TRUE(at::allclose(variance, variance_too, 1e-6, 1e-7));
  }
}

TEST(BatchNorm, constant_channels_and_large_offsets) {
  torch::manual_seed(2);
  auto x = random({6, 3, 4, 4});
  x.select(1, 1).fill_(3);
  x.select(1, 2).add_(1e6);
  for (const auto type : {at::kDouble, at::kFloat}) {
    auto own = x.to(type).requires_grad_(), theirs = x.to(type).requires_grad_();
    const auto gradients = [&](const at::Tensor& in, const at::Tensor& y) {
      auto first = torch::autograd::grad({y.pow(3).sum()}, {in}, {}, true, true)[0];
      return TensorList{y, first, torch::autograd::grad({first.square().sum()}, {in})[0]};
    };
    const auto actual = gradients(own, operators::batch_norm({own, {}, {}, {}, {}, 0.1, 1e-5}));
    const auto wide = type == at::kDouble ? theirs : theirs.detach().to(at::kDouble).requires_grad_();
    const auto expected = gradients(wide, at::batch_norm(wide, {}, {}, {}, {}, true, 0.1, 1e-5, false));
    for (size_t i = 0; i < actual.size(); ++i) {
      for (int64_t c = 0; c < 3; ++c) {
        const auto a = actual[i].select(1, c).to(at::kDouble), b = expected[i].select(1, c);
        EXPECT_LE((a - b).abs().max().item<double>(),
                  (type == at::kDouble ? 1e-7 : 2e-3) * (1 + b.abs().max().item<double>()))
            << "order " << i << ", channel " << c;
      }
    }
  }
}

// The gradient of what lies between the two, though it is in neither's way to the inputs.
TEST(Relu, lets_what_it_is_of_be_watched) {
  torch::manual_seed(8);
  const auto values = 2 * random({4, 3, 5, 5});
  const auto watched = [&](const Function& norm, const std::function<at::Tensor(const at::Tensor&)>& relu) {
    auto x = values.clone().requires_grad_();
    at::Tensor seen;
    auto y = norm({x});
    const auto z = relu(y);
    const auto loss = (z.pow(3) + y.square()).sum();
    auto list = torch::autograd::grad({loss}, {x, y, z}, {}, true, /*create_graph=*/true);
    list.push_back(torch::autograd::grad({z.square().sum()}, {y}, {}, true)[0]);
    y.register_hook([&](const at::Tensor& g) {
      seen = g;
      return 2 * g;
    });
    list.push_back(torch::autograd::grad({loss}, {x}, {}, true)[0]);
    list.push_back(seen);
    list.push_back(torch::autograd::grad({list[0].square().sum() + list[1].square().sum()}, {x})[0]);
    return list;
  };
  const auto own = watched(
      [](const TensorList& in) {
        return operators::batch_norm({in[0], {}, {}, {}, {}, 0.1, 1e-5});
      },
      operators::relu);
  const auto libtorchs =
      watched([](const TensorList& in) { return at::batch_norm(in[0], {}, {}, {}, {}, true, 0.1, 1e-5, false); },
              [](const at::Tensor& y) { return at::relu(y); });
  for (size_t i = 0; i < own.size(); ++i) EXPECT_LE(relative_difference(own[i], libtorchs[i]), 1e-12) << i;
}

TEST(BatchNorm, not_a_number_stays_in_its_channel) {
  for (const double bad : {kNaN, kInfinity}) {
    auto x = random({3, 2, 9});
    x[1][0][4] = bad;
    x.requires_grad_();
    const auto y = operators::batch_norm({x, {}, {}, {}, {}, 0.1, 1e-5}), z = operators::relu(y);
    const auto first = torch::autograd::grad({y.pow(3).sum()}, {x}, {}, true, true)[0];
    const auto second = torch::autograd::grad({first.square().sum()}, {x}, {}, true)[0];
    const auto first_of_z = torch::autograd::grad({z.pow(3).sum()}, {x}, {}, true, true)[0];
    const auto second_of_z = torch::autograd::grad({first_of_z.square().sum()}, {x})[0];
    for (const auto& tensor : {y, first, second, z, first_of_z, second_of_z}) {
      EXPECT_TRUE(tensor.select(1, 0).isnan().any().item<bool>());
      EXPECT_TRUE(tensor.select(1, 1).isfinite().all().item<bool>());
    }
  }
}

// Bit by bit, where pixels are equal, infinite or NaN too.
TEST(MaxPool, chooses_the_pixels_that_libtorch_chooses) {
  torch::manual_seed(6);
  const auto values = at::tensor({-kInfinity, -1., 0., -0., 1., kInfinity, kNaN}, at::kDouble);
  for (const auto type : {at::kDouble, at::kFloat}) {
    for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
      const auto x = values.index({at::randint(7, {4, 9, 21, 22})}).to(type).contiguous(format);
      const auto with_gradients = [&](const Function& pool) {
        auto in = x.detach().requires_grad_();
        const auto y = pool({in});
        auto g = at::arange(1, y.numel() + 1, y.options()).view(y.sizes()).requires_grad_();
        const auto of_x = torch::autograd::grad({y}, {in}, {g}, true, true)[0];
        const auto u = at::arange(1, x.numel() + 1, x.options()).view(x.sizes());
        return TensorList{y, of_x, torch::autograd::grad({of_x}, {g}, {u})[0]};
      };
      const auto own = with_gradients([](const TensorList& in) { return own_max_pool(in[0]); });
      const auto libtorchs = with_gradients([](const TensorList& in) { return at::max_pool2d(in[0], 2); });
      for (size_t i = 0; i < own.size(); ++i) {
        EXPECT_TRUE(at::allclose(own[i], libtorchs[i], 0, 0, /*equal_nan=*/true)) << i;
      }
    }
  }
}

TEST(OwnOperators, refuse_what_they_are_not_for) {
  expect_error(
      [] {
        operators::batch_norm({at::zeros({2, 3}, at::kLong), {}, {}, {}, {}, 0.1, 1e-5});
      },
      "batch_norm: ");
  expect_error(
      [] {
        operators::batch_norm({at::zeros({2, 3}), at::zeros({2}), {}, {}, {}, 0.1, 1e-5});
      },
      "batch_norm: ");
  expect_error(
      [] {
        operators::convolution({at::zeros({2, 3}), at::zeros({2, 3}), {}, {1}, {0}, {1}, 1});
      },
      "convolution: ");
  expect_error([] { operators::relu(at::zeros({2, 3}).requires_grad_()); }, "relu: ");
  expect_error([] { own_max_pool(at::zeros({2, 3, 1, 4})); }, "max_pool: ");
}

/// Images and weights of a convolution of 3x3.
struct Filtering {
  std::vector<int64_t> x;
  int64_t outputs;
  std::vector<int64_t> padding;
};

// Whatever the sizes: none are left to libtorch here.
TEST(Winograd, agrees_with_libtorchs_convolutions) {
  using namespace operators;
  torch::manual_seed(4);
  for (const auto& [sizes, outputs, padding] : {Filtering{{1, 1, 1, 1}, 1, {1, 1}},
                                                {{1, 1, 3, 3}, 1, {0, 0}},
                                                {{2, 3, 5, 4}, 17, {1, 1}},
                                                {{3, 16, 6, 6}, 16, {1, 1}},
                                                {{2, 17, 7, 9}, 3, {0, 2}},
                                                {{2, 33, 1, 8}, 20, {2, 1}},
                                                {{1, 5, 4, 230}, 6, {1, 1}},      // more tiles across than go together
                                                {{200, 2, 9, 17}, 3, {1, 1}}}) {  // several slices
    for (const auto type : {at::kDouble, at::kFloat}) {
      for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
        const auto x = at::randn(sizes, type).contiguous(format);
        const auto weight = at::randn({outputs, sizes[1], 3, 3}, type).contiguous(format);
        const auto bias = at::randn({outputs}, type);
        const auto exact = at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), 1, padding);
        const auto g = at::randn_like(exact).to(type);
        const auto [of_x, of_weight, none] =
            at::convolution_backward(g.to(at::kDouble), x.to(at::kDouble), weight.to(at::kDouble), {}, {1, 1}, padding,
                                     {1, 1}, false, {0, 0}, 1, {true, true, false});
        const auto expect_near = [&](const at::Tensor& actual, const at::Tensor& expected) {
          EXPECT_EQ(actual.scalar_type(), type);
          EXPECT_LE(relative_difference(actual.to(at::kDouble), expected), type == at::kDouble ? 1e-14 : 2e-6) << sizes;
        };
        expect_near(winograd(x, weight, bias, padding), exact);
        expect_near(winograd(x, weight, {}, padding), exact - bias.to(at::kDouble).view({-1, 1, 1}));
        expect_near(winograd_input_gradient(g, weight, padding), of_x);
        expect_near(winograd_weight_gradient(g, x, padding), of_weight);
        const auto strided = g.transpose(0, 3).contiguous().transpose(0, 3);
        EXPECT_TRUE(at::equal(winograd_weight_gradient(strided, x, padding),
                              winograd_weight_gradient(strided.contiguous(), x, padding)));
      }
    }
  }
}

TEST(Winograd, results_lie_in_memory_as_libtorchs) {
  const auto x = at::randn({2, 5, 6, 7}), weight = at::randn({4, 5, 3, 3});
  const auto last = at::MemoryFormat::ChannelsLast;
  for (const auto& [image, filter] :
       {std::pair(x, weight), {x.contiguous(last), weight}, {x, weight.contiguous(last)}}) {
    const auto expected = at::conv2d(image, filter, {}, 1, 1);
    EXPECT_EQ(operators::winograd(image, filter, {}, {1, 1}).strides(), expected.strides());
    const auto [of_x, of_weight, none] = at::convolution_backward(expected, image, filter, {}, {1, 1}, {1, 1}, {1, 1},
                                                                  false, {0, 0}, 1, {true, true, false});
    EXPECT_EQ(operators::winograd_input_gradient(expected, filter, {1, 1}).strides(), of_x.strides());
    EXPECT_EQ(operators::winograd_weight_gradient(expected, image, {1, 1}).strides(), of_weight.strides());
  }
}

TEST(Winograd, does_not_depend_on_the_number_of_threads) {
  torch::manual_seed(4);
  const auto x = at::randn({64, 24, 14, 14}), weight = at::randn({40, 24, 3, 3}), g = at::randn({64, 40, 14, 14});
  const auto all = [&] {
    return TensorList{operators::winograd(x, weight, {}, {1, 1}), operators::winograd_input_gradient(g, weight, {1, 1}),
                      operators::winograd_weight_gradient(g, x, {1, 1})};
  };
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto expected = all();
  at::set_num_threads(3);
  const auto actual = all();
  at::set_num_threads(threads);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(actual[i], expected[i])) << i;
}

// What is not finite is NaN at least where libtorch's result is not finite, and nowhere far from it.
TEST(Winograd, keeps_what_is_not_finite) {
  for (const auto value : {kInfinity, -kInfinity, kNaN}) {
    auto x = at::ones({1, 2, 12, 12});
    x[0][1][5][5] = value;
    const auto finite = operators::winograd(x, at::ones({3, 2, 3, 3}), {}, {1, 1}).isfinite();
    EXPECT_FALSE(finite.slice(2, 4, 7).slice(3, 4, 7).any().item<bool>());
    EXPECT_TRUE(finite.slice(2, 0, 2).all().item<bool>() && finite.slice(2, 8).all().item<bool>());
  }
}

TEST(WinogradKernels, registers_of_every_width_agree) {
  using namespace operators;
  torch::manual_seed(4);
  for (const bool is_double : {false, true}) {
    const auto type = at::TensorOptions(is_double ? at::kDouble : at::kFloat);
    const auto x = at::randn({2, 19, 5, 8}, type), w = at::randn({21, 19, 3, 3}, type);
    const auto run = [&](WinogradKernels kernels, int64_t bytes) {
      const auto lanes = bytes / static_cast<int64_t>(type.dtype().itemsize());
      const auto padded = [&](int64_t channels) { return (channels + lanes - 1) / lanes * lanes; };
      const auto y = at::zeros({2, 21, 5, 8}, type), of_w = at::zeros_like(w), turned = at::zeros_like(x);
      const auto room = [&](int64_t numbers) { return at::empty({numbers}, type); };
      const auto filters = room(16 * 19 * padded(21)), sums = room(16 * 21 * padded(19)),
                 rows = room(std::max<int64_t>(4 * 10, 9 * lanes) * padded(21)), tiles = room(2 * 16 * 24 * padded(21));
      const WinogradMemory memory{tiles.data_ptr(), tiles[16 * 24 * padded(21)].data_ptr(), rows.data_ptr()};
      const auto images = [](const at::Tensor& t) {
        return ImageBatch{t.data_ptr(), t.size(0), t.size(1), t.size(2), t.size(3), false};
      };
      Winograd at{images(x), images(y), 1, 1, filters.data_ptr(), sums.data_ptr()};
      kernels.filters(at, w.data_ptr(), false, rows.data_ptr(), 0, 19);
      kernels.convolve(at, nullptr, memory, 0, at.rows_of_tiles());
      kernels.correlate(at, false, memory, 0, 2);
      kernels.correlate(at, true, memory, 2, at.rows_of_tiles());
      kernels.weights(at, of_w.data_ptr(), rows.data_ptr(), 0, 21);
      const auto turned_filters = room(16 * 21 * padded(19));
      at.x = images(y), at.y = images(turned), at.filters = turned_filters.data_ptr();
      kernels.filters(at, w.data_ptr(), true, rows.data_ptr(), 0, 21);
      kernels.convolve(at, nullptr, memory, 0, at.rows_of_tiles());
      return at::cat({y.flatten(), of_w.flatten(), turned.flatten()}).to(at::kDouble);
    };
    const auto y = at::conv2d(x, w, {}, 1, 1);
    const auto [of_x, of_w, none] =
        at::convolution_backward(y, x, w, {}, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1, {true, true, false});
    const auto expected = at::cat({y.flatten(), of_w.flatten(), of_x.flatten()}).to(at::kDouble);
    const auto near = [&](WinogradKernels kernels, int64_t bytes) {
      return relative_difference(run(kernels, bytes), expected) < (is_double ? 1e-14 : 2e-6);
    };
    EXPECT_TRUE(near(winograd_kernels_of_width<16>(is_double), 16));
    EXPECT_TRUE(register_bytes() < 32 || near(winograd_kernels_of_width<32>(is_double), 32));
    EXPECT_TRUE(register_bytes() < 64 || near(winograd_kernels_of_width<64>(is_double), 64));
  }
}

TEST(NormKernels, registers_of_every_width_agree) {
  using namespace operators;
  torch::manual_seed(4);
  for (const Channels at : {Channels{3, 5, 13}, Channels{21, 37, 1}}) {
    for (const auto& [rectified, is_double] : {std::pair(false, false), {false, true}, {true, false}, {true, true}}) {
      const auto type = is_double ? at::kDouble : at::kFloat;
      const auto in = at::randn({3, at.count() * at.channels}, type);
      const auto k = at::randn({10, at.channels}, at::kDouble);
      for (const auto step : {NormStep::mean, NormStep::variance, NormStep::normalize, NormStep::first_sums,
                              NormStep::first, NormStep::second_sums, NormStep::second}) {
        const auto run = [&](NormKernel kernel) {
          auto out = at::zeros({2, at.count() * at.channels}, type), sums = at::zeros({5, at.channels}, at::kDouble);
          NormPass pass{at};
          for (int64_t i = 0; i < 3; ++i) pass.in[i] = in[i].const_data_ptr();
          for (int64_t i = 0; i < 2; ++i) pass.out[i] = out[i].mutable_data_ptr();
          for (int64_t i = 0; i < 10; ++i) pass.k[i] = k[i].const_data_ptr<double>();
          for (int64_t i = 0; i < 5; ++i) pass.sums[i] = sums[i].mutable_data_ptr<double>();
          kernel(pass, 0, at.channels);
          return at::cat({out.flatten().to(at::kDouble), sums.flatten()});
        };
        const auto expected = run(norm_kernel_of_width<16>(step, rectified, is_double));
        const auto near = [&](NormKernel kernel) { return at::allclose(run(kernel), expected, 1e-6, 1e-6); };
        EXPECT_TRUE(expected.abs().sum().item<double>() > 0);
        EXPECT_TRUE(register_bytes() < 32 || near(norm_kernel_of_width<32>(step, rectified, is_double)));
        EXPECT_TRUE(register_bytes() < 64 || near(norm_kernel_of_width<64>(step, rectified, is_double)));
      }
    }
  }
}

TEST(PoolKernels, registers_of_every_width_agree) {
  using namespace operators;
  torch::manual_seed(4);
  for (const Images at : {Images{3, 6, 37, 1}, Images{2, 5, 7, 19}}) {
    for (const bool is_double : {false, true}) {
      const auto type = is_double ? at::kDouble : at::kFloat;
      const auto pixels = at.planes * at.height * at.width * at.length,
                 windows = at.planes * (at.height / 2) * (at.width / 2) * at.length;
      const auto image = at::randn({pixels}, type), pooled = at::randn({windows}, type);
      const auto which = at::randint(4, {windows}, at::kByte);
      for (const auto step : {PoolStep::max, PoolStep::scatter, PoolStep::gather}) {
        const auto run = [&](PoolKernel kernel) {
          const TensorList tensors{image.clone(), pooled.clone(), which.clone()};
          kernel(at, tensors[0].data_ptr(), tensors[1].data_ptr(), tensors[2].data_ptr<uint8_t>(), 0, at.planes);
          return at::cat({tensors[0].to(at::kDouble), tensors[1].to(at::kDouble), tensors[2].to(at::kDouble)});
        };
        const auto expected = run(pool_kernel_of_width<16>(step, is_double));
        EXPECT_FALSE(at::equal(expected, at::cat({image, pooled, which.to(type)}).to(at::kDouble)));
        EXPECT_TRUE(register_bytes() < 32 || at::equal(run(pool_kernel_of_width<32>(step, is_double)), expected));
        EXPECT_TRUE(register_bytes() < 64 || at::equal(run(pool_kernel_of_width<64>(step, is_double)), expected));
      }
    }
  }
}

struct Net : torch::nn::Module {
  Net() {
    convolution = register_module("convolution", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).padding(1)));
    norm = register_module("norm", torch::nn::BatchNorm2d(8));
    linear = register_module("linear", torch::nn::Linear(8 * 144, 4));
    to(torch::kDouble);
  }
  at::Tensor forward(const at::Tensor& x) { return linear(at::tanh(norm(convolution(x))).flatten(1)); }
  torch::nn::Conv2d convolution{nullptr};
  torch::nn::BatchNorm2d norm{nullptr};
  torch::nn::Linear linear{nullptr};
};

/// The gradients of an outer loss through five steps on an unmodified model, its buffers at the end, and the most
/// bytes.
std::pair<TensorList, int64_t> meta_gradients() {
  torch::manual_seed(9);
  const auto model = std::make_shared<Net>();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  const auto x = random({32, 3, 12, 12}), y = at::randint(4, {32}), x_query = random({32, 3, 12, 12});
  MemoryMeter meter;
  InnerLoop inner(model, optimizer);
  for (int step = 0; step < 5; ++step) inner.step([&] { return at::cross_entropy_loss(model->forward(x), y); });
  const auto loss = inner.run([&] { return at::cross_entropy_loss(model->forward(x_query), y); });
  auto result = torch::autograd::grad({loss}, model->parameters());
  for (const auto& buffer : inner.state().buffers) result.push_back(buffer.to(at::kDouble));
  return {result, meter.peak_bytes()};
}

TEST(OwnOperators, serve_an_unmodified_model_in_less_memory) {
  const auto [own, own_bytes] = meta_gradients();
  const auto [libtorchs, libtorchs_bytes] = with_libtorchs([] { return meta_gradients(); });
  for (size_t i = 0; i < own.size(); ++i) {
    EXPECT_LE((own[i] - libtorchs[i]).abs().max().item<double>(),
              1e-11 * (1 + libtorchs[i].abs().max().item<double>()));
  }
  EXPECT_LT(own_bytes, libtorchs_bytes);
}

TEST(OwnOperators, leave_evaluation_mode_to_libtorch) {
  torch::manual_seed(1);
  torch::nn::BatchNorm2d norm(3);
  norm->eval();
  torch::optim::SGD optimizer(norm->parameters(), 0.1);
  const auto x = at::randn({2, 3, 4, 4});
  InnerLoop inner(norm, optimizer);
  EXPECT_TRUE(at::equal(inner.run([&] { return norm(x); }), norm(x)));
}

}  // namespace
}  // namespace gimli
