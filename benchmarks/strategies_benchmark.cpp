// Time and peak memory of every strategy against the number of inner steps, with the error of its hypergradient.
//
//     strategies_benchmark [--problem NAME] [--seconds 2] [--longest 60] [--limit-gb 8] [--table FILE]
//
// One process, one thread, float32. The meta-parameters are the weights of 16 examples in the inner loss, which every
// strategy but Reptile serves. Rounds go over all strategies in turn; printed are the least and the median seconds of
// up to five, the peak of live tensor bytes beside what the problem holds, and |g - g*| / |g*| to Unroll(), or to
// Replay() where Unroll() would pass the limit. Rows of one strategy are written to FILE for the plot.

#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "gimli/gimli.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/mlp.h"

namespace gimli {
namespace {

using torch::Tensor;

constexpr int64_t examples = 16;

struct Subject {
  std::string name;
  std::shared_ptr<torch::nn::Module> model;
  std::function<Tensor(const Tensor&)> forward;
  Tensor x, x_query;
  optim::Optimizer optimizer;
  double l2 = 0;  ///< penalty in the inner loss
  int64_t classes = 5;
};

struct TransformerImpl final : torch::nn::Module {
  explicit TransformerImpl(int64_t classes)
      : blocks(register_module(
            "blocks", torch::nn::TransformerEncoder(torch::nn::TransformerEncoderOptions(
                          torch::nn::TransformerEncoderLayerOptions(32, 4).dim_feedforward(64).dropout(0.1), 2)))),
        head(register_module("head", torch::nn::Linear(32, classes))) {}
  Tensor forward(const Tensor& x) { return head(blocks(x.transpose(0, 1)).mean(0)); }

  torch::nn::TransformerEncoder blocks;
  torch::nn::Linear head;
};

Subject make_subject(const std::string& name) {
  torch::manual_seed(1);
  if (name == "logistic") {
    torch::nn::Linear model(20, 5);
    return {"logistic regression on 20 features with an L2 penalty, SGD with momentum",
            model.ptr(),
            [model](const Tensor& x) mutable { return model->forward(x); },
            torch::randn({examples, 20}),
            torch::randn({examples, 20}),
            {optim::SGD(optim::SGDOptions(0.1).momentum(0.9)), model->parameters()},
            /*l2=*/0.05};
  }
  if (name == "mlp") {
    auto model = nn::mlp({20, 64, 64, 5});
    return {"MLP 20-64-64-5 with Adam",
            model.ptr(),
            [model](const Tensor& x) mutable { return model->forward(x); },
            torch::randn({examples, 20}),
            torch::randn({examples, 20}),
            {optim::Adam(optim::AdamOptions(1e-3)), model->parameters()}};
  }
  if (name == "conv4") {
    nn::Conv4 model(nn::Conv4Options(5).hidden(16));
    return {"conv4-16 with batch norm on 28x28 images, SGD with momentum",
            model.ptr(),
            [model](const Tensor& x) mutable { return model->forward(x); },
            torch::randn({examples, 1, 28, 28}),
            torch::randn({examples, 1, 28, 28}),
            {optim::SGD(optim::SGDOptions(0.01).momentum(0.9)), model->parameters()}};
  }
  TORCH_CHECK(name == "transformer", "strategies_benchmark: no problem '", name,
              "'; there are logistic, mlp, conv4, transformer");
  const auto model = std::make_shared<TransformerImpl>(5);
  return {"transformer of 2 blocks of width 32 with dropout on 128 tokens, Adam",
          model,
          [model](const Tensor& x) { return model->forward(x); },
          torch::randn({examples, 128, 32}),
          torch::randn({examples, 128, 32}),
          {optim::Adam(optim::AdamOptions(1e-3)), model->parameters()}};
}

struct Contender {
  std::string name;
  std::shared_ptr<const Strategy> strategy;
  std::function<bool(int64_t steps)> serves = [](int64_t) { return true; };
};

template <class T>
std::shared_ptr<const Strategy> made(T strategy) {
  return std::make_shared<const T>(std::move(strategy));
}

std::vector<Contender> contenders(bool has_momentum) {
  std::vector<Contender> list{
      {"Unroll()", made(Unroll())},
      {"Replay()", made(Replay())},
      {"Replay(Sqrt())", made(Replay(Sqrt()))},
      {"Replay(Sqrt()).keep_gradients(true)", made(Replay(Sqrt()).keep_gradients(true))},
      {"Replay(Tree())", made(Replay(Tree()))},
      {"Replay(Binomial(8))", made(Replay(Binomial(8)))},
  };
  if (has_momentum) list.push_back({"Reversible()", made(Reversible())});
  list.push_back({"ForwardMode()", made(ForwardMode())});
  list.push_back({"Unroll::last(1)", made(Unroll::last(1))});
  list.push_back({"Unroll::last(16)", made(Unroll::last(16)), [](int64_t steps) { return steps > 16; }});
  list.push_back({"FiniteDifference()", made(FiniteDifference())});
  list.push_back({"Implicit(ConjugateGradient)",
                  made(Implicit(ConjugateGradient(ConjugateGradientOptions().max_iterations(50))))});
  list.push_back({"Implicit(Identity)", made(Implicit(Identity()))});
  list.push_back({"Evolution, 8 pairs", made(Evolution(EvolutionOptions().sigma(0.1).pairs(8)))});
  return list;
}

struct Measurement {
  std::vector<double> seconds;
  int64_t peak_bytes = 0;
  Tensor gradient;
  std::string failure;
};

double error_of(const Tensor& gradient, const Tensor& exact) {
  return exact.defined() ? ((gradient - exact).norm() / exact.norm()).item<double>() : NAN;
}

std::string bytes_text(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g MB", static_cast<double>(bytes) / 1e6);
  return text;
}

void run(const std::string& problem_name, double seconds, double longest, double limit_gb, const std::string& table) {
  const auto subject = make_subject(problem_name);
  const auto target = torch::arange(examples) % subject.classes, weights = torch::ones({examples}).requires_grad_();
  const auto losses = [&](const Tensor& x) {
    return torch::nll_loss(torch::log_softmax(subject.forward(x), 1), target, {}, at::Reduction::None);
  };
  const auto problem = [&](int64_t steps) {
    return Bilevel(*subject.model, subject.optimizer)
        .steps(steps)
        .inner([&] {
          auto loss = (losses(subject.x) * weights).mean();
          if (subject.l2 == 0) return loss;
          for (const auto& parameter : subject.model->parameters()) loss = loss + subject.l2 * parameter.square().sum();
          return loss;
        })
        .outer([&] { return losses(subject.x_query).mean(); })
        .seed(1);
  };
  const auto once = [&](const Strategy& strategy, int64_t steps, Measurement& into) {
    const auto begin = std::chrono::steady_clock::now();
    into.gradient = hypergradient(problem(steps), {weights}, {}, strategy).gradients[0];
    into.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  };
  const bool has_momentum = subject.optimizer.groups()[0].rule->name() == "SGD";

  std::ofstream file;
  if (!table.empty()) file.open(table, std::ios::app);
  std::printf("%s, %lld parameters\n\n", subject.name.c_str(), [&] {
    long long count = 0;
    for (const auto& parameter : subject.model->parameters()) count += parameter.numel();
    return count;
  }());
  std::printf("| steps | strategy | seconds, min / median | peak | error |\n|--:|---|--:|--:|--:|\n");
  std::map<std::string, std::pair<double, int64_t>> last;  // of a quarter of the steps: seconds, bytes
  for (const int64_t steps : {1, 4, 16, 64, 256, 1024}) {
    std::vector<std::pair<Contender, Measurement>> rows;
    for (auto& contender : contenders(has_momentum)) {
      if (contender.serves(steps)) rows.emplace_back(std::move(contender), Measurement());
    }
    for (auto& [contender, measured] : rows) {
      const auto before = last[contender.name];
      if (4. * before.second > limit_gb * 1e9) {
        measured.failure = "more than the limit";
      } else if (4 * before.first > longest) {
        measured.failure = "too long";
      } else {
        try {
          const MemoryMeter meter;
          once(*contender.strategy, steps, measured);
          measured.peak_bytes = meter.peak_bytes();
        } catch (const c10::Error& error) {
          measured.failure = error.what_without_backtrace();
        }
        if (!measured.seconds.empty()) last[contender.name] = {measured.seconds[0], measured.peak_bytes};
      }
    }
    for (int round = 0; round < 5; ++round) {
      for (auto& [contender, measured] : rows) {
        if (!measured.failure.empty() || (round > 0 && measured.seconds[0] * round > seconds)) continue;
        if (round == 0 && measured.seconds[0] < seconds) measured.seconds.clear();  // the first was measured for memory
        once(*contender.strategy, steps, measured);
      }
    }
    const auto exact = rows[0].second.failure.empty() ? rows[0].second.gradient : rows[1].second.gradient;
    for (auto& [contender, measured] : rows) {
      if (!measured.failure.empty()) {
        std::printf("| %lld | %s | %s | | |\n", static_cast<long long>(steps), contender.name.c_str(),
                    measured.failure.c_str());
        last[contender.name].first = 1e9;
        continue;
      }
      std::sort(measured.seconds.begin(), measured.seconds.end());
      const double least = measured.seconds[0], median = measured.seconds[measured.seconds.size() / 2];
      const double error = error_of(measured.gradient, exact);
      std::printf("| %lld | %s | %.3g / %.3g | %s | %.0e |\n", static_cast<long long>(steps), contender.name.c_str(),
                  least, median, bytes_text(measured.peak_bytes).c_str(), error);
      std::fflush(stdout);
      if (file) {
        file << problem_name << '\t' << contender.name << '\t' << steps << '\t' << least << '\t' << median << '\t'
             << measured.peak_bytes << '\t' << error << '\n';
        file.flush();
      }
    }
  }
  std::printf("\n");
}

}  // namespace
}  // namespace gimli

int main(int argc, char** argv) {
  CLI::App app{"Time and peak memory of every strategy against the number of inner steps, with its error."};
  std::vector<std::string> problems{"logistic", "mlp", "conv4", "transformer"};
  double seconds = 2, longest = 60, limit_gb = 8;
  std::string table;
  app.add_option("--problem", problems, "logistic, mlp, conv4, transformer")->capture_default_str();
  app.add_option("--seconds", seconds, "to spend on repetitions of one strategy")->capture_default_str();
  app.add_option("--longest", longest, "seconds above which a strategy is left out")->capture_default_str();
  app.add_option("--limit-gb", limit_gb, "memory above which a strategy is left out")->capture_default_str();
  app.add_option("--table", table, "a file to append tab-separated rows to");
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(1);
  try {
    for (const auto& problem : problems) gimli::run(problem, seconds, longest, limit_gb, table);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return 1;
  }
}
