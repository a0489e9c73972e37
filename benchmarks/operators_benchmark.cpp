// What gimli's own forms of batch normalization and convolutions save in a meta-gradient: MAML's, five second-order
// steps of SGD, 5-way 1-shot, on libtorch's operators and on ours.
//
//     operators_benchmark [--only NAME] [--rounds 5] [--threads 2]
//
// Rounds go over both in turn; printed are the least and the median milliseconds, the peak of live tensor bytes, and
// the error of the meta-gradient |g - g*| / |g*|, where g* is that of libtorch's operators in float64. (Rounding may
// flip a ReLU's or a max-pool's choice, so both have errors far above float32's precision.)

#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>

#include "gimli/gimli.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/densenet.h"
#include "gimli/nn/resnet.h"
#include "gimli/nn/vgg.h"
#include "gimli/processor.h"

namespace gimli {
namespace {

using torch::Tensor;

constexpr int64_t ways = 5, steps = 5;

struct Task {
  Tensor x, x_query;
};

struct Subject {
  std::string name;
  int64_t tasks, channels, size;
  std::function<std::pair<std::shared_ptr<torch::nn::Module>, std::function<Tensor(const Tensor&)>>()> make;
};

template <class Holder>
auto model(Holder holder) {
  return std::pair<std::shared_ptr<torch::nn::Module>, std::function<Tensor(const Tensor&)>>(
      holder.ptr(), [holder](const Tensor& x) mutable { return holder->forward(x); });
}

const std::vector<Subject> subjects{
    {"conv4-64, 28x28", 8, 1, 28, [] { return model(nn::Conv4(nn::Conv4Options(ways))); }},
    {"vgg-64, 28x28", 8, 1, 28, [] { return model(nn::Vgg(nn::VggOptions(ways))); }},
    {"densenet-8, 28x28", 2, 1, 28, [] { return model(nn::DenseNet(nn::densenet_8(ways))); }},
    {"resnet-12, 28x28", 2, 1, 28, [] { return model(nn::ResNet(nn::ResNetOptions(ways, 12))); }},
};

struct Measurement {
  std::vector<double> milliseconds;
  int64_t peak_bytes = 0;
  TensorList gradients;
};

void measure(const Subject& subject, int rounds, const TaskBatch& batch) {
  torch::manual_seed(1);
  const auto [module, forward] = subject.make();
  std::vector<Task> tasks;
  for (int64_t i = 0; i < subject.tasks; ++i) {
    const auto images = [&] { return torch::rand({ways, subject.channels, subject.size, subject.size}); };
    tasks.push_back({images(), images()});
  }
  const auto target = torch::arange(ways);
  const auto loss = [&, f = forward](const Tensor& x) { return torch::cross_entropy_loss(f(x), target); };
  const auto problem = Bilevel(module, optim::Optimizer(optim::SGD(0.01), module->parameters()))
                           .steps(steps)
                           .inner([&](const Task& task) { return loss(task.x); })
                           .outer([&](const Task& task) { return loss(task.x_query); });

  Measurement own, libtorchs;
  for (int round = -1; round < rounds; ++round) {  // the first is not counted
    for (auto* ours : {&libtorchs, &own}) {
      use_own_operators(ours == &own);
      const MemoryMeter meter;
      const auto begin = std::chrono::steady_clock::now();
      ours->gradients = hypergradient(problem, module->parameters(), tasks, Unroll(), batch).gradients;
      const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
      if (round < 0) continue;
      ours->milliseconds.push_back(took.count());
      ours->peak_bytes = std::max(ours->peak_bytes, meter.peak_bytes());
    }
  }
  use_own_operators(false);
  module->to(torch::kDouble);
  for (auto& task : tasks) task = {task.x.to(torch::kDouble), task.x_query.to(torch::kDouble)};
  const auto exact = hypergradient(problem, module->parameters(), tasks, Unroll(), batch).gradients;
  const auto error = [&](const Measurement& m) { return relative_distance(m.gradients, exact); };
  for (auto* each : {&own, &libtorchs}) std::sort(each->milliseconds.begin(), each->milliseconds.end());
  const auto least = [](const Measurement& m) { return m.milliseconds[0]; };
  const auto median = [](const Measurement& m) { return m.milliseconds[m.milliseconds.size() / 2]; };
  std::printf("| %s, %lld tasks | %.0f / %.0f | %.0f / %.0f | %.2f | %.0f -> %.0f MB | %.0e, %.0e |\n",
              subject.name.c_str(), static_cast<long long>(subject.tasks), least(libtorchs), median(libtorchs),
              least(own), median(own), least(libtorchs) / least(own), libtorchs.peak_bytes / 1e6, own.peak_bytes / 1e6,
              error(libtorchs), error(own));
  std::fflush(stdout);
}

}  // namespace
}  // namespace gimli

int main(int argc, char** argv) {
  CLI::App app("Meta-gradients of convolutional networks on libtorch's operators and on gimli's own");
  std::string only;
  int rounds = 5;
  int64_t threads = 2;
  app.add_option("--only", only, "Networks whose names contain this");
  app.add_option("--rounds", rounds, "Rounds to measure")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--threads", threads, "Tasks at once")->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const gimli::Threads batch(threads);
  std::printf("%lld threads, libtorch %s, registers of %d bytes\n\n", static_cast<long long>(threads), TORCH_VERSION,
              gimli::register_bytes());
  std::printf("| network | libtorch's, ms: min / median | ours | ratio | peak bytes | errors |\n");
  std::printf("|---|---:|---:|---:|---:|---:|\n");
  for (const auto& subject : gimli::subjects) {
    if (subject.name.find(only) != std::string::npos) gimli::measure(subject, rounds, batch);
  }
}
