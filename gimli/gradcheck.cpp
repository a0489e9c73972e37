#include "gimli/gradcheck.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

namespace gimli {
namespace {

void check_inputs(const TensorList& inputs) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK(inputs[i].scalar_type() == at::kDouble, "gradcheck: input ", i, " is ", inputs[i].scalar_type(),
                ", expected Double: central differences mean nothing in lower precision");
  }
}

/// (f(x + h e) - f(x - h e)) / 2h for every element of the `index`-th tensor.
template <class Function>
at::Tensor central_differences(const Function& value_at, const at::Tensor& x, double h) {
  const auto original = x.detach().clone(at::MemoryFormat::Contiguous);
  auto result = at::empty_like(original);
  for (int64_t e = 0; e < original.numel(); ++e) {
    const auto shifted = [&](double by) {
      auto moved = original.clone();
      moved.view(-1)[e] += by;
      return value_at(moved);
    };
    result.view(-1)[e] = (shifted(h) - shifted(-h)) / (2 * h);
  }
  return result;
}

void compare(GradcheckReport& report, double& worst_miss, size_t input, const at::Tensor& analytic,
             const at::Tensor& numeric, const GradcheckOptions& options) {
  const auto a = analytic.detach().reshape(-1);
  const auto n = numeric.reshape(-1);
  for (int64_t e = 0; e < n.numel(); ++e) {
    const double ours = a[e].item<double>(), theirs = n[e].item<double>();
    const double error = std::abs(ours - theirs);
    double miss = error - options.absolute() - options.relative() * std::abs(theirs);
    if (std::isnan(miss)) miss = std::numeric_limits<double>::infinity();
    report.worst_error = std::isnan(error) ? error : std::max(report.worst_error, error);
    if (miss <= 0 || (!report.passed && miss <= worst_miss)) continue;
    report.passed = false;
    worst_miss = miss;
    report.message = c10::str("input ", input, ", element ", e, ": derivative ", ours, ", by central differences ",
                              theirs, " (difference ", error, ")");
  }
}

TensorList gradients_of(const ScalarFunction& function, const TensorList& inputs, bool create_graph) {
  TensorList wanted;
  for (const auto& input : inputs) {
    if (input.requires_grad()) wanted.push_back(input);
  }
  const auto value = function(inputs);
  TORCH_CHECK(value.numel() == 1, "gradcheck: the function returned shape ", value.sizes(), ", expected a scalar");
  TensorList found(wanted.size());
  if (value.requires_grad()) {
    found = torch::autograd::grad({value}, wanted, {}, create_graph, create_graph, /*allow_unused=*/true);
  }
  TensorList gradients;
  size_t next = 0;
  for (const auto& input : inputs) {
    if (!input.requires_grad()) {
      gradients.emplace_back();
    } else {
      gradients.push_back(found[next].defined() ? found[next] : at::zeros_like(input));
      ++next;
    }
  }
  return gradients;
}

}  // namespace

GradcheckReport gradcheck(const ScalarFunction& function, const TensorList& inputs, GradcheckOptions options) {
  check_inputs(inputs);
  const auto gradients = gradients_of(function, inputs, /*create_graph=*/false);
  GradcheckReport report;
  double worst_miss = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].requires_grad()) continue;
    // Without NoGradGuard: the function may itself differentiate.
    const auto numeric = central_differences(
        [&](const at::Tensor& moved) {
          auto moved_inputs = inputs;
          moved_inputs[i] = moved.requires_grad_();
          return function(moved_inputs).template item<double>();
        },
        inputs[i], options.step());
    compare(report, worst_miss, i, gradients[i], numeric, options);
  }
  return report;
}

GradcheckReport gradgradcheck(const ScalarFunction& function, const TensorList& inputs, GradcheckOptions options) {
  auto generator = at::detail::createCPUGenerator(/*seed=*/1);
  TensorList direction;
  for (const auto& input : inputs) direction.push_back(at::randn(input.sizes(), generator, input.options()));
  return gradcheck(
      [&](const TensorList& at) {
        const auto gradients = gradients_of(function, at, /*create_graph=*/true);
        auto total = at::zeros({}, at::kDouble);
        for (size_t i = 0; i < gradients.size(); ++i) {
          if (gradients[i].defined()) total = total + (gradients[i] * direction[i]).sum();
        }
        return total;
      },
      inputs, options);
}

GradcheckReport gradcheck(const Bilevel& problem, const TensorList& meta_parameters, const TaskList& tasks,
                          const Strategy& strategy, GradcheckOptions options) {
  check_inputs(meta_parameters);
  auto seeded = problem;
  if (!seeded.seed()) seeded.seed(at::empty({}, at::kLong).random_().item<int64_t>());
  const auto result = hypergradient(seeded, meta_parameters, tasks, strategy);
  GradcheckReport report;
  double worst_miss = 0;
  for (size_t i = 0; i < meta_parameters.size(); ++i) {
    auto parameter = meta_parameters[i].detach();
    struct Restore {
      at::Tensor parameter, original;
      ~Restore() { parameter.copy_(original); }
    } restore{parameter, parameter.clone()};
    const auto numeric = central_differences(
        [&](const at::Tensor& moved) {
          parameter.copy_(moved);
          return evaluate(seeded, tasks).outer_loss.template item<double>();
        },
        parameter, options.step());
    compare(report, worst_miss, i, result.gradients[i], numeric, options);
  }
  return report;
}

}  // namespace gimli
