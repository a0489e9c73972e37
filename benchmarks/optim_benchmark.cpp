// What an update of a parameter group costs: by libtorch's operators tensor by tensor, by the same on all tensors as
// one vector, and as update_all does it. With its backward pass, with double backward (of all of it: the update, its
// gradients, and theirs), and without a graph beside torch::optim's own step.
// `error` is the largest difference to operators in float64, relative to the norm, of the gradients or of the
// parameters after three steps; `step_bytes` is what each of several updates in a row keeps alive.
//
//     optim_benchmark --benchmark_repetitions=5 --benchmark_enable_random_interleaving=true

#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/sgd.h"
#include "gimli/memory_meter.h"

namespace gimli::optim {
namespace {

enum Kind { sgd, adam, adamw };

std::shared_ptr<const UpdateRule> rule_of(Kind kind) {
  if (kind == sgd) return std::make_shared<SGD>(SGDOptions(0.01).momentum(0.9));
  if (kind == adam) return std::make_shared<Adam>();
  return std::make_shared<AdamW>();
}

std::unique_ptr<torch::optim::Optimizer> torch_optimizer(Kind kind, const TensorList& parameters) {
  if (kind == sgd) {
    return std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(0.01).momentum(0.9));
  }
  if (kind == adam) return std::make_unique<torch::optim::Adam>(parameters);
  return std::make_unique<torch::optim::AdamW>(parameters);
}

/// `numel` parameters in so many tensors after their first update, and what is needed for the next and its derivative.
struct Problem {
  Problem(Kind kind, int64_t numel, int64_t tensors, at::ScalarType dtype = at::kFloat) : rule(rule_of(kind)) {
    at::set_num_threads(1);
    torch::manual_seed(1);
    Values values;
    for (const auto& spec : rule->hyperparameters()) values.emplace_back(spec.value);
    hyperparameters.assign(tensors, values);
    for (int64_t i = 0; i < tensors; ++i) {
      const auto size = numel * (i + 1) / tensors - numel * i / tensors;
      const auto random = [&] { return torch::randn({size}).to(dtype); };
      iterates.push_back({random().requires_grad_(), {}});
      iterates[i].state = rule->init(iterates[i].parameter);
      gradients.push_back(random().requires_grad_());
      cotangents.push_back(random());
    }
    torch::NoGradGuard no_gradient;
    auto updated = iterates;
    rule->update_all(updated, gradients, hyperparameters);
    for (int64_t i = 0; i < tensors; ++i) iterates[i].state = updated[i].state;
  }

  TensorList parameters() const {
    TensorList result;
    for (const auto& iterate : iterates) result.push_back(iterate.parameter);
    return result;
  }

  std::shared_ptr<const UpdateRule> rule;
  std::vector<Iterate> iterates;
  TensorList gradients, cotangents;
  std::vector<Values> hyperparameters;
};

using Way = void (*)(Problem&);

void plain(Problem& problem) {
  problem.rule->UpdateRule::update_all(problem.iterates, problem.gradients, problem.hyperparameters);
}

void fused(Problem& problem) { problem.rule->update_all(problem.iterates, problem.gradients, problem.hyperparameters); }

void flat(Problem& problem) {
  auto& iterates = problem.iterates;
  const auto joined = [&](auto part) {
    TensorList parts;
    for (const auto& iterate : iterates) parts.push_back(part(iterate));
    return at::cat(parts);
  };
  std::vector<int64_t> sizes;
  for (const auto& iterate : iterates) sizes.push_back(iterate.parameter.numel());
  ParameterState state{iterates[0].state.step, {}};
  for (size_t k = 0; k < iterates[0].state.slots.size(); ++k) {
    state.slots.push_back(joined([k](const Iterate& iterate) { return iterate.state.slots[k]; }));
  }
  const auto next = problem.rule->update(joined([](const Iterate& iterate) { return iterate.parameter; }),
                                         at::cat(problem.gradients), state, problem.hyperparameters[0]);
  const auto parameters = next.parameter.split_with_sizes(sizes);
  for (size_t k = 0; k < state.slots.size(); ++k) {
    const auto slots = next.state.slots[k].split_with_sizes(sizes);
    for (size_t i = 0; i < slots.size(); ++i) iterates[i].state.slots[k] = slots[i];
  }
  for (size_t i = 0; i < iterates.size(); ++i) iterates[i].parameter = parameters[i];
}

TensorList gradient_by(Problem problem, Way way) {
  auto inputs = problem.parameters();
  inputs.insert(inputs.end(), problem.gradients.begin(), problem.gradients.end());
  way(problem);
  return torch::autograd::grad(problem.parameters(), inputs, problem.cotangents);
}

/// The gradients' own derivatives along a direction: double backward.
TensorList second_by(Problem problem, Way way) {
  auto inputs = problem.parameters();
  inputs.insert(inputs.end(), problem.gradients.begin(), problem.gradients.end());
  for (auto& cotangent : problem.cotangents) cotangent = cotangent.detach().requires_grad_();
  inputs.insert(inputs.end(), problem.cotangents.begin(), problem.cotangents.end());
  const auto count = problem.parameters().size();
  way(problem);
  const auto gradients =
      torch::autograd::grad(problem.parameters(), TensorList(inputs.begin() + count, inputs.begin() + 2 * count),
                            problem.cotangents, /*retain_graph=*/true, /*create_graph=*/true);
  TensorList direction;
  for (const auto& gradient : gradients) direction.push_back(at::ones_like(gradient));
  const auto found = torch::autograd::grad(gradients, inputs, direction, {}, false, /*allow_unused=*/true);
  TensorList defined;
  for (size_t i = 0; i < found.size(); ++i) {
    defined.push_back(found[i].defined() ? found[i] : at::zeros_like(inputs[i]));
  }
  return defined;
}

double difference(const TensorList& a, const TensorList& b) {
  const auto norm = [](const TensorList& list) {
    double squares = 0;
    for (const auto& x : list) squares += x.detach().square().sum().item<double>();
    return std::sqrt(squares);
  };
  TensorList differences;
  for (size_t i = 0; i < a.size(); ++i) differences.push_back(a[i] - b[i]);
  return norm(differences) / norm(b);
}

double step_bytes(Problem problem, Way way) {
  constexpr int steps = 4;
  const auto gradients = problem.gradients;
  const MemoryMeter meter;
  for (int step = 0; step < steps; ++step) {
    for (size_t i = 0; i < gradients.size(); ++i) problem.gradients[i] = gradients[i] + 0;
    way(problem);
  }
  problem.gradients.clear();
  return static_cast<double>(meter.live_bytes()) / steps;
}

void update_and_backward(benchmark::State& state, Kind kind, Way way) {
  const Problem problem(kind, state.range(0), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(gradient_by(problem, way));
  const Problem exact(kind, state.range(0), state.range(1), at::kDouble);
  state.counters["error"] = difference(gradient_by(problem, way), gradient_by(exact, plain));
  state.counters["step_bytes"] = step_bytes(problem, way);
}

void double_backward(benchmark::State& state, Kind kind, Way way) {
  const Problem problem(kind, state.range(0), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(second_by(problem, way));
  const Problem exact(kind, state.range(0), state.range(1), at::kDouble);
  state.counters["error"] = difference(second_by(problem, way), second_by(exact, plain));
}

TensorList exact_steps(Kind kind, int64_t numel, int64_t tensors) {
  torch::NoGradGuard no_gradient;
  Problem problem(kind, numel, tensors, at::kDouble);
  for (auto& iterate : problem.iterates) iterate.state = problem.rule->init(iterate.parameter);
  for (int step = 0; step < 3; ++step) plain(problem);
  return problem.parameters();
}

void step_of_torch(benchmark::State& state, Kind kind) {
  const Problem problem(kind, state.range(0), state.range(1));
  const auto parameters = problem.parameters();
  const auto optimizer = torch_optimizer(kind, parameters);
  for (size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = problem.gradients[i].detach();
  for (int step = 0; step < 3; ++step) optimizer->step();
  state.counters["error"] = difference(parameters, exact_steps(kind, state.range(0), state.range(1)));
  for (auto _ : state) optimizer->step();
}

void step_of_ours(benchmark::State& state, Kind kind) {
  Problem problem(kind, state.range(0), state.range(1));
  torch::NoGradGuard no_gradient;
  for (auto& iterate : problem.iterates) iterate.state = problem.rule->init(iterate.parameter);
  for (int step = 0; step < 3; ++step) fused(problem);
  state.counters["error"] = difference(problem.parameters(), exact_steps(kind, state.range(0), state.range(1)));
  for (auto _ : state) fused(problem);
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgsProduct({{1'000, 100'000, 10'000'000}, {6, 60, 300}})->Unit(benchmark::kMicrosecond);
}

#define GIMLI_BENCHMARK_RULE(kind)                                                 \
  BENCHMARK_CAPTURE(update_and_backward, kind##_plain, kind, plain)->Apply(sizes); \
  BENCHMARK_CAPTURE(update_and_backward, kind##_flat, kind, flat)->Apply(sizes);   \
  BENCHMARK_CAPTURE(update_and_backward, kind##_fused, kind, fused)->Apply(sizes); \
  BENCHMARK_CAPTURE(double_backward, kind##_plain, kind, plain)->Apply(sizes);     \
  BENCHMARK_CAPTURE(double_backward, kind##_flat, kind, flat)->Apply(sizes);       \
  BENCHMARK_CAPTURE(double_backward, kind##_fused, kind, fused)->Apply(sizes);     \
  BENCHMARK_CAPTURE(step_of_torch, kind, kind)->Apply(sizes);                      \
  BENCHMARK_CAPTURE(step_of_ours, kind, kind)->Apply(sizes);

GIMLI_BENCHMARK_RULE(sgd)
GIMLI_BENCHMARK_RULE(adam)
GIMLI_BENCHMARK_RULE(adamw)

}  // namespace
}  // namespace gimli::optim
