#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "gimli/tensor_list.h"

namespace gimli::optim {

/// A continuous hyperparameter as one update of one parameter sees it: a number, or a tensor to be differentiated.
///
/// Arithmetic between numbers stays arithmetic on doubles, exactly as torch.optim does it. The tensor is 0-dimensional
/// and float64 whatever the parameter's dtype is, so that 1 - beta^t loses no digits, or expands to the parameter's
/// shape and has its dtype.
class Value final {
 public:
  Value(double number = 0) : value_(number) {}
  Value(at::Tensor tensor) : value_(std::move(tensor)) {}

  bool is_number() const { return std::holds_alternative<double>(value_); }
  double number() const { return std::get<double>(value_); }
  const at::Tensor& tensor() const { return std::get<at::Tensor>(value_); }

  /// Whether the terms that this multiplies may be left out: it is the number 0. A tensor is never off, so that a
  /// hyperparameter whose value happens to be 0 keeps its gradient.
  bool is_off() const { return is_number() && number() == 0; }

 private:
  std::variant<double, at::Tensor> value_;
};

Value operator+(const Value& a, const Value& b);
Value operator-(const Value& a, const Value& b);
Value operator*(const Value& a, const Value& b);
Value operator/(const Value& a, const Value& b);
Value operator-(const Value& a);
Value pow(const Value& base, int64_t exponent);
Value pow(const Value& base, const Value& exponent);
Value sqrt(const Value& a);
Value maximum(const Value& a, const Value& b);
Value minimum(const Value& a, const Value& b);

/// a x, x / a and x + a.
at::Tensor scale(const Value& a, const at::Tensor& x);
at::Tensor divide(const at::Tensor& x, const Value& a);
at::Tensor shift(const at::Tensor& x, const Value& a);
/// x + a y, in one operator.
at::Tensor add_scaled(const at::Tensor& x, const Value& a, const at::Tensor& y);
/// x + a y / z.
at::Tensor add_scaled_ratio(const at::Tensor& x, const Value& a, const at::Tensor& y, const at::Tensor& z);
/// beta x + (1 - beta) y, in one operator.
at::Tensor moving_average(const Value& beta, const at::Tensor& x, const at::Tensor& y);

/// a as a tensor that goes with x: 0-dimensional if it is a number.
at::Tensor as_tensor(const Value& a, const at::Tensor& x);

/// Refuses a hyperparameter given per element where a rule needs one value a tensor; `of` names the two in the error.
void check_scalar(const Value& a, const char* of);

/// x in at least single precision: squares of half-precision numbers overflow.
at::Tensor widened(const at::Tensor& x);

/// The square root with derivative 0 at 0, where the plain one has none: a unit that is dead from the first step on has
/// a second moment of exactly 0, and its update, proportional to m / (sqrt(v) + eps), is differentiable there. Right to
/// any order.
at::Tensor root(const at::Tensor& x);

/// The 2-norm of all elements, in at least single precision; its derivative at 0 is 0.
at::Tensor euclidean_norm(const at::Tensor& x);

using Values = std::vector<Value>;

/// What a parameter group holds for one hyperparameter: the same for all its tensors, one for each, and either of these
/// for each step.
class Hyperparameter final {
 public:
  Hyperparameter(double number) : value_(Value(number)) {}
  /// To learn it, give a tensor that requires a gradient; to learn what it is computed from, give a schedule.
  /// A tensor for the whole group: 0-dimensional, or a shape that expands to that of every parameter.
  Hyperparameter(at::Tensor tensor) : value_(Value(std::move(tensor))) {}
  /// Either of them, as a schedule returns it.
  Hyperparameter(Value value) : value_(std::move(value)) {}
  /// One tensor for each parameter of the group, in its order: 0-dimensional (per tensor) or of the parameter's shape
  /// (per element).
  Hyperparameter(TensorList per_parameter) : value_(std::move(per_parameter)) {}
  /// A different one at each step of the inner loop, counted from 0.
  template <class Schedule>
  requires std::is_invocable_v<Schedule, int64_t> Hyperparameter(Schedule schedule)
      : value_(std::function<Hyperparameter(int64_t)>(std::move(schedule))) {}

  /// The values at `step` for those of the group's `count` parameters that `indices` names, which `parameters` are now;
  /// `name` is used in errors. What is the same for all of them is one tensor.
  Values at(int64_t step, size_t count, const std::vector<size_t>& indices, const TensorList& parameters,
            const std::string& name) const;

  bool is_number() const;
  double number() const { return std::get<Value>(value_).number(); }
  /// Those that it holds; what a function holds is not known.
  TensorList tensors() const;

  /// Whether it holds the result of an operator, and not a function or tensors that are leaves.
  bool is_computed() const;

  /// Refuses a list that does not have one tensor for each of `count` parameters, and an empty function.
  void check(size_t count, const std::string& name) const;

 private:
  std::variant<Value, TensorList, std::function<Hyperparameter(int64_t)>> value_;
};

/// The values of a rule's hyperparameters, for `const auto [lr, momentum] = unpack<2>(values);`.
template <size_t N>
std::array<Value, N> unpack(const Values& values) {
  TORCH_INTERNAL_ASSERT(values.size() == N);
  std::array<Value, N> result;
  std::copy(values.begin(), values.end(), result.begin());
  return result;
}

}  // namespace gimli::optim
