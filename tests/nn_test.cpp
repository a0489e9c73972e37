#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "expect.h"
#include "gimli/gradcheck.h"
#include "gimli/inner_loop.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/densenet.h"
#include "gimli/nn/mlp.h"
#include "gimli/nn/resnet.h"
#include "gimli/nn/step_norm.h"
#include "gimli/nn/vgg.h"

using gimli::nn::Conv4;
using gimli::nn::Conv4Options;
using gimli::nn::Conv4Pooling;
using gimli::nn::DenseNet;
using gimli::nn::densenet_8;
using gimli::nn::densenet_bc_100_12;
using gimli::nn::DenseNetOptions;
using gimli::nn::mlp;
using gimli::nn::ResNet;
using gimli::nn::ResNetOptions;
using gimli::nn::StepNorm2d;
using gimli::nn::Vgg;
using gimli::nn::VggOptions;

using gimli::clones;
using gimli::expect_equal;
using gimli::InnerLoop;
using gimli::message_of;
using gimli::TensorList;

namespace {

int64_t parameter_count(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const auto& parameter : module.parameters()) count += parameter.numel();
  return count;
}

/// A network and how to call it in an inner step.
struct Network {
  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor& images, int64_t step)> forward;
};

template <class Holder>
Network network(Holder model) {
  return {model.ptr(), [model](const at::Tensor& images, int64_t step) mutable {
            if constexpr (std::is_same_v<Holder, Vgg>) return model->forward(images, step);
            return model->forward(images);
          }};
}

/// Reads a network's parameters in their order.
class Reader final {
 public:
  explicit Reader(TensorList parameters) : parameters_(std::move(parameters)) {}
  at::Tensor next() { return parameters_.at(at_++); }
  bool at_end() const { return at_ == parameters_.size(); }

  at::Tensor conv(const at::Tensor& x, bool bias) {
    const auto weight = next();
    return at::conv2d(x, weight, bias ? next() : at::Tensor(), 1, weight.size(2) / 2);
  }
  /// Batch normalization in the words of its definition; from a table of rows, the `row`-th.
  at::Tensor norm(const at::Tensor& x, int64_t row = 0) {
    const auto of_channels = [&](at::Tensor t) { return (t.dim() == 2 ? t[row] : t).view({1, -1, 1, 1}); };
    const auto weight = of_channels(next()), bias = of_channels(next());
    const auto centred = x - x.mean({0, 2, 3}, true);
    return centred / (centred.square().mean({0, 2, 3}, true) + 1e-5).sqrt() * weight + bias;
  }
  at::Tensor linear(const at::Tensor& x) {
    const auto weight = next();
    return x.matmul(weight.t()) + next();
  }

 private:
  TensorList parameters_;
  size_t at_ = 0;
};

/// Parameters away from their beginning, where normalizations are 1 and 0.
void shake(torch::nn::Module& module) {
  torch::NoGradGuard without_gradient;
  module.to(torch::kDouble);
  for (auto& parameter : module.parameters()) parameter += 0.1 * torch::randn_like(parameter);
}

/// An outer loss after two inner steps of gradient descent from `parameters`: its gradient has second derivatives of
/// the network in it.
at::Tensor loss_after_two_steps(const Network& net, const at::Tensor& images, const TensorList& parameters) {
  torch::optim::SGD optimizer(net.module->parameters(), 0.1);
  InnerLoop inner(net.module, optimizer);
  auto state = inner.state();
  state.parameters = parameters;
  inner.set_state(state);
  const auto targets = torch::arange(images.size(0));
  const auto loss = [&](const at::Tensor& x, int64_t step) {
    return at::cross_entropy_loss(net.forward(x, step), targets);
  };
  for (int64_t step = 0; step < 2; ++step) inner.step([&] { return loss(images, step); });
  return inner.run([&] { return loss(images.flip(3), 1); });
}

TensorList leaves(const torch::nn::Module& module) {
  auto list = clones(module.parameters());
  for (auto& tensor : list) tensor.requires_grad_();
  return list;
}

}  // namespace

TEST(Conv4, parameter_counts) {
  // 3x3 convolutions with biases, two numbers a channel for each normalization, a linear layer.
  const int64_t first = 9 * 64 + 64, others = 3 * (9 * 64 * 64 + 64), norms = 4 * 2 * 64;
  EXPECT_EQ(first + others + norms, 111936);
  EXPECT_EQ(parameter_count(*Conv4(5)), 111936 + 5 * 64 + 5);
  EXPECT_EQ(parameter_count(*Conv4(20)), 111936 + 20 * 64 + 20);
  EXPECT_EQ(parameter_count(*Conv4(Conv4Options(5).pooling(Conv4Pooling::kStride))), 111936 + 5 * 4 * 64 + 5);
  // mini-ImageNet's of Finn et al. 2017: 32 channels, 84 -> 42 -> 21 -> 10 -> 5
  EXPECT_EQ(parameter_count(*Conv4(Conv4Options(5).in_channels(3).hidden(32).image_size(84))),
            (9 * 3 * 32 + 32) + 3 * (9 * 32 * 32 + 32) + 4 * 2 * 32 + 5 * 25 * 32 + 5);
}

TEST(Conv4, output_shapes) {
  for (const auto pooling : {Conv4Pooling::kMaxPool, Conv4Pooling::kStride}) {
    for (const int64_t size : {16, 17, 28, 31, 84}) {
      Conv4 model(Conv4Options(7).in_channels(2).hidden(3).image_size(size).pooling(pooling));
      EXPECT_EQ(model->forward(torch::randn({4, 2, size, size})).sizes(), (std::vector<int64_t>{4, 7}));
    }
  }
  Conv4 tiny(Conv4Options(2).image_size(1).pooling(Conv4Pooling::kStride));
  EXPECT_EQ(tiny->forward(torch::randn({3, 1, 1, 1})).sizes(), (std::vector<int64_t>{3, 2}));
}

TEST(Conv4, always_normalizes_with_the_batch) {
  torch::manual_seed(0);
  for (const auto pooling : {Conv4Pooling::kMaxPool, Conv4Pooling::kStride}) {
    Conv4 model(Conv4Options(5).hidden(8).pooling(pooling));
    EXPECT_TRUE(model->buffers().empty());
    const auto images = torch::randn({6, 1, 28, 28});
    const auto in_training = model->forward(images);
    model->eval();
    EXPECT_TRUE(torch::equal(model->forward(images), in_training));
    // Scale and shift of the whole batch do not matter, its company does.
    model->to(torch::kDouble);
    const auto wide = images.to(torch::kDouble);
    EXPECT_FALSE(torch::allclose(model->forward(wide)[0], model->forward(wide.slice(0, 0, 3))[0]));
    auto norm = model->features[1]->as<torch::nn::BatchNorm2d>();
    ASSERT_NE(norm, nullptr);
    const auto normal = norm->forward(3 * torch::randn({9, 8, 5, 5}, torch::kDouble) + 7);
    EXPECT_TRUE(torch::allclose(normal.mean({0, 2, 3}), torch::zeros({8}, torch::kDouble), 0, 1e-9));
    EXPECT_TRUE(torch::allclose(normal.var({0, 2, 3}, false), torch::ones({8}, torch::kDouble), 1e-4));
  }
}

TEST(Conv4, names_initial_values_and_clone) {
  Conv4 model(5);
  const auto parameters = model->named_parameters();
  std::vector<std::string> names;
  for (const auto& item : parameters) names.push_back(item.key());
  EXPECT_EQ(names.size(), 18u);
  EXPECT_EQ(names.front(), "features.conv1.weight");
  EXPECT_EQ(names.back(), "classifier.bias");
  for (const auto& item : parameters) {
    const auto& value = item.value();
    if (item.key().ends_with("bias")) {
      EXPECT_TRUE(value.eq(0).all().item<bool>()) << item.key();
    } else if (item.key().find("norm") != std::string::npos) {
      EXPECT_TRUE(value.eq(1).all().item<bool>()) << item.key();
    } else {
      const int64_t area = value.dim() == 4 ? 9 : 1;
      const double bound = std::sqrt(6. / static_cast<double>(area * (value.size(0) + value.size(1))));
      EXPECT_LE(value.abs().max().item<double>(), bound * (1 + 1e-6)) << item.key();
      EXPECT_GT(value.abs().max().item<double>(), 0.9 * bound) << item.key();
    }
  }
  const auto copy = std::dynamic_pointer_cast<gimli::nn::Conv4Impl>(model->clone());
  const auto images = torch::randn({5, 1, 28, 28});
  EXPECT_TRUE(torch::equal(copy->forward(images), model->forward(images)));
  EXPECT_FALSE(copy->parameters()[0].is_alias_of(model->parameters()[0]));
}

TEST(Conv4, every_parameter_but_the_biases_under_a_normalization_gets_a_gradient) {
  for (const auto pooling : {Conv4Pooling::kMaxPool, Conv4Pooling::kStride}) {
    Conv4 model(Conv4Options(5).hidden(8).pooling(pooling));
    torch::nn::functional::cross_entropy(model->forward(torch::randn({10, 1, 28, 28})), torch::arange(10) % 5)
        .backward();
    for (const auto& item : model->named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      const bool cancels = item.key().find("conv") != std::string::npos && item.key().ends_with("bias");
      EXPECT_GT(item.value().grad().abs().max().item<double>(), cancels ? -1 : 1e-5) << item.key();
    }
  }
}

TEST(Conv4, bad_input) {
  const auto make = [](const Conv4Options& options) { return message_of([&] { Conv4 model(options); }); };
  EXPECT_EQ(make(Conv4Options(0)), "Conv4: expected at least 1 class, got 0");
  EXPECT_EQ(make(Conv4Options(5).in_channels(0)), "Conv4: expected at least 1 input channel, got 0");
  EXPECT_EQ(make(Conv4Options(5).hidden(-1)), "Conv4: expected at least 1 hidden channel, got -1");
  EXPECT_EQ(make(Conv4Options(5).image_size(15)),
            "Conv4: four 2x2 max-pools need an image size of at least 16, got 15");
  EXPECT_EQ(make(Conv4Options(5).image_size(0).pooling(Conv4Pooling::kStride)),
            "Conv4: expected an image size of at least 1, got 0");
  Conv4 model(5);
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 28, 28}));
            }),
            "Conv4: expected images [n, 1, 28, 28], got [2, 28, 28]");
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 3, 28, 28}));
            }),
            "Conv4: expected images [n, 1, 28, 28], got [2, 3, 28, 28]");
}

TEST(StepNorm2d, is_batch_normalization_with_the_row_of_the_step) {
  torch::manual_seed(0);
  const auto x = 3 * torch::randn({4, 3, 2, 5}) + 1;
  for (const int64_t steps : {0, 1, 3}) {
    StepNorm2d norm(3, steps);
    EXPECT_EQ(norm->parameters().size(), 2u);
    EXPECT_TRUE(norm->buffers().empty());
    EXPECT_EQ(norm->weight.sizes(), steps == 0 ? std::vector<int64_t>{3} : (std::vector<int64_t>{steps, 3}));
    EXPECT_TRUE(norm->weight.eq(1).all().item<bool>() && norm->bias.eq(0).all().item<bool>());
    {
      torch::NoGradGuard without_gradient;
      norm->weight.normal_();
      norm->bias.normal_();
    }
    for (const int64_t step : {0, 1, 2, 3, 100}) {
      const int64_t row = std::min<int64_t>(step, std::max<int64_t>(steps, 1) - 1);
      const auto weight = norm->weight.view({-1, 3})[row], bias = norm->bias.view({-1, 3})[row];
      const auto expected = at::batch_norm(x, weight, bias, {}, {}, true, 0.1, 1e-5, false);
      norm->train(step % 2 == 0);  // makes no difference
      EXPECT_TRUE(torch::equal(norm->forward(x, step), expected)) << steps << " steps, in step " << step;
      // The gradient arrives in that row alone.
      const auto gradient = torch::autograd::grad({norm->forward(x, step).square().sum()}, {norm->weight})[0];
      EXPECT_EQ(gradient.view({-1, 3}).ne(0).all(1).sum().item<int64_t>(), 1);
      EXPECT_TRUE(gradient.view({-1, 3})[row].ne(0).all().item<bool>());
    }
  }
}

TEST(StepNorm2d, bad_input) {
  EXPECT_EQ(message_of([] { StepNorm2d(0, 1); }), "StepNorm2d: expected at least 1 channel, got 0");
  EXPECT_EQ(message_of([] { StepNorm2d(1, -1); }), "StepNorm2d: expected at least 0 steps, got -1");
  StepNorm2d norm(2, 3);
  EXPECT_EQ(message_of([&] {
              norm->forward(torch::zeros({4, 3, 2, 2}), 0);
            }),
            "StepNorm2d: expected an input [n, 2, h, w], got [4, 3, 2, 2]");
  EXPECT_EQ(message_of([&] {
              norm->forward(torch::zeros({4, 2, 2, 2}), -1);
            }),
            "StepNorm2d: expected a step of at least 0, got -1");
}

TEST(Vgg, parameters) {
  struct Case {
    VggOptions options;
    int64_t parameters;
  };
  const auto minimal = VggOptions(5).in_channels(3).image_size(84).hidden(48);
  for (const auto& [options, parameters] : {
           Case{VggOptions(5), 10 * 64 + 3 * (9 * 64 + 1) * 64 + 4 * 2 * 64 + 65 * 5},
           Case{VggOptions(20).norm_steps(5), 10 * 64 + 3 * (9 * 64 + 1) * 64 + 4 * 5 * 2 * 64 + 65 * 20},
           // MAML++'s for mini-ImageNet: 84 -> 42 -> 21 -> 10 -> 5
           Case{minimal, 28 * 48 + 3 * (9 * 48 + 1) * 48 + 4 * 2 * 48 + (25 * 48 + 1) * 5},
       }) {
    Vgg model(options);
    EXPECT_EQ(parameter_count(*model), parameters);
    EXPECT_EQ(model->parameters().size(), 18u);
    EXPECT_TRUE(model->buffers().empty());
    const auto images = torch::randn({3, options.in_channels(), options.image_size(), options.image_size()});
    EXPECT_EQ(model->forward(images, 0).sizes(), (std::vector<int64_t>{3, options.classes()}));
    for (const auto& item : model->named_parameters()) {
      const auto& value = item.value();
      const bool is_norm = item.key().starts_with("norm"), is_bias = item.key().ends_with("bias");
      const auto fans =
          static_cast<double>(is_bias || is_norm ? 1 : (value[0].numel() + value.numel() / value.size(1)));
      if (is_bias || is_norm) {
        EXPECT_TRUE(value.eq(is_bias ? 0 : 1).all().item<bool>()) << item.key();
      } else {
        EXPECT_NEAR(value.abs().max().item<double>(), std::sqrt(6 / fans), 0.1 * std::sqrt(6 / fans)) << item.key();
      }
    }
  }
}

TEST(Vgg, layers_and_steps) {
  torch::manual_seed(1);
  for (const int64_t steps : {0, 1, 3}) {
    Vgg model(VggOptions(4).in_channels(2).image_size(19).hidden(3).norm_steps(steps));
    shake(*model);
    const auto images = torch::randn({5, 2, 19, 19}, torch::kDouble);
    for (const int64_t step : {0, 1, 2, 3}) {
      Reader p(model->parameters());
      auto x = images;
      for (int stage = 0; stage < 4; ++stage) {
        x = p.norm(p.conv(x, true), std::min(step, std::max<int64_t>(steps - 1, 0)));
        x = at::max_pool2d(at::where(x > 0, x, 0.01 * x), 2);
      }
      EXPECT_TRUE(torch::allclose(model->forward(images, step), p.linear(x.flatten(1)), 1e-9, 1e-9))
          << steps << " steps, in step " << step;
      EXPECT_TRUE(p.at_end());
    }
    const auto copy = std::dynamic_pointer_cast<gimli::nn::VggImpl>(model->clone());
    EXPECT_TRUE(torch::equal(copy->forward(images, 2), model->forward(images, 2)));
    if (steps == 3) {
      EXPECT_FALSE(torch::allclose(model->forward(images, 1), model->forward(images, 2)));
      EXPECT_EQ(message_of([&] { model->forward(images); }),
                "Vgg: a network with 3 steps of normalization needs the step, as in forward(images, step)");
    }
  }
}

TEST(Vgg, one_step_of_normalization_trains_as_none) {
  std::vector<at::Tensor> losses;
  std::vector<TensorList> gradients;
  for (const int64_t steps : {0, 1}) {
    torch::manual_seed(2);
    Vgg model(VggOptions(5).hidden(4).norm_steps(steps));
    model->to(torch::kDouble);
    const auto images = torch::randn({5, 1, 28, 28}, torch::kDouble);
    const auto parameters = leaves(*model);
    losses.push_back(loss_after_two_steps(network(model), images, parameters));
    gradients.push_back(torch::autograd::grad({losses.back()}, parameters));
  }
  EXPECT_TRUE(torch::equal(losses[0], losses[1]));
  for (size_t i = 0; i < gradients[0].size(); ++i) {  // whose summands autograd adds in another order
    EXPECT_TRUE(torch::allclose(gradients[0][i].flatten(), gradients[1][i].flatten(), 1e-10, 1e-12)) << i;
  }
}

TEST(Vgg, outer_gradient_reaches_the_normalizations_of_the_steps_taken) {
  torch::manual_seed(4);
  Vgg model(VggOptions(5).hidden(4).norm_steps(4));
  TensorList adapted;
  for (const auto& item : model->named_parameters()) {
    if (!item.key().starts_with("norm")) adapted.push_back(item.value());
  }
  torch::optim::SGD optimizer(adapted, 0.1);
  InnerLoop inner(model, optimizer);
  const auto images = torch::randn({5, 1, 28, 28});
  const auto loss = [&](int64_t step) {
    return at::cross_entropy_loss(model->forward(images, step), torch::arange(5));
  };
  for (const int64_t step : {0, 1}) inner.step([&] { return loss(step); });
  inner.run([&] { return loss(2); }).backward();
  for (const auto& norm : model->norms) {
    const auto reached = norm->weight.grad().ne(0).any(1);
    EXPECT_TRUE(torch::equal(reached, torch::tensor({true, true, true, false}))) << norm->weight.grad();
  }
}

TEST(Vgg, bad_input) {
  const auto make = [](const VggOptions& options) { return message_of([&] { Vgg model(options); }); };
  EXPECT_EQ(make(VggOptions(0)), "Vgg: expected at least 1 class, got 0");
  EXPECT_EQ(make(VggOptions(5).in_channels(0)), "Vgg: expected at least 1 input channel, got 0");
  EXPECT_EQ(make(VggOptions(5).hidden(0)), "Vgg: expected at least 1 hidden channel, got 0");
  EXPECT_EQ(make(VggOptions(5).norm_steps(-1)), "Vgg: expected at least 0 steps of normalization, got -1");
  EXPECT_EQ(make(VggOptions(5).image_size(15)), "Vgg: four 2x2 max-pools need an image size of at least 16, got 15");
  Vgg model(5);
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 3, 28, 28}));
            }),
            "Vgg: expected images [n, 1, 28, 28], got [2, 3, 28, 28]");
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 1, 28, 28}), -1);
            }),
            "Vgg: expected a step of at least 0, got -1");
}

TEST(Backbones, parameters_and_shapes) {
  struct Case {
    std::string name;
    Network net;
    int64_t channels, size, classes, parameters;
    size_t tensors;
  };
  // Convolutions of 3x3, a normalization each, and the shortcut's of 1x1.
  const auto residual = [](int64_t layers, int64_t from, int64_t to) {
    return 9 * from * to + (layers - 1) * 9 * to * to + layers * 2 * to + from * to + 2 * to;
  };
  const auto resnet = [&](int64_t layers, int64_t channels) {
    return residual(layers, channels, 64) + residual(layers, 64, 128) + residual(layers, 128, 256) +
           residual(layers, 256, 512) + 513 * 5;
  };
  const auto dense = [](int64_t from, int64_t growth) {
    return 2 * from + from * 4 * growth + 2 * 4 * growth + 9 * 4 * growth * growth;
  };
  const auto transition = [](int64_t from, int64_t to) { return 2 * from + from * to; };
  // channels -> +64 -> half, three times; -> +64
  const auto densenet = [&](std::vector<int64_t> blocks) {
    int64_t count = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
      count += dense(blocks[i], 32) + dense(blocks[i] + 32, 32);
      if (i > 0) count += transition(blocks[i - 1] + 64, blocks[i]);
    }
    return count + 2 * (blocks.back() + 64) + (blocks.back() + 64 + 1) * 5;
  };
  for (const auto& [name, net, channels, size, classes, parameters, tensors] : {
           Case{"resnet-4", network(ResNet(5, 1)), 1, 28, 5, resnet(1, 1), 4 * 6 + 2},
           Case{"resnet-8", network(ResNet(5, 2)), 1, 28, 5, resnet(2, 1), 4 * 9 + 2},
           Case{"resnet-12", network(ResNet(5, 3)), 1, 28, 5, resnet(3, 1), 4 * 12 + 2},
           Case{"resnet-4", network(ResNet(ResNetOptions(5, 1).in_channels(3))), 3, 84, 5, resnet(1, 3), 4 * 6 + 2},
           Case{"resnet-12", network(ResNet(ResNetOptions(5, 3).in_channels(3))), 3, 84, 5, resnet(3, 3), 4 * 12 + 2},
           Case{"densenet-8", network(DenseNet(densenet_8(5))), 1, 28, 5, densenet({1, 32, 48, 56}), 8 * 6 + 3 * 3 + 4},
           Case{"densenet-8", network(DenseNet(densenet_8(5, 3))), 3, 84, 5, densenet({3, 33, 48, 56}),
                8 * 6 + 3 * 3 + 4},
           Case{"densenet-bc-100-12", network(DenseNet(densenet_bc_100_12())), 3, 32, 10, 769162, 299},
       }) {
    EXPECT_EQ(parameter_count(*net.module), parameters) << name;
    EXPECT_EQ(net.module->parameters().size(), tensors) << name;
    torch::NoGradGuard without_gradient;
    EXPECT_EQ(net.forward(torch::randn({2, channels, size, size}), 0).sizes(), (std::vector<int64_t>{2, classes}))
        << name;
    for (const auto& item : net.module->named_parameters()) {
      const auto& value = item.value();
      const auto where = name + ", " + item.key();
      if (value.dim() == 4) {
        const auto expected = std::sqrt(2. / static_cast<double>(value.numel() / value.size(1)));
        const auto tolerance = 5 / std::sqrt(2. * static_cast<double>(value.numel()));
        EXPECT_NEAR(value.square().mean().sqrt().item<double>() / expected, 1, tolerance) << where;
      } else if (value.dim() == 1) {
        EXPECT_TRUE(value.eq(item.key().ends_with("bias") ? 0 : 1).all().item<bool>()) << where;
      }
    }
  }
}

TEST(Backbones, gradients_through_inner_steps_agree_with_central_differences) {
  struct Case {
    std::string name;
    Network net;
    std::vector<int64_t> images;
  };
  torch::manual_seed(5);
  const auto dense = DenseNetOptions(3).growth(2).bottleneck(2);
  for (const auto& [name, net, sizes] : {
           Case{"vgg", network(Vgg(VggOptions(3).image_size(16).hidden(2).norm_steps(2))), {3, 1, 16, 16}},
           Case{"resnet-4", network(ResNet(ResNetOptions(3, 1).widths({2, 2, 3, 2}))), {3, 1, 16, 16}},
           Case{"resnet-12", network(ResNet(ResNetOptions(3, 3).in_channels(2).widths({2, 2}))), {3, 2, 6, 6}},
           Case{"densenet-8", network(DenseNet(densenet_8(3).growth(1).bottleneck(2))), {3, 1, 8, 8}},
           Case{"densenet-bc",
                network(DenseNet(DenseNetOptions(dense).layers({2, 1}).initial_channels(2))),
                {3, 3, 8, 8}},
       }) {
    shake(*net.module);
    const auto images = torch::randn(sizes, torch::kDouble);
    const auto buffers = clones(net.module->buffers());
    const auto report = gimli::gradcheck(
        [&, net = net](const TensorList& parameters) { return loss_after_two_steps(net, images, parameters); },
        leaves(*net.module), gimli::GradcheckOptions().step(1e-6).absolute(1e-7).relative(1e-5));
    EXPECT_TRUE(report.passed) << name << ": " << report.message;
    expect_equal(net.module->buffers(), buffers);
  }
}

TEST(Backbones, gradients_through_inner_steps_are_finite_on_whole_images) {
  struct Case {
    std::string name;
    Network net;
    std::vector<int64_t> images;
  };
  torch::manual_seed(6);
  const std::vector<int64_t> narrow{8, 16, 32, 64};
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    for (const auto& [name, net, sizes] : {
             Case{"vgg", network(Vgg(5)), {5, 1, 28, 28}},
             Case{"vgg",
                  network(Vgg(VggOptions(5).in_channels(3).image_size(84).hidden(8).norm_steps(2))),
                  {5, 3, 84, 84}},
             Case{"resnet-12", network(ResNet(ResNetOptions(5, 3).widths(narrow))), {5, 1, 28, 28}},
             Case{"resnet-12", network(ResNet(ResNetOptions(5, 3).in_channels(3).widths(narrow))), {2, 3, 84, 84}},
             Case{"densenet-8", network(DenseNet(densenet_8(5))), {5, 1, 28, 28}},
             Case{"densenet-8", network(DenseNet(densenet_8(5, 3).growth(4))), {2, 3, 84, 84}},
         }) {
      net.module->to(type);
      const auto parameters = leaves(*net.module);
      const auto loss = loss_after_two_steps(net, torch::randn(sizes, type), parameters);
      const auto gradients = torch::autograd::grad({loss}, parameters);
      for (size_t i = 0; i < gradients.size(); ++i) {
        const bool is_weight = parameters[i].dim() == 4;  // biases under a normalization have none
        EXPECT_GT(gradients[i].abs().max().item<double>(), is_weight ? 1e-4 : -1) << name << ", parameter " << i;
        EXPECT_TRUE(gradients[i].isfinite().all().item<bool>()) << name << ", parameter " << i;
        EXPECT_EQ(gradients[i].scalar_type(), type);
      }
    }
  }
}

TEST(ResNet, layers) {
  torch::manual_seed(7);
  for (const int64_t layers : {1, 2, 3}) {
    ResNet model(ResNetOptions(4, layers).in_channels(2).widths({3, 5}));
    shake(*model);
    const auto images = torch::randn({3, 2, 9, 7}, torch::kDouble);
    Reader p(model->parameters());
    auto x = images;
    for (int block = 0; block < 2; ++block) {
      auto main = x;
      for (int64_t layer = 0; layer < layers; ++layer)
        main = p.norm(p.conv(layer == 0 ? main : main.clamp_min(0), false));
      x = at::max_pool2d((main + p.norm(p.conv(x, false))).clamp_min(0), 2);
    }
    const auto expected = p.linear(x.flatten(2).sum(2) / static_cast<double>(x[0][0].numel()));
    EXPECT_TRUE(p.at_end());
    EXPECT_TRUE(torch::allclose(model->forward(images), expected, 1e-9, 1e-9)) << layers;
    EXPECT_TRUE(model->buffers().empty());
    const auto copy = std::dynamic_pointer_cast<gimli::nn::ResNetImpl>(model->clone());
    copy->eval();
    EXPECT_TRUE(torch::equal(copy->forward(images), model->forward(images)));
  }
}

TEST(ResNet, bad_input) {
  const auto make = [](const ResNetOptions& options) { return message_of([&] { ResNet model(options); }); };
  EXPECT_EQ(make(ResNetOptions(0, 1)), "ResNet: expected at least 1 class, got 0");
  EXPECT_EQ(make(ResNetOptions(5, 0)), "ResNet: expected at least 1 layer in each block, got 0");
  EXPECT_EQ(make(ResNetOptions(5, 1).in_channels(0)), "ResNet: expected at least 1 input channel, got 0");
  EXPECT_EQ(make(ResNetOptions(5, 1).widths({})), "ResNet: expected at least 1 width, each at least 1, got []");
  EXPECT_EQ(make(ResNetOptions(5, 1).widths({4, 0})), "ResNet: expected at least 1 width, each at least 1, got [4, 0]");
  ResNet model(ResNetOptions(5, 1).widths({2, 2, 2, 2}));
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 3, 28, 28}));
            }),
            "ResNet: expected images [n, 1, h, w] with h and w of at least 16, got [2, 3, 28, 28]");
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 1, 28, 15}));
            }),
            "ResNet: expected images [n, 1, h, w] with h and w of at least 16, got [2, 1, 28, 15]");
}

TEST(DenseNet, layers) {
  torch::manual_seed(8);
  for (const int64_t initial : {0, 5}) {
    for (const bool track : {false, true}) {
      const auto options = DenseNetOptions(4).in_channels(2).layers({2, 1, 1}).growth(3).bottleneck(2).compression(0.7);
      DenseNet model(DenseNetOptions(options).initial_channels(initial).track_running_stats(track));
      shake(*model);
      const auto images = torch::randn({3, 2, 9, 7}, torch::kDouble);
      Reader p(model->parameters());
      auto x = images;
      if (initial > 0) x = p.conv(x, false);
      const auto layer = [&] {
        const auto narrow = p.conv(p.norm(x).clamp_min(0), false);
        EXPECT_EQ(narrow.size(1), 6);
        const auto added = p.conv(p.norm(narrow).clamp_min(0), false);
        EXPECT_EQ(added.size(1), 3);
        x = at::cat({x, added}, 1);
      };
      // Parameters stand in the order of the computation.
      layer();
      layer();
      for (int block = 1; block < 3; ++block) {
        const auto channels = x.size(1);
        x = at::avg_pool2d(p.conv(p.norm(x).clamp_min(0), false), 2);
        EXPECT_EQ(x.size(1), channels * 7 / 10);
        layer();
      }
      const auto map = p.norm(x).clamp_min(0);
      const auto expected = p.linear(map.flatten(2).sum(2) / static_cast<double>(map[0][0].numel()));
      EXPECT_TRUE(p.at_end());
      EXPECT_TRUE(torch::allclose(model->forward(images), expected, 1e-9, 1e-9)) << initial << track;
      const auto copy = std::dynamic_pointer_cast<gimli::nn::DenseNetImpl>(model->clone());
      copy->eval();
      model->eval();
      EXPECT_TRUE(torch::equal(copy->forward(images), model->forward(images)));
      // In evaluation, an image's company matters where there are no running statistics.
      EXPECT_EQ(model->buffers().size(), track ? 11 * 3u : 0u);  // of 4 layers, 2 transitions and the end
      EXPECT_EQ(torch::allclose(model->forward(images)[0], model->forward(images.slice(0, 0, 2))[0]), track);
    }
  }
}

TEST(DenseNet, running_statistics_serve_in_evaluation) {
  torch::manual_seed(9);
  DenseNet model(DenseNetOptions(4).layers({1, 1}).growth(2));
  model->to(torch::kDouble);
  const auto images = torch::randn({6, 3, 8, 8}, torch::kDouble);
  for (int i = 0; i < 400; ++i) model->forward(images);  // until they are this batch's
  const auto in_training = model->forward(images);
  model->eval();
  // They keep the unbiased variance, the batch is normalized with the biased one.
  EXPECT_TRUE(torch::allclose(model->forward(images), in_training, 0, 0.05));
  EXPECT_FALSE(torch::allclose(model->forward(images), in_training));
}

TEST(DenseNet, bad_input) {
  const auto make = [](const DenseNetOptions& options) { return message_of([&] { DenseNet model(options); }); };
  EXPECT_EQ(make(DenseNetOptions(0)), "DenseNet: expected at least 1 class, got 0");
  EXPECT_EQ(make(DenseNetOptions(5).in_channels(0)), "DenseNet: expected at least 1 input channel, got 0");
  EXPECT_EQ(make(DenseNetOptions(5).layers({})),
            "DenseNet: expected at least 1 block, each of at least 1 layer, got []");
  EXPECT_EQ(make(DenseNetOptions(5).layers({2, 0})),
            "DenseNet: expected at least 1 block, each of at least 1 layer, got [2, 0]");
  EXPECT_EQ(make(DenseNetOptions(5).growth(0)), "DenseNet: expected a growth of at least 1, got 0");
  EXPECT_EQ(make(DenseNetOptions(5).bottleneck(0)), "DenseNet: expected a bottleneck of at least 1, got 0");
  EXPECT_EQ(make(DenseNetOptions(5).compression(0)), "DenseNet: expected a compression in (0, 1], got 0");
  EXPECT_EQ(make(DenseNetOptions(5).compression(1.5)), "DenseNet: expected a compression in (0, 1], got 1.5");
  EXPECT_EQ(make(DenseNetOptions(5).initial_channels(-1)), "DenseNet: expected at least 0 initial channels, got -1");
  EXPECT_EQ(make(DenseNetOptions(5).growth(1).layers({1, 1}).compression(0.01)),
            "DenseNet: a compression of 0.01 leaves none of 25 channels");
  DenseNet model(densenet_8(5));
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 3, 28, 28}));
            }),
            "DenseNet: expected images [n, 1, h, w] with h and w of at least 8, got [2, 3, 28, 28]");
  EXPECT_EQ(message_of([&] {
              model->forward(torch::zeros({2, 1, 7, 28}));
            }),
            "DenseNet: expected images [n, 1, h, w] with h and w of at least 8, got [2, 1, 7, 28]");
}

TEST(Mlp, layers) {
  auto model = mlp({1, 40, 40, 1});
  EXPECT_EQ(model->size(), 5u);
  EXPECT_EQ(parameter_count(*model), 1 * 40 + 40 + 40 * 40 + 40 + 40 + 1);
  const auto x = torch::randn({7, 1});
  const auto p = model->parameters();
  const auto hidden = torch::relu(torch::linear(torch::relu(torch::linear(x, p[0], p[1])), p[2], p[3]));
  EXPECT_TRUE(torch::equal(model->forward(x), torch::linear(hidden, p[4], p[5])));
  EXPECT_EQ(mlp({3, 2})->forward(torch::randn({5, 3})).sizes(), (std::vector<int64_t>{5, 2}));
}

TEST(Mlp, bad_input) {
  EXPECT_EQ(message_of([] { mlp({4}); }), "mlp: expected at least 2 sizes, got 1");
  EXPECT_EQ(message_of([] { mlp({4, 0, 1}); }), "mlp: expected sizes of at least 1, got [4, 0, 1]");
}
