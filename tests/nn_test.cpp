#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "expect.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/mlp.h"

using gimli::nn::Conv4;
using gimli::nn::Conv4Options;
using gimli::nn::Conv4Pooling;
using gimli::nn::mlp;

using gimli::message_of;

namespace {

int64_t parameter_count(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const auto& parameter : module.parameters()) count += parameter.numel();
  return count;
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
