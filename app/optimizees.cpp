#include "app/optimizees.h"

#include <torch/nn/functional/loss.h>
#include <torch/nn/functional/pooling.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include "app/dataset.h"
#include "gimli/data/counter_rng.h"
#include "gimli/substitution.h"

namespace gimli::app {
namespace {

/// Of initial values, as in the authors' program.
constexpr double kDeviation = 0.01;

constexpr int64_t kClasses = 10;

struct Theta final : torch::nn::Module {
  explicit Theta(at::Tensor start) : theta(register_parameter("theta", std::move(start))) {}
  at::Tensor theta;
};

/// The images as rows of [0, 1], each averaged down to `size` x `size` pixels.
LabelledImages rows_of(const at::Tensor& images, const at::Tensor& labels, int64_t size, at::Device device) {
  const auto own = std::min(images.size(2), images.size(3));
  TORCH_CHECK(size <= own, "image_size: expected at most ", own, ", as the images have, got ", size);
  auto pixels = images.to(at::kFloat).div_(255);
  if (size < images.size(2) || size < images.size(3)) pixels = at::adaptive_avg_pool2d(pixels, {size, size});
  return {pixels.flatten(1).to(device), labels.to(device)};
}

}  // namespace

std::vector<Optimizee> Quadratics::draw(int64_t first, int64_t count) const {
  TensorList starts, matrices, targets;
  for (auto index = first; index < first + count; ++index) {
    const RandomStream stream(fork_seed(seed_, index));
    starts.push_back(kDeviation * at::randn({dimensions_}, at::kDouble));
    matrices.push_back(at::randn({dimensions_, dimensions_}, at::kDouble));
    targets.push_back(at::randn({dimensions_}, at::kDouble));
  }
  const auto batched = [&](const TensorList& each) { return at::stack(each).to(options_); };
  const auto iterate = std::make_shared<Theta>(batched(starts));
  const auto losses = [iterate, w = batched(matrices), y = batched(targets)](int64_t) {
    return (at::matmul(w, iterate->theta.unsqueeze(-1)).squeeze(-1) - y).square().sum(-1);
  };
  return {{iterate, losses}};
}

std::vector<Optimizee> Perceptrons::draw(int64_t first, int64_t count) const {
  std::vector<Optimizee> optimizees;
  for (auto index = first; index < first + count; ++index) {
    const auto seed = fork_seed(seed_, index);
    torch::nn::Sequential network(torch::nn::Linear(images_.pixels.size(1), hidden_), torch::nn::Sigmoid(),
                                  torch::nn::Linear(hidden_, kClasses));
    {
      const RandomStream stream(fork_seed(seed, 0));
      for (auto& parameter : network->parameters()) torch::nn::init::normal_(parameter, 0, kDeviation);
    }
    network->to(images_.pixels.device(), images_.pixels.scalar_type());
    const auto losses = [network, seed, images = images_, batch = batch_](int64_t step) mutable {
      data::CounterRng random(fork_seed(seed, 1), step);
      std::vector<int64_t> drawn(batch);
      for (auto& i : drawn) i = random.below(images.size());
      const auto seen = images.at(at::tensor(drawn, at::kLong).to(images.labels.device()));
      return torch::nn::functional::cross_entropy(network->forward(seen.pixels), seen.labels).unsqueeze(0);
    };
    optimizees.push_back({network.ptr(), losses});
  }
  return optimizees;
}

OptimizeeSplits make_optimizees(const Config& config) {
  const auto device = parse_device(config.text("device"));
  const auto seed = static_cast<uint64_t>(config.integer("seed"));
  const auto validation_seed = fork_seed(kHeldOutSeed, 0), held_out_seed = fork_seed(kHeldOutSeed, 1);
  if (config.text("dataset") == "quadratic") {
    const auto quadratics = [&](uint64_t s) {
      return std::make_shared<const Quadratics>(s, config.integer("dimensions"),
                                                at::TensorOptions(device).dtype(at::kFloat));
    };
    return {quadratics(seed), quadratics(validation_seed), quadratics(held_out_seed)};
  }
  const auto data = data::load_fashion_mnist(config.text("data_root"));
  const auto size = config.integer("image_size");
  const auto training = rows_of(data.train_images, data.train_labels, size, device);
  const auto test = rows_of(data.test_images, data.test_labels, size, device);
  const auto perceptrons = [&](uint64_t s, const LabelledImages& images) {
    return std::make_shared<const Perceptrons>(s, images, config.integer("units"), config.integer("batch"));
  };
  return {perceptrons(seed, training), perceptrons(validation_seed, training), perceptrons(held_out_seed, test)};
}

}  // namespace gimli::app
