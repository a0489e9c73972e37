#pragma once

#include <string>
#include <vector>

namespace gimli::app {

/// Settings of an experiment under a name: a file of app/presets/<experiment>/<name>.toml, whose first line is a
/// comment that says what it is.
struct Preset {
  std::string experiment;
  std::string name;
  std::string summary;
  std::string toml;
};

/// All of them, by experiment and name. They are part of the program.
const std::vector<Preset>& presets();

/// Throws, with the names that there are, if the experiment has none of that name.
const Preset& find_preset(const std::string& experiment, const std::string& name);

}  // namespace gimli::app
