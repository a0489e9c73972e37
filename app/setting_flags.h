#pragma once

#include <memory>
#include <string>
#include <vector>

#include "app/config.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace gimli::app {

/// Columns of a help.
inline constexpr size_t kHelpWidth = 100;

/// Settings as flags of a command, with their defaults in the help: --inner-lr for inner_lr.
class SettingFlags final {
 public:
  SettingFlags();
  ~SettingFlags();

  void add(CLI::App& command, const Schema& schema, const Setting& setting);

  /// What was given.
  Values values() const;

 private:
  struct Slot;
  std::vector<std::unique_ptr<Slot>> slots_;
};

}  // namespace gimli::app
