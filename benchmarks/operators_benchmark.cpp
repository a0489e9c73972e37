// What gimli's own forms of batch normalization and convolutions save in a meta-gradient: MAML's, five second-order
// steps of SGD, 5-way 1-shot, on libtorch's operators and on ours.
//
//     operators_benchmark [--only NAME] [--rounds 5] [--threads 2]
//     operators_benchmark --convolutions
//
// The second compares single convolutions of 3x3 on one thread, which tells where Winograd's are to be chosen.
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
#include <iomanip>
#include <limits>
#include <sstream>

#include "gimli/gimli.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/densenet.h"
#include "gimli/nn/resnet.h"
#include "gimli/nn/vgg.h"
#include "gimli/operators/winograd.h"
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
    {"resnet-12, 28x28", 2, 1, 28, [] { return model(nn::ResNet(nn::ResNetOptions(ways, 3))); }},
    {"resnet-12, 84x84", 2, 3, 84, [] { return model(nn::ResNet(nn::ResNetOptions(ways, 3).in_channels(3))); }},
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
  const auto exact = hypergradient(problem, module->parameters(), tasks, Replay(), batch).gradients;
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

/// The least microseconds of several runs.
double microseconds(const std::function<void()>& run) {
  using Microseconds = std::chrono::duration<double, std::micro>;
  double least = std::numeric_limits<double>::infinity(), total = 0;
  for (int i = 0; i < 5 || (i < 50 && total < 3e4); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    const auto took = Microseconds(std::chrono::steady_clock::now() - begin).count();
    total += took;
    least = std::min(least, took);
  }
  return least;
}

/// A convolution, or its gradient by the input or by the weight, by libtorch.
enum class Pass { forward, by_input, by_weight };

Tensor libtorchs(Pass pass, const Tensor& x, const Tensor& weight, const Tensor& g) {
  if (pass == Pass::forward) return at::conv2d(x, weight, {}, 1, 1);
  const bool by_input = pass == Pass::by_input;
  const auto [of_x, of_weight, of_bias] = at::convolution_backward(g, x, weight, {}, {1, 1}, {1, 1}, {1, 1}, false,
                                                                   {0, 0}, 1, {by_input, !by_input, false});
  return by_input ? of_x : of_weight;
}

Tensor winograds(Pass pass, const Tensor& x, const Tensor& weight, const Tensor& g) {
  if (pass == Pass::forward) return operators::winograd(x, weight, {}, {1, 1});
  return pass == Pass::by_input ? operators::winograd_input_gradient(g, weight, {1, 1})
                                : operators::winograd_weight_gradient(g, x, {1, 1});
}

void compare_convolution(int64_t n, int64_t size, int64_t inputs, int64_t outputs) {
  const auto x = torch::randn({n, inputs, size, size}), weight = torch::randn({outputs, inputs, 3, 3}),
             g = torch::randn({n, outputs, size, size});
  const auto wide = [](const Tensor& tensor) { return tensor.to(torch::kDouble); };
  std::ostringstream row;
  row << "| " << n << " of " << size << "x" << size << " | " << inputs << " -> " << outputs << " |" << std::fixed;
  for (const auto pass : {Pass::forward, Pass::by_input, Pass::by_weight}) {
    const auto exact = libtorchs(pass, wide(x), wide(weight), wide(g));
    for (const auto compute : {&libtorchs, &winograds}) {
      row << std::fixed << std::setprecision(0) << " " << microseconds([&] { compute(pass, x, weight, g); })
          << std::scientific << " (" << relative_distance({wide(compute(pass, x, weight, g))}, {exact}) << ") |";
    }
  }
  const auto chosen = [&](bool of_weight) {
    return operators::has_winograd(x.sizes(), weight.sizes(), {1, 1}, {1, 1}, {1, 1}, 1, of_weight);
  };
  std::printf("%s %s |\n", row.str().c_str(), chosen(false) ? "all" : chosen(true) ? "by weight" : "");
  std::fflush(stdout);
}

void compare_convolutions() {
  at::set_num_threads(1);
  const torch::NoGradGuard no_grad;
  std::printf("Microseconds, and errors relative to float64, of libtorch's convolutions and Winograd's.\n\n");
  std::printf(
      "| images | channels | forward | Winograd's | by input | Winograd's | by weight | Winograd's | chosen |\n");
  std::printf("|---|---|--:|--:|--:|--:|--:|--:|---|\n");
  const std::vector<std::pair<int64_t, int64_t>> channels{{1, 64},   {3, 64},    {8, 8},     {16, 16},
                                                          {12, 48},  {48, 12},   {32, 32},   {64, 64},
                                                          {64, 128}, {128, 128}, {256, 256}, {512, 512}};
  constexpr int64_t most_products = 300'000'000;
  for (const int64_t n : {5, 25}) {
    for (const int64_t size : {3, 5, 7, 10, 14, 28, 42, 84}) {
      for (const auto& [inputs, outputs] : channels) {
        if (n * size * size * inputs * outputs <= most_products) compare_convolution(n, size, inputs, outputs);
      }
    }
  }
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
  bool convolutions = false;
  app.add_flag("--convolutions", convolutions, "Compare single convolutions, not meta-gradients");
  CLI11_PARSE(app, argc, argv);
  if (convolutions) {
    gimli::compare_convolutions();
    return 0;
  }
  const gimli::Threads batch(threads);
  std::printf("%lld threads, libtorch %s, registers of %d bytes\n\n", static_cast<long long>(threads), TORCH_VERSION,
              gimli::register_bytes());
  std::printf("| network | libtorch's, ms: min / median | ours | ratio | peak bytes | errors |\n");
  std::printf("|---|---:|---:|---:|---:|---:|\n");
  for (const auto& subject : gimli::subjects) {
    if (subject.name.find(only) != std::string::npos) gimli::measure(subject, rounds, batch);
  }
}
