#include "gimli/hypergradient/lost_bits.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdio>
#include <limits>
#include <random>

#include "expect.h"

namespace {

using namespace gimli;

constexpr at::ScalarType types[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};

int64_t width(at::ScalarType type) { return static_cast<int64_t>(c10::elementSize(type)); }

/// The same bit patterns under another type.
at::Tensor as(const at::Tensor& tensor, at::ScalarType type) { return tensor.resolve_neg().contiguous().view(type); }

at::ScalarType integer_of(at::ScalarType type) {
  return width(type) == 8 ? at::kLong : width(type) == 4 ? at::kInt : at::kShort;
}

at::Tensor bits_of(const at::Tensor& tensor) { return as(tensor, integer_of(tensor.scalar_type())); }

/// Any bit patterns: NaNs with payloads, infinities and subnormals among them.
at::Tensor random_bits(int64_t count, at::ScalarType type, std::mt19937_64& generator) {
  auto bytes = at::empty({count * width(type)}, at::kByte);
  for (int64_t i = 0; i < bytes.numel(); ++i) bytes.data_ptr<uint8_t>()[i] = static_cast<uint8_t>(generator());
  return bytes.view(type);
}

/// As they are coded: integers in the order of the floats.
at::Tensor ordered(const at::Tensor& bits) {
  const int64_t top = 8 * bits.element_size() - 1;
  const auto magnitude = static_cast<int64_t>((uint64_t(1) << top) - 1);
  return at::where(bits < 0, bits.bitwise_xor(magnitude), bits);
}

void expect_lossless(const at::Tensor& actual, const at::Tensor& predicted) {
  const auto lost = LostBits::between(actual, predicted);
  const auto corrected = lost.correct(predicted);
  EXPECT_EQ(corrected.scalar_type(), actual.scalar_type());
  EXPECT_EQ(corrected.sizes(), actual.sizes());
  EXPECT_TRUE(at::equal(bits_of(corrected), bits_of(actual)));
  const auto blocks = (actual.numel() + 127) / 128;
  EXPECT_LE(lost.bytes(), actual.numel() * actual.element_size() + 2 * blocks + 15);
}

TEST(LostBits, loses_nothing_of_any_bits) {
  std::mt19937_64 generator(1);
  for (const auto type : types) {
    for (int64_t count = 0; count <= 1000; count += count < 300 ? 1 : 29) {
      SCOPED_TRACE(c10::str(type, " ", count));
      const auto predicted = random_bits(count, type, generator);
      expect_lossless(random_bits(count, type, generator), predicted);

      // Near misses of every width, in both directions, wherever they lead, with a few far ones.
      const auto integer = integer_of(type);
      const auto shift = static_cast<int64_t>(generator() % (8 * width(type)));
      auto near = bits_of(random_bits(count, type, generator)).bitwise_right_shift(shift);
      if (count > 0) near[static_cast<int64_t>(generator() % count)] = bits_of(random_bits(1, type, generator))[0];
      const auto actual = ordered(ordered(bits_of(predicted)) + near).to(integer);
      expect_lossless(as(actual, type), predicted);
    }
  }
}

TEST(LostBits, loses_nothing_of_special_values) {
  for (const auto type : types) {
    SCOPED_TRACE(type);
    const auto integer = integer_of(type);
    const auto infinity = bits_of(at::full({1}, HUGE_VAL, type)).item<int64_t>();
    const auto sign = -(int64_t(1) << (8 * width(type) - 2)) * 2;
    std::vector<int64_t> patterns;  // 0, the least and another subnormal, 1, the largest, infinity, two NaNs
    for (const int64_t magnitude : {int64_t(0), int64_t(1), int64_t(5), bits_of(at::ones({1}, type)).item<int64_t>(),
                                    infinity - 1, infinity, infinity + 1, infinity + 3}) {
      patterns.push_back(magnitude);
      patterns.push_back(magnitude + sign);
    }
    const auto all = as(at::tensor(patterns, at::kLong).to(integer), type);
    const auto n = all.numel();
    const auto actual = all.unsqueeze(0).expand({n, n}), predicted = all.unsqueeze(1).expand({n, n});
    expect_lossless(actual, predicted);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) expect_lossless(all[i], all[j]);
    }
  }
}

TEST(LostBits, counts_neighbours) {
  // 1 bit a value says "the same" or "the one below", 2 bits the one above: 16 bytes for 128, and 2 of the block.
  const double infinity = HUGE_VAL;
  for (const auto type : types) {
    const auto largest = as(bits_of(at::full({1}, infinity, type)) - 1, type).item<double>();
    const auto least = as(at::ones({1}, integer_of(type)), type).item<double>();
    const struct {
      double low, high;
    } neighbours[] = {{-0.0, 0.0}, {0.0, least}, {-least, -0.0}, {largest, infinity}, {-infinity, -largest}};
    for (const auto& [low, high] : neighbours) {
      SCOPED_TRACE(c10::str(type, " ", low, " ", high));
      const auto lows = at::full({128}, low, type), highs = at::full({128}, high, type);
      EXPECT_EQ(LostBits::between(lows, lows).bytes(), 2);
      EXPECT_EQ(LostBits::between(lows, highs).bytes(), 2 + 16);
      EXPECT_EQ(LostBits::between(highs, lows).bytes(), 2 + 32);
      expect_lossless(lows, highs);
      expect_lossless(highs, lows);
    }
  }
}

TEST(LostBits, stores_outliers_beside_their_block) {
  for (const auto type : types) {
    SCOPED_TRACE(type);
    const auto predicted = at::ones({1280}, type);
    auto actual = predicted.clone();
    EXPECT_EQ(LostBits::between(actual, predicted).bytes(), 2 * 10);
    actual[200] = -3;
    actual[255] = std::numeric_limits<double>::quiet_NaN();
    EXPECT_EQ(LostBits::between(actual, predicted).bytes(), 2 * 10 + 2 * (1 + width(type)));
    expect_lossless(actual, predicted);
  }
}

TEST(LostBits, takes_any_shape_and_layout) {
  std::mt19937_64 generator(2);
  for (const auto type : types) {
    SCOPED_TRACE(type);
    const auto values = random_bits(2 * 3 * 4 * 5, type, generator).view({2, 3, 4, 5});
    const auto others = random_bits(2 * 3 * 4 * 5, type, generator).view({2, 3, 4, 5});
    const auto channels_last = others.contiguous(at::MemoryFormat::ChannelsLast);
    expect_lossless(values, others);
    expect_lossless(values, channels_last);
    expect_lossless(channels_last, values);
    expect_lossless(values.transpose(0, 3), others.transpose(0, 3));
    expect_lossless(values.select(3, 1), others.select(3, 4));
    expect_lossless(values[0][0][0][0], others[0][0][0][0]);
    expect_lossless(values.narrow(1, 1, 0), others.narrow(1, 1, 0));
    expect_lossless(values, others[0][0][0][0].expand_as(values));
    const auto corrected = LostBits::between(values, channels_last).correct(channels_last);
    EXPECT_EQ(corrected.strides(), channels_last.strides());
  }
  const auto negated = at::imag(at::conj(torch::randn({7}, at::kComplexDouble)));
  ASSERT_TRUE(negated.is_neg());
  expect_lossless(negated[3], at::ones({}, at::kDouble));
  expect_lossless(at::ones({7}, at::kDouble), negated);
}

TEST(LostBits, keeps_out_of_the_graph) {
  const auto actual = torch::ones({3}, torch::requires_grad()), predicted = torch::zeros({3}, torch::requires_grad());
  const auto corrected = LostBits::between(actual, predicted).correct(predicted);
  EXPECT_FALSE(corrected.requires_grad());
  EXPECT_TRUE(at::equal(corrected, actual));
  EXPECT_TRUE(at::equal(predicted, torch::zeros({3})));
}

// SGD with momentum from Gaussian weights on Gaussian gradients, and back from its last state: each state is predicted
// by the inverse of the update, corrected by what was kept, and is then the very state that was there.
TEST(LostBits, undoes_sgd_with_momentum_for_a_few_bits) {
  constexpr int64_t parameters = 10'000, steps = 100;
  const double lr = 0.1;
  const struct { double mu, most_bits; } table[] = {{0.5, 9}, {0.9, 8}, {0.99, 8}};
  for (const auto type : {at::kDouble, at::kFloat}) {
    for (const auto& [mu, most_bits] : table) {
      torch::manual_seed(3);
      std::vector<at::Tensor> w = {torch::randn({parameters}, type)}, v = {torch::zeros({parameters}, type)}, g;
      std::vector<LostBits> lost_w, lost_v;
      const auto before_w = [&](const at::Tensor& next_w, const at::Tensor& next_v) { return next_w + lr * next_v; };
      const auto before_v = [&](const at::Tensor& next_v, const at::Tensor& gradient) {
        return (next_v - gradient) / mu;
      };
      double bits_w = 0, bits_v = 0;
      for (int64_t k = 0; k < steps; ++k) {
        g.push_back(torch::randn({parameters}, type));
        v.push_back(mu * v[k] + g[k]);
        w.push_back(w[k] - lr * v[k + 1]);
        lost_w.push_back(LostBits::between(w[k], before_w(w[k + 1], v[k + 1])));
        lost_v.push_back(LostBits::between(v[k], before_v(v[k + 1], g[k])));
        bits_w += 8.0 * static_cast<double>(lost_w[k].bytes()) / (parameters * steps);
        bits_v += 8.0 * static_cast<double>(lost_v[k].bytes()) / (parameters * steps);
      }
      std::printf("%s, mu = %g: %.2f bits a parameter and step (weights %.2f, momentum %.2f)\n", c10::toString(type),
                  mu, bits_w + bits_v, bits_w, bits_v);
      EXPECT_LT(bits_w + bits_v, most_bits);

      auto now_w = w[steps], now_v = v[steps];
      for (int64_t k = steps; k-- > 0;) {
        now_w = lost_w[k].correct(before_w(now_w, now_v));
        now_v = lost_v[k].correct(before_v(now_v, g[k]));
        ASSERT_TRUE(at::equal(bits_of(now_w), bits_of(w[k]))) << k;
        ASSERT_TRUE(at::equal(bits_of(now_v), bits_of(v[k]))) << k;
      }
    }
  }
}

TEST(LostBits, refuses_what_makes_no_sense) {
  const auto x = at::ones({2, 3});
  expect_error([&] { LostBits::between(x, {}); }, "LostBits::between: expected two tensors, got an undefined one");
  expect_error([&] { LostBits::between(x.to(at::kLong), x.to(at::kLong)); },
               "LostBits::between: expected tensors of double, float, bfloat16 or half, got Long");
  expect_error([&] { LostBits::between(x, x.to(at::kDouble)); },
               "LostBits::between: expected a prediction of Float and shape [2, 3], got Double and [2, 3]");
  expect_error([&] { LostBits::between(x, x.t()); }, "shape [2, 3], got Float and [3, 2]");
  const auto lost = LostBits::between(x, x);
  expect_error([&] { lost.correct(x.t()); },
               "LostBits::correct: expected the prediction, of Float and shape [2, 3], got Float and [3, 2]");
  expect_error([&] { lost.correct(x.to(at::kHalf)); }, "got Half and [2, 3]");
  expect_error([&] { lost.correct({}); }, "got an undefined tensor");
}

}  // namespace
