#include "app/preset.h"

#include <c10/util/Exception.h>
#include <fmt/ranges.h>

#include "app/config.h"

namespace gimli::app {

const Preset& find_preset(const std::string& experiment, const std::string& name) {
  std::vector<std::string> names;
  for (const auto& preset : presets()) {
    if (preset.experiment != experiment) continue;
    if (preset.name == name) return preset;
    names.push_back(preset.name);
  }
  const auto known = names.empty() ? "it has none" : fmt::format("it has {}", fmt::join(names, ", "));
  TORCH_CHECK(false, experiment, " has no preset '", name, "'; ", known, suggestion(name, names));
}

}  // namespace gimli::app
