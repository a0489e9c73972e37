#include "app/experiments/maml.h"

#include <torch/optim/sgd.h>
#include <torch/torch.h>

#include <cmath>

#include "app/checkpoint.h"
#include "app/dataset.h"
#include "app/inner_optimizer.h"
#include "app/metrics.h"
#include "app_fixture.h"
#include "expect.h"
#include "gimli/hypergradient.h"
#include "gimli/hypergradient/implicit.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/muon.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli::app {
namespace {

constexpr int64_t kTasks = 3, kSteps = 2;
constexpr double kInnerRate = 0.05;

Config small(Values values) {
  return Config(maml_schema(), merge({{"tasks", kTasks},
                                      {"shots", int64_t{4}},
                                      {"queries", int64_t{4}},
                                      {"hidden", int64_t{8}},
                                      {"inner_steps", kSteps},
                                      {"inner_lr", kInnerRate},
                                      {"threads", int64_t{1}},
                                      {"quiet", true}},
                                     values));
}

Config small(const std::string& method) { return small({{"method", method}}); }

TensorList gradients_of(Experiment& experiment) {
  TensorList gradients;
  for (const auto& tensor : experiment.state().tensors.tensors) gradients.push_back(tensor.grad());
  return gradients;
}

void expect_close(const TensorList& actual, const TensorList& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(at::allclose(actual[i], expected[i], 1e-4, 1e-6)) << i << ":\n" << actual[i] << "\n" << expected[i];
  }
}

std::vector<std::string> methods() { return maml_schema().find("method")->choices; }

TEST(MamlTest, HasTheMethodsThatItSays) {
  EXPECT_EQ(methods(), (std::vector<std::string>{"maml", "fomaml", "anil", "meta-sgd", "reptile", "imaml"}));
}

// What the methods compute, by autograd alone.

/// The network of the sine waves, of weights and biases of its layers.
at::Tensor network(const TensorList& w, const at::Tensor& x) {
  const auto hidden = at::relu(at::linear(x, w[0], w[1]));
  return at::linear(at::relu(at::linear(hidden, w[2], w[3])), w[4], w[5]);
}

at::Tensor loss_of(const TensorList& weights, const torch::data::Example<>& examples) {
  return torch::nn::functional::mse_loss(network(weights, examples.data), examples.target);
}

/// One method of this family on the first meta-batch.
struct ByHand {
  std::string method;
  size_t first_adapted = 0;   ///< the weights before it stay where they are in the inner loop
  bool keeps_graph = true;    ///< or inner gradients are constants
  bool learns_rates = false;  ///< of each weight, with gradients behind those of the weights
};

TEST(MamlTest, OuterGradientsAreThoseByHand) {
  const ByHand rows[] = {
      {.method = "maml"},
      {.method = "fomaml", .keeps_graph = false},
      {.method = "anil", .first_adapted = 4},
      {.method = "meta-sgd", .learns_rates = true},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.method);
    const auto config = small(row.method);
    const auto experiment = maml().make(config);
    const auto done = experiment->iterate(0);
    ASSERT_TRUE(done);

    const auto dataset = make_dataset(config);
    auto meta_parameters = clones(dataset.network.module->parameters());
    for (size_t i = 0; i < 6; ++i) meta_parameters.push_back(at::full_like(meta_parameters[i], kInnerRate));
    for (auto& tensor : meta_parameters) tensor.requires_grad_();
    auto outer_loss = torch::zeros({});
    for (int64_t index = 0; index < kTasks; ++index) {
      const auto task = dataset.training->task(index);
      TensorList weights(meta_parameters.begin(), meta_parameters.begin() + 6);
      for (int64_t step = 0; step < kSteps; ++step) {
        const TensorList adapted(weights.begin() + row.first_adapted, weights.end());
        const auto gradients = torch::autograd::grad({loss_of(weights, task.support)}, adapted, {},
                                                     /*retain_graph=*/true, /*create_graph=*/row.keeps_graph);
        for (size_t i = row.first_adapted; i < 6; ++i) {
          weights[i] = weights[i] - meta_parameters[6 + i] * gradients[i - row.first_adapted];
        }
      }
      outer_loss = outer_loss + loss_of(weights, task.query) / kTasks;
    }
    if (!row.learns_rates) meta_parameters.resize(6);
    EXPECT_NEAR(done->metrics["outer_loss"].get<double>(), outer_loss.item<double>(), 1e-5);
    expect_close(gradients_of(*experiment), torch::autograd::grad({outer_loss}, meta_parameters));
  }
}

TEST(MamlTest, OuterGradientsAreThoseOfTheStrategy) {
  const Implicit implicit(ConjugateGradient(ConjugateGradientOptions().max_iterations(5)));
  const Unroll unroll, first_order = Unroll::first_order();
  const struct {
    std::string method;
    const Strategy& strategy;
    double proximal;
  } rows[] = {{"maml", unroll, 0}, {"fomaml", first_order, 0}, {"imaml", implicit, 0.5}};
  for (const auto& row : rows) {
    SCOPED_TRACE(row.method);
    const auto config = small({{"method", row.method}, {"inner_steps", int64_t{8}}});
    const auto experiment = maml().make(config);
    ASSERT_TRUE(experiment->iterate(0));

    const auto dataset = make_dataset(config);
    const auto parameters = dataset.network.module->parameters();
    auto problem = Bilevel(dataset.network.module, optim::Optimizer(optim::SGD(kInnerRate), parameters))
                       .steps(8)
                       .inner([&](const data::Task& task) { return dataset.loss(task.support); })
                       .outer([&](const data::Task& task) { return dataset.score(task.query); });
    if (row.proximal > 0) problem.proximal(row.proximal);
    std::vector<data::Task> tasks;
    for (int64_t i = 0; i < kTasks; ++i) tasks.push_back(dataset.training->task(i));
    expect_equal(gradients_of(*experiment), hypergradient(problem, parameters, tasks, row.strategy).gradients);
  }
}

TEST(MamlTest, ReptileMovesTowardsWhereTasksEnd) {
  constexpr double rate = 0.25;
  const auto config =
      small({{"method", std::string("reptile")}, {"outer_optimizer", std::string("sgd")}, {"outer_lr", rate}});
  const auto experiment = maml().make(config);
  const auto dataset = make_dataset(config);
  const auto weights = dataset.network.module->parameters();
  const auto start = clones(weights);
  expect_equal(experiment->state().tensors.tensors, start);

  TensorList expected = clones(weights);
  for (int64_t index = 0; index < kTasks; ++index) {
    const auto task = dataset.training->task(index);
    {
      at::NoGradGuard no_grad;
      for (size_t i = 0; i < weights.size(); ++i) weights[i].copy_(start[i]);
    }
    torch::optim::SGD sgd(weights, kInnerRate);
    for (int64_t step = 0; step < kSteps; ++step) {
      sgd.zero_grad();
      dataset.loss(task.support).backward();
      sgd.step();
    }
    for (size_t i = 0; i < weights.size(); ++i) expected[i] += rate / kTasks * (weights[i].detach() - start[i]);
  }
  ASSERT_TRUE(experiment->iterate(0));
  expect_close(clones(experiment->state().tensors.tensors), expected);
}

TEST(MamlTest, TheMethodsDiffer) {
  std::vector<at::Tensor> gradients;
  for (const auto& method : methods()) {
    const auto experiment = maml().make(small(method));
    ASSERT_TRUE(experiment->iterate(0));
    const auto list = gradients_of(*experiment);
    if (method == "meta-sgd") {  // of the weights, its first gradient is that of MAML
      EXPECT_EQ(list.size(), 12);
      EXPECT_TRUE(at::allclose(list[2], gradients.front(), 1e-4, 1e-6));
      continue;
    }
    EXPECT_EQ(list.size(), 6);
    for (const auto& other : gradients) EXPECT_FALSE(at::allclose(other, list[2], 1e-4, 0)) << method;
    gradients.push_back(list[2].clone());
  }
}

TEST(MamlTest, EveryMethodLearnsABatchByHeart) {
  for (const auto& method : methods()) {
    // What does not look at the query set, or takes the loop to have converged, needs more steps for less.
    const bool exact = method != "reptile" && method != "imaml";
    const auto experiment =
        maml().make(small({{"method", method},
                           {"inner_steps", int64_t{exact ? 2 : 16}},
                           {"outer_lr", method == "reptile" ? 0.5 : 0.02},
                           {"outer_optimizer", std::string(method == "reptile" ? "sgd" : "adam")}}));
    const auto outer_loss = [&] { return experiment->iterate(0)->metrics["outer_loss"].get<double>(); };
    const auto before = outer_loss();
    for (int i = 0; i < 150; ++i) outer_loss();
    EXPECT_LT(outer_loss(), (exact ? 0.5 : 0.8) * before) << method;
  }
}

// the command

class MamlCommandTest : public CommandTest {
 protected:
  NamedTensors tensors_of(const fs::path& path) { return load_checkpoint(path / "checkpoint.pt").tensors; }
};

TEST_F(MamlCommandTest, EveryMethodResumesToTheBit) {
  const std::pair<std::string, Arguments> rows[] = {
      {"maml", {"--inner-optimizer", "momentum", "--inner-steps", "2"}},
      {"fomaml", {"--inner-optimizer", "adam", "--inner-steps", "2"}},
      {"anil", {"--inner-steps", "2"}},
      {"meta-sgd", {"--inner-steps", "2", "--eval-every", "3"}},
      {"reptile", {"--inner-steps", "3", "--outer-optimizer", "sgd", "--outer-lr", "0.5"}},
      {"imaml", {"--inner-steps", "4", "--inner-lr", "0.05"}},
  };
  ASSERT_EQ(std::size(rows), methods().size());
  for (const auto& [method, more] : rows) {
    SCOPED_TRACE(method);
    const auto whole = folder.path / method, stopped = folder.path / (method + "-stopped");
    const auto arguments = Arguments{"--method", method} + more;
    train(whole, arguments);
    train(stopped, arguments + Arguments{"--iterations", "7"});
    const auto middle = tensors_of(stopped);
    const auto outcome = gimli({"train", "maml", "--resume", "--out", stopped.string(), "--iterations", "12"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    expect_same_run(whole, stopped);
    const auto end = tensors_of(whole);
    for (size_t i = 0; i < end.size(); ++i) {
      EXPECT_FALSE(at::equal(middle.tensors[i], end.tensors[i])) << end.names[i] << " does not move";
    }
  }
}

TEST_F(MamlCommandTest, RatesOfMetaSgdAreInTheCheckpointAndMove) {
  train(run, {"--method", "meta-sgd", "--inner-lr", "0.25"});
  const auto saved = tensors_of(run);
  ASSERT_EQ(saved.size(), 12);
  for (size_t i = 0; i < 6; ++i) {
    const auto& rates = saved.tensors[6 + i];
    EXPECT_EQ(saved.names[6 + i], "lr.0." + std::to_string(i));
    EXPECT_EQ(rates.sizes(), saved.tensors[i].sizes());
    EXPECT_FALSE(rates.eq(0.25).all().item<bool>()) << saved.names[6 + i];
    EXPECT_TRUE(at::allclose(rates, at::full_like(rates, 0.25), 0, 0.1)) << rates;
  }
}

TEST_F(MamlCommandTest, EveryInnerOptimizerTrains) {
  EXPECT_EQ(inner_optimizer_names().size(), 18);
  for (const auto& name : inner_optimizer_names()) {
    SCOPED_TRACE(name);
    const auto path = folder.path / name;
    train(path, {"--inner-optimizer", name, "--iterations", "2", "--inner-steps", "2"});
    const auto lines = read_metrics(path / "metrics.jsonl");
    ASSERT_EQ(lines.size(), 2);
    for (const auto& line : lines) EXPECT_TRUE(line["outer_loss"].is_number());
    const auto saved = tensors_of(path);
    const auto start = clones(make_dataset(small("maml")).network.module->parameters());
    ASSERT_EQ(saved.size(), start.size());
    for (size_t i = 0; i < saved.size(); ++i) {
      EXPECT_TRUE(saved.tensors[i].isfinite().all().item<bool>()) << saved.names[i];
      EXPECT_FALSE(at::equal(saved.tensors[i], start[i])) << saved.names[i];
    }
  }
}

// inner optimizers

/// The network's weights after a step of an optimizer.
TensorList after_a_step(const Dataset& dataset, optim::Optimizer optimizer) {
  const auto task = dataset.training->task(0);
  InnerLoop loop(dataset.network.module, std::move(optimizer), InnerLoopOptions().graph(Graph::none));
  loop.step([&] { return dataset.loss(task.support); });
  return clones(loop.parameters());
}

TEST(InnerOptimizerTest, MuonLeavesVectorsToAdamW) {
  const auto dataset = make_dataset(small("maml"));
  const auto weights = dataset.network.module->parameters();
  TensorList matrices;
  for (const auto& w : weights) {
    if (w.dim() == 2) matrices.push_back(w);
  }
  const auto muon = after_a_step(dataset, {optim::Muon(optim::MuonOptions(0.1)), matrices});
  const auto adamw = after_a_step(dataset, {optim::AdamW(optim::AdamOptions(0.1)), weights});
  const auto both = after_a_step(dataset, make_inner_optimizer("muon", 0.1, weights));
  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_TRUE(at::equal(both[i], (weights[i].dim() == 2 ? muon : adamw)[i])) << i;
    EXPECT_FALSE(at::equal(both[i], weights[i])) << i;
  }
}

TEST(InnerOptimizerTest, TheRateIsThatWhichIsGiven) {
  const auto dataset = make_dataset(small("maml"));
  const auto weights = dataset.network.module->parameters();
  for (const auto& name : inner_optimizer_names()) {
    const auto slow = after_a_step(dataset, make_inner_optimizer(name, 1e-3, weights));
    const auto fast = after_a_step(dataset, make_inner_optimizer(name, 1e-2, weights));
    EXPECT_FALSE(at::equal(slow[2], fast[2])) << name;
  }
  expect_error([&] { make_inner_optimizer("sdg", 0.1, weights); }, "there is no inner optimizer 'sdg'");
}

}  // namespace
}  // namespace gimli::app
