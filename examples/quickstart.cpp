// MAML in 20 lines: an initialisation from which two steps of SGD fit any sinusoid.
#include <torch/torch.h>

#include "gimli/data/sinusoid.h"
#include "gimli/gimli.h"
#include "gimli/nn/mlp.h"

int main() {
  auto model = gimli::nn::mlp({1, 40, 40, 1});
  auto inner_optimizer = torch::optim::SGD(model->parameters(), /*lr=*/0.02);
  auto outer_optimizer = torch::optim::Adam(model->parameters(), /*lr=*/1e-3);
  const auto sinusoids = gimli::data::Sinusoid(gimli::data::SinusoidOptions().shots(10));

  using Task = gimli::data::Task;
  const auto problem =
      gimli::Bilevel(model, inner_optimizer)
          .steps(2)
          .inner([&](const Task& task) { return mse_loss(model->forward(task.support.data), task.support.target); })
          .outer([&](const Task& task) { return mse_loss(model->forward(task.query.data), task.query.target); });

  for (int64_t iteration = 0; iteration <= 1000; ++iteration) {
    std::vector<Task> tasks;
    for (int64_t i = 0; i < 10; ++i) tasks.push_back(sinusoids.task(10 * iteration + i));
    const auto result = gimli::hypergradient(problem, model->parameters(), tasks, gimli::Unroll(), gimli::Threads(2));
    gimli::assign_gradients(model->parameters(), result.gradients);
    outer_optimizer.step();
    if (iteration % 250 == 0) std::cout << iteration << ": " << result.outer_loss.item<double>() << std::endl;
  }
}
