#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>

#include "app/config.h"
#include "gimli/bilevel.h"
#include "gimli/data/task.h"

namespace gimli::app {

/// What is learned: tasks to train on, tasks held out, a new network for them, and their loss.
struct Dataset {
  std::shared_ptr<const data::TaskSource> training;
  std::shared_ptr<const data::TaskSource> held_out;  ///< the same for every seed
  std::shared_ptr<torch::nn::Module> model;
  std::function<at::Tensor(const at::Tensor&)> forward;
  bool classifies = false;
  at::Device device = at::kCPU;

  at::Tensor loss(const torch::data::Example<>& examples) const;

  /// The loss and, for classification, the accuracy: the part of the examples whose class is the likeliest.
  OuterValue score(const torch::data::Example<>& examples) const;
};

/// Reads the settings dataset, data_root, ways, shots, queries, pooling, hidden, seed and device.
Dataset make_dataset(const Config& config);

/// The device of that name. Throws if it is none or is not there.
at::Device parse_device(const std::string& name);

/// A task of a source, on a device.
data::Task task_on(const data::TaskSource& source, int64_t index, at::Device device);

}  // namespace gimli::app
