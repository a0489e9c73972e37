#include "app/evaluation.h"

#include <torch/torch.h>

#include <cmath>
#include <csignal>

#include "app/interrupt.h"
#include "app_fixture.h"
#include "gimli/nn/mlp.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli::app {
namespace {

TEST(EvaluationTest, IntervalOfAKnownSample) {
  // 1..n has mean (n + 1) / 2 and variance n (n + 1) / 12.
  std::vector<double> sample;
  for (int i = 1; i <= 100; ++i) sample.push_back(i);
  const auto result = estimate(sample);
  EXPECT_DOUBLE_EQ(result.mean, 50.5);
  EXPECT_NEAR(result.interval, 1.96 * std::sqrt(100. * 101 / 12) / 10, 1e-12);
  EXPECT_TRUE(std::isnan(estimate({3.}).interval));
}

/// Tells which of two halves of the line a number is in: classification of a moment.
class Halves final : public data::TaskSource {
 public:
  data::Task task(int64_t index) const override {
    const auto examples = [&](int64_t count) -> torch::data::Example<> {
      const auto x = torch::linspace(-1, 1, count).unsqueeze(1) + 0.001 * static_cast<double>(index % 100);
      return {x, x.gt(0).squeeze(1).to(torch::kLong)};
    };
    return {examples(6), examples(8)};
  }
};

struct Problem {
  explicit Problem(double rate = 0.5) : bilevel(dataset.network.module, sgd(rate)) {
    bilevel.steps(1)
        .inner([this](const data::Task& task) { return dataset.loss(task.support); })
        .outer([this](const data::Task& task) { return dataset.score(task.query); });
  }

  static Dataset make() {
    torch::manual_seed(2);
    Dataset dataset;
    auto model = nn::mlp({1, 4, 2});
    dataset.training = dataset.held_out = std::make_shared<Halves>();
    dataset.network = {model.ptr(), [model](const at::Tensor& x, int64_t) mutable { return model->forward(x); }};
    dataset.network = {model.ptr(), [model](const at::Tensor& x, int64_t) mutable { return model->forward(x); }};
    dataset.classifies = true;
    return dataset;
  }

  optim::Optimizer sgd(double rate) const { return {optim::SGD(rate), dataset.network.module->parameters()}; }

  Dataset dataset = make();
  Bilevel bilevel;
};

TEST(EvaluationTest, AgreesWithALoopByHand) {
  const Problem problem;
  const auto& dataset = problem.dataset;
  const auto evaluation = evaluate_adaptation(problem.bilevel, dataset, *dataset.held_out, 120, {2, 2}, Threads(2));
  ASSERT_TRUE(evaluation);
  ASSERT_EQ(evaluation->steps.size(), 2);
  std::vector<double> losses, accuracies;
  for (int64_t i = 0; i < 120; ++i) {
    const auto task = dataset.held_out->task(i);
    InnerLoop loop(dataset.network.module, problem.sgd(0.5), InnerLoopOptions().graph(Graph::none));
    for (int k = 0; k < 2; ++k) loop.step([&] { return dataset.loss(task.support); });
    const auto logits = loop.run([&] { return dataset.network.forward(task.query.data, 0); });
    losses.push_back(torch::nn::functional::cross_entropy(logits, task.query.target).item<double>());
    accuracies.push_back(logits.argmax(1).eq(task.query.target).to(torch::kDouble).mean().item<double>());
  }
  EXPECT_EQ(evaluation->tasks, 120);
  EXPECT_EQ(evaluation->steps[0].step, 0);
  EXPECT_EQ(evaluation->steps[1].step, 2);
  EXPECT_NEAR(evaluation->steps[1].loss.mean, estimate(losses).mean, 1e-6);
  EXPECT_NEAR(evaluation->steps[1].loss.interval, estimate(losses).interval, 1e-6);
  EXPECT_NEAR(evaluation->steps[1].accuracy->mean, estimate(accuracies).mean, 1e-6);
}

TEST(EvaluationTest, StopsWhenItIsTold) {
  const Problem problem;
  std::vector<int64_t> told;
  const auto stop_after = [&](int64_t last) {
    told.clear();
    return evaluate_adaptation(problem.bilevel, problem.dataset, *problem.dataset.held_out, 120, {1}, Threads(1),
                               [&](int64_t done) {
                                 told.push_back(done);
                                 return done < last;
                               });
  };
  EXPECT_TRUE(stop_after(121));
  EXPECT_EQ(told.back(), 120);
  const auto calls = told.size();
  EXPECT_FALSE(stop_after(60));
  EXPECT_LT(told.size(), calls);

  const Config config(maml_schema(), {{"eval_tasks", int64_t{120}}, {"quiet", true}});
  const InterruptGuard guard;
  EXPECT_TRUE(report_adaptation(problem.bilevel, problem.dataset, config, Threads(1)));
  std::raise(SIGINT);
  EXPECT_FALSE(report_adaptation(problem.bilevel, problem.dataset, config, Threads(1)));
}

TEST(EvaluationTest, ATaskThatDivergesIsNotANumber) {
  const Problem problem(3e38);
  const auto evaluation =
      evaluate_adaptation(problem.bilevel, problem.dataset, *problem.dataset.held_out, 3, {10}, Threads(1));
  ASSERT_TRUE(evaluation);
  EXPECT_TRUE(std::isfinite(evaluation->steps[0].loss.mean));
  EXPECT_TRUE(std::isnan(evaluation->steps[1].loss.mean));
  EXPECT_TRUE(std::isnan(evaluation->steps[1].accuracy->mean));
  const auto table = to_markdown(*evaluation);
  EXPECT_NE(table.find(" nan |"), std::string::npos) << table;
  EXPECT_EQ(table.find("-nan"), std::string::npos) << table;
  EXPECT_TRUE(nlohmann::json::parse(to_json(*evaluation).dump())["steps"][1]["loss"]["mean"].is_null());
}

TEST(EvaluationTest, AMistakeIsNotADivergence) {
  Problem problem;
  problem.bilevel.inner([](const data::Task&) -> at::Tensor {
    TORCH_CHECK(false, "a mistake");
    return {};
  });
  EXPECT_THROW(evaluate_adaptation(problem.bilevel, problem.dataset, *problem.dataset.held_out, 3, {1}, Threads(1)),
               c10::Error);
}

TEST(EvaluationTest, Table) {
  const Evaluation evaluation{600, {{0, {1.5, 0.25}, Estimate{0.2, 0.01}}, {10, {0.5, 0.125}, Estimate{0.98, 0.002}}}};
  EXPECT_EQ(to_markdown(evaluation),
            "| adaptation steps |            loss | accuracy (%) |\n"
            "|-----------------:|----------------:|-------------:|\n"
            "|                0 | 1.5000 ± 0.2500 | 20.00 ± 1.00 |\n"
            "|               10 | 0.5000 ± 0.1250 | 98.00 ± 0.20 |\n"
            "\nMean and 95 % interval over 600 held-out tasks.\n");
  EXPECT_EQ(to_json(evaluation)["steps"][1]["accuracy"]["mean"], 0.98);
}

}  // namespace
}  // namespace gimli::app
