// Meta-SGD's idea with Adam inside: initial weights from which a few steps of Adam fit any sinusoid, and with them a
// learning rate and betas of its own for every tensor of the network.
//
//     learned_learning_rate [iterations]
#include <torch/torch.h>

#include <cstdlib>
#include <iostream>

#include "gimli/data/sinusoid.h"
#include "gimli/gimli.h"
#include "gimli/nn/mlp.h"

using gimli::data::Task;

std::vector<Task> tasks(const gimli::data::Sinusoid& sinusoids, int64_t first, int64_t count) {
  std::vector<Task> list;
  for (int64_t i = 0; i < count; ++i) list.push_back(sinusoids.task(first + i));
  return list;
}

int main(int argc, char** argv) {
  const int64_t iterations = argc > 1 ? std::atoll(argv[1]) : 1000;
  const auto sinusoids = gimli::data::Sinusoid(gimli::data::SinusoidOptions().shots(10));
  const auto held_out = tasks(sinusoids, 1'000'000, 200);

  for (const bool learn_hyperparameters : {false, true}) {
    torch::manual_seed(0);
    auto model = gimli::nn::mlp({1, 40, 40, 1});
    auto adam = torch::optim::Adam(model->parameters(), torch::optim::AdamOptions(0.01).betas({0.9, 0.99}));

    gimli::optim::Optimizer inner_optimizer(adam);
    gimli::optim::LearnedHyperparameters learned;
    auto meta_parameters = model->parameters();
    if (learn_hyperparameters) {
      learned = gimli::optim::learn(inner_optimizer, {"lr", "beta1", "beta2"},
                                    gimli::optim::LearnOptions().granularity(gimli::optim::Granularity::per_tensor));
      for (const auto& tensor : learned.tensors()) meta_parameters.push_back(tensor);
    }

    const auto problem =
        gimli::Bilevel(model, inner_optimizer)
            .steps(3)
            .inner([&](const Task& task) { return mse_loss(model->forward(task.support.data), task.support.target); })
            .outer([&](const Task& task) { return mse_loss(model->forward(task.query.data), task.query.target); });

    auto outer_optimizer = torch::optim::Adam(meta_parameters, /*lr=*/3e-3);
    for (int64_t iteration = 0; iteration < iterations; ++iteration) {
      const auto batch = tasks(sinusoids, 10 * iteration, 10);
      const auto result = gimli::hypergradient(problem, meta_parameters, batch, gimli::Unroll(), gimli::Threads(2));
      gimli::assign_gradients(meta_parameters, result.gradients);
      outer_optimizer.step();
    }

    std::cout << (learn_hyperparameters ? "learned" : "fixed") << " rates and betas, loss after 3 steps on "
              << held_out.size() << " held-out tasks: " << evaluate(problem, held_out).outer_loss.item<double>()
              << "\n";
    const auto values = learned.values();
    for (size_t i = 0; i < values.size(); ++i) {
      std::cout << "  " << values.names[i] << ", one a tensor:";
      const auto each = values.tensors[i].contiguous();
      for (int64_t k = 0; k < each.numel(); ++k) std::cout << " " << each[k].item<float>();
      std::cout << "\n";
    }
  }
}
