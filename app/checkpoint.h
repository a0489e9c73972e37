#pragma once

#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>

#include <filesystem>
#include <string>

#include "gimli/substitution.h"

namespace gimli::app {

/// Everything that the iterations of a training change: what a checkpoint holds besides where the run stands.
struct TrainingState {
  NamedTensors tensors;  ///< with names of their own; a restored value is copied into them
  std::vector<torch::optim::Optimizer*> optimizers = {};
};

/// Where a run stands.
struct RunState {
  std::string experiment;
  std::string configuration;  ///< TOML
  int64_t iteration = 0;
  double seconds = 0;  ///< of training
};

/// A run at the end of an iteration: all that is needed to go on as if it had not stopped.
struct Checkpoint {
  RunState state;
  NamedTensors tensors;  ///< on the CPU
  mutable std::vector<torch::serialize::InputArchive> optimizers;
};

/// Writes the file `path` as a whole or not at all. It is a libtorch archive, which torch.jit.load opens, with a
/// checksum behind it.
void save_checkpoint(const std::filesystem::path& path, const RunState& state, const TrainingState& training);

/// Throws, naming the file, if it is missing, cut short, damaged or of another format.
Checkpoint load_checkpoint(const std::filesystem::path& path);

/// Copies the values into `training`, whose optimizers have made no step. Throws if it does not have the checkpoint's
/// names, shapes and dtypes, and as many optimizers; nothing was copied then.
void restore(const Checkpoint& checkpoint, const TrainingState& training);

/// The checkpoint of a run's folder, or `path` itself if it is a file.
std::filesystem::path checkpoint_path(const std::filesystem::path& path);

}  // namespace gimli::app
