#include "gimli/operators/norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "gimli/operators/arguments.h"
#include "gimli/operators/dispatched.h"
#include "gimli/operators/norm_kernels.h"

namespace gimli::operators {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Channels channels_of(const at::Tensor& x, at::MemoryFormat format) {
  const auto rows = x.size(0), channels = x.size(1), length = x.numel() / (rows * channels);
  if (format != at::MemoryFormat::Contiguous || length == 1) return {rows * length, channels, 1};
  return {rows, channels, length};
}

at::Tensor like(const at::Tensor& x) { return at::empty(x.sizes(), x.options().memory_format(format_of(x))); }

/// `count` numbers of each channel.
class Numbers final {
 public:
  Numbers(int64_t count, int64_t channels) : channels_(channels), values_(count * channels) {}
  double* operator[](int64_t i) { return values_.data() + i * channels_; }

 private:
  int64_t channels_;
  std::vector<double> values_;
};

Numbers in_double(const OptionalTensor& numbers, int64_t channels, double otherwise) {
  Numbers result(1, channels);
  auto to = at::from_blob(result[0], {channels}, at::kDouble);
  numbers ? to.copy_(*numbers) : to.fill_(otherwise);
  return result;
}

void store(const at::Tensor& to, double* numbers) { to.copy_(at::from_blob(numbers, to.sizes(), at::kDouble)); }

/// Tensors of the shape of x, the first of `inputs`, that are passed over together.
class Passes final {
 public:
  Passes(std::initializer_list<at::Tensor> inputs, std::initializer_list<at::Tensor> outputs, bool rectified = false)
      : x_(*inputs.begin()), rectified_(rectified), pass_{channels_of(x_, format_of(x_))} {
    const auto format = format_of(x_);
    auto* in = pass_.in.data();
    for (const auto& input : inputs) *in++ = kept_.emplace_back(input.contiguous(format)).const_data_ptr();
    auto* out = pass_.out.data();
    for (const auto& output : outputs) {
      TORCH_CHECK(output.sizes() == x_.sizes() && output.dtype() == x_.dtype() && output.is_contiguous(format),
                  "gimli::norm: expected an output of the size, type and memory format of x, got one of size ",
                  output.sizes());
      *out++ = output.mutable_data_ptr();
    }
  }

  int64_t channels() const { return pass_.at.channels; }
  double count() const { return static_cast<double>(pass_.at.count()); }

  /// Calls `steps` with all channels, from begin to end at a time: where each has memory of its own, with so few that
  /// what one step reads is in the cache for the next.
  template <class Steps>
  void for_channels(Steps steps) const {
    constexpr int64_t cache = 1 << 14;
    const auto few = std::max<int64_t>(1, cache / (pass_.at.count() * x_.element_size()));
    const auto grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / pass_.at.count());
    at::parallel_for(0, channels(), grain, [&](int64_t begin, int64_t end) {
      const auto stride = pass_.at.length == 1 ? end - begin : few;
      for (auto c = begin; c < end; c += stride) steps(c, std::min(c + stride, end));
    });
  }

  void take(NormStep step, int64_t begin, int64_t end, std::initializer_list<const double*> k,
            std::initializer_list<double*> sums = {}) const {
    auto pass = pass_;
    std::copy(k.begin(), k.end(), pass.k.begin());
    std::copy(sums.begin(), sums.end(), pass.sums.begin());
    norm_kernel(step, rectified_, x_.dtype() == at::kDouble)(pass, begin, end);
  }

 private:
  at::Tensor x_;
  bool rectified_;
  NormPass pass_;
  std::vector<at::Tensor> kept_;
};

Three norm_out(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps, at::Tensor y,
               at::Tensor mean, at::Tensor variance) {
  const Passes passes({x}, {y});
  const auto channels = passes.channels();
  const auto n = passes.count();
  auto gamma = in_double(weight, channels, 1), beta = in_double(bias, channels, 0);
  Numbers by_x(1, channels);
  auto *m = mean.mutable_data_ptr<double>(), *v = variance.mutable_data_ptr<double>();
  passes.for_channels([&](int64_t begin, int64_t end) {
    passes.take(NormStep::mean, begin, end, {nullptr}, {m});
    for (auto c = begin; c < end; ++c) m[c] /= n;
    passes.take(NormStep::variance, begin, end, {m}, {v});
    for (auto c = begin; c < end; ++c) {
      v[c] /= n;
      by_x[0][c] = gamma[0][c] / std::sqrt(v[c] + eps);
    }
    passes.take(NormStep::normalize, begin, end, {m, by_x[0], beta[0]});
  });
  return {y, mean, variance};
}

Three norm_functional(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  const auto numbers = [&] { return at::empty({x.size(1)}, at::kDouble); };
  return norm_out(x, weight, bias, eps, like(x), numbers(), numbers());
}

Three backward_out(const at::Tensor& g, const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                   const at::Tensor& mean, const at::Tensor& variance, double eps, bool rectified, at::Tensor of_x,
                   at::Tensor of_weight, at::Tensor of_bias) {
  const Passes passes({x, g}, {of_x}, rectified);
  const auto channels = passes.channels();
  const auto n = passes.count();
  auto gamma = in_double(weight, channels, 1), beta = in_double(bias, channels, 0);
  const auto *m = mean.const_data_ptr<double>(), *v = variance.const_data_ptr<double>();
  Numbers sums(2, channels), k(3, channels), by_weight(1, channels);
  passes.for_channels([&](int64_t begin, int64_t end) {
    for (auto c = begin; c < end; ++c) k[0][c] = gamma[0][c] / std::sqrt(v[c] + eps);
    passes.take(NormStep::first_sums, begin, end, {m, k[0], beta[0]}, {sums[0], sums[1]});
    for (auto c = begin; c < end; ++c) {
      const auto r = 1 / std::sqrt(v[c] + eps);
      k[1][c] = -k[0][c] * r * r * sums[1][c] / n;
      k[2][c] = -k[0][c] * sums[0][c] / n;
      by_weight[0][c] = r * sums[1][c];
    }
    passes.take(NormStep::first, begin, end, {m, k[0], k[1], k[2], k[0], beta[0]});
  });
  store(of_weight, by_weight[0]);
  store(of_bias, sums[0]);
  return {of_x, of_weight, of_bias};
}

Three backward_functional(const at::Tensor& g, const at::Tensor& x, const OptionalTensor& weight,
                          const OptionalTensor& bias, const at::Tensor& mean, const at::Tensor& variance, double eps,
                          bool rectified) {
  const auto numbers = [&] { return at::empty({x.size(1)}, x.options()); };
  return backward_out(g, x, weight, bias, mean, variance, eps, rectified, like(x), numbers(), numbers());
}

// With z = (x - mean) r, r = 1 / sqrt(variance + eps), <.> the mean over a channel of n elements, and
// P(h) = h - <h> - z <h z>, which is its own adjoint and r times which is the derivative of z, the gradients are
//
//     weight r P(g),  sum g z,  sum g
//
// and s = sum u weight r P(g) + v sum g z + w sum g has the derivatives
//
//     by g:       weight r P(u) + v z + w
//     by weight:  r A                            with A = sum u P(g)
//     by x:       r P(h) - weight r^2 A z / n    with h = v g - weight r (u <g z> + g <u z>)
//
// Of max(y, 0), all this holds for g that is 0 where y <= 0.
Three double_backward_out(const at::Tensor& u, const OptionalTensor& of_v, const OptionalTensor& of_w,
                          const at::Tensor& g, const at::Tensor& x, const OptionalTensor& weight,
                          const OptionalTensor& bias, const at::Tensor& mean, const at::Tensor& variance, double eps,
                          bool rectified, at::Tensor of_g, at::Tensor of_x, at::Tensor of_weight) {
  const Passes passes({x, g, u}, {of_g, of_x}, rectified);
  const auto channels = passes.channels();
  const auto n = passes.count();
  auto gamma = in_double(weight, channels, 1), beta = in_double(bias, channels, 0), v = in_double(of_v, channels, 0),
       w = in_double(of_w, channels, 0);
  const auto *m = mean.const_data_ptr<double>(), *var = variance.const_data_ptr<double>();
  Numbers sums(5, channels), k(7, channels), by_weight(1, channels);
  passes.for_channels([&](int64_t begin, int64_t end) {
    for (auto c = begin; c < end; ++c) k[0][c] = gamma[0][c] / std::sqrt(var[c] + eps);
    passes.take(NormStep::second_sums, begin, end, {m, k[0], beta[0]}, {sums[0], sums[1], sums[2], sums[3], sums[4]});
    for (auto c = begin; c < end; ++c) {
      const auto r = 1 / std::sqrt(var[c] + eps), gamma_r = k[0][c];
      const auto u_c = sums[0][c] / n, g_c = sums[1][c] / n, uz = r * sums[2][c] / n, gz = r * sums[3][c] / n;
      const auto a = sums[4][c] / n - u_c * g_c - uz * gz;  // A / n
      by_weight[0][c] = r * n * a;
      k[1][c] = r * (v[0][c] - gamma_r * uz);
      k[2][c] = w[0][c] - gamma_r * u_c;
      const auto h_u = -gamma_r * gz, h_g = v[0][c] - gamma_r * uz;
      k[3][c] = r * h_u;
      k[4][c] = r * h_g;
      k[5][c] = -r * r * (h_u * uz + h_g * gz + gamma_r * a);
      k[6][c] = -r * (h_u * u_c + h_g * g_c);
    }
    passes.take(NormStep::second, begin, end, {m, k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[0], beta[0]});
  });
  store(of_weight, by_weight[0]);
  return {of_g, of_x, of_weight};
}

Three double_backward_functional(const at::Tensor& u, const OptionalTensor& v, const OptionalTensor& w,
                                 const at::Tensor& g, const at::Tensor& x, const OptionalTensor& weight,
                                 const OptionalTensor& bias, const at::Tensor& mean, const at::Tensor& variance,
                                 double eps, bool rectified) {
  return double_backward_out(u, v, w, g, x, weight, bias, mean, variance, eps, rectified, like(x), like(x),
                             at::empty({x.size(1)}, x.options()));
}

TORCH_LIBRARY_FRAGMENT(gimli, library) {
  const auto define = [&](const std::string& name, const std::string& arguments) {
    const std::string out = arguments + ", *, Tensor(a!) out0, Tensor(b!) out1, Tensor(c!) out2";
    library.def((name + "(" + arguments + ") -> (Tensor, Tensor, Tensor)").c_str());
    library.def((name + ".out(" + out + ") -> (Tensor(a!), Tensor(b!), Tensor(c!))").c_str());
  };
  const std::string point =
      "Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float eps, bool rectified";
  define("norm", "Tensor x, Tensor? weight, Tensor? bias, float eps");
  define("norm_backward", "Tensor g, " + point);
  define("norm_double_backward", "Tensor u, Tensor? v, Tensor? w, Tensor g, " + point);
}

TORCH_LIBRARY_IMPL(gimli, CPU, library) {
  library.impl("norm", norm_functional);
  library.impl("norm.out", norm_out);
  library.impl("norm_backward", backward_functional);
  library.impl("norm_backward.out", backward_out);
  library.impl("norm_double_backward", double_backward_functional);
  library.impl("norm_double_backward.out", double_backward_out);
}

}  // namespace

Normalized norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  static const Dispatched<decltype(norm_functional)> op("gimli::norm");
  auto [y, mean, variance] = op(x, weight, bias, eps);
  return {y, mean, variance};
}

NormGradients norm_backward(const at::Tensor& g, const NormPoint& at) {
  static const Dispatched<decltype(backward_functional)> op("gimli::norm_backward");
  auto [x, weight, bias] = op(g, at.x, at.weight, at.bias, at.mean, at.variance, at.eps, at.rectified);
  return {x, weight, bias};
}

NormSecondGradients norm_double_backward(const at::Tensor& u, const OptionalTensor& v, const OptionalTensor& w,
                                         const at::Tensor& g, const NormPoint& at) {
  static const Dispatched<decltype(double_backward_functional)> op("gimli::norm_double_backward");
  auto [of_g, of_x, of_weight] = op(u, v, w, g, at.x, at.weight, at.bias, at.mean, at.variance, at.eps, at.rectified);
  return {of_g, of_x, of_weight};
}

}  // namespace gimli::operators
