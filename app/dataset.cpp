#include "app/dataset.h"

#include "gimli/data/omniglot.h"
#include "gimli/data/sinusoid.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/mlp.h"

namespace gimli::app {
namespace {

/// Of the held-out tasks; out of the way of the seeds that people give.
constexpr uint64_t kHeldOutSeed = 0x68656c642d6f7574;

template <class Module>
void set_model(Dataset& dataset, Module model) {
  model->to(dataset.device);
  dataset.model = model.ptr();
  dataset.forward = [model](const at::Tensor& input) mutable { return model->forward(input); };
}

void add_sinusoid(Dataset& dataset, const Config& config) {
  const auto options = data::SinusoidOptions().shots(config.integer("shots")).queries(config.integer("queries"));
  auto training = options;
  auto held_out = options;
  dataset.training = std::make_shared<data::Sinusoid>(training.seed(config.integer("seed")));
  dataset.held_out = std::make_shared<data::Sinusoid>(held_out.seed(kHeldOutSeed));
  const auto hidden = config.integer("hidden");
  set_model(dataset, nn::mlp({1, hidden, hidden, 1}));
}

void add_omniglot(Dataset& dataset, const Config& config) {
  const auto images = data::load_omniglot(data::OmniglotOptions(config.text("data_root")));
  const auto options =
      data::EpisodeSamplerOptions(config.integer("ways"), config.integer("shots")).queries(config.integer("queries"));
  auto training = options;
  auto held_out = options;
  using data::OmniglotSplit;
  dataset.training =
      std::make_shared<data::OmniglotTasks>(images, OmniglotSplit::kTrain, training.seed(config.integer("seed")));
  dataset.held_out = std::make_shared<data::OmniglotTasks>(images, OmniglotSplit::kTest, held_out.seed(kHeldOutSeed));
  dataset.classifies = true;
  const bool stride = config.text("pooling") == "stride";
  set_model(dataset, nn::Conv4(nn::Conv4Options(config.integer("ways"))
                                   .hidden(config.integer("hidden"))
                                   .pooling(stride ? nn::Conv4Pooling::kStride : nn::Conv4Pooling::kMaxPool)));
}

}  // namespace

at::Tensor Dataset::loss(const torch::data::Example<>& examples) const {
  const auto output = forward(examples.data);
  return classifies ? torch::nn::functional::cross_entropy(output, examples.target)
                    : torch::nn::functional::mse_loss(output, examples.target);
}

OuterValue Dataset::score(const torch::data::Example<>& examples) const {
  if (!classifies) return loss(examples);
  const auto output = forward(examples.data);
  return {torch::nn::functional::cross_entropy(output, examples.target),
          output.detach().argmax(1).eq(examples.target).to(at::kFloat).mean()};
}

Dataset make_dataset(const Config& config) {
  Dataset dataset;
  dataset.device = parse_device(config.text("device"));
  torch::manual_seed(config.integer("seed"));
  config.text("dataset") == "sinusoid" ? add_sinusoid(dataset, config) : add_omniglot(dataset, config);
  return dataset;
}

at::Device parse_device(const std::string& name) {
  std::optional<at::Device> device;
  try {
    device.emplace(name);
  } catch (const c10::Error&) {
  }
  TORCH_CHECK(device && (device->is_cpu() || device->is_cuda()), "device must be cpu, cuda or cuda:N, got '", name,
              "'");
  const auto count = static_cast<int64_t>(torch::cuda::device_count());
  TORCH_CHECK(!device->is_cuda() || (device->has_index() ? device->index() : 0) < count, "device ", name,
              " is not there: ", count, " CUDA devices were found");
  return *device;
}

data::Task task_on(const data::TaskSource& source, int64_t index, at::Device device) {
  auto task = source.task(index);
  if (device.is_cpu()) return task;
  for (auto* examples : {&task.support, &task.query}) {
    examples->data = examples->data.to(device);
    examples->target = examples->target.to(device);
  }
  return task;
}

}  // namespace gimli::app
