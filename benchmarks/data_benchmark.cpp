// Whether the data keep up with the training: tasks a second, and beside them the meta-gradients of such tasks a second
// (four blocks of 64 filters, five steps of adaptation, one thread); augmented images a second; and a folder of JPEG
// files read for the first time and from the cache. The data sets are noise of the real ones' shapes.
//
//     data_benchmark --benchmark_counters_tabular=true

#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include <jpeglib.h>  // wants <cstdio> before it

#include "gimli/bilevel.h"
#include "gimli/data/image_batch.h"
#include "gimli/data/image_folder.h"
#include "gimli/data/image_tasks.h"
#include "gimli/data/omniglot.h"
#include "gimli/hypergradient.h"
#include "gimli/nn/conv4.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli {
namespace {

namespace fs = std::filesystem;

data::ImageTasks omniglot() {
  data::OmniglotData data;
  data.images = torch::randint(0, 256, {1200, 20, 28, 28}, torch::kByte);
  data.characters.resize(1200);
  for (int64_t c = 0; c < 1200; ++c) data.train_classes.push_back(c);
  return {image_classes(data, data::OmniglotSplit::kTrain), data::EpisodeSamplerOptions(20, 1),
          data::ImageTasksOptions().rotations(true)};
}

// With fewer images a class than the 600 there are: 135 MB, which no cache of a processor holds either.
data::ImageTasks mini_imagenet() {
  constexpr int64_t kImages = 100;
  data::ImageClasses images{torch::randint(0, 256, {64 * kImages, 3, 84, 84}, torch::kByte), {}};
  for (int64_t c = 0; c < 64; ++c) images.classes.push_back({"", c * kImages, kImages});
  return {images, data::EpisodeSamplerOptions(5, 1), data::ImageTasksOptions().moments(data::channel_moments(images))};
}

void tasks(benchmark::State& state, const data::ImageTasks& source) {
  int64_t index = 0;
  for (auto _ : state) benchmark::DoNotOptimize(source.task(index++));
  state.SetItemsProcessed(state.iterations());
}

void meta_gradients(benchmark::State& state, const data::ImageTasks& source, nn::Conv4Options options) {
  at::set_num_threads(1);
  nn::Conv4 model(options);
  const auto loss = [&](const torch::data::Example<>& examples) {
    return torch::nn::functional::cross_entropy(model->forward(examples.data), examples.target);
  };
  const auto problem = Bilevel(model, optim::Optimizer(optim::SGD(optim::SGDOptions(0.01)), model->parameters()))
                           .steps(5)
                           .inner([&](const data::Task& task) { return loss(task.support); })
                           .outer([&](const data::Task& task) { return loss(task.query); });
  int64_t index = 0;
  for (auto _ : state) {
    hypergradient(problem, model->parameters(), std::vector<data::Task>{source.task(index++)});
  }
  state.SetItemsProcessed(state.iterations());
}

void omniglot_tasks(benchmark::State& state) { tasks(state, omniglot()); }
BENCHMARK(omniglot_tasks)->Unit(benchmark::kMillisecond);

void omniglot_meta_gradients(benchmark::State& state) { meta_gradients(state, omniglot(), nn::Conv4Options(20)); }
BENCHMARK(omniglot_meta_gradients)->Unit(benchmark::kMillisecond);

void mini_imagenet_tasks(benchmark::State& state) { tasks(state, mini_imagenet()); }
BENCHMARK(mini_imagenet_tasks)->Unit(benchmark::kMillisecond);

void mini_imagenet_meta_gradients(benchmark::State& state) {
  meta_gradients(state, mini_imagenet(), nn::Conv4Options(5).in_channels(3).image_size(84));
}
BENCHMARK(mini_imagenet_meta_gradients)->Unit(benchmark::kMillisecond);

void cifar_augmentation(benchmark::State& state) {
  constexpr int64_t kBatch = 128;
  const auto images = torch::randint(0, 256, {kBatch, 3, 32, 32}, torch::kByte);
  const auto moments = data::channel_moments(images);
  int64_t index = 0;
  for (auto _ : state) benchmark::DoNotOptimize(data::normalize(data::crop_and_flip(images, index++), moments));
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(cifar_augmentation)->Unit(benchmark::kMillisecond);

// Pictures of 84 x 84 pixels that JPEG finds neither empty nor all noise, in 20 classes of 100.
class JpegFolder final {
 public:
  static constexpr int64_t kClasses = 20, kImages = 100, kSize = 84;

  JpegFolder() {
    auto name = (fs::temp_directory_path() / "gimli-data-benchmark-XXXXXX").string();
    path_ = mkdtemp(name.data());
    for (int64_t c = 0; c < kClasses; ++c) {
      const auto folder = path_ / "images" / std::to_string(c);
      fs::create_directories(folder);
      for (int64_t i = 0; i < kImages; ++i) write(folder / (std::to_string(i) + ".jpg"));
    }
  }
  ~JpegFolder() { fs::remove_all(path_); }

  data::ImageFolderOptions options() const {
    return data::ImageFolderOptions((path_ / "images").string()).cache_dir((path_ / "cache").string());
  }

 private:
  static void write(const fs::path& path) {
    const auto coarse = torch::nn::functional::InterpolateFuncOptions()
                            .size(std::vector<int64_t>{kSize, kSize})
                            .mode(torch::kBilinear)
                            .align_corners(false);
    const auto picture = torch::nn::functional::interpolate(torch::rand({1, 3, 12, 12}) * 200, coarse)[0];
    auto pixels = (picture + torch::rand({3, kSize, kSize}) * 50).to(torch::kByte).permute({1, 2, 0}).contiguous();
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    TORCH_CHECK(file, "data_benchmark: cannot write ", path);
    jpeg_compress_struct info;
    jpeg_error_mgr errors;
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    jpeg_stdio_dest(&info, file);
    info.image_height = info.image_width = kSize;
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, 90, TRUE);
    jpeg_start_compress(&info, TRUE);
    for (int64_t y = 0; y < kSize; ++y) {
      auto* row = pixels.mutable_data_ptr<uint8_t>() + y * kSize * 3;
      jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    std::fclose(file);
  }

  fs::path path_;
};

void read_jpeg_folder(benchmark::State& state, const data::ImageFolderOptions& options) {
  for (auto _ : state) benchmark::DoNotOptimize(data::load_image_folder(options).train.images);
  state.SetItemsProcessed(state.iterations() * JpegFolder::kClasses * JpegFolder::kImages);
}

void jpeg_folder_first_read(benchmark::State& state) {
  const JpegFolder folder;
  read_jpeg_folder(state, folder.options().cache(false));
}
BENCHMARK(jpeg_folder_first_read)->Unit(benchmark::kMillisecond)->UseRealTime();

void jpeg_folder_cached_read(benchmark::State& state) {
  const JpegFolder folder;
  data::load_image_folder(folder.options());
  read_jpeg_folder(state, folder.options());
}
BENCHMARK(jpeg_folder_cached_read)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace gimli
