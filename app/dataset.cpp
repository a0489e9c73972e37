#include "app/dataset.h"

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "gimli/data/image_folder.h"
#include "gimli/data/image_tasks.h"
#include "gimli/data/omniglot.h"
#include "gimli/data/sinusoid.h"
#include "gimli/nn/mlp.h"

namespace gimli::app {
namespace {

void add_sinusoid(Dataset& dataset, const Config& config) {
  const auto options = data::SinusoidOptions().shots(config.integer("shots")).queries(config.integer("queries"));
  auto training = options, validation = options, held_out = options;
  dataset.training = std::make_shared<data::Sinusoid>(training.seed(config.integer("seed")));
  dataset.validation = std::make_shared<data::Sinusoid>(validation.seed(fork_seed(kHeldOutSeed, 1)));
  dataset.held_out = std::make_shared<data::Sinusoid>(held_out.seed(kHeldOutSeed));
  dataset.new_network = [hidden = config.integer("hidden")]() -> Network {
    auto model = nn::mlp({1, hidden, hidden, 1});
    return {model.ptr(), [model](const at::Tensor& x, int64_t) mutable { return model->forward(x); }};
  };
}

data::EpisodeSamplerOptions episodes(const Config& config, uint64_t seed) {
  return data::EpisodeSamplerOptions(config.integer("ways"), config.integer("shots"))
      .queries(config.integer("queries"))
      .seed(seed);
}

void add_omniglot(Dataset& dataset, const Config& config, int64_t validation_classes) {
  using data::OmniglotSplit;
  const auto images =
      data::load_omniglot(data::OmniglotOptions(config.text("data_root")).validation_classes(validation_classes));
  const auto tasks = [&](OmniglotSplit split, uint64_t seed) {
    return std::make_shared<data::OmniglotTasks>(images, split, episodes(config, seed));
  };
  dataset.training = tasks(OmniglotSplit::kTrain, config.integer("seed"));
  if (validation_classes > 0) dataset.validation = tasks(OmniglotSplit::kValidation, kHeldOutSeed);
  dataset.held_out = tasks(OmniglotSplit::kTest, kHeldOutSeed);
}

void add_mini_imagenet(Dataset& dataset, const Config& config, NetworkOptions& network) {
  constexpr int64_t kSize = 84;
  const auto images = data::load_image_folder(
      data::ImageFolderOptions(folder_in(config.text("data_root"), "mini-imagenet")).size(kSize));
  const auto options = data::ImageTasksOptions().moments(data::channel_moments(images.train));
  const auto tasks = [&](const data::ImageClasses& split, uint64_t seed) {
    return std::make_shared<data::ImageTasks>(split, episodes(config, seed), options);
  };
  dataset.training = tasks(images.train, config.integer("seed"));
  dataset.validation = tasks(images.validation, kHeldOutSeed);
  dataset.held_out = tasks(images.test, kHeldOutSeed);
  network.channels = 3;
  network.image_size = kSize;
}

}  // namespace

at::Tensor Dataset::loss(const torch::data::Example<>& examples, int64_t step) const {
  const auto output = network.forward(examples.data, step);
  return classifies ? torch::nn::functional::cross_entropy(output, examples.target)
                    : torch::nn::functional::mse_loss(output, examples.target);
}

OuterValue Dataset::score(const torch::data::Example<>& examples, int64_t step) const {
  if (!classifies) return loss(examples, step);
  const auto output = network.forward(examples.data, step);
  return {torch::nn::functional::cross_entropy(output, examples.target),
          output.detach().argmax(1).eq(examples.target).to(at::kFloat).mean()};
}

// clang-format off
Schema few_shot_schema(std::vector<Value> queries, std::vector<Setting> more) {
  Schema schema{{"sinusoid", "omniglot"}, {
      {"dataset", "Data", "Sine waves (regression), or handwritten characters (classification)",
                                                                         {text("sinusoid"),  text("omniglot")}, true, 0,
                                                                         {"sinusoid", "omniglot"}},
      // key, group, help,                                                sinusoid           omniglot
      {"data_root", "Data", "Folder with Omniglot's archives, or with a folder omniglot that has them",
                                                                         {kNone,             text("data")}, false},
      {"ways", "Data", "Classes in a task",                              {kNone,             integer(5)}, true, 2},
      {"shots", "Data", "Support examples of a task, for each class",    {integer(10),       integer(1)}, true, 1},
      {"queries", "Data", "Query examples of a task, for each class",    std::move(queries), true, 1},
      {"hidden", "Data", "Width of the network's layers",                {integer(40),       integer(64)}, true, 1},
      {"model", "Data", "The network",                                   {kNone,             text("conv4-stride")}, true, 0,
                                                                         network_names()},
  }};
  std::move(more.begin(), more.end(), std::back_inserter(schema.settings));
  return schema;
}
// clang-format on

Dataset make_dataset(const Config& config, int64_t validation_classes, int64_t norm_steps) {
  Dataset dataset;
  dataset.device = parse_device(config.text("device"));
  const auto& name = config.text("dataset");
  dataset.classifies = name != "sinusoid";
  if (dataset.classifies) {
    NetworkOptions network{
        .classes = config.integer("ways"), .hidden = config.integer("hidden"), .norm_steps = norm_steps};
    if (name == "omniglot") {
      add_omniglot(dataset, config, validation_classes);
    } else {
      add_mini_imagenet(dataset, config, network);
    }
    dataset.new_network = [model = config.text("model"), network] { return make_network(model, network); };
  } else {
    add_sinusoid(dataset, config);
  }
  torch::manual_seed(config.integer("seed"));
  dataset.network = dataset.new_network();
  dataset.network.module->to(dataset.device);
  return dataset;
}

std::string folder_in(const std::string& root, const std::string& name) {
  const auto folder = std::filesystem::path(root) / name;
  return std::filesystem::is_directory(folder) ? folder.string() : root;
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
