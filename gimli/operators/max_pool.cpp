#include "gimli/operators/max_pool.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gimli/operators/arguments.h"
#include "gimli/operators/dispatched.h"
#include "gimli/operators/max_pool_kernels.h"

namespace gimli::operators {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The passes, as operators of libtorch's dispatcher below autograd, which a Trace sees. All tensors of a pass have the
// memory format of `image`, or where that is written, of `which`.

void take(PoolStep step, const at::Tensor& image, const at::Tensor& pooled, const at::Tensor& which) {
  const auto n = image.size(0), channels = image.size(1), height = image.size(2), width = image.size(3);
  const auto format = format_of(which);
  const auto at = format == at::MemoryFormat::Contiguous ? Images{n * channels, height, width, 1}
                                                         : Images{n, height, width, channels};
  TORCH_CHECK(image.is_contiguous(format) && pooled.is_contiguous(format) && pooled.sizes() == which.sizes() &&
                  pooled.size(2) == height / 2 && pooled.size(3) == width / 2,
              "gimli::max_pool: expected tensors of one memory format for an image of size ", image.sizes(), ", got ",
              pooled.sizes(), " and ", which.sizes());
  const auto kernel = pool_kernel(step, image.dtype() == at::kDouble);
  const auto grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / (height * width * at.length));
  at::parallel_for(0, at.planes, grain, [&](int64_t begin, int64_t end) {
    kernel(at, image.data_ptr(), pooled.data_ptr(), which.data_ptr<uint8_t>(), begin, end);
  });
}

std::tuple<at::Tensor, at::Tensor> max_out(const at::Tensor& x, at::Tensor y, at::Tensor which) {
  take(PoolStep::max, x.contiguous(format_of(which)), y, which);
  return {y, which};
}

std::tuple<at::Tensor, at::Tensor> max_functional(const at::Tensor& x) {
  const auto options = x.options().memory_format(format_of(x));
  const std::vector<int64_t> sizes{x.size(0), x.size(1), x.size(2) / 2, x.size(3) / 2};
  return max_out(x, at::empty(sizes, options), at::empty(sizes, options.dtype(at::kByte)));
}

at::Tensor scatter_out(const at::Tensor& g, const at::Tensor& which, at::IntArrayRef, at::Tensor image) {
  take(PoolStep::scatter, image, g.contiguous(format_of(which)), which);
  return image;
}

at::Tensor scatter_functional(const at::Tensor& g, const at::Tensor& which, at::IntArrayRef sizes) {
  return scatter_out(g, which, sizes, at::empty(sizes, g.options().memory_format(format_of(which))));
}

at::Tensor gather_out(const at::Tensor& image, const at::Tensor& which, at::Tensor pooled) {
  take(PoolStep::gather, image.contiguous(format_of(which)), pooled, which);
  return pooled;
}

at::Tensor gather_functional(const at::Tensor& image, const at::Tensor& which) {
  return gather_out(image, which, at::empty(which.sizes(), image.options().memory_format(format_of(which))));
}

TORCH_LIBRARY_FRAGMENT(gimli, library) {
  library.def("max_pool(Tensor x) -> (Tensor, Tensor)");
  library.def("max_pool.out(Tensor x, *, Tensor(a!) out0, Tensor(b!) out1) -> (Tensor(a!), Tensor(b!))");
  library.def("max_pool_scatter(Tensor g, Tensor which, int[] sizes) -> Tensor");
  library.def("max_pool_scatter.out(Tensor g, Tensor which, int[] sizes, *, Tensor(a!) out) -> Tensor(a!)");
  library.def("max_pool_gather(Tensor image, Tensor which) -> Tensor");
  library.def("max_pool_gather.out(Tensor image, Tensor which, *, Tensor(a!) out) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(gimli, CPU, library) {
  library.impl("max_pool", max_functional);
  library.impl("max_pool.out", max_out);
  library.impl("max_pool_scatter", scatter_functional);
  library.impl("max_pool_scatter.out", scatter_out);
  library.impl("max_pool_gather", gather_functional);
  library.impl("max_pool_gather.out", gather_out);
}

/// Numbers at the largest pixels of their windows, and 0 elsewhere.
struct Scatter final : torch::autograd::Function<Scatter> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& g, const at::Tensor& which,
                            std::vector<int64_t> sizes) {
    static const Dispatched<decltype(scatter_functional)> op("gimli::max_pool_scatter");
    ctx->save_for_backward({which});
    ctx->saved_data["sizes"] = sizes;
    return op(g, which, sizes);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients);
};

/// The numbers at the largest pixels.
struct Gather final : torch::autograd::Function<Gather> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& image, const at::Tensor& which) {
    static const Dispatched<decltype(gather_functional)> op("gimli::max_pool_gather");
    ctx->save_for_backward({which});
    ctx->saved_data["sizes"] = image.sizes().vec();
    return op(image, which);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {Scatter::apply(gradients[0], ctx->get_saved_variables()[0], ctx->saved_data["sizes"].toIntVector()), {}};
  }
};

variable_list Scatter::backward(AutogradContext* ctx, const variable_list& gradients) {
  return {Gather::apply(gradients[0], ctx->get_saved_variables()[0]), {}, {}};
}

struct Forward final : torch::autograd::Function<Forward> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x) {
    static const Dispatched<decltype(max_functional)> op("gimli::max_pool");
    const auto [y, which] = op(x);
    ctx->save_for_backward({which});
    ctx->saved_data["sizes"] = x.sizes().vec();
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {Scatter::apply(gradients[0], ctx->get_saved_variables()[0], ctx->saved_data["sizes"].toIntVector())};
  }
};

}  // namespace

bool has_max_pool(const MaxPoolInputs& at) {
  const auto are = [](const std::vector<int64_t>& numbers, int64_t number) {
    return std::all_of(numbers.begin(), numbers.end(), [=](int64_t n) { return n == number; });
  };
  return are_dense({at.x}) && at.x.dim() == 4 && at.x.size(2) >= 2 && at.x.size(3) >= 2 && are(at.kernel, 2) &&
         are(at.stride, 2) && are(at.padding, 0) && are(at.dilation, 1) && !at.ceil_mode;
}

at::Tensor max_pool(const MaxPoolInputs& at) {
  TORCH_CHECK(has_max_pool(at),
              "max_pool: expected an input [n, channels, height, width] of float or double on the CPU, at least 2 "
              "high and wide, with windows of 2 x 2 that are 2 apart, no padding, dilation or ceil mode");
  return Forward::apply(at.x);
}

}  // namespace gimli::operators
