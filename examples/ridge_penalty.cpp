// Hyperparameter optimisation by implicit gradients: ridge regression with a penalty of its own for each of 20
// features, tuned on a validation set. Only five features carry the signal; their penalties should fall, and the others
// rise.
//
//     ridge_penalty [iterations]
#include <torch/torch.h>

#include <cstdlib>
#include <iostream>

#include "gimli/gimli.h"

int main(int argc, char** argv) {
  const int64_t iterations = argc > 1 ? std::atoll(argv[1]) : 200;
  torch::manual_seed(0);
  const int64_t features = 20, relevant = 5;
  const auto truth = torch::cat({torch::ones({relevant}), torch::zeros({features - relevant})});
  const auto draw = [&](int64_t count) {
    const auto x = torch::randn({count, features});
    return std::pair(x, x.matmul(truth) + 2 * torch::randn({count}));
  };
  const auto [x, y] = draw(40);
  const auto [x_validation, y_validation] = draw(200);
  const auto [x_test, y_test] = draw(2000);

  torch::nn::Linear model(torch::nn::LinearOptions(features, 1).bias(false));
  torch::nn::init::zeros_(model->weight);
  const auto raw = torch::full({features}, -2., torch::requires_grad());
  const auto penalties = [&] { return 5 * raw.sigmoid(); };  // between 0 and 5
  const auto error = [&](const torch::Tensor& inputs, const torch::Tensor& targets) {
    return mse_loss(model->forward(inputs).squeeze(1), targets);
  };
  auto problem =
      gimli::Bilevel(model, torch::optim::SGD(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9)))
          .steps(100)
          .inner([&, x = x, y = y] { return error(x, y) + (penalties() * model->weight.square()).sum(); })
          .outer([&, x = x_validation, y = y_validation] { return error(x, y); })
          .keep_final_states(true);
  auto tested = problem;
  tested.outer([&, x = x_test, y = y_test] { return error(x, y); });

  auto strategy = gimli::Implicit(gimli::ConjugateGradient());
  auto outer_optimizer = torch::optim::Adam({raw}, /*lr=*/0.05);
  std::cout << "test error before: " << evaluate(tested).outer_loss.item<double>() << "\n";
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const auto result = gimli::hypergradient(problem, {raw}, {}, strategy);
    gimli::assign_gradients({raw}, result.gradients);
    outer_optimizer.step();
    problem.start_from(result.final_states[0]);  // both the inner loop and the solver go on where they were
    strategy.start_from(result.solutions);
    if (iteration % 50 == 0) {
      std::cout << iteration << ": validation error " << result.outer_loss.item<double>() << ", inner gradient "
                << result.cost.stationarity << ", " << result.cost.solver_products << " products, residual "
                << result.cost.solver_residual << "\n";
    }
  }
  std::cout << "test error after: " << evaluate(tested).outer_loss.item<double>() << "\n";
  const auto found = penalties().detach();
  std::cout << "mean penalty of relevant features " << found.slice(0, 0, relevant).mean().item<double>()
            << ", of others " << found.slice(0, relevant).mean().item<double>() << "\n";
}
