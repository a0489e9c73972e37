#pragma once

#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>

#include <filesystem>
#include <string>

#include "gimli/substitution.h"

namespace gimli::app {

/// Where a run stands, besides its tensors.
struct RunState {
  std::string experiment;
  std::string configuration;  ///< TOML
  int64_t iteration = 0;
  double seconds = 0;  ///< of training
};

/// A run at the end of an iteration: all that is needed to go on as if it had not stopped.
struct Checkpoint {
  RunState state;
  NamedTensors parameters;  ///< on the CPU
  mutable torch::serialize::InputArchive optimizer;
};

/// Writes the file `path` as a whole or not at all. It is a libtorch archive, which torch.jit.load opens, with a
/// checksum behind it.
void save_checkpoint(const std::filesystem::path& path, const RunState& state, const NamedTensors& parameters,
                     const torch::optim::Optimizer& optimizer);

/// Throws, naming the file, if it is missing, cut short, damaged or of another format.
Checkpoint load_checkpoint(const std::filesystem::path& path);

/// Copies the values into `parameters`. Throws if they do not have the checkpoint's names and shapes.
void restore(const Checkpoint& checkpoint, const NamedTensors& parameters);

/// The checkpoint of a run's folder, or `path` itself if it is a file.
std::filesystem::path checkpoint_path(const std::filesystem::path& path);

}  // namespace gimli::app
