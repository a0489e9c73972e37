#include "gimli/hypergradient/reptile.h"

#include <gtest/gtest.h>

#include "expect.h"
#include "gimli/memory_meter.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/sgd.h"
#include "problem_table.h"

namespace gimli {
namespace {

const auto f64 = torch::dtype(torch::kDouble);

class ReptileTest : public testing::Test {
 protected:
  optim::Optimizer sgd() const { return {optim::SGD(0.1), parameters}; }
  optim::Optimizer adam() const { return {optim::Adam(0.1), parameters}; }

  const Learner learner = mlp_learner();
  const TensorList parameters = learner.module->parameters();
  const std::vector<Classification> tasks = learner.tasks(3);
};

TEST_F(ReptileTest, IsTheWayBackFromWhereTheLoopEnds) {
  for (const auto& optimizer : {sgd(), adam()}) {
    const auto problem = learner.problem(optimizer).keep_final_states(true);
    const auto result = hypergradient(problem, parameters, tasks, Reptile());
    for (size_t i = 0; i < parameters.size(); ++i) {
      auto expected = torch::zeros_like(parameters[i]).detach();
      for (const auto& state : result.final_states) expected += parameters[i].detach() - state.parameters[i];
      EXPECT_LE(relative_error({result.gradients[i]}, {expected / 3}), 1e-14);
    }
    const auto evaluated = evaluate(problem, tasks);
    EXPECT_TRUE(torch::equal(result.outer_losses, evaluated.outer_losses));
    for (size_t k = 0; k < tasks.size(); ++k) {
      expect_equal(result.final_states[k].parameters, evaluated.final_states[k].parameters);
    }
    expect_equal(hypergradient(problem, parameters, tasks, Reptile(), Threads(2)).gradients, result.gradients);
  }
}

TEST_F(ReptileTest, OneStepOfSgdIsItsLearningRateTimesTheGradient) {
  const std::vector<Classification> task{tasks[0]};
  const auto result = hypergradient(learner.problem(sgd()).steps(1), parameters, task, Reptile());
  const auto problem = learner.problem(sgd());
  auto loop = problem.start(Graph::none);
  const auto gradient = loop.gradients(problem.loss(loop, TaskRef::to(tasks[0])));
  EXPECT_LE(relative_error(result.gradients, divide(gradient, 10)), 1e-13);
}

TEST_F(ReptileTest, ReportsOuterLossesOnTheWayAndItsCost) {
  const auto problem = learner.problem(adam()).outer_at({0, 2});
  const auto result = hypergradient(problem, parameters, tasks, Reptile());
  EXPECT_TRUE(torch::equal(result.outer_losses, evaluate(problem, tasks).outer_losses));
  EXPECT_EQ(result.cost.strategy, "Reptile()");
  EXPECT_EQ(result.cost.gradient_evaluations, 12);
  EXPECT_EQ(result.cost.outer_evaluations, 6);
  EXPECT_EQ(result.cost.states_stored, 1);
}

TEST_F(ReptileTest, MemoryDoesNotGrowWithTheNumberOfSteps) {
  const auto peak = [&](int64_t steps) {
    const auto problem = learner.problem(adam()).steps(steps);
    const MemoryMeter meter;
    hypergradient(problem, parameters, learner.tasks(1), Reptile());
    return meter.peak_bytes();
  };
  EXPECT_EQ(peak(40), peak(4));
}

TEST_F(ReptileTest, AnUnusedParameterHasGradientZero) {
  const auto unused = learner.module->register_parameter("unused", torch::ones({2}, f64));
  const auto problem = learner.problem({optim::SGD(0.1), learner.module->parameters()});
  const auto result = hypergradient(problem, {parameters[0], unused}, tasks, Reptile());
  EXPECT_TRUE(torch::equal(result.gradients[1], torch::zeros({2}, f64)));
}

TEST_F(ReptileTest, RefusesWhatHasNoStartToMove) {
  const auto problem = learner.problem(sgd());
  expect_error(
      [&] {
        hypergradient(problem, {parameters[0], learner.weights}, tasks, Reptile());
      },
      "Reptile(): meta-parameter 1 (shape [6]) is not an initial weight that the inner loop adapts");
  const auto frozen = learner.problem({optim::SGD(0.1), {parameters[0]}});
  expect_error([&] { hypergradient(frozen, {parameters[1]}, tasks, Reptile()); },
               "Reptile(): meta-parameter 0 (shape [5]) is not an initial weight that the inner loop adapts");
  const auto states = hypergradient(learner.problem(sgd()).keep_final_states(true), parameters, tasks, Reptile());
  expect_error(
      [&] { hypergradient(learner.problem(sgd()).start_from(states.final_states[0]), parameters, tasks, Reptile()); },
      "Reptile(): the inner loop starts from a state of its own, not from meta-parameter '0.weight'");
}

}  // namespace
}  // namespace gimli
