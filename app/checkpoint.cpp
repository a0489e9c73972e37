#include "app/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <sstream>

#include "app/file.h"
#include "gimli/data/cache_file.h"

namespace gimli::app {
namespace {

constexpr int64_t kFormat = 2;
constexpr std::string_view kMark = "gimli checkpoint ";

/// Comes after the archive; of fixed length.
std::string trailer_of(std::string_view archive) { return fmt::format("{}{:016x}\n", kMark, data::checksum(archive)); }

template <class T>
T read(torch::serialize::InputArchive& archive, const std::string& key) {
  c10::IValue value;
  archive.read(key, value);
  return value.to<T>();
}

}  // namespace

void save_checkpoint(const std::filesystem::path& path, const RunState& state, const TrainingState& training) {
  torch::serialize::OutputArchive archive, tensors, optimizers;
  const auto count = [](const auto& list) { return c10::IValue(static_cast<int64_t>(list.size())); };
  archive.write("format", c10::IValue(kFormat));
  archive.write("experiment", c10::IValue(state.experiment));
  archive.write("configuration", c10::IValue(state.configuration));
  archive.write("iteration", c10::IValue(state.iteration));
  archive.write("seconds", c10::IValue(state.seconds));
  archive.write("tensor_count", count(training.tensors.tensors));
  archive.write("optimizer_count", count(training.optimizers));
  for (size_t i = 0; i < training.tensors.size(); ++i) {
    torch::serialize::OutputArchive entry;
    entry.write("name", c10::IValue(training.tensors.names[i]));
    entry.write("value", training.tensors.tensors[i].detach().cpu());
    tensors.write(std::to_string(i), entry);
  }
  for (size_t i = 0; i < training.optimizers.size(); ++i) {
    torch::serialize::OutputArchive entry;
    training.optimizers[i]->save(entry);
    optimizers.write(std::to_string(i), entry);
  }
  archive.write("tensors", tensors);
  archive.write("optimizers", optimizers);
  std::ostringstream stream;
  archive.save_to(stream);
  auto bytes = std::move(stream).str();
  bytes += trailer_of(bytes);
  write_file(path, bytes);
}

Checkpoint load_checkpoint(const std::filesystem::path& path) {
  TORCH_CHECK(std::filesystem::exists(path), "there is no checkpoint ", path.string());
  const auto bytes = read_file(path);
  const auto length = trailer_of("").size();
  const auto content = std::string_view(bytes).substr(0, bytes.size() - std::min(bytes.size(), length));
  const auto trailer = std::string_view(bytes).substr(content.size());
  TORCH_CHECK(trailer.starts_with(kMark), path.string(), " is not a checkpoint of gimli, or was cut short");
  TORCH_CHECK(trailer == trailer_of(content), path.string(), " is damaged: its checksum does not fit");

  Checkpoint checkpoint;
  try {
    torch::serialize::InputArchive archive, tensors, optimizers;
    archive.load_from(content.data(), content.size(), at::kCPU);
    const auto format = read<int64_t>(archive, "format");
    TORCH_CHECK(format == kFormat, "it is of format ", format, ", and this gimli reads format ", kFormat);
    checkpoint.state = {read<std::string>(archive, "experiment"), read<std::string>(archive, "configuration"),
                        read<int64_t>(archive, "iteration"), read<double>(archive, "seconds")};
    archive.read("tensors", tensors);
    archive.read("optimizers", optimizers);
    const auto tensor_count = read<int64_t>(archive, "tensor_count");
    for (int64_t i = 0; i < tensor_count; ++i) {
      torch::serialize::InputArchive entry;
      tensors.read(std::to_string(i), entry);
      checkpoint.tensors.names.push_back(read<std::string>(entry, "name"));
      entry.read("value", checkpoint.tensors.tensors.emplace_back());
    }
    const auto optimizer_count = read<int64_t>(archive, "optimizer_count");
    for (int64_t i = 0; i < optimizer_count; ++i) {
      optimizers.read(std::to_string(i), checkpoint.optimizers.emplace_back());
    }
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, path.string(), " cannot be read: ", error.what_without_backtrace());
  }
  return checkpoint;
}

void restore(const Checkpoint& checkpoint, const TrainingState& training) {
  const auto& saved = checkpoint.tensors;
  const auto& tensors = training.tensors;
  TORCH_CHECK(saved.names == tensors.names, "the checkpoint's tensors are ",
              fmt::format("{}", fmt::join(saved.names, ", ")), ", and the experiment's ",
              fmt::format("{}", fmt::join(tensors.names, ", ")));
  TORCH_CHECK(checkpoint.optimizers.size() == training.optimizers.size(), "the checkpoint has the states of ",
              checkpoint.optimizers.size(), " optimizers, and the experiment has ", training.optimizers.size());
  for (size_t i = 0; i < saved.size(); ++i) {
    const auto& a = saved.tensors[i];
    const auto& b = tensors.tensors[i];
    TORCH_CHECK(a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type(), "the checkpoint's ", saved.names[i],
                " is ", a.scalar_type(), " of shape ", a.sizes(), ", and the experiment's ", b.scalar_type(),
                " of shape ", b.sizes());
  }
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < saved.size(); ++i) tensors.tensors[i].copy_(saved.tensors[i]);
  for (size_t i = 0; i < training.optimizers.size(); ++i) training.optimizers[i]->load(checkpoint.optimizers[i]);
}

std::filesystem::path checkpoint_path(const std::filesystem::path& path) {
  return std::filesystem::is_directory(path) ? path / "checkpoint.pt" : path;
}

}  // namespace gimli::app
