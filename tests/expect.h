#pragma once

#include <gtest/gtest.h>
#include <torch/types.h>

#include <string>
#include <vector>

#include "gimli/tensor_list.h"

namespace gimli {

/// The message of the c10::Error that `action()` throws.
template <class Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "(nothing thrown)";
}

/// Expects `action()` to throw a c10::Error whose message has these words.
template <class Action>
void expect_error(Action action, const std::string& words) {
  const auto message = message_of(action);
  EXPECT_NE(message.find(words), std::string::npos) << message << "\nlacks: " << words;
}

/// Expects difference 0.
inline void expect_equal(const TensorList& actual, const TensorList& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_TRUE(at::equal(actual[i], expected[i])) << "tensor " << i;
}

inline TensorList clones(const TensorList& list) {
  TensorList copies;
  for (const auto& tensor : list) copies.push_back(tensor.detach().clone());
  return copies;
}

}  // namespace gimli
