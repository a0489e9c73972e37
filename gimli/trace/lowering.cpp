#include "gimli/trace/lowering.h"

#include <ATen/Parallel.h>
#include <ATen/core/Reduction.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <unordered_map>

namespace gimli::tracing {
namespace {

using c10::IValue;

/// Elements of a tensor and multiplications of a product up to which own kernels take them: beyond, libtorch uses
/// several threads, where it has them.
int64_t most_elements() {
  return at::get_num_threads() == 1 ? std::numeric_limits<int32_t>::max() : at::internal::GRAIN_SIZE;
}
int64_t most_multiplications() { return 32 * most_elements(); }

/// Of a matrix that each block of rows is multiplied with, as a cache next to a core holds it.
constexpr int64_t kMostBytes = 1 << 18;

// ---------------------------------------------------------------- loops

/// A dimension of a loop: its size, and how far apart the elements of each tensor are in it, the result first.
struct Dimension {
  int64_t size;
  std::array<int64_t, 5> stride{};
};

/// Dimensions that are gone through like one become one.
std::vector<Dimension> joined(const std::vector<Dimension>& dimensions) {
  std::vector<Dimension> result;
  for (const auto& next : dimensions) {
    if (next.size == 1) continue;
    auto* outer = result.empty() ? nullptr : &result.back();
    bool fits = outer != nullptr;
    for (size_t k = 0; fits && k < next.stride.size(); ++k) fits = outer->stride[k] == next.stride[k] * next.size;
    if (fits) {
      outer->size *= next.size;
      outer->stride = next.stride;
    } else {
      result.push_back(next);
    }
  }
  return result;
}

/// How far apart the elements of a tensor are in each of `count` dimensions it is broadcast to.
std::vector<int64_t> broadcast_strides(const Geometry& tensor, size_t count) {
  std::vector<int64_t> strides(count, 0);
  const auto first = count - tensor.sizes().size();
  for (size_t d = 0; d < tensor.sizes().size(); ++d)
    strides[first + d] = tensor.sizes()[d] == 1 ? 0 : tensor.strides()[d];
  return strides;
}

/// Gives the loop its sizes and strides, of dimensions from the outermost to the innermost.
std::optional<Loop> with(Loop loop, const std::vector<Dimension>& dimensions) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (dimensions.size() > 3) return std::nullopt;
  for (size_t d = 0; d < dimensions.size(); ++d) {
    const auto to = 3 - dimensions.size() + d;
    if (dimensions[d].size > most) return std::nullopt;
    loop.size[to] = static_cast<int32_t>(dimensions[d].size);
    for (size_t k = 0; k < loop.at.size(); ++k) {
      if (std::abs(dimensions[d].stride[k]) > most) return std::nullopt;
      loop.at[k].stride[to] = static_cast<int32_t>(dimensions[d].stride[k]);
    }
  }
  return loop;
}

std::optional<Loop> pointwise_loop(const Instruction& instruction, Loop loop) {
  const auto& result = instruction.results[0];
  const auto count = result.sizes().size();
  std::vector<Dimension> dimensions;
  for (size_t d = 0; d < count; ++d) dimensions.push_back({result.sizes()[d], {result.strides()[d]}});
  for (const auto& place : instruction.places) {
    const auto strides = broadcast_strides(place.geometry, count);
    for (size_t d = 0; d < count; ++d) dimensions[d].stride[place.argument] = strides[d];
  }
  std::stable_sort(dimensions.begin(), dimensions.end(),
                   [](const Dimension& a, const Dimension& b) { return a.stride[0] > b.stride[0]; });
  return with(loop, joined(dimensions));
}

/// Rows along the last dimension.
std::optional<Loop> row_loop(const Instruction& instruction, Loop loop) {
  const auto& result = instruction.results[0];
  std::vector<Dimension> dimensions;
  for (size_t d = 0; d < result.sizes().size(); ++d) {
    dimensions.push_back({result.sizes()[d], {result.strides()[d]}});
    for (const auto& place : instruction.places) dimensions[d].stride[place.argument] = place.geometry.strides()[d];
  }
  const auto row = dimensions.back();
  for (size_t k = 0; k <= instruction.places.size(); ++k) {
    if (row.size > 1 && row.stride[k] != 1) return std::nullopt;
  }
  dimensions.pop_back();
  dimensions = joined(dimensions);
  dimensions.push_back(row);
  return with(loop, dimensions);
}

/// Kept dimensions around and within the one that is reduced.
std::optional<Loop> reduction_loop(const Instruction& instruction, Loop loop) {
  const auto& is_reduced = instruction.own->is_reduced;
  const auto& result = instruction.results[0];
  const auto count = is_reduced.size();
  const bool keeps = result.sizes().size() == count;
  std::vector<Dimension> kept, reduced;
  const auto& sizes = instruction.places[0].geometry.sizes();
  size_t next = 0;
  for (size_t d = 0; d < count; ++d) {
    Dimension dimension{sizes[d]};
    for (const auto& place : instruction.places) {
      dimension.stride[place.argument] = broadcast_strides(place.geometry, count)[d];
    }
    if (!is_reduced[d]) dimension.stride[0] = result.strides()[keeps ? d : next];
    next += !is_reduced[d];
    (is_reduced[d] ? reduced : kept).push_back(dimension);
  }
  for (auto* list : {&kept, &reduced}) {
    std::stable_sort(list->begin(), list->end(),
                     [](const Dimension& a, const Dimension& b) { return a.stride[1] > b.stride[1]; });
    *list = joined(*list);
  }
  if (kept.size() > 2 || reduced.size() > 1) return std::nullopt;
  kept.insert(kept.begin(), 2 - kept.size(), Dimension{1});
  reduced.insert(reduced.begin(), 1 - reduced.size(), Dimension{1});
  return with(loop, {kept[0], reduced[0], kept[1]});
}

std::optional<Loop> product_loop(const Instruction& instruction, Loop loop) {
  const auto& sizes = instruction.results[0].sizes();
  const auto count = sizes.size();
  const auto lay = [&](size_t k, const Geometry& matrix) {
    const auto strides = broadcast_strides(matrix, count);
    for (size_t d = 0; d < count; ++d) loop.at[k].stride[3 - count + d] = static_cast<int32_t>(strides[d]);
  };
  lay(0, instruction.results[0]);
  int64_t summands = 0;
  for (const auto& place : instruction.places) {
    lay(place.argument, place.geometry);
    if (place.argument == 1) summands = place.geometry.sizes().back();
  }
  for (size_t d = 0; d < count; ++d) loop.size[3 - count + d] = static_cast<int32_t>(sizes[d]);
  loop.size[3] = static_cast<int32_t>(summands);

  const auto columns = sizes.back(), size = static_cast<int64_t>(at::elementSize(instruction.results[0].type()));
  if (columns > 1 && loop.at[0].stride[2] != 1) return std::nullopt;
  if (columns > 1 && loop.at[2].stride[2] != 1 && !has_dot_products(loop) && summands * columns * size > kPackedBytes) {
    return std::nullopt;
  }
  return loop;
}

// ---------------------------------------------------------------- operators

using Lowered = std::optional<Instruction>;

/// An operator's arguments.
class Call final {
 public:
  explicit Call(const Instruction& instruction) : instruction_(instruction) {}

  size_t size() const { return instruction_.arguments.size(); }
  const IValue& operator[](size_t i) const { return instruction_.arguments[i]; }

  const Geometry* tensor(size_t i) const { return instruction_.operand(i); }

  /// An argument that is a number, by itself or as a tensor.
  std::optional<double> number(size_t i) const {
    const auto& value = (*this)[i];
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().dim() == 0 &&
        !value.toTensor().is_complex()) {
      return value.toTensor().item<double>();
    }
    if (value.isScalar() && !value.isComplexDouble()) return value.toScalar().toDouble();
    return std::nullopt;
  }

  /// An own operation on these arguments.
  Lowered own(Operation operation, const std::vector<size_t>& operands, double p = 1) const {
    const auto& result = instruction_.results[0];
    if (result.type() != at::kFloat && result.type() != at::kDouble) return std::nullopt;
    if (result.count() > most_elements()) return std::nullopt;
    Instruction own{
        .kind = Instruction::loops, .results = {result}, .own = OwnOperation{.operation = operation, .p = p}};
    size_t to = 0;
    for (const auto i : operands) {
      ++to;
      if (const auto* operand = tensor(i)) {
        const bool is_number =
            operand->count() == 1 && (operand->type() == at::kFloat || operand->type() == at::kDouble);
        if (operand->type() != result.type() && !(is_number && operation < Operation::softmax)) return std::nullopt;
        if (operand->count() > most_elements()) return std::nullopt;
        own.places.push_back({to, -1, *operand});
      } else if (const auto value = number(i)) {
        own.own->numbers.emplace_back(to, *value);
      } else {
        return std::nullopt;
      }
    }
    return own;
  }

  /// Over the dimensions that the second argument names, or all.
  Lowered reduction(Operation operation, const std::vector<size_t>& operands, bool is_mean) const {
    auto own = this->own(operation, operands);
    if (!own || !own->own->numbers.empty()) return std::nullopt;
    const auto& sizes = own->places[0].geometry.sizes();
    for (const auto& place : own->places) {
      if (place.geometry.sizes() != sizes) return std::nullopt;
    }
    const auto count = static_cast<int64_t>(sizes.size());
    auto& is_reduced = own->own->is_reduced;
    is_reduced.assign(count, true);
    if ((*this)[1].isIntList() && !(*this)[1].toIntVector().empty()) {
      is_reduced.assign(count, false);
      for (const auto d : (*this)[1].toIntVector()) is_reduced[d < 0 ? d + count : d] = true;
    }
    int64_t summands = 1;
    for (int64_t d = 0; d < count; ++d) summands *= is_reduced[d] ? sizes[d] : 1;
    if (is_mean) own->own->p = 1. / static_cast<double>(summands);
    return own;
  }

  /// Along the dimension that an argument names, which is the last.
  Lowered row(Operation operation, const std::vector<size_t>& operands, size_t dimension) const {
    auto own = this->own(operation, operands);
    if (!own || !own->own->numbers.empty()) return std::nullopt;
    const auto& sizes = own->results[0].sizes();
    const auto count = static_cast<int64_t>(sizes.size()), d = (*this)[dimension].toInt();
    if (count == 0 || (d != -1 && d != count - 1)) return std::nullopt;
    for (const auto& place : own->places) {
      if (place.geometry.sizes() != sizes) return std::nullopt;
    }
    return own;
  }

  /// p A B + q D, with D if there is one.
  Lowered product(size_t a, size_t b, std::optional<size_t> d = {}, double p = 1, double q = 1) const {
    auto own = this->own(Operation::product, d && q != 0 ? std::vector{a, b, *d} : std::vector{a, b}, p);
    if (!own || !own->own->numbers.empty()) return std::nullopt;
    if (own->results[0].count() * own->places[0].geometry.sizes().back() > most_multiplications()) return std::nullopt;
    own->own->q = q;
    return own;
  }

 private:
  const Instruction& instruction_;
};

using Rule = std::function<Lowered(const Call&)>;

Rule on(Operation operation, std::vector<size_t> operands) {
  return
      [=](const Call& call) { return call.size() == operands.size() ? call.own(operation, operands) : std::nullopt; };
}

/// With p given last.
Rule scaled(Operation operation, std::vector<size_t> operands, double sign = 1) {
  return [=](const Call& call) -> Lowered {
    const auto p = call.size() == operands.size() + 1 ? call.number(operands.size()) : std::nullopt;
    return p ? call.own(operation, operands, sign * *p) : std::nullopt;
  };
}

Rule filled(double number) {
  return [=](const Call& call) { return call.own(Operation::fill, {}, number); };
}

/// With the argument at this place.
Rule filled_from(size_t place) {
  return [=](const Call& call) -> Lowered {
    const auto number = call.number(place);
    return number ? call.own(Operation::fill, {}, *number) : std::nullopt;
  };
}

Rule reduced(bool is_mean) {
  return [=](const Call& call) {  // x, type or x, dimensions, whether they are kept, type
    return call[call.size() - 1].isNone() ? call.reduction(Operation::sum, {0}, is_mean) : std::nullopt;
  };
}

Lowered multiplied(const Call& call) {
  for (const size_t i : {0, 1}) {
    if (const auto number = call.number(i)) return call.own(Operation::scale, {1 - i}, *number);
  }
  return call.own(Operation::multiply, {0, 1});
}

Lowered power(const Call& call) {
  const auto exponent = call.tensor(0) ? call.number(1) : std::nullopt;
  if (exponent == 0.) return call.own(Operation::fill, {});
  for (const auto& [number, operation] : {std::pair(2., Operation::square),
                                          {3., Operation::cube},
                                          {1., Operation::copy},
                                          {0.5, Operation::root},
                                          {-0.5, Operation::inverse_root},
                                          {-1., Operation::inverse}}) {
    if (exponent == number) return call.own(operation, {0});
  }
  return std::nullopt;
}

bool is_mean(const Call& call, size_t place) { return call[place].toInt() == at::Reduction::Mean; }

Lowered squared_error(const Call& call) {
  if (call[2].toInt() == at::Reduction::None) return std::nullopt;
  return call.reduction(Operation::sum_of_squares, {0, 1}, is_mean(call, 2));
}

Lowered squared_error_slope(const Call& call) {
  const auto* x = call.tensor(1);
  if (!x) return std::nullopt;
  return call.own(Operation::scaled_difference, {0, 1, 2}, is_mean(call, 3) ? 2. / static_cast<double>(x->count()) : 2);
}

/// D, A, B, q, p.
Lowered sum_and_product(const Call& call) {
  const auto q = call.number(3), p = call.number(4);
  return p && q ? call.product(1, 2, 0, *p, *q) : std::nullopt;
}

Lowered matrix_product(const Call& call) { return call.size() == 2 ? call.product(0, 1) : std::nullopt; }

const std::unordered_map<std::string, Rule>& rules() {
  using enum Operation;
  static const std::unordered_map<std::string, Rule> all{
      {"aten::zeros", filled(0)},
      {"aten::zeros_like", filled(0)},
      {"aten::new_zeros", filled(0)},
      {"aten::zero", filled(0)},
      {"aten::ones", filled(1)},
      {"aten::ones_like", filled(1)},
      {"aten::new_ones", filled(1)},
      {"aten::full", filled_from(1)},
      {"aten::full_like", filled_from(1)},
      {"aten::fill", filled_from(1)},
      {"aten::scalar_tensor", filled_from(0)},
      {"aten::clone", [](const Call& call) { return call.own(copy, {0}); }},
      {"aten::_to_copy", [](const Call& call) { return call.own(copy, {0}); }},
      {"aten::copy", [](const Call& call) { return call.own(copy, {1}); }},
      {"aten::add", scaled(add, {0, 1})},
      {"aten::sub", scaled(add, {0, 1}, -1)},
      {"aten::rsub", scaled(add, {1, 0}, -1)},
      {"aten::mul", multiplied},
      {"aten::div", on(divide, {0, 1})},
      {"aten::neg", [](const Call& call) { return call.own(scale, {0}, -1); }},
      {"aten::pow", power},
      {"aten::sqrt", on(root, {0})},
      {"aten::rsqrt", on(inverse_root, {0})},
      {"aten::reciprocal", on(inverse, {0})},
      {"aten::exp", on(exponential, {0})},
      {"aten::log", on(logarithm, {0})},
      {"aten::sigmoid", on(Operation::sigmoid, {0})},
      {"aten::tanh", on(tangent, {0})},
      {"aten::abs", on(absolute, {0})},
      {"aten::sgn", on(sign, {0})},
      {"aten::sign", on(sign, {0})},
      {"aten::maximum", on(larger, {0, 1})},
      {"aten::minimum", on(smaller, {0, 1})},
      {"aten::relu", [](const Call& call) { return call.own(rectify, {0}, 0); }},
      {"aten::threshold_backward", scaled(pass_above, {0, 1})},
      {"aten::addcmul", scaled(add_product, {0, 1, 2})},
      {"aten::addcdiv", scaled(add_ratio, {0, 1, 2})},
      {"aten::lerp", scaled(interpolate, {0, 1})},
      {"aten::sigmoid_backward", on(sigmoid_slope, {0, 1})},
      {"aten::tanh_backward", on(tanh_slope, {0, 1})},
      {"aten::_softmax", [](const Call& call) { return call.row(softmax, {0}, 1); }},
      {"aten::_log_softmax", [](const Call& call) { return call.row(log_softmax, {0}, 1); }},
      {"aten::_softmax_backward_data",
       [](const Call& call) {
         return call.row(softmax_slope, {0, 1}, 2);
       }},
      {"aten::_log_softmax_backward_data",
       [](const Call& call) {
         return call.row(log_softmax_slope, {0, 1}, 2);
       }},
      {"aten::sum", reduced(false)},
      {"aten::mean", reduced(true)},
      {"aten::mse_loss", squared_error},
      {"aten::mse_loss_backward", squared_error_slope},
      {"aten::mm", matrix_product},
      {"aten::bmm", matrix_product},
      {"aten::addmm", sum_and_product},
      {"aten::baddbmm", sum_and_product},
  };
  return all;
}

}  // namespace

std::optional<Instruction> lowered(const Instruction& instruction) {
  if (!instruction.op || instruction.results.size() != 1) return std::nullopt;
  auto name = instruction.op->schema().name();
  if (instruction.kind == Instruction::writes_in) name.pop_back();
  const auto rule = rules().find(name);
  if (rule == rules().end()) return std::nullopt;
  auto own = rule->second(Call(instruction));
  if (own && own->own->operation == Operation::product) own = oriented(std::move(*own));
  return own && loop_of(*own) ? own : std::nullopt;
}

Geometry transposed(const Geometry& matrix) {
  auto layout = *matrix.layout;
  if (layout.sizes.size() == 1) {  // a row, added to each
    layout.sizes.insert(layout.sizes.begin(), 1);
    layout.strides.insert(layout.strides.begin(), 0);
  }
  if (const auto count = layout.sizes.size(); count > 1) {
    std::swap(layout.sizes[count - 2], layout.sizes[count - 1]);
    std::swap(layout.strides[count - 2], layout.strides[count - 1]);
  }
  return {matrix.slot, std::make_shared<const Layout>(std::move(layout))};
}

Instruction turned(Instruction product) {
  for (auto& place : product.places) {
    place.geometry = transposed(place.geometry);
    if (place.argument == 1 || place.argument == 2) place.argument = 3 - place.argument;
  }
  product.results[0] = transposed(product.results[0]);
  return product;
}

Instruction oriented(Instruction product) {
  const auto& c = product.results[0];
  const auto rows = c.sizes()[c.sizes().size() - 2], columns = c.sizes().back();
  return columns == 1 || (c.strides().back() != 1 && rows > 1) ? turned(std::move(product)) : product;
}

std::optional<Loop> loop_of(const Instruction& instruction) {
  const auto& own = *instruction.own;
  const auto type = instruction.results[0].type();
  Loop loop{
      .kernel = loop_kernel(own.operation, type == at::kDouble), .p = own.p, .q = own.q, .epilogue = own.epilogue};
  for (const auto& place : instruction.places) loop.at[place.argument].is_other = place.geometry.type() != type;
  for (const auto& [operand, number] : own.numbers) loop.at[operand].is_other = type != at::kDouble;
  if (own.operation == Operation::product) return product_loop(instruction, loop);
  if (own.operation < Operation::softmax) return pointwise_loop(instruction, loop);
  return own.operation < Operation::sum ? row_loop(instruction, loop) : reduction_loop(instruction, loop);
}

}  // namespace gimli::tracing
