// What it costs to put other weights under a module: its forward pass, the same on functional operators, and one whole
// meta-gradient, each beside the difference of its result to the functional one (0: bitwise the same).
//
//     substitution_benchmark --benchmark_repetitions=5 --benchmark_enable_random_interleaving=true

#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include "gimli/inner_loop.h"
#include "gimli/nn/mlp.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli {
namespace {

using torch::Tensor;

struct Sinusoid {
  Sinusoid() {
    at::set_num_threads(1);
    torch::manual_seed(1);
    model = nn::mlp({1, 40, 40, 1});
    x = torch::rand({10, 1}) * 10 - 5;
    y = torch::sin(x);
    for (const auto& p : model->parameters()) fast.push_back((p.detach() * 1.1).requires_grad_());
  }

  Tensor functional(const TensorList& p) const {
    const auto h = torch::relu(torch::nn::functional::linear(x, p[0], p[1]));
    return torch::nn::functional::linear(torch::relu(torch::nn::functional::linear(h, p[2], p[3])), p[4], p[5]);
  }

  torch::nn::Sequential model{nullptr};
  Tensor x, y;
  TensorList fast;
};

double difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

void forward_by_hand(benchmark::State& state) {
  const Sinusoid problem;
  for (auto _ : state) benchmark::DoNotOptimize(problem.functional(problem.fast));
}
BENCHMARK(forward_by_hand)->Unit(benchmark::kMicrosecond);

void forward_substituted(benchmark::State& state) {
  Sinusoid problem;
  const ModelTensors tensors(problem.model);
  const auto forward = [&] { return problem.model->forward(problem.x); };
  for (auto _ : state) benchmark::DoNotOptimize(substituted(tensors, problem.fast, {}, forward));
  state.counters["difference"] =
      difference(substituted(tensors, problem.fast, {}, forward), problem.functional(problem.fast));
}
BENCHMARK(forward_substituted)->Unit(benchmark::kMicrosecond);

TensorList meta_gradient_by_hand(const Sinusoid& problem, int64_t steps) {
  TensorList p = problem.model->parameters();
  for (int64_t k = 0; k < steps; ++k) {
    const auto g = torch::autograd::grad({torch::mse_loss(problem.functional(p), problem.y)}, p, {}, true, true);
    for (size_t i = 0; i < p.size(); ++i) p[i] = at::add(p[i], g[i], -0.01);
  }
  return torch::autograd::grad({torch::mse_loss(problem.functional(p), problem.y)}, problem.model->parameters());
}

TensorList meta_gradient_of_inner_loop(Sinusoid& problem, const torch::optim::SGD& optimizer, int64_t steps) {
  InnerLoop inner(problem.model, optimizer);
  const auto loss = [&] { return torch::mse_loss(problem.model->forward(problem.x), problem.y); };
  for (int64_t k = 0; k < steps; ++k) inner.step(loss);
  return torch::autograd::grad({inner.run(loss)}, problem.model->parameters());
}

void meta_gradient_by_hand(benchmark::State& state) {
  const Sinusoid problem;
  for (auto _ : state) benchmark::DoNotOptimize(meta_gradient_by_hand(problem, state.range(0)));
}
BENCHMARK(meta_gradient_by_hand)->Arg(1)->Arg(5)->Arg(10)->Unit(benchmark::kMicrosecond);

void meta_gradient_of_inner_loop(benchmark::State& state) {
  Sinusoid problem;
  const torch::optim::SGD optimizer(problem.model->parameters(), 0.01);
  for (auto _ : state) benchmark::DoNotOptimize(meta_gradient_of_inner_loop(problem, optimizer, state.range(0)));
  const auto ours = meta_gradient_of_inner_loop(problem, optimizer, state.range(0));
  const auto expected = meta_gradient_by_hand(problem, state.range(0));
  double worst = 0;
  for (size_t i = 0; i < ours.size(); ++i) worst = std::max(worst, difference(ours[i], expected[i]));
  state.counters["difference"] = worst;
}
BENCHMARK(meta_gradient_of_inner_loop)->Arg(1)->Arg(5)->Arg(10)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace gimli
