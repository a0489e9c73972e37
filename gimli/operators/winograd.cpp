#include "gimli/operators/winograd.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

#include "gimli/operators/arguments.h"
#include "gimli/operators/dispatched.h"
#include "gimli/operators/winograd_kernels.h"
#include "gimli/processor.h"

namespace gimli::operators {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr int64_t kTiles = 96;  ///< at a time, so that they stay in a core's cache
constexpr int64_t kSlices = 8;  ///< of all tiles at most that are summed on their own, each by one thread

ImageBatch images_of(const at::Tensor& x) {
  return {x.data_ptr(), x.size(0), x.size(1), x.size(2), x.size(3), format_of(x) == at::MemoryFormat::ChannelsLast};
}

/// What a thread's memory is for: what all rows of tiles need, or some of them.
enum Use { for_all, for_some };

/// Memory of this thread, which its next convolution uses again: large blocks that come and go would fragment that of
/// tensors. It is kept until the thread ends.
char* scratch(Use use, int64_t bytes) {
  struct Block {
    std::unique_ptr<void, decltype(&std::free)> memory{nullptr, &std::free};
    int64_t bytes = 0;
  };
  thread_local std::array<Block, 2> blocks;
  auto& block = blocks[use];
  if (block.bytes < bytes) {
    constexpr int64_t alignment = 64;
    const auto size = (bytes + alignment - 1) / alignment * alignment;
    block = {};
    block.memory.reset(std::aligned_alloc(alignment, size));
    TORCH_CHECK(block.memory, "gimli::winograd: cannot allocate ", size, " bytes");
    block.bytes = size;
  }
  return static_cast<char*>(block.memory.get());
}

/// A convolution, with what it takes to run it by some rows of tiles at a time.
struct Work {
  Work(const at::Tensor& x, const at::Tensor& y, at::IntArrayRef padding)
      : type(x.scalar_type()),
        kernels(winograd_kernels(type == at::kDouble)),
        at{images_of(x), images_of(y), padding[0], padding[1]},
        inputs(padded(x.size(1))),
        outputs(padded(y.size(1))),
        rows(std::max<int64_t>(1, kTiles / at.tiles_across())) {}

  int64_t bytes(int64_t numbers) const { return numbers * static_cast<int64_t>(at::elementSize(type)); }
  int64_t padded(int64_t channels) const {
    const auto lanes = register_bytes() / bytes(1);
    return (channels + lanes - 1) / lanes * lanes;
  }

  /// Calls `run` with memory for `rows` rows of tiles, for those of [begin, end) in turn.
  template <class Run>
  void by_rows(int64_t begin, int64_t end, Run run) const {
    const auto across = at.tiles_across(), tiles = std::min(rows, end - begin) * across;
    const auto x_tiles = bytes(16 * tiles * inputs), y_tiles = bytes(16 * tiles * outputs),
               pixels = bytes(std::max(4 * (2 * across + 2) * inputs, 2 * 2 * across * outputs));
    auto* const all = scratch(for_some, x_tiles + y_tiles + pixels);
    const WinogradMemory memory{all, all + x_tiles, all + x_tiles + y_tiles};
    for (auto row = begin; row < end; row += rows) run(memory, row, std::min(row + rows, end));
  }

  at::ScalarType type;
  WinogradKernels kernels;
  Winograd at;
  int64_t inputs, outputs, rows;
};

at::MemoryFormat format_of_result(const at::Tensor& a, const at::Tensor& b) {
  const auto last = at::MemoryFormat::ChannelsLast;
  return format_of(a) == last || format_of(b) == last ? last : at::MemoryFormat::Contiguous;
}

/// The size of a result whose x has `size` pixels in that direction.
int64_t size_of_result(int64_t size, int64_t padding) { return size + 2 * padding - 2; }

void check(const at::Tensor& x, const at::Tensor& y, int64_t inputs, int64_t outputs, at::IntArrayRef padding,
           const at::Tensor& result) {
  TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && inputs == x.size(1) && outputs == y.size(1) &&
                  y.size(2) == size_of_result(x.size(2), padding[0]) &&
                  y.size(3) == size_of_result(x.size(3), padding[1]) &&
                  (result.is_contiguous() || result.is_contiguous(at::MemoryFormat::ChannelsLast)),
              "gimli::winograd: expected images, a weight of 3x3 and a padding of 0 to 2 that fit a result of size ",
              result.sizes());
}

/// With `turned`, of a weight [inputs, outputs, 3, 3] that is turned by 180 degrees.
at::Tensor convolve_out(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                        at::IntArrayRef padding, bool turned, at::Tensor y) {
  check(x, y, weight.size(!turned), weight.size(turned), padding, y);
  const auto images = x.contiguous(format_of(x)), w = weight.contiguous();
  Work work(images, y, padding);
  work.at.filters = scratch(for_all, work.bytes(16 * work.at.x.channels * work.outputs));
  const auto lanes = work.padded(1);
  at::parallel_for(0, (work.at.x.channels + lanes - 1) / lanes, 4, [&](int64_t begin, int64_t end) {
    auto* const squares = scratch(for_some, work.bytes(lanes * 9 * work.outputs));
    work.kernels.filters(work.at, w.const_data_ptr(), turned, squares, begin * lanes,
                         std::min(end * lanes, work.at.x.channels));
  });
  at::Tensor sums;
  if (bias) {
    sums = at::zeros({work.outputs}, work.type);
    sums.narrow(0, 0, y.size(1)).copy_(*bias);
  }
  at::parallel_for(0, work.at.rows_of_tiles(), work.rows, [&](int64_t begin, int64_t end) {
    work.by_rows(begin, end, [&](const WinogradMemory& memory, int64_t first, int64_t last) {
      work.kernels.convolve(work.at, bias ? sums.const_data_ptr() : nullptr, memory, first, last);
    });
  });
  return y;
}

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, at::IntArrayRef padding,
                    bool turned) {
  return convolve_out(x, weight, bias, padding, turned,
                      at::empty({x.size(0), weight.size(turned), size_of_result(x.size(2), padding[0]),
                                 size_of_result(x.size(3), padding[1])},
                                x.options().memory_format(format_of_result(x, weight))));
}

at::Tensor correlate_out(const at::Tensor& g, const at::Tensor& x, at::IntArrayRef padding, at::Tensor weight) {
  check(x, g, weight.size(1), weight.size(0), padding, weight);
  const auto images = x.contiguous(format_of(x)), gradient = g.contiguous(format_of(g));
  Work work(images, gradient, padding);
  // The same slices for any number of threads.
  const auto all = work.at.rows_of_tiles(), slices = std::clamp<int64_t>(all / (8 * work.rows), 1, kSlices);
  const auto numbers = 16 * g.size(1) * work.inputs;
  auto sums = at::from_blob(scratch(for_all, work.bytes(slices * numbers)), {slices, numbers}, work.type);
  at::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
    for (auto slice = begin; slice < end; ++slice) {
      auto at = work.at;
      at.filter_sums = sums.select(0, slice).data_ptr();
      const auto start = all * slice / slices;
      work.by_rows(start, all * (slice + 1) / slices, [&](const WinogradMemory& memory, int64_t first, int64_t last) {
        work.kernels.correlate(at, first > start, memory, first, last);
      });
    }
  });
  if (slices > 1) sums = sums.sum(0);
  work.at.filter_sums = sums.data_ptr();
  const auto w = weight.is_contiguous() ? weight : at::empty_like(weight, at::MemoryFormat::Contiguous);
  at::parallel_for(0, g.size(1), 64, [&](int64_t begin, int64_t end) {
    work.kernels.weights(work.at, w.data_ptr(), scratch(for_some, work.bytes(9 * work.inputs)), begin, end);
  });
  if (!w.is_same(weight)) weight.copy_(w);
  return weight;
}

at::Tensor correlate(const at::Tensor& g, const at::Tensor& x, at::IntArrayRef padding) {
  return correlate_out(g, x, padding,
                       at::empty({g.size(1), x.size(1), 3, 3}, x.options().memory_format(format_of_result(g, x))));
}

TORCH_LIBRARY_FRAGMENT(gimli, library) {
  library.def("winograd(Tensor x, Tensor weight, Tensor? bias, int[] padding, bool turned) -> Tensor");
  library.def(
      "winograd.out(Tensor x, Tensor weight, Tensor? bias, int[] padding, bool turned, *, Tensor(a!) out) -> "
      "Tensor(a!)");
  library.def("winograd_weight(Tensor g, Tensor x, int[] padding) -> Tensor");
  library.def("winograd_weight.out(Tensor g, Tensor x, int[] padding, *, Tensor(a!) out) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(gimli, CPU, library) {
  library.impl("winograd", convolve);
  library.impl("winograd.out", convolve_out);
  library.impl("winograd_weight", correlate);
  library.impl("winograd_weight.out", correlate_out);
}

const Dispatched<decltype(convolve)>& convolve_operator() {
  static const Dispatched<decltype(convolve)> op("gimli::winograd");
  return op;
}

}  // namespace

bool has_winograd(at::IntArrayRef x, at::IntArrayRef weight, at::IntArrayRef stride, at::IntArrayRef padding,
                  at::IntArrayRef dilation, int64_t groups, bool weight_gradient) {
  const auto are = [](at::IntArrayRef numbers, auto holds) {
    return std::all_of(numbers.begin(), numbers.end(), holds);
  };
  const auto is_one = [](int64_t n) { return n == 1; };
  const auto can = x.size() == 4 && weight[2] == 3 && weight[3] == 3 && groups == 1 && are(stride, is_one) &&
                   are(dilation, is_one) && are(padding, [](int64_t n) { return 0 <= n && n <= 2; });
  if (!can) return false;
  const auto height = size_of_result(x[2], padding[0]), width = size_of_result(x[3], padding[1]);
  if (height < 1 || width < 1) return false;
  const auto inputs = weight[1], outputs = weight[0], filters = inputs * outputs;
  const auto tiles = x[0] * ((height + 1) / 2) * ((width + 1) / 2);
  // In products, as `operators_benchmark --convolutions` shows: those of tiles and filters, which many inputs make
  // slower; for each filter; for what goes into tiles and comes out of them; and what a call costs before it begins.
  const auto own = (16 + inputs / 64) * tiles * filters + 300 * filters +
                   150 * tiles * (std::max<int64_t>(inputs, 16) + std::max<int64_t>(outputs, 16)) + 250'000;
  const auto libtorchs = 9 * x[0] * height * width * filters + (weight_gradient ? 600 * filters : 0) + 2'000'000;
  return own < libtorchs;
}

at::Tensor winograd(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                    at::IntArrayRef padding) {
  return convolve_operator()(x, weight, bias, padding, /*turned=*/false);
}

at::Tensor winograd_input_gradient(const at::Tensor& g, const at::Tensor& weight, at::IntArrayRef padding) {
  return convolve_operator()(g, weight, OptionalTensor(), at::IntArrayRef{2 - padding[0], 2 - padding[1]},
                             /*turned=*/true);
}

at::Tensor winograd_weight_gradient(const at::Tensor& g, const at::Tensor& x, at::IntArrayRef padding) {
  static const Dispatched<decltype(correlate)> op("gimli::winograd_weight");
  return op(g, x, padding);
}

}  // namespace gimli::operators
