#include "gimli/optim/gradient_transform.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <initializer_list>
#include <numeric>

namespace gimli::optim {
namespace {

enum class Range { above_zero, not_negative };

void check(const char* function, const char* setting, const Value& value, Range range) {
  if (value.is_number()) {
    const double number = value.number();
    TORCH_CHECK(std::isfinite(number) && (number > 0 || (number == 0 && range == Range::not_negative)), function,
                ": expected the ", setting, " to be finite and ", range == Range::above_zero ? "above 0" : "at least 0",
                ", got ", number);
    return;
  }
  const auto& tensor = value.tensor();
  TORCH_CHECK(tensor.defined() && tensor.is_floating_point() && tensor.dim() == 0, function, ": expected the ", setting,
              " to be a number or a 0-dimensional floating-point tensor, got ",
              tensor.defined() ? c10::str(tensor.scalar_type(), " of shape ", tensor.sizes()) : "an undefined tensor");
}

/// A setting as a tensor of the type and device of `like`.
at::Tensor beside(const at::Tensor& like, const Value& value) {
  return value.is_number() ? at::scalar_tensor(value.number(), like.options()) : value.tensor().to(like.options());
}

template <class Function>
TensorList map_defined(TensorList list, Function function) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].defined()) list[i] = function(list[i], i);
  }
  return list;
}

/// The 2-norm of each unit, in a shape that expands to that of x.
at::Tensor unit_norms(const at::Tensor& x) {
  if (x.dim() < 2) return euclidean_norm(x).to(x.scalar_type());
  std::vector<int64_t> others(x.dim() - 1);
  std::iota(others.begin(), others.end(), 1);
  return root(widened(x).square().sum(others, /*keepdim=*/true)).to(x.scalar_type());
}

/// The finalizer of splitmix64.
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t hash(std::initializer_list<uint64_t> words) {
  uint64_t result = 0;
  for (const auto word : words) result = mixed(result + word + 0x9e3779b97f4a7c15);
  return result;
}

at::Tensor normal_like(const at::Tensor& x, uint64_t seed) {
  return at::randn(x.sizes(), at::detail::createCPUGenerator(seed), x.options().device(at::kCPU)).to(x.device());
}

}  // namespace

GradientTransform clip_by_norm(Value max_norm) {
  check("clip_by_norm", "maximal norm", max_norm, Range::above_zero);
  return [=](TensorList gradients, const TensorList&, int64_t) {
    at::Tensor sum_of_squares;
    for (const auto& g : gradients) {
      if (!g.defined()) continue;
      const auto squares = widened(g).square().sum();
      sum_of_squares = sum_of_squares.defined() ? sum_of_squares + squares : squares;
    }
    if (!sum_of_squares.defined()) return gradients;
    const auto norm = root(sum_of_squares);
    const auto scale = (beside(norm, max_norm) / (norm + 1e-6)).clamp_max(1);
    return map_defined(std::move(gradients),
                       [&](const at::Tensor& g, size_t) { return g * scale.to(g.scalar_type()); });
  };
}

GradientTransform clip_by_value(Value max_value) {
  check("clip_by_value", "maximal value", max_value, Range::above_zero);
  return [=](TensorList gradients, const TensorList&, int64_t) {
    return map_defined(std::move(gradients), [&](const at::Tensor& g, size_t) {
      const auto limit = beside(g, max_value);
      return g.clamp(-limit, limit);
    });
  };
}

GradientTransform adaptive_clip(Value clipping, Value eps) {
  check("adaptive_clip", "clipping", clipping, Range::above_zero);
  check("adaptive_clip", "eps", eps, Range::above_zero);
  return [=](TensorList gradients, const TensorList& parameters, int64_t) {
    return map_defined(std::move(gradients), [&](const at::Tensor& g, size_t i) {
      const auto limit = beside(g, clipping) * at::maximum(unit_norms(parameters[i]), beside(g, eps));
      const auto norm = unit_norms(g);
      const auto above = norm > limit;
      return g * at::where(above, limit / norm.masked_fill(~above, 1), 1);
    });
  };
}

GradientTransform weight_decay(Value factor) {
  check("weight_decay", "factor", factor, Range::not_negative);
  return [=](TensorList gradients, const TensorList& parameters, int64_t) {
    if (factor.is_off()) return gradients;
    return map_defined(std::move(gradients),
                       [&](const at::Tensor& g, size_t i) { return at::addcmul(g, beside(g, factor), parameters[i]); });
  };
}

GradientTransform noise(Value standard_deviation, uint64_t seed) {
  check("noise", "standard deviation", standard_deviation, Range::not_negative);
  return [=](TensorList gradients, const TensorList&, int64_t step) {
    if (standard_deviation.is_off()) return gradients;
    return map_defined(std::move(gradients), [&](const at::Tensor& g, size_t i) {
      return at::addcmul(g, beside(g, standard_deviation),
                         normal_like(g, hash({seed, static_cast<uint64_t>(step), i})));
    });
  };
}

GradientTransform stop_gradient() {
  return [](TensorList gradients, const TensorList&, int64_t) {
    return map_defined(std::move(gradients), [](const at::Tensor& g, size_t) { return g.detach(); });
  };
}

}  // namespace gimli::optim
