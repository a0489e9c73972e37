#include "gimli/operators/batch_norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "gimli/operators/norm_kernels.h"

namespace gimli::operators {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Numbers of channels, one after the other in one tensor of doubles [count, channels].
class Numbers final {
 public:
  Numbers(int64_t count, int64_t channels) : tensor_(at::zeros({count, channels}, at::kDouble)) {}
  double* operator[](int64_t i) { return tensor_.mutable_data_ptr<double>() + i * tensor_.size(1); }
  at::Tensor row(int64_t i) const { return tensor_[i]; }

 private:
  at::Tensor tensor_;
};

/// The memory format in which x is passed over.
at::MemoryFormat format_of(const at::Tensor& x) {
  if (x.is_contiguous()) return at::MemoryFormat::Contiguous;
  if (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  if (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)) return at::MemoryFormat::ChannelsLast3d;
  return at::MemoryFormat::Contiguous;
}

Channels channels_of(const at::Tensor& x, at::MemoryFormat format) {
  const auto rows = x.size(0), channels = x.size(1), length = x.numel() / (rows * channels);
  if (format != at::MemoryFormat::Contiguous || length == 1) return {rows * length, channels, 1};
  return {rows, channels, length};
}

/// Tensors of the shape of x that are passed over together.
class Passes final {
 public:
  explicit Passes(const at::Tensor& x) : format_(format_of(x)), at_(channels_of(x, format_)), options_(x.options()) {
    add(x);
  }

  void add(const at::Tensor& input) { inputs_.push_back(input.contiguous(format_)); }

  int64_t channels() const { return at_.channels; }
  double count() const { return static_cast<double>(at_.count()); }
  at::Tensor output() const { return at::empty_like(inputs_[0], options_, format_); }

  void take(NormStep step, std::initializer_list<const double*> k, std::initializer_list<double*> sums,
            std::initializer_list<at::Tensor> outputs = {}) const {
    NormPass pass{at_};
    for (size_t i = 0; i < inputs_.size(); ++i) pass.in[i] = inputs_[i].const_data_ptr();
    std::copy(k.begin(), k.end(), pass.k.begin());
    std::copy(sums.begin(), sums.end(), pass.sums.begin());
    size_t i = 0;
    for (const auto& output : outputs) pass.out[i++] = output.mutable_data_ptr();
    const auto kernel = norm_kernel(step, options_.dtype() == at::kDouble);
    const auto grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / at_.count());
    at::parallel_for(0, at_.channels, grain, [&](int64_t begin, int64_t end) { kernel(pass, begin, end); });
  }

 private:
  at::MemoryFormat format_;
  Channels at_;
  at::TensorOptions options_;
  std::vector<at::Tensor> inputs_;
};

at::Tensor in_double(const at::Tensor& numbers, int64_t channels, double otherwise) {
  return numbers.defined() ? numbers.to(at::kDouble).contiguous() : at::full({channels}, otherwise, at::kDouble);
}

/// The mean of each channel and 1 / sqrt(variance + eps).
struct Statistics {
  at::Tensor mean, scale;
};

/// The gradients of y by x, weight and bias, for g that of y.
struct Gradients {
  at::Tensor x, weight, bias;
};

Gradients first_pass(const at::Tensor& g, const at::Tensor& x, const at::Tensor& weight, const Statistics& statistics) {
  Passes passes(x);
  passes.add(g);
  const auto channels = passes.channels();
  const auto n = passes.count();
  const auto mean = statistics.mean, gamma = in_double(weight, channels, 1);
  Numbers sums(2, channels), k(3, channels), of_weight(1, channels);
  passes.take(NormStep::first_sums, {mean.const_data_ptr<double>()}, {sums[0], sums[1]});
  for (int64_t c = 0; c < channels; ++c) {
    const auto r = statistics.scale.const_data_ptr<double>()[c], by_g = gamma.const_data_ptr<double>()[c] * r;
    k[0][c] = by_g;
    k[1][c] = -by_g * r * r * sums[1][c] / n;
    k[2][c] = -by_g * sums[0][c] / n;
    of_weight[0][c] = r * sums[1][c];
  }
  auto of_x = passes.output();
  passes.take(NormStep::first, {mean.const_data_ptr<double>(), k[0], k[1], k[2]}, {}, {of_x});
  return {of_x, of_weight.row(0).to(x.scalar_type()), sums.row(0).to(x.scalar_type())};
}

/// What `first_pass` takes, and the gradients u, v, w of what it returns.
struct SecondInputs {
  at::Tensor g, x, weight, u, v, w;
};

/// Those of g, x and weight.
struct SecondGradients {
  at::Tensor g, x, weight;
};

// With z = (x - mean) r, <.> the mean over a channel of n elements, and P(h) = h - <h> - z <h z>, which is its own
// adjoint and r times which is the derivative of z, the gradients are
//
//     weight r P(g),  sum g z,  sum g
//
// and s = sum u weight r P(g) + v sum g z + w sum g has the derivatives
//
//     by g:       weight r P(u) + v z + w
//     by weight:  r A                            with A = sum u P(g)
//     by x:       r P(h) - weight r^2 A z / n    with h = v g - weight r (u <g z> + g <u z>)
SecondGradients second_pass(const SecondInputs& at, const Statistics& statistics) {
  Passes passes(at.x);
  passes.add(at.g);
  passes.add(at.u);
  const auto channels = passes.channels();
  const auto n = passes.count();
  const auto mean = statistics.mean, gamma = in_double(at.weight, channels, 1), v = in_double(at.v, channels, 0),
             w = in_double(at.w, channels, 0);
  Numbers sums(5, channels), k(7, channels), of_weight(1, channels);
  passes.take(NormStep::second_sums, {mean.const_data_ptr<double>()}, {sums[0], sums[1], sums[2], sums[3], sums[4]});
  for (int64_t c = 0; c < channels; ++c) {
    const auto r = statistics.scale.const_data_ptr<double>()[c], gamma_r = gamma.const_data_ptr<double>()[c] * r,
               v_c = v.const_data_ptr<double>()[c];
    const auto u = sums[0][c] / n, g = sums[1][c] / n, uz = r * sums[2][c] / n, gz = r * sums[3][c] / n,
               ug = sums[4][c] / n;
    const auto a = ug - u * g - uz * gz;  // A / n
    of_weight[0][c] = r * n * a;
    k[0][c] = gamma_r;
    k[1][c] = r * (v_c - gamma_r * uz);
    k[2][c] = w.const_data_ptr<double>()[c] - gamma_r * u;
    const auto h_u = -gamma_r * gz, h_g = v_c - gamma_r * uz;
    k[3][c] = r * h_u;
    k[4][c] = r * h_g;
    k[5][c] = -r * r * (h_u * uz + h_g * gz + gamma_r * a);
    k[6][c] = -r * (h_u * u + h_g * g);
  }
  auto of_g = passes.output(), of_x = passes.output();
  passes.take(NormStep::second, {mean.const_data_ptr<double>(), k[0], k[1], k[2], k[3], k[4], k[5], k[6]}, {},
              {of_g, of_x});
  return {of_g, of_x, of_weight.row(0).to(at.x.scalar_type())};
}

/// The same, composed of operators that can be differentiated.
SecondGradients second_composed(const SecondInputs& at, double eps) {
  std::vector<int64_t> over{0}, shape(at.x.dim(), 1);
  for (int64_t d = 2; d < at.x.dim(); ++d) over.push_back(d);
  shape[1] = at.x.size(1);
  const auto of_channels = [&](const at::Tensor& t, double otherwise) {
    return t.defined() ? t.view(shape) : at::full(shape, otherwise, at.x.options());
  };
  const auto mean = [&](const at::Tensor& t) { return t.mean(over, /*keepdim=*/true); };
  const auto weight = of_channels(at.weight, 1), v = of_channels(at.v, 0), w = of_channels(at.w, 0);
  const auto centred = at.x - mean(at.x);
  const auto r = (mean(centred.square()) + eps).rsqrt();
  const auto z = centred * r;
  const auto project = [&](const at::Tensor& h) { return h - mean(h) - z * mean(h * z); };
  const auto projected_u = project(at.u);
  const auto a = mean(projected_u * at.g);  // A / n
  const auto h = v * at.g - weight * r * (at.u * mean(at.g * z) + at.g * mean(at.u * z));
  const auto n = static_cast<double>(at.x.numel() / at.x.size(1));
  return {weight * r * projected_u + v * z + w, r * project(h) - weight * r * r * a * z, (n * r * a).flatten()};
}

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// The backward pass, as a function of its own.
struct Backward final : torch::autograd::Function<Backward> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& g, const at::Tensor& x,
                               const std::optional<at::Tensor>& given_weight, const at::Tensor& mean,
                               const at::Tensor& scale, double eps) {
    const auto weight = given_weight.value_or(at::Tensor());
    ctx->save_for_backward({g, x, weight, mean, scale});
    ctx->saved_data["eps"] = eps;
    ctx->set_materialize_grads(false);
    const auto [of_x, of_weight, of_bias] = first_pass(g, x, weight, {mean, scale});
    return {of_x, of_weight, of_bias};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    SecondInputs inputs{saved[0], saved[1], saved[2], gradients[0], gradients[1], gradients[2]};
    if (!inputs.u.defined()) inputs.u = at::zeros_like(inputs.x);
    const auto [of_g, of_x, of_weight] = at::GradMode::is_enabled()
                                             ? second_composed(inputs, ctx->saved_data["eps"].toDouble())
                                             : second_pass(inputs, {saved[3], saved[4]});
    return {of_g, of_x, inputs.weight.defined() ? of_weight : at::Tensor(), {}, {}, {}};
  }
};

struct Forward final : torch::autograd::Function<Forward> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& given_weight,
                            const std::optional<at::Tensor>& given_bias, const at::Tensor& mean,
                            const at::Tensor& scale, double eps) {
    const auto weight = given_weight.value_or(at::Tensor()), bias = given_bias.value_or(at::Tensor());
    ctx->save_for_backward({x, weight, mean, scale});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["has_bias"] = bias.defined();
    Passes passes(x);
    const auto channels = passes.channels();
    const auto by_x = in_double(weight, channels, 1) * scale, shift = in_double(bias, channels, 0);
    auto y = passes.output();
    passes.take(NormStep::normalize,
                {mean.const_data_ptr<double>(), by_x.const_data_ptr<double>(), shift.const_data_ptr<double>()}, {},
                {y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto of = Backward::apply(gradients[0], saved[0], if_defined(saved[1]), saved[2], saved[3],
                                    ctx->saved_data["eps"].toDouble());
    const auto if_given = [](bool given, const at::Tensor& gradient) { return given ? gradient : at::Tensor(); };
    return {of[0], if_given(saved[1].defined(), of[1]), if_given(ctx->saved_data["has_bias"].toBool(), of[2]), {}, {},
            {}};
  }
};

void move(const at::Tensor& running, const at::Tensor& now, double momentum) {
  if (running.defined()) running.copy_((1 - momentum) * running.to(at::kDouble) + momentum * now);
}

}  // namespace

bool has_batch_norm(const BatchNormInputs& at) {
  const auto& x = at.x;
  if (!x.defined() || x.dim() < 2 || x.numel() == 0) return false;
  for (const auto* tensor : {&at.x, &at.weight, &at.bias, &at.running_mean, &at.running_variance}) {
    if (!tensor->defined()) continue;
    if (!tensor->device().is_cpu() || tensor->layout() != at::kStrided || tensor->scalar_type() != x.scalar_type()) {
      return false;
    }
    if (tensor != &at.x && (tensor->dim() != 1 || tensor->size(0) != x.size(1))) return false;
  }
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble;
}

at::Tensor batch_norm(const BatchNormInputs& at) {
  TORCH_CHECK(has_batch_norm(at),
              "batch_norm: expected an input [n, channels, ...] of float or double on the CPU, and "
              "weight, bias and running statistics [channels] of the same type");
  at::Tensor mean, scale;
  {
    at::NoGradGuard no_grad;
    const Passes passes(at.x);
    const auto n = passes.count();
    Numbers sums(2, passes.channels());
    passes.take(NormStep::mean, {nullptr}, {sums[0]});
    mean = sums.row(0) / n;
    passes.take(NormStep::variance, {mean.const_data_ptr<double>()}, {sums[1]});
    scale = (sums.row(1) / n + at.eps).rsqrt();
    move(at.running_mean, mean, at.momentum);
    move(at.running_variance, sums.row(1) / (n - 1), at.momentum);
  }
  return Forward::apply(at.x, if_defined(at.weight), if_defined(at.bias), mean, scale, at.eps);
}

}  // namespace gimli::operators
