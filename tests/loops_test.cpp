#include "gimli/trace/loops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "gimli/processor.h"

namespace gimli::tracing {
namespace {

/// Kernels for narrower registers than this processor's too.
template <class T>
std::vector<Loop::Kernel> kernels(Operation operation) {
  constexpr bool is_double = sizeof(T) == 8;
  std::vector<Loop::Kernel> all{loop_kernel_of_width<16>(operation, is_double)};
  if (register_bytes() >= 32) all.push_back(loop_kernel_of_width<32>(operation, is_double));
  if (register_bytes() >= 64) all.push_back(loop_kernel_of_width<64>(operation, is_double));
  return all;
}

class Random final {
 public:
  int32_t between(int32_t least, int32_t most) { return std::uniform_int_distribution<int32_t>(least, most)(engine_); }
  template <class T>
  std::vector<T> numbers(int64_t count) {
    std::vector<T> list(count);
    for (auto& number : list) number = static_cast<T>(std::uniform_real_distribution<>(-1, 1)(engine_));
    return list;
  }

 private:
  std::mt19937 engine_{3};
};

template <class T>
double at(const Operand& operand, int64_t i, int64_t j, int64_t k) {
  return static_cast<const T*>(operand.data)[i * operand.stride[0] + j * operand.stride[1] + k * operand.stride[2]];
}

template <class T>
class Loops : public testing::Test {
 protected:
  const double tolerance = sizeof(T) == 8 ? 1e-13 : 2e-5;
  Random random;
};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Loops, Types);

// Sizes around those of registers, every orientation, every way to finish.
TYPED_TEST(Loops, Products) {
  using T = TypeParam;
  auto& random = this->random;
  for (int round = 0; round < 500; ++round) {
    const auto batch = random.between(1, 2), rows = random.between(1, 13), columns = random.between(1, 70),
               summands = random.between(0, 70);
    auto c = random.template numbers<T>(batch * rows * columns);
    auto a = random.template numbers<T>(batch * rows * summands);
    auto b = random.template numbers<T>(batch * summands * columns);
    auto d = random.template numbers<T>(batch * rows * columns), e = random.template numbers<T>(c.size());
    Loop loop{.size = {batch, rows, columns, summands}, .p = 0.5, .q = -2};
    const auto lay = [](std::vector<T>& numbers, int32_t m, int32_t n, bool by_columns) {
      return by_columns ? Operand{numbers.data(), {m * n, 1, m}} : Operand{numbers.data(), {m * n, n, 1}};
    };
    loop.at[0] = lay(c, rows, columns, false);
    loop.at[1] = lay(a, rows, summands, random.between(0, 1));
    loop.at[2] = lay(b, summands, columns, random.between(0, 1));
    const auto kind_of_d = random.between(0, 3);
    if (kind_of_d > 0) loop.at[3] = lay(d, rows, columns, kind_of_d == 1);
    if (kind_of_d == 3) loop.at[3].stride = {0, 0, 1};
    loop.epilogue = static_cast<Epilogue>(random.between(0, 2));
    if (loop.epilogue == Epilogue::pass_above) loop.at[4] = lay(e, rows, columns, random.between(0, 1));

    for (const auto kernel : kernels<T>(Operation::product)) {
      loop.kernel = kernel;
      loop.run();
      double worst = 0;
      for (int64_t i = 0; i < batch; ++i) {
        for (int64_t j = 0; j < rows; ++j) {
          for (int64_t k = 0; k < columns; ++k) {
            double expected = 0;
            for (int64_t s = 0; s < summands; ++s) expected += at<T>(loop.at[1], i, j, s) * at<T>(loop.at[2], i, s, k);
            expected *= loop.p;
            if (kind_of_d > 0) expected += loop.q * at<T>(loop.at[3], i, j, k);
            if (loop.epilogue == Epilogue::rectify) expected = std::max(expected, 0.);
            if (loop.epilogue == Epilogue::pass_above && at<T>(loop.at[4], i, j, k) <= 0) expected = 0;
            worst = std::max(worst, std::abs(at<T>(loop.at[0], i, j, k) - expected));
          }
        }
      }
      EXPECT_LE(worst, this->tolerance) << batch << " x " << rows << " x " << columns << " x " << summands;
    }
  }
}

TYPED_TEST(Loops, Functions) {
  using T = TypeParam;
  struct Function {
    Operation operation;
    double (*definition)(double);
    double span;
  };
  const std::vector<Function> functions{{Operation::exponential, std::exp, 80},
                                        {Operation::logarithm, std::log, 1000},
                                        {Operation::sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, 80},
                                        {Operation::tangent, std::tanh, 10},
                                        {Operation::root, std::sqrt, 1000}};
  constexpr auto infinity = std::numeric_limits<T>::infinity();
  for (const auto& [operation, definition, span] : functions) {
    auto x = this->random.template numbers<T>(10'000);
    for (size_t i = 0; i < x.size(); ++i)
      x[i] *= static_cast<T>(i % 2 ? span : std::pow(10., -static_cast<int>(i % 30)));
    for (const T edge : {T(0), infinity, -infinity, std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::min(),
                         std::numeric_limits<T>::denorm_min()}) {
      x.push_back(edge);
    }
    std::vector<T> y(x.size());
    Loop loop{.size = {1, 1, static_cast<int32_t>(x.size()), 1}};
    loop.at[0] = {y.data(), {0, 0, 1}};
    loop.at[1] = {x.data(), {0, 0, 1}};
    for (const auto kernel : kernels<T>(operation)) {
      loop.kernel = kernel;
      loop.run();
      for (size_t i = 0; i < x.size(); ++i) {
        const auto expected = static_cast<T>(definition(x[i]));
        if (!std::isfinite(expected)) {
          EXPECT_TRUE(y[i] == expected || (std::isnan(y[i]) && std::isnan(expected))) << x[i];
        } else {
          EXPECT_LE(std::abs(y[i] - expected), 4 * std::numeric_limits<T>::epsilon() * std::abs(expected)) << x[i];
        }
      }
    }
  }
}

}  // namespace
}  // namespace gimli::tracing
