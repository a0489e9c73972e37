#include "gimli/tensor_list.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "expect.h"

namespace {

using gimli::expect_error;
using gimli::TensorList;

TEST(TensorList, counts_undefined_tensors_as_zero) {
  const auto x = torch::tensor({1.0, 2.0}, at::kDouble), y = torch::tensor({3.0, 5.0}, at::kDouble);
  const TensorList a{x, x, {}, {}}, b{y, {}, y, {}};
  const auto scaled = gimli::add_scaled(a, 2, b);
  gimli::expect_equal({scaled[0], scaled[1], scaled[2]}, {x + 2 * y, x, 2 * y});
  EXPECT_FALSE(scaled[3].defined());
  EXPECT_EQ(gimli::inner_product(a, b), 13);
}

TEST(TensorList, adds_inner_products_of_any_shape_in_double) {
  const auto large = torch::full({2, 2}, 1e4, at::kFloat), small = torch::ones({3}, at::kFloat);
  EXPECT_EQ(gimli::inner_product({large, small, small[0]}, {large.t(), small, small[0]}), 4e8 + 4);
  EXPECT_EQ(gimli::inner_product({}, {}), 0);
}

TEST(TensorList, measures_distances_relative_to_the_second) {
  const auto a = torch::tensor({3.0f, 1.0f}), b = torch::tensor({3.0, 5.0}, at::kDouble);
  EXPECT_DOUBLE_EQ(gimli::relative_distance({a, b}, {b, b}), std::sqrt(16. / 68));
  EXPECT_EQ(gimli::relative_distance({b, {}}, {b, {}}), 0);
  EXPECT_EQ(gimli::relative_distance({torch::zeros(2)}, {torch::zeros(2)}), 0);
}

TEST(TensorList, refuses_lists_of_different_lengths) {
  const TensorList one{torch::ones(1)};
  expect_error([&] { gimli::add_scaled(one, 1, {}); }, "add_scaled: lists of 1 and 0 tensors");
  expect_error([&] { gimli::inner_product(one, {}); }, "inner_product: lists of 1 and 0 tensors");
}

}  // namespace
