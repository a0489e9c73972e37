#include "gimli/optim/fused/group.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "gimli/trace.h"

namespace gimli::optim::fused {

template <class Formula>
at::Tensor Member<Formula>::empty() const {
  if (Trace::is_recording()) return at::empty_strided(sizes, strides, dtype);
  return at::detail::empty_strided_cpu(sizes, strides, dtype);
}

template <class Formula>
bool Member<Formula>::lies_as(const at::Tensor& tensor) const {
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && tensor.stride(d) != strides[d]) return false;
  }
  return true;
}

template <class Formula>
at::Tensor Member<Formula>::aligned(const at::Tensor& tensor) const {
  if (lies_as(tensor) && !tensor.is_neg() && !tensor._is_zerotensor()) return tensor;
  at::NoGradGuard no_gradient;
  return empty().copy_(tensor);
}

namespace {

constexpr int64_t chunk_size = 1 << 15;

/// A pass of the kernels over a group.
template <class Formula>
class Evaluation final {
 public:
  using Row = typename Group<Formula>::Row;

  Evaluation(const Group<Formula>& group, Order order, const TensorList& read, const TensorList& written)
      : group_(group), order_(order), passes_(group.members.size()) {
    const auto y_bar = group.count_of_inputs(), w = y_bar + group.count_of_outputs();
    const bool is_first = order != Order::value, is_second = order == Order::second;
    std::vector<Row> values, directions(group.rows.size());
    for (size_t row = 0; row < group.rows.size(); ++row) {
      values.push_back(coefficients(read, group.c(row, 0), group.rows[row]));
      if (is_second) directions[row] = coefficients(read, w + group.c(row, 0), {});
    }
    for (size_t i = 0; i < passes_.size(); ++i) {
      const auto& member = group.members[i];
      auto& pass = passes_[i];
      pass.formula = member.formula;
      pass.c = values[member.row];
      pass.direction = directions[member.row];
      auto* in = pass.in.data();
      in = bind_in(member, read, group.x(i, 0), Formula::inputs, in);
      if (is_first) in = bind_in(member, read, y_bar + group.y(i, 0), Formula::outputs, in);
      if (is_second) bind_in(member, read, w + group.x(i, 0), Formula::inputs, in);
      auto* out = pass.out.data();
      if (is_first) out = bind_out(written, group.x(i, 0), Formula::inputs, out);
      if (!is_first) bind_out(written, group.y(i, 0), Formula::outputs, out);
      if (is_second) bind_out(written, group.count_of_inputs() + group.y(i, 0), Formula::outputs, out);

      for (int64_t begin = 0; begin < member.numel; begin += chunk_size) {
        chunks_.push_back({i, begin, std::min(begin + chunk_size, member.numel)});
      }
      numel_ += member.numel;
    }
  }

  /// With the sums for the coefficients if there are any `totals`.
  void run(std::vector<Row>& totals) {
    if (chunks_.empty()) return;
    const bool summed = !totals.empty();
    std::vector<Row> sums(summed ? chunks_.size() : 0);
    const auto kernel_f = kernel_for<Formula>(order_, false, summed),
               kernel_d = kernel_for<Formula>(order_, true, summed);
    const auto count = static_cast<int64_t>(chunks_.size());
    const auto chunks_a_thread = (count * chunk_size + numel_ - 1) / numel_;
    at::parallel_for(0, count, chunks_a_thread, [&](int64_t first, int64_t last) {
      for (auto i = first; i < last; ++i) {
        const auto& [member, begin, end] = chunks_[i];
        const auto kernel = group_.members[member].dtype == at::kDouble ? kernel_d : kernel_f;
        kernel(passes_[member], begin, end, summed ? sums[i].data() : nullptr);
      }
    });
    for (size_t i = 0; i < sums.size(); ++i) {
      auto& total = totals[group_.members[chunks_[i].member].row];
      for (size_t k = 0; k < total.size(); ++k) total[k] += sums[i][k];
    }
  }

 private:
  struct Chunk {
    size_t member;
    int64_t begin, end;
  };

  static Row coefficients(const TensorList& tensors, size_t first, Row otherwise) {
    for (size_t k = 0; k < otherwise.size(); ++k) {
      if (tensors[first + k].defined()) otherwise[k] = tensors[first + k].template item<double>();
    }
    return otherwise;
  }

  /// Returns where the next streams go.
  const void** bind_in(const Member<Formula>& member, const TensorList& tensors, size_t first, size_t count,
                       const void** in) {
    for (size_t k = 0; k < count; ++k, ++in) {
      const auto& tensor = tensors[first + k];
      if (!tensor.defined()) continue;
      auto aligned = member.aligned(tensor);
      *in = aligned.const_data_ptr();
      if (!aligned.is_same(tensor)) kept_.push_back(std::move(aligned));
    }
    return in;
  }

  static void** bind_out(const TensorList& tensors, size_t first, size_t count, void** out) {
    for (size_t k = 0; k < count; ++k, ++out) {
      if (tensors[first + k].defined()) *out = tensors[first + k].mutable_data_ptr();
    }
    return out;
  }

  const Group<Formula>& group_;
  Order order_;
  std::vector<Pass<Formula>> passes_;
  std::vector<Chunk> chunks_;
  int64_t numel_ = 0;
  TensorList kept_;
};

template <class Formula>
void evaluate_now(const Group<Formula>& group, Order order, const TensorList& read, const TensorList& written) {
  const auto first = group.c(0, 0);
  const bool is_summed =
      order != Order::value && std::any_of(written.begin() + first, written.begin() + group.count_of_inputs(),
                                           [](const at::Tensor& sum) { return sum.defined(); });
  std::vector<typename Group<Formula>::Row> totals(is_summed ? group.rows.size() : 0);
  Evaluation<Formula>(group, order, read, written).run(totals);
  for (size_t j = 0; j < totals.size() * Formula::coefficients; ++j) {
    if (!written[first + j].defined()) continue;
    *written[first + j].template mutable_data_ptr<double>() =
        totals[j / Formula::coefficients][j % Formula::coefficients];
  }
}

// A group as an argument of an operator.
template <class Formula>
struct Argument final : torch::CustomClassHolder {
  explicit Argument(std::shared_ptr<const Group<Formula>> group) : group(std::move(group)) {}
  const std::shared_ptr<const Group<Formula>> group;
};

template <class Formula>
std::string operator_name() {
  return c10::str("update_", Formula::name);
}

TensorList tensors_of(const c10::List<std::optional<at::Tensor>>& list) {
  TensorList result;
  for (const std::optional<at::Tensor> tensor : list) result.push_back(tensor.value_or(at::Tensor()));
  return result;
}

template <class Formula>
void call(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, 4);
  const auto group = c10::static_intrusive_pointer_cast<Argument<Formula>>(arguments[0].toCapsule())->group;
  evaluate_now(*group, static_cast<Order>(arguments[1].toInt()), tensors_of(arguments[2].toOptionalTensorList()),
               arguments[3].toTensorVector());
  torch::jit::drop(*stack, 4);
}

template <class Formula>
void add_operator(torch::Library& library) {
  library.def(
      (operator_name<Formula>() + "(Capsule group, int order, Tensor?[] read, Tensor(a!)[] written) -> ()").c_str());
  library.impl(operator_name<Formula>().c_str(), c10::DispatchKey::CPU,
               torch::CppFunction::makeFromBoxedFunction<&call<Formula>>());
}

TORCH_LIBRARY_FRAGMENT(gimli, library) {
  add_operator<SgdFormula>(library);
  add_operator<AdamFormula>(library);
}

}  // namespace

template <class Formula>
void evaluate(const std::shared_ptr<const Group<Formula>>& group, Order order, const TensorList& read,
              const TensorList& written) {
  const at::NoGradGuard no_gradient;
  if (!Trace::is_recording()) return evaluate_now(*group, order, read, written);
  c10::List<std::optional<at::Tensor>> optional;
  for (const auto& tensor : read) optional.push_back(tensor.defined() ? std::optional(tensor) : std::nullopt);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(("gimli::" + operator_name<Formula>()).c_str(), "");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  torch::jit::Stack stack{c10::IValue::make_capsule(c10::make_intrusive<Argument<Formula>>(group)),
                          static_cast<int64_t>(order), optional, written};
  op.callBoxed(&stack);
}

template struct Member<SgdFormula>;
template struct Member<AdamFormula>;
template void evaluate(const std::shared_ptr<const Group<SgdFormula>>&, Order, const TensorList&, const TensorList&);
template void evaluate(const std::shared_ptr<const Group<AdamFormula>>&, Order, const TensorList&, const TensorList&);

}  // namespace gimli::optim::fused
