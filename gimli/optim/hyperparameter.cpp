#include "gimli/optim/hyperparameter.h"

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "gimli/vmap/level.h"

namespace gimli::optim {
namespace {

template <class Operation>
Value combine(const Value& a, const Value& b, Operation operation) {
  if (a.is_number() && b.is_number()) return operation(a.number(), b.number());
  if (a.is_number()) return operation(at::scalar_tensor(a.number(), b.tensor().options()), b.tensor());
  if (b.is_number()) return operation(a.tensor(), at::scalar_tensor(b.number(), a.tensor().options()));
  return operation(a.tensor(), b.tensor());
}

Value fitting(const at::Tensor& tensor, const at::Tensor& parameter, const std::string& name) {
  TORCH_CHECK(tensor.defined() && tensor.is_floating_point() && at::is_expandable_to(tensor.sizes(), parameter.sizes()),
              "hyperparameter '", name, "': expected a floating-point tensor that expands to the shape ",
              parameter.sizes(), " of its parameter, got ",
              tensor.defined() ? c10::str(tensor.scalar_type(), " of shape ", tensor.sizes()) : "an undefined tensor");
  if (tensor.dim() == 0) return tensor.to(at::kDouble);
  const auto dtype = parameter.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble, "hyperparameter '", name,
              "': one value an element takes "
              "parameters of float32 or float64, got ",
              dtype, ", in which 0.999 is 1; give one value a tensor");
  return tensor.to(dtype);
}

/// What multiplies x: next to a 0-dimensional x, a float64 tensor would make the result float64.
at::Tensor tensor(const Value& a, const at::Tensor& x) {
  return x.dim() == 0 ? a.tensor().to(x.scalar_type()) : a.tensor();
}

class Root final : public torch::autograd::Function<Root> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    auto y = x.sqrt();
    context->save_for_backward({y});
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               torch::autograd::tensor_list gradients) {
    const auto y = context->get_saved_variables()[0];
    return {gradients[0] * (0.5 / y.masked_fill(y == 0, std::numeric_limits<double>::infinity()))};
  }
};

}  // namespace

Value operator+(const Value& a, const Value& b) {
  return combine(a, b, [](const auto& x, const auto& y) -> Value { return x + y; });
}
Value operator-(const Value& a, const Value& b) {
  return combine(a, b, [](const auto& x, const auto& y) -> Value { return x - y; });
}
Value operator*(const Value& a, const Value& b) {
  return combine(a, b, [](const auto& x, const auto& y) -> Value { return x * y; });
}
Value operator/(const Value& a, const Value& b) {
  return combine(a, b, [](const auto& x, const auto& y) -> Value { return x / y; });
}
Value operator-(const Value& a) { return a.is_number() ? Value(-a.number()) : Value(-a.tensor()); }

Value pow(const Value& base, int64_t exponent) {
  if (base.is_number()) return std::pow(base.number(), static_cast<double>(exponent));
  return base.tensor().pow(exponent);
}
Value pow(const Value& base, const Value& exponent) {
  return combine(base, exponent, [](const auto& x, const auto& y) -> Value {
    using std::pow;
    return pow(x, y);
  });
}
Value maximum(const Value& a, const Value& b) {
  return combine(a, b, [](const auto& x, const auto& y) -> Value {
    using std::max, at::max;
    return max(x, y);
  });
}
Value minimum(const Value& a, const Value& b) {
  return combine(a, b, [](const auto& x, const auto& y) -> Value {
    using std::min, at::min;
    return min(x, y);
  });
}
Value sqrt(const Value& a) { return a.is_number() ? Value(std::sqrt(a.number())) : Value(a.tensor().sqrt()); }

at::Tensor scale(const Value& a, const at::Tensor& x) { return a.is_number() ? x * a.number() : x * tensor(a, x); }
at::Tensor divide(const at::Tensor& x, const Value& a) { return a.is_number() ? x / a.number() : x / tensor(a, x); }
at::Tensor shift(const at::Tensor& x, const Value& a) { return a.is_number() ? x + a.number() : x + tensor(a, x); }

at::Tensor add_scaled(const at::Tensor& x, const Value& a, const at::Tensor& y) {
  return a.is_number() ? at::add(x, y, a.number()) : at::addcmul(x, tensor(a, x), y);
}

at::Tensor add_scaled_ratio(const at::Tensor& x, const Value& a, const at::Tensor& y, const at::Tensor& z) {
  return a.is_number() ? at::addcdiv(x, y, z, a.number()) : at::addcmul(x, tensor(a, x), y / z);
}

at::Tensor moving_average(const Value& beta, const at::Tensor& x, const at::Tensor& y) {
  return beta.is_number() ? at::lerp(x, y, 1 - beta.number()) : at::lerp(x, y, (1 - beta.tensor()).to(x.scalar_type()));
}

at::Tensor as_tensor(const Value& a, const at::Tensor& x) {
  return a.is_number() ? at::scalar_tensor(a.number(), x.options().dtype(at::kDouble)) : a.tensor();
}

void check_scalar(const Value& a, const char* of) {
  TORCH_CHECK(a.is_number() || a.tensor().dim() == 0, of, ": expected one value a tensor, got one of shape ",
              a.tensor().sizes());
}

at::Tensor widened(const at::Tensor& x) { return x.to(at::promote_types(x.scalar_type(), at::kFloat)); }

at::Tensor root(const at::Tensor& x) {
  if (!is_wrapped(x)) return Root::apply(x);
  const VmapLevel::Pause alone;  // it acts on each element by itself
  return wrapped_like(x, Root::apply(physical(x)));
}

at::Tensor euclidean_norm(const at::Tensor& x) { return root(widened(x).square().sum()); }

Values Hyperparameter::at(int64_t step, size_t count, const std::vector<size_t>& indices, const TensorList& parameters,
                          const std::string& name) const {
  if (const auto* schedule = std::get_if<std::function<Hyperparameter(int64_t)>>(&value_)) {
    const auto now = (*schedule)(step);
    now.check(count, name);
    return now.at(step, count, indices, parameters, name);
  }
  Values values;
  values.reserve(indices.size());
  if (const auto* list = std::get_if<TensorList>(&value_)) {
    for (size_t i = 0; i < indices.size(); ++i) {
      values.push_back(fitting((*list)[indices[i]], parameters[i], name));
    }
    return values;
  }
  const auto& value = std::get<Value>(value_);
  const bool shared = value.is_number() || (value.tensor().defined() && value.tensor().dim() == 0);
  const auto for_parameter = [&](const at::Tensor& parameter) {
    return value.is_number() ? value : fitting(value.tensor(), parameter, name);
  };
  if (shared && !parameters.empty()) return Values(parameters.size(), for_parameter(parameters[0]));
  for (const auto& parameter : parameters) values.push_back(for_parameter(parameter));
  return values;
}

bool Hyperparameter::is_number() const {
  const auto* value = std::get_if<Value>(&value_);
  return value && value->is_number();
}

TensorList Hyperparameter::tensors() const {
  if (const auto* list = std::get_if<TensorList>(&value_)) return *list;
  const auto* value = std::get_if<Value>(&value_);
  return value && !value->is_number() ? TensorList{value->tensor()} : TensorList();
}

bool Hyperparameter::is_computed() const {
  const auto computed = [](const at::Tensor& tensor) { return tensor.defined() && tensor.grad_fn() != nullptr; };
  if (const auto* list = std::get_if<TensorList>(&value_)) return std::any_of(list->begin(), list->end(), computed);
  const auto* value = std::get_if<Value>(&value_);
  return value && !value->is_number() && computed(value->tensor());
}

void Hyperparameter::check(size_t count, const std::string& name) const {
  if (const auto* list = std::get_if<TensorList>(&value_)) {
    TORCH_CHECK(list->size() == count, "hyperparameter '", name, "': got ", list->size(),
                " tensors, expected one for each of the group's ", count, " parameters");
  }
  const auto* schedule = std::get_if<std::function<Hyperparameter(int64_t)>>(&value_);
  TORCH_CHECK(!schedule || *schedule, "hyperparameter '", name, "': got an empty function of the step");
}

}  // namespace gimli::optim
