#include "app/setting_flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>

namespace gimli::app {
namespace {

/// The choices of a setting, as its flag shows them.
std::string choices_of(const Setting& setting) { return fmt::format("{}", fmt::join(setting.choices, "|")); }

/// Whether a line has room for them beside the flag.
bool shows_choices(const Setting& setting) {
  return !setting.choices.empty() && setting.key.size() + choices_of(setting).size() < kHelpWidth - 10;
}

std::string type_name(const Setting& setting) {
  const auto index = setting.defaults.back().index();
  if (shows_choices(setting)) return choices_of(setting) + (index == 6 ? ",..." : "");
  if (!setting.choices.empty()) return index == 6 ? "NAME,..." : "NAME";
  switch (index) {
    case 2:
      return "N";
    case 3:
      return "X";
    case 5:
      return "N,...";
    default:
      return setting.key == "device" ? "NAME" : "DIR";
  }
}

std::string plain(const Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) return fmt::format("{}", fmt::join(*list, ","));
  const auto* const texts = std::get_if<std::vector<std::string>>(&value);
  return texts ? fmt::format("{}", fmt::join(*texts, ",")) : to_string(value);
}

std::string defaults_of(const Schema& schema, const Setting& setting) {
  if (setting.key == "dataset") return " [" + plain(setting.defaults.front()) + "]";
  const auto& first = setting.defaults.front();
  if (first == Value(std::string())) return "";
  std::vector<std::string> parts;
  for (size_t i = 0; i < schema.datasets.size(); ++i) {
    if (setting.default_for(i).index() == 0) continue;
    parts.push_back(schema.datasets[i] + ": " + plain(setting.default_for(i)));
  }
  const bool same =
      std::all_of(setting.defaults.begin(), setting.defaults.end(), [&](const Value& value) { return value == first; });
  return same ? " [" + plain(first) + "]" : fmt::format(" [{}]", fmt::join(parts, "; "));
}

}  // namespace

struct SettingFlags::Slot {
  Setting setting;
  CLI::Option* option = nullptr;
  std::string text;
  bool on = false;
};

SettingFlags::SettingFlags() = default;
SettingFlags::~SettingFlags() = default;

void SettingFlags::add(CLI::App& command, const Schema& schema, const Setting& setting) {
  auto& slot = slots_.emplace_back(std::make_unique<Slot>());
  slot->setting = setting;
  const auto flag = flag_of(setting.key);
  auto help = setting.help;
  if (!setting.choices.empty() && !shows_choices(setting)) {
    help += fmt::format(". Names: {}", fmt::join(setting.choices, ", "));
  }
  help += defaults_of(schema, setting);
  if (std::holds_alternative<bool>(setting.defaults.front())) {
    slot->option = command.add_flag(flag + ",!--no-" + flag.substr(2), slot->on, help);
  } else {
    slot->option = command.add_option(flag, slot->text, help)->type_name(type_name(setting));
  }
  slot->option->group(setting.group)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

Values SettingFlags::values() const {
  Values values;
  for (const auto& slot : slots_) {
    if (slot->option->count() == 0) continue;
    const bool is_flag = std::holds_alternative<bool>(slot->setting.defaults.front());
    values[slot->setting.key] = is_flag ? Value(slot->on) : parse_value(slot->setting, slot->text);
  }
  return values;
}

}  // namespace gimli::app
