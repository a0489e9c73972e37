// MAML on sinusoids, differentiated in three ways: the problem is written once, and one line of it says how.
//
//     three_strategies [iterations]
#include <torch/torch.h>

#include <cstdlib>
#include <iostream>

#include "gimli/data/sinusoid.h"
#include "gimli/gimli.h"
#include "gimli/nn/mlp.h"

using gimli::data::Task;

std::vector<Task> tasks(int64_t first, int64_t count) {
  const auto sinusoids = gimli::data::Sinusoid(gimli::data::SinusoidOptions().shots(10));
  std::vector<Task> list;
  for (int64_t i = 0; i < count; ++i) list.push_back(sinusoids.task(first + i));
  return list;
}

void train(const gimli::Strategy& strategy, int64_t iterations) {
  torch::manual_seed(0);
  auto model = gimli::nn::mlp({1, 40, 40, 1});
  const auto problem =
      gimli::Bilevel(model, torch::optim::SGD(model->parameters(), /*lr=*/0.01))
          .steps(20)
          .inner([&](const Task& task) { return mse_loss(model->forward(task.support.data), task.support.target); })
          .outer([&](const Task& task) { return mse_loss(model->forward(task.query.data), task.query.target); });

  auto outer_optimizer = torch::optim::Adam(model->parameters(), /*lr=*/1e-3);
  gimli::CostReport cost;
  const gimli::MemoryMeter memory;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const auto result =
        gimli::hypergradient(problem, model->parameters(), tasks(10 * iteration, 10), strategy);  // here
    gimli::assign_gradients(model->parameters(), result.gradients);
    outer_optimizer.step();
    cost = result.cost;
  }
  std::cout << cost.strategy << ": held-out loss " << evaluate(problem, tasks(1'000'000, 200)).outer_loss.item<double>()
            << ", " << cost.inner_steps << " inner steps and " << 1e3 * cost.seconds
            << " ms for the last 10 tasks, peak " << static_cast<double>(memory.peak_bytes()) / 1e6 << " MB"
            << std::endl;
}

int main(int argc, char** argv) {
  const int64_t iterations = argc > 1 ? std::atoll(argv[1]) : 500;
  train(gimli::Unroll(), iterations);
  train(gimli::Replay(gimli::Binomial(4)), iterations);
  train(gimli::Unroll::first_order(), iterations);
}
