#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "app/config.h"
#include "app/network.h"
#include "gimli/bilevel.h"
#include "gimli/data/task.h"

namespace gimli::app {

/// Of what is held out, tasks above all; out of the way of the seeds that people give.
inline constexpr uint64_t kHeldOutSeed = 0x68656c642d6f7574;

/// What is learned: tasks to train on, tasks held out, a new network for them, and their loss.
struct Dataset {
  std::shared_ptr<const data::TaskSource> training;
  std::shared_ptr<const data::TaskSource> validation;  ///< to choose by; none of images if no classes were set aside
  std::shared_ptr<const data::TaskSource> held_out;    ///< like validation, the same for every seed
  Network network;
  std::function<Network()> new_network;  ///< one like it, its weights drawn from libtorch's default generator
  bool classifies = false;
  at::Device device = at::kCPU;

  /// In a step of the inner loop, for networks that know it.
  at::Tensor loss(const torch::data::Example<>& examples, int64_t step = 0) const;

  /// The loss and, for classification, the accuracy: the part of the examples whose class is the likeliest.
  OuterValue score(const torch::data::Example<>& examples, int64_t step = 0) const;
};

/// A schema for sine waves and Omniglot: the settings of their data, with these defaults for queries, and then `more`.
Schema few_shot_schema(std::vector<Value> queries, std::vector<Setting> more);

/// Reads the settings dataset, data_root, ways, shots, queries, model, hidden, seed and device. With
/// `validation_classes`, so many are set aside from the training classes; `norm_steps` is of the network.
Dataset make_dataset(const Config& config, int64_t validation_classes = 0, int64_t norm_steps = 0);

/// The folder of that name in `root`, or `root` itself if it has none.
std::string folder_in(const std::string& root, const std::string& name);

/// The device of that name. Throws if it is none or is not there.
at::Device parse_device(const std::string& name);

/// A task of a source, on a device.
data::Task task_on(const data::TaskSource& source, int64_t index, at::Device device);

}  // namespace gimli::app
