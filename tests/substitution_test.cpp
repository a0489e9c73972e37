#include "gimli/substitution.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/script.h>
#include <torch/torch.h>

#include <set>

#include <ATen/Parallel.h>

#include <latch>
#include <thread>

#include "expect.h"
#include "gimli/operators/replacement.h"

namespace gimli {
namespace {

/// Networks are compared bit by bit with what is written out by hand.
const bool with_libtorchs_operators = use_own_operators(false);

namespace nn = torch::nn;
namespace F = torch::nn::functional;
using torch::Tensor;

/// A module, and the same function written by hand over explicit parameters and buffers.
struct Network {
  ModelTensors tensors;
  std::function<Tensor()> module;
  std::function<Tensor(const TensorList& parameters, TensorList& buffers)> functional;
  bool random = false;
};

struct NetworkCase {
  std::string name;
  std::function<Network(torch::TensorOptions options)> make;
};

void PrintTo(const NetworkCase& row, std::ostream* out) { *out << row.name; }

struct TiedImpl : nn::Module {
  TiedImpl() : encoder(register_module("encoder", nn::Linear(nn::LinearOptions(6, 6).bias(false)))) {
    tied = register_parameter("tied", encoder->weight);
  }
  Tensor forward(const Tensor& x) { return torch::tanh(encoder(x)).matmul(tied); }
  nn::Linear encoder;
  Tensor tied;
};
TORCH_MODULE(Tied);

struct ListsImpl : nn::Module {
  explicit ListsImpl(torch::TensorOptions options) {
    a = register_parameter("a", torch::randn({2, 3}, options));
    b = register_parameter("b", torch::randn({4, 3}, options));
    index = register_buffer("index", torch::tensor({2, 0, 5}));
  }
  Tensor forward(const Tensor& x) {
    const auto rows = torch::cat({a, x, b});
    return torch::stack({rows.index({index}),
                         torch::einsum("ij,kj->ik", {a.repeat({2, 1}), b}).narrow(0, 0, 3).narrow(1, 0, 3)}) +
           torch::block_diag({a, b}).sum();
  }
  Tensor a, b, index;
};
TORCH_MODULE(Lists);

struct BlockImpl : nn::Module {
  BlockImpl(int64_t in, int64_t out) : body(nn::Linear(in, 4), nn::Tanh(), nn::Linear(4, out)) {
    register_module("body", body);
  }
  Tensor forward(const Tensor& x) { return body->forward(x); }
  nn::Sequential body;
};
TORCH_MODULE(Block);

nn::Sequential nested() { return nn::Sequential(nn::Linear(5, 4), nn::Tanh(), Block(4, 3), nn::Sigmoid()); }

Tensor nested_by_hand(const Tensor& x, const TensorList& p) {
  const auto h = torch::tanh(torch::linear(x, p[0], p[1]));
  return torch::sigmoid(torch::linear(torch::tanh(torch::linear(h, p[2], p[3])), p[4], p[5]));
}

const NetworkCase networks[] = {
    {"Linear",
     [](torch::TensorOptions options) {
       nn::Linear m(5, 3);
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({7, 5}, options);
       return Network{m, [=]() mutable { return m(x); },
                      [=](const auto& p, auto&) { return torch::linear(x, p[0], p[1]); }};
     }},
    {"Conv2d",
     [](torch::TensorOptions options) {
       nn::Conv2d m(nn::Conv2dOptions(3, 4, 3).stride(2).padding(1));
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({2, 3, 8, 8}, options);
       return Network{m, [=]() mutable { return m(x); },
                      [=](const auto& p, auto&) { return torch::conv2d(x, p[0], p[1], 2, 1); }};
     }},
    {"BatchNorm2dTraining",
     [](torch::TensorOptions options) {
       nn::BatchNorm2d m(3);
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({4, 3, 5, 5}, options);
       return Network{m,
                      [=]() mutable {
                        const auto first = m(x);
                        return first + m(x * 2);
                      },
                      [=](const auto& p, auto& b) {
                        const auto one = [&](const Tensor& x) {
                          b[2] += 1;
                          return torch::batch_norm(x, p[0], p[1], b[0], b[1], true, 0.1, 1e-5, true);
                        };
                        const auto first = one(x);
                        return first + one(x * 2);
                      }};
     }},
    {"BatchNorm1dCumulativeAverage",
     [](torch::TensorOptions options) {
       nn::BatchNorm1d m(nn::BatchNorm1dOptions(3).momentum(std::nullopt));
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({6, 3}, options);
       return Network{m, [=]() mutable { return m(x); },
                      [=](const auto& p, auto& b) {
                        b[2] += 1;
                        const double momentum = 1.0 / b[2].template item<double>();
                        return torch::batch_norm(x, p[0], p[1], b[0], b[1], true, momentum, 1e-5, true);
                      }};
     }},
    {"BatchNorm2dEvaluation",
     [](torch::TensorOptions options) {
       nn::BatchNorm2d m(3);
       m->to(options.dtype().toScalarType());
       m->eval();
       const auto x = torch::randn({4, 3, 5, 5}, options);
       return Network{m, [=]() mutable { return m(x); },
                      [=](const auto& p, auto& b) {
                        return torch::batch_norm(x, p[0], p[1], b[0], b[1], false, 0.1, 1e-5, true);
                      }};
     }},
    {"LayerNorm",
     [](torch::TensorOptions options) {
       nn::LayerNorm m(nn::LayerNormOptions({6}));
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({4, 6}, options);
       return Network{m, [=]() mutable { return m(x); },
                      [=](const auto& p, auto&) { return torch::layer_norm(x, {6}, p[0], p[1], 1e-5); }};
     }},
    {"Embedding",
     [](torch::TensorOptions options) {
       nn::Embedding m(9, 4);
       m->to(options.dtype().toScalarType());
       const auto x = torch::tensor({{1, 8, 1}, {0, 3, 3}});
       return Network{m, [=]() mutable { return m(x); },
                      [=](const auto& p, auto&) { return torch::embedding(p[0], x); }};
     }},
    {"Dropout",
     [](torch::TensorOptions options) {
       nn::Sequential m(nn::Linear(5, 8), nn::Dropout(0.4), nn::Linear(8, 2));
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({6, 5}, options);
       return Network{m, [=]() mutable { return m->forward(x); },
                      [=](const auto& p, auto&) {
                        return torch::linear(torch::dropout(torch::linear(x, p[0], p[1]), 0.4, true), p[2], p[3]);
                      },
                      true};
     }},
    {"LSTM",
     [](torch::TensorOptions options) {
       nn::LSTM m(nn::LSTMOptions(4, 3).num_layers(2).bidirectional(true));
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({5, 2, 4}, options);
       return Network{m, [=]() mutable { return std::get<0>(m(x)); },
                      [=](const auto& p, auto&) {
                        const auto zero = torch::zeros({4, 2, 3}, options);
                        return std::get<0>(torch::lstm(x, {zero, zero}, p, true, 2, 0., true, true, false));
                      }};
     }},
    {"GRU",
     [](torch::TensorOptions options) {
       nn::GRU m(nn::GRUOptions(4, 3));
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({5, 2, 4}, options);
       return Network{
           m, [=]() mutable { return std::get<0>(m(x)); },
           [=](const auto& p, auto&) {
             return std::get<0>(torch::gru(x, torch::zeros({1, 2, 3}, options), p, true, 1, 0., true, false, false));
           }};
     }},
    {"MultiheadAttention",
     [](torch::TensorOptions options) {
       nn::MultiheadAttention m(nn::MultiheadAttentionOptions(6, 2));
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({4, 3, 6}, options);
       return Network{m, [=]() mutable { return std::get<0>(m(x, x, x)); },
                      [=](const auto& p, auto&) {
                        const auto qkv = F::linear(x, p[0], p[1]).chunk(3, -1);
                        const auto heads = [](const Tensor& t) {
                          return t.contiguous().view({4, 6, 3}).transpose(0, 1);
                        };
                        const auto q = heads(qkv[0] * (1 / std::sqrt(3.)));
                        const auto weights = torch::softmax(torch::bmm(q, heads(qkv[1]).transpose(1, 2)), -1);
                        const auto out = torch::bmm(weights, heads(qkv[2])).transpose(0, 1).contiguous();
                        return F::linear(out.view({4, 3, 6}), p[2], p[3]);
                      }};
     }},
    {"TiedWeights",
     [](torch::TensorOptions options) {
       Tied m;
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({3, 6}, options);
       return Network{m, [=]() mutable { return m(x); },
                      [=](const auto& p, auto&) { return torch::tanh(torch::linear(x, p[0])).matmul(p[0]); }};
     }},
    {"ListArguments",
     [](torch::TensorOptions options) {
       Lists m(options);
       const auto x = torch::randn({2, 3}, options);
       return Network{
           m, [=]() mutable { return m(x); },
           [=](const auto& p, auto& b) {
             const auto rows = torch::cat({p[0], x, p[1]});
             return torch::stack(
                        {rows.index({b[0]}),
                         torch::einsum("ij,kj->ik", {p[0].repeat({2, 1}), p[1]}).narrow(0, 0, 3).narrow(1, 0, 3)}) +
                    torch::block_diag({p[0], p[1]}).sum();
           }};
     }},
    {"NestedModules",
     [](torch::TensorOptions options) {
       auto m = nested();
       m->to(options.dtype().toScalarType());
       const auto x = torch::randn({3, 5}, options);
       return Network{m, [=]() mutable { return m->forward(x); },
                      [=](const auto& p, auto&) { return nested_by_hand(x, p); }};
     }},
    {"TorchScript",
     [](torch::TensorOptions options) {
       torch::jit::Module m("scripted");
       m.register_parameter("weight", torch::randn({3, 5}, options.requires_grad(true)), false);
       m.register_parameter("bias", torch::randn({3}, options.requires_grad(true)), false);
       m.register_buffer("count", torch::zeros({1}, options));
       m.define(R"(
           def forward(self, x):
               self.count.add_(1)
               h = torch.tanh(torch.linear(x, self.weight, self.bias))
               return torch.cat([h, h * self.bias]) * self.count
       )");
       const auto x = torch::randn({2, 5}, options);
       return Network{m, [=]() mutable { return m.forward({x}).toTensor(); },
                      [=](const auto& p, auto& b) {
                        b[0].add_(1);
                        const auto h = torch::tanh(torch::linear(x, p[0], p[1]));
                        return torch::cat({h, h * p[1]}) * b[0];
                      }};
     }},
};

TensorList fresh(const TensorList& like) {
  TensorList list;
  for (const auto& tensor : like) {
    const auto value = tensor.is_floating_point() ? torch::rand_like(tensor.detach()) + 0.1 : tensor.clone();
    list.push_back(value.detach().set_requires_grad(tensor.requires_grad()));
  }
  return list;
}

class SubstitutedNetwork : public testing::TestWithParam<std::tuple<NetworkCase, torch::Dtype>> {};

// Values, gradients and second derivatives have no difference at all to those of the hand-written function, several
// times in a row (TorchScript optimizes on the second run); buffers advance alike; the model stays as it was.
TEST_P(SubstitutedNetwork, IsTheHandWrittenFunction) {
  const auto& [row, dtype] = GetParam();
  torch::manual_seed(1);
  auto network = row.make(torch::dtype(dtype));
  ASSERT_GT(network.tensors.parameters.size(), 0u);
  const auto own_parameters = clones(network.tensors.parameters.tensors);
  const auto own_buffers = clones(network.tensors.buffers.tensors);
  auto buffers = clones(own_buffers);
  auto reference_buffers = clones(own_buffers);

  for (int run = 0; run < 4; ++run) {
    const auto parameters = fresh(network.tensors.parameters.tensors);
    const auto differentiate = [&](const Tensor& out) {
      const auto first = torch::autograd::grad({(out * out).sum()}, parameters, {}, true, true);
      auto squares = torch::zeros({}, torch::dtype(dtype));
      for (const auto& g : first) squares = squares + (g * g).sum();
      auto second = torch::autograd::grad({squares}, parameters, {}, false, false, true);
      for (auto& g : second) g = g.defined() ? g : torch::zeros({1});
      return std::pair(first, second);
    };

    torch::manual_seed(run);
    const auto expected = network.functional(parameters, reference_buffers);
    torch::manual_seed(run);
    const auto actual = substituted(network.tensors, parameters, buffers, network.module);

    EXPECT_TRUE(torch::equal(actual, expected)) << (actual - expected).abs().max();
    const auto [first, second] = differentiate(actual);
    const auto [expected_first, expected_second] = differentiate(expected);
    expect_equal(first, expected_first);
    expect_equal(second, expected_second);
    expect_equal(buffers, reference_buffers);
  }
  expect_equal(network.tensors.parameters.tensors, own_parameters);
  expect_equal(network.tensors.buffers.tensors, own_buffers);
  for (const auto& parameter : network.tensors.parameters.tensors) EXPECT_FALSE(parameter.grad().defined());
}

INSTANTIATE_TEST_SUITE_P(Networks, SubstitutedNetwork,
                         testing::Combine(testing::ValuesIn(networks), testing::Values(torch::kDouble, torch::kFloat)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name +
                                  (std::get<1>(info.param) == torch::kDouble ? "Float64" : "Float32");
                         });

nn::Linear linear() {
  nn::Linear m(3, 2);
  m->to(torch::kDouble);
  return m;
}

TEST(Substitution, TiedWeightsAreOneTensor) {
  Tied m;
  const ModelTensors tensors(m);
  ASSERT_EQ(tensors.parameters.size(), 1u);
  EXPECT_EQ(tensors.parameters.names[0], "tied");
}

TEST(Substitution, TheInnermostScopeDecides) {
  auto m = linear();
  auto other = linear();
  const ModelTensors tensors(m), other_tensors(other);
  const auto x = torch::randn({4, 3}, torch::kDouble);
  const auto outer = fresh(tensors.parameters.tensors), inner = fresh(tensors.parameters.tensors);
  const auto others = fresh(other_tensors.parameters.tensors);

  substituted(tensors, outer, {}, [&] {
    EXPECT_TRUE(torch::equal(m(x), torch::linear(x, outer[0], outer[1])));
    substituted(other_tensors, others, {}, [&] {
      EXPECT_TRUE(torch::equal(m(x), torch::linear(x, outer[0], outer[1])));
      EXPECT_TRUE(torch::equal(other(x), torch::linear(x, others[0], others[1])));
      return 0;
    });
    substituted(tensors, inner, {}, [&] {
      EXPECT_TRUE(torch::equal(m(x), torch::linear(x, inner[0], inner[1])));
      return 0;
    });
    EXPECT_TRUE(torch::equal(m(x), torch::linear(x, outer[0], outer[1])));
    EXPECT_TRUE(resolve(m->weight).is_same(outer[0]));
    return 0;
  });
  EXPECT_TRUE(torch::equal(m(x), torch::linear(x, m->weight, m->bias)));
  EXPECT_FALSE(Substitution::active());
}

TEST(Substitution, TellsWhoseValuesWereAskedFor) {
  const auto a = torch::zeros({}), b = torch::zeros({}), c = torch::zeros({}), d = torch::zeros({}),
             e = torch::zeros({}), ten = torch::full({}, 10.);
  const ModelTensors outer_tensors(NamedTensors{{"a", "b", "c", "d", "e"}, {a, b, c, d, e}});
  const ModelTensors inner_tensors(NamedTensors{{"a", "b"}, {a, b}});
  const Substitution outer(outer_tensors, {ten, ten, ten, d, e}, {});
  {
    const Substitution inner(inner_tensors, {ten, ten}, {});
    EXPECT_EQ((a + c).item<double>(), 20);
    EXPECT_TRUE(inner.was_read(0) && !inner.was_hidden(0) && !inner.was_read(1));
  }
  resolve(d);
  const bool read[] = {false, false, true, true, false}, hidden[] = {true, false, false, false, false};
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(outer.was_read(i), read[i]) << i;
    EXPECT_EQ(outer.was_hidden(i), hidden[i]) << i;
  }
}

TEST(Substitution, ThreadsSeeTheirOwnValues) {
  auto m = nested();
  m->to(torch::kDouble);
  const ModelTensors tensors(m);
  const auto x = torch::randn({3, 5}, torch::kDouble);
  constexpr int count = 4;
  std::latch all_inside(count);
  std::vector<std::thread> threads;
  std::vector<int> mismatches(count);
  for (int t = 0; t < count; ++t) {
    threads.emplace_back([&, t] {
      TensorList values;
      for (const auto& p : tensors.parameters.tensors) values.push_back(torch::full_like(p, 0.1 * (t + 1)));
      const auto expected = nested_by_hand(x, values);
      Substitution scope(tensors, values, {});
      all_inside.arrive_and_wait();
      for (int i = 0; i < 200; ++i) mismatches[t] += !torch::equal(m->forward(x), expected);
    });
  }
  for (auto& thread : threads) thread.join();
  for (int t = 0; t < count; ++t) EXPECT_EQ(mismatches[t], 0);
}

TEST(Substitution, AnExceptionLeavesNothingBehind) {
  auto m = linear();
  const ModelTensors tensors(m);
  const auto values = fresh(tensors.parameters.tensors);
  const auto x = torch::randn({4, 3}, torch::kDouble);
  const auto before = m(x);
  EXPECT_THROW(substituted(tensors, values, {},
                           [&]() -> Tensor {
                             m(x);
                             throw std::runtime_error("from the closure");
                           }),
               std::runtime_error);
  EXPECT_THROW(substituted(tensors, values, {}, [&] { return m(torch::randn({4, 7}, torch::kDouble)); }), c10::Error);
  EXPECT_FALSE(Substitution::active());
  EXPECT_TRUE(torch::equal(m(x), before));
}

// A module that reaches past the dispatcher, each in its own way, and the words that must name it.

struct Squared : torch::autograd::Function<Squared> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x) {
    context->save_for_backward({x});
    return x * x;
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               torch::autograd::tensor_list gradients) {
    return {2 * gradients[0] * context->get_saved_variables()[0]};
  }
};

struct Escape {
  std::string name;
  std::function<Tensor(nn::Linear&, const Tensor& x)> closure;
  std::string complaint;
};

void PrintTo(const Escape& row, std::ostream* out) { *out << row.name; }

const Escape escapes[] = {
    {"FunctionOnParameter", [](auto& m, auto& x) { return torch::linear(x, Squared::apply(m->weight), m->bias).sum(); },
     "was applied to parameter 'weight' itself"},
    {"FunctionOnParameterAsLastOperation", [](auto& m, auto&) { return Squared::apply(m->bias); },
     "was applied to parameter 'bias' itself"},
    {"Data", [](auto& m, auto& x) { return torch::linear(x, m->weight.data(), m->bias); },
     "reads 'weight' of the model through an alias"},
    {"VariableData", [](auto& m, auto& x) { return torch::linear(x, m->weight, m->bias.variable_data()); },
     "reads 'bias' of the model through an alias"},
    {"WriteThroughData",
     [](auto& m, auto& x) {
       m->weight.data().mul_(2);
       return m(x);
     },
     "writes into the memory of 'weight'"},
    {"WriteThroughView",
     [](auto& m, auto& x) {
       torch::NoGradGuard no_gradient;
       m->weight.t().mul_(2);
       return m(x);
     },
     "writes into the memory of 'weight'"},
    {"SetData",
     [](auto& m, auto& x) {
       m->weight.set_data(torch::ones({2, 3}, torch::kDouble));
       return m(x);
     },
     "set_data() was called on parameter 'weight'"},
    {"InPlace",
     [](auto& m, auto& x) {
       torch::NoGradGuard no_gradient;
       m->weight.clamp_(-1, 1);
       return m(x);
     },
     "aten::clamp_ writes to parameter 'weight'"},
    {"Out",
     [](auto& m, auto& x) {
       torch::NoGradGuard no_gradient;
       torch::mul_out(m->bias, m->bias, torch::full({}, 2., torch::kDouble));
       return m(x);
     },
     "aten::mul writes to parameter 'bias'"},
};

class EscapeTest : public testing::TestWithParam<Escape> {};

TEST_P(EscapeTest, IsFoundAndNamed) {
  auto m = linear();
  const ModelTensors tensors(m);
  const auto own = clones(tensors.parameters.tensors);
  const auto values = fresh(tensors.parameters.tensors);
  const auto x = torch::randn({4, 3}, torch::kDouble);
  expect_error([&] { substituted(tensors, values, {}, [&] { return GetParam().closure(m, x); }); },
               GetParam().complaint);
  EXPECT_FALSE(Substitution::active());
  if (GetParam().name != "SetData") expect_equal(tensors.parameters.tensors, own);
}

INSTANTIATE_TEST_SUITE_P(Substitution, EscapeTest, testing::ValuesIn(escapes),
                         [](const auto& info) { return info.param.name; });

// In the first step of a loop the fast weights are the parameters.
TEST(Substitution, NothingWritesIntoTheModelWhileItsValuesAreItsOwn) {
  auto m = linear();
  const ModelTensors tensors(m);
  const auto own = clones(tensors.parameters.tensors);
  expect_error(
      [&] {
        substituted(tensors, tensors.parameters.tensors, {}, [&] { return m->weight.data().clamp_(-0.01, 0.01); });
      },
      "aten::clamp_ writes into the memory of 'weight'");
  expect_equal(tensors.parameters.tensors, own);
}

TEST(Substitution, ValuesMayHaveOtherDispatchKeysThanTheParameters) {
  auto m = linear();
  const ModelTensors tensors(m);
  const auto negated = torch::_neg_view(torch::ones({2, 3}, torch::kDouble));
  const auto y = substituted(tensors, {negated, m->bias}, {}, [&] { return m->weight.exp(); });
  EXPECT_TRUE(torch::equal(y, torch::full({2, 3}, -1., torch::kDouble).exp()));
}

TEST(Substitution, OperatorsInThreadsOfTheClosureAreRefused) {
  auto m = linear();
  const ModelTensors tensors(m);
  const auto values = fresh(tensors.parameters.tensors);
  const auto x = torch::randn({4, 3}, torch::kDouble);
  std::string message;
  substituted(tensors, values, {}, [&] {
    std::latch done(1);
    at::launch([&] {
      try {
        m(x);
      } catch (const c10::Error& error) {
        message = error.what_without_backtrace();
      }
      done.count_down();
    });
    done.wait();
    return 0;
  });
  EXPECT_NE(message.find("in a thread that an inner loop's closure started"), std::string::npos) << message;
}

// What looks like an escape and is none.
TEST(Substitution, ResolvedParametersAndClonesFromOutsideAreNoEscapes) {
  auto m = linear();
  const ModelTensors tensors(m);
  const auto values = fresh(tensors.parameters.tensors);
  const auto x = torch::randn({4, 3}, torch::kDouble);
  const auto start = m->weight.clone();
  const auto loss = substituted(tensors, values, {}, [&] {
    return torch::linear(x, Squared::apply(resolve(m->weight)), m->bias).sum() + (m->weight - start).pow(2).sum();
  });
  const auto expected = torch::linear(x, values[0] * values[0], values[1]).sum() + (values[0] - m->weight).pow(2).sum();
  EXPECT_TRUE(torch::allclose(loss, expected));
  const auto g = torch::autograd::grad({loss}, {m->weight, values[0]});
  EXPECT_TRUE(torch::allclose(g[0], -2 * (values[0] - m->weight)));
}

TEST(Substitution, AFunctionOnAFrozenParameterIsNoEscape) {
  auto m = linear();
  const ModelTensors tensors(m);
  const TensorList values{torch::rand({2, 3}, torch::kDouble), m->bias};
  const auto y = substituted(tensors, values, {}, [&] { return Squared::apply(m->bias) + m->weight.sum(); });
  EXPECT_TRUE(torch::equal(y, m->bias * m->bias + values[0].sum()));
}

// TorchScript ties whole subgraphs to a parameter once it has optimized a method outside any scope.
TEST(Substitution, RefusesAScriptThatWasOptimizedBefore) {
  const auto scripted = [] {
    torch::jit::Module m("scripted");
    m.register_parameter("weight", torch::ones({3, 5}, torch::requires_grad()), false);
    m.define("def forward(self, x):\n    return torch.tanh(x.matmul(self.weight)) * x.matmul(self.weight)\n");
    return m;
  };
  const auto x = torch::randn({2, 3});
  const auto run_in_a_scope_after_training = [&](torch::jit::Module m) {
    for (int run = 0; run < 4; ++run) m.forward({x}).toTensor().sum().backward();
    const ModelTensors tensors(m);
    const auto values = fresh(tensors.parameters.tensors);
    const auto y = substituted(tensors, values, {}, [&] { return m.forward({x}).toTensor(); });
    const auto h = x.matmul(values[0]);
    EXPECT_TRUE(torch::equal(y, torch::tanh(h) * h));
  };
  EXPECT_THROW(run_in_a_scope_after_training(scripted()), c10::Error);
  torch::jit::setGraphExecutorOptimize(false);
  run_in_a_scope_after_training(scripted());
  torch::jit::setGraphExecutorOptimize(true);
}

TEST(Substitution, RefusesListsOfTheWrongLength) {
  auto m = linear();
  const ModelTensors tensors(m);
  EXPECT_THROW(Substitution(tensors, {m->weight}, {}), c10::Error);
}

// An operator of another library, without a word of what it does.
TORCH_LIBRARY(gimli_test, library) {
  library.def("noisy(Tensor x) -> Tensor", [](const Tensor& x) { return x + torch::randn_like(x); });
}

struct Draw {
  std::string name;
  std::function<Tensor()> draw;
};

/// Operators that draw, with a generator among their arguments or not, and some made of others.
std::vector<Draw> draws() {
  const auto x = torch::ones({20, 3}), rows = torch::ones({4, 5, 3});
  auto lstm = nn::LSTM(nn::LSTMOptions(3, 4).num_layers(2).dropout(0.5));
  auto attention = nn::MultiheadAttention(nn::MultiheadAttentionOptions(3, 1).dropout(0.5));
  nn::Sequential layers(nn::Dropout(0.5), nn::Dropout2d(0.5), nn::AlphaDropout(0.5), nn::FeatureAlphaDropout(0.5));
  return {
      {"rand", [] { return torch::rand({9}); }},
      {"rand_like", [x] { return torch::rand_like(x); }},
      {"randn", [] { return torch::randn({9}); }},
      {"randn of float64", [] { return torch::randn({9}, torch::kDouble); }},
      {"randint", [] { return torch::randint(1000, {9}); }},
      {"randperm", [] { return torch::randperm(99); }},
      {"normal", [x] { return at::normal(x, 1.); }},
      {"normal_", [] { return torch::empty({9}).normal_(); }},
      {"uniform_", [] { return torch::empty({9}).uniform_(); }},
      {"exponential_", [] { return torch::empty({9}).exponential_(); }},
      {"random_", [] { return torch::empty({9}, torch::kLong).random_(); }},
      {"bernoulli", [x] { return torch::bernoulli(x / 2); }},
      {"multinomial", [x] { return torch::multinomial(torch::ones({99}), 20); }},
      {"poisson", [x] { return torch::poisson(x * 9); }},
      {"gamma", [x] { return torch::_standard_gamma(x); }},
      {"rrelu", [x] { return torch::rrelu(-x, 0.1, 0.9, true); }},
      {"dropout", [x] { return torch::dropout(x, 0.5, true); }},
      {"native_dropout", [x] { return std::get<0>(torch::native_dropout(x, 0.5, true)); }},
      {"dropout layers", [layers, rows]() mutable { return layers->forward(rows); }},
      {"LSTM", [lstm, rows]() mutable { return std::get<0>(lstm(rows)); }},
      {"MultiheadAttention", [attention, rows]() mutable { return std::get<0>(attention(rows, rows, rows)); }},
      {"an operator of another library",
       [x] {
         return c10::Dispatcher::singleton()
             .findSchemaOrThrow("gimli_test::noisy", "")
             .typed<Tensor(const Tensor&)>()
             .call(x);
       }},
      {"scaled_dot_product_attention",
       [rows] { return at::scaled_dot_product_attention(rows, rows, rows, std::nullopt, 0.5); }},
  };
}

TEST(RandomStreamTest, IsWhatEveryOperatorDrawsFromInThePlaceOfTheDefaultGenerator) {
  const auto default_state = [] { return at::detail::getDefaultCPUGenerator().get_state(); };
  const auto operators = draws();
  torch::manual_seed(1);
  const auto before = default_state();
  for (const auto& [name, draw] : operators) {
    const auto first = [&, draw = draw](uint64_t seed) {
      const RandomStream stream(seed);
      return draw();
    };
    const auto value = first(5);
    EXPECT_TRUE(torch::equal(first(5), value)) << name;
    EXPECT_FALSE(torch::equal(first(6), value)) << name;
    EXPECT_TRUE(torch::equal(default_state(), before)) << name;
    const RandomStream stream(5);
    EXPECT_TRUE(torch::equal(draw(), value)) << name;
    EXPECT_FALSE(torch::equal(draw(), value)) << name << ": the stream goes on";
    {
      const RandomStream inner(5);
      EXPECT_TRUE(torch::equal(draw(), value)) << name << ": the innermost decides";
    }
  }
  torch::rand({1});
  EXPECT_FALSE(torch::equal(default_state(), before));
}

TEST(RandomStreamTest, LeavesGeneratorsThatAreGivenAlone) {
  auto own = at::detail::createCPUGenerator(3), same = at::detail::createCPUGenerator(3);
  const auto expected = torch::empty({9}).normal_(0, 1, own);
  const RandomStream stream(5);
  EXPECT_TRUE(torch::equal(torch::empty({9}).normal_(0, 1, same), expected));
}

TEST(RandomStreamTest, DrawsOnSubstitutedParametersToo) {
  nn::Linear m(3, 3);
  const ModelTensors tensors(m);
  const auto fast = torch::full({3, 3}, 2.);
  const auto dropped = substituted(tensors, {fast, tensors.parameters.tensors[1]}, {}, [&] {
    const RandomStream stream(5);
    return torch::dropout(m->weight, 0.5, true);
  });
  EXPECT_TRUE(torch::equal(dropped, (dropped != 0).to(torch::kFloat) * 4));
}

TEST(RandomStreamTest, SeedsAndTheirUpperHalvesDiffer) {
  const auto draw = [](uint64_t seed) {
    const RandomStream stream(seed);
    return torch::rand({9});
  };
  EXPECT_FALSE(torch::equal(draw(7), draw(7 + (uint64_t{1} << 32))));
  const auto many = [] {
    const RandomStream stream(3);
    return torch::randn({100'000}, torch::kDouble);
  }();
  EXPECT_NEAR(many.mean().item<double>(), 0, 0.02);
  EXPECT_NEAR(many.var().item<double>(), 1, 0.03);
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (uint64_t index = 0; index < 100; ++index) seeds.insert(fork_seed(seed, index));
  }
  EXPECT_EQ(seeds.size(), 10000u);
}

}  // namespace
}  // namespace gimli
