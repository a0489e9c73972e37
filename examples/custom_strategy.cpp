// A strategy of one's own. Dropout makes the outer loss of a task random; Averaged takes the mean over several draws of
// its masks, with whatever strategy differentiates each of them.
//
//     custom_strategy [repetitions]
#include <torch/torch.h>

#include <cstdlib>
#include <iostream>

#include "gimli/data/sinusoid.h"
#include "gimli/gimli.h"

using gimli::data::Task;

/// The mean outer loss over `draws` streams of random numbers, and its gradient.
class Averaged final : public gimli::Strategy {
 public:
  template <class Each>
  Averaged(Each each, int64_t draws) : each_(std::make_shared<const Each>(std::move(each))), draws_(draws) {
    TORCH_CHECK(draws >= 1, "Averaged: expected at least 1 draw, got ", draws);
  }

  std::string name() const override { return c10::str("Averaged(", each_->name(), ", ", draws_, ")"); }

  TaskResult differentiate(const gimli::Bilevel& problem, const gimli::TensorList& meta_parameters,
                           const gimli::TaskRef& task) const override {
    TaskResult result;
    for (int64_t draw = 0; draw < draws_; ++draw) {
      const auto seed = gimli::fork_seed(task.seed(), draw);
      auto one = each_->differentiate(problem, meta_parameters, task.in_batch(task.index(), seed));
      if (draw > 0) {
        one.outer_loss = one.outer_loss + result.outer_loss;
        one.gradients = gimli::sum(std::move(one.gradients), result.gradients);
        one.cost += result.cost;
      }
      result = std::move(one);
    }
    result.outer_loss = result.outer_loss / draws_;
    result.gradients = gimli::divide(std::move(result.gradients), static_cast<double>(draws_));
    return result;
  }

 private:
  std::shared_ptr<const gimli::Strategy> each_;
  int64_t draws_;
};

int main(int argc, char** argv) {
  const int64_t repetitions = argc > 1 ? std::atoll(argv[1]) : 100;
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(1, 40), torch::nn::ReLU(), torch::nn::Dropout(0.2),
                              torch::nn::Linear(40, 1));
  const auto sinusoids = gimli::data::Sinusoid(gimli::data::SinusoidOptions().shots(10));
  const std::vector<Task> tasks{sinusoids.task(0), sinusoids.task(1)};
  const auto problem =
      gimli::Bilevel(model, torch::optim::SGD(model->parameters(), /*lr=*/0.02))
          .steps(5)
          .inner([&](const Task& task) { return mse_loss(model->forward(task.support.data), task.support.target); })
          .outer([&](const Task& task) { return mse_loss(model->forward(task.query.data), task.query.target); });

  const auto spread = [&](const gimli::Strategy& strategy) {
    std::vector<torch::Tensor> gradients;
    for (int64_t i = 0; i < repetitions; ++i) {
      const auto result = gimli::hypergradient(problem, model->parameters(), tasks, strategy, gimli::Threads(2));
      gradients.push_back(torch::cat({result.gradients[0].flatten(), result.gradients[2].flatten()}));
    }
    const auto deviation = std::get<0>(torch::std_mean(torch::stack(gradients), 0)).norm().item<double>();
    std::cout << strategy.name() << ": standard deviation of the hypergradient " << deviation << std::endl;
    return deviation;
  };
  const double one = spread(Averaged(gimli::Unroll(), 1)), sixteen = spread(Averaged(gimli::Replay(), 16));
  std::cout << "ratio " << one / sixteen << ", expected about 4" << std::endl;
  return repetitions < 50 || std::abs(one / sixteen - 4) < 1 ? 0 : 1;
}
