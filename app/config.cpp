#include "app/config.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <toml++/toml.h>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>

#include "app/file.h"

namespace gimli::app {
namespace {

/// Of the setting's first default, which fixes its type.
size_t type_of(const Setting& setting) {
  for (const auto& value : setting.defaults) {
    if (value.index()) return value.index();
  }
  TORCH_INTERNAL_ASSERT(false, "setting without a type: ", setting.key);
}

const char* describe_type(size_t type) {
  constexpr const char* kNames[] = {"nothing", "true or false",           "a whole number", "a number",
                                    "a text",  "a list of whole numbers", "a list of texts"};
  return kNames[type];
}

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

void check_choice(const Setting& setting, const std::string& text) {
  const auto& choices = setting.choices;
  TORCH_CHECK(choices.empty() || std::find(choices.begin(), choices.end(), text) != choices.end(), setting.key,
              " must be one of ", fmt::format("{}", fmt::join(choices, ", ")), ", got '", text, "'",
              suggestion(text, choices));
}

void check_range(const Setting& setting, const Value& value) {
  const auto check = [&](auto number) {
    if constexpr (std::is_floating_point_v<decltype(number)>) {
      TORCH_CHECK(std::isfinite(number), setting.key, " must be finite, got ", number);
    }
    const auto value = static_cast<double>(number);
    TORCH_CHECK(std::isinf(setting.maximum) || (value >= setting.minimum && value <= setting.maximum), setting.key,
                " must be ", setting.minimum, " to ", setting.maximum, ", got ", number);
    TORCH_CHECK(value >= setting.minimum, setting.key, " must be at least ", setting.minimum, ", got ", number);
  };
  if (const auto* integer = std::get_if<int64_t>(&value)) {
    check(*integer);
  } else if (const auto* number = std::get_if<double>(&value)) {
    check(*number);
  } else if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) {
    std::for_each(list->begin(), list->end(), check);
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    check_choice(setting, *text);
  } else if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    for (const auto& item : *texts) check_choice(setting, item);
  }
}

std::optional<Value> convert(const toml::node& node, size_t type) {
  if (type == 1 && node.is_boolean()) return node.as_boolean()->get();
  if (type == 2 && node.is_integer()) return node.as_integer()->get();
  if (type == 3 && node.is_integer()) return static_cast<double>(node.as_integer()->get());
  if (type == 3 && node.is_floating_point()) return node.as_floating_point()->get();
  if (type == 4 && node.is_string()) return node.as_string()->get();
  if (type == 5 && node.is_array()) {
    std::vector<int64_t> list;
    for (const auto& item : *node.as_array()) {
      if (!item.is_integer()) return std::nullopt;
      list.push_back(item.as_integer()->get());
    }
    return list;
  }
  if (type == 6 && node.is_array()) {
    std::vector<std::string> list;
    for (const auto& item : *node.as_array()) {
      if (!item.is_string()) return std::nullopt;
      list.push_back(item.as_string()->get());
    }
    return list;
  }
  return std::nullopt;
}

/// The parts of a text between commas.
std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size(); begin += parts.back().size() + 1) {
    parts.push_back(text.substr(begin, text.find(',', begin) - begin));
  }
  return parts;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

const Setting* Schema::find(std::string_view key) const {
  const auto found = std::find_if(settings.begin(), settings.end(), [&](const auto& s) { return s.key == key; });
  return found == settings.end() ? nullptr : &*found;
}

Config::Config(const Schema& schema, const Values& values) {
  const auto& dataset_setting = schema.settings.front();
  const auto given = values.find(dataset_setting.key);
  const Value dataset = given == values.end() ? dataset_setting.defaults.front() : given->second;
  check_range(dataset_setting, dataset);
  const auto& name = std::get<std::string>(dataset);
  const auto place = std::find(schema.datasets.begin(), schema.datasets.end(), name) - schema.datasets.begin();

  for (const auto& [key, value] : values) TORCH_CHECK(schema.find(key), "there is no setting '", key, "' here");
  for (const auto& setting : schema.settings) {
    const auto& fallback = &setting == &dataset_setting ? dataset : setting.default_for(place);
    const auto found = values.find(setting.key);
    TORCH_CHECK(found == values.end() || fallback.index(), setting.key, " has no meaning with the dataset ", name);
    if (!fallback.index()) continue;
    const auto& value = found == values.end() ? fallback : found->second;
    check_range(setting, value);
    order_.push_back(setting.key);
    values_[setting.key] = value;
  }
}

const Value& Config::get(const std::string& key) const {
  const auto found = values_.find(key);
  TORCH_INTERNAL_ASSERT(found != values_.end(), "no setting ", key);
  return found->second;
}

bool Config::has(const std::string& key) const { return values_.count(key) > 0; }
bool Config::flag(const std::string& key) const { return std::get<bool>(get(key)); }
int64_t Config::integer(const std::string& key) const { return std::get<int64_t>(get(key)); }
double Config::number(const std::string& key) const { return std::get<double>(get(key)); }
const std::string& Config::text(const std::string& key) const { return std::get<std::string>(get(key)); }
const std::vector<int64_t>& Config::integers(const std::string& key) const {
  return std::get<std::vector<int64_t>>(get(key));
}
const std::vector<std::string>& Config::texts(const std::string& key) const {
  return std::get<std::vector<std::string>>(get(key));
}

std::string Config::toml() const {
  std::string result;
  for (const auto& key : order_) result += fmt::format("{} = {}\n", key, to_string(values_.at(key)));
  return result;
}

Values parse_config(const Schema& schema, const std::string& toml, const std::string& name) {
  toml::table table;
  try {
    table = toml::parse(toml, name);
  } catch (const toml::parse_error& error) {
    TORCH_CHECK(false, name, ", line ", error.source().begin.line, ", is not TOML: ", error.description());
  }
  std::vector<std::string> keys;
  for (const auto& setting : schema.settings) keys.push_back(setting.key);
  Values values;
  for (const auto& [toml_key, node] : table) {
    const std::string key(toml_key.str());
    const auto* setting = schema.find(key);
    TORCH_CHECK(setting, name, ": there is no setting '", key, "'", suggestion(key, keys));
    const auto type = type_of(*setting);
    const auto value = convert(node, type);
    TORCH_CHECK(value, name, ": ", key, " must be ", describe_type(type));
    values[key] = *value;
  }
  return values;
}

Values read_config(const Schema& schema, const std::filesystem::path& file) {
  return parse_config(schema, read_file(file), file.string());
}

Value parse_value(const Setting& setting, const std::string& text) {
  const auto type = type_of(setting);
  const auto wrong = [&](const std::string& part) {
    TORCH_CHECK(false, flag_of(setting.key), " must be ", describe_type(type), ", got '", part, "'");
  };
  if (type == 1) return text == "true";
  if (type == 4) return text;
  if (type == 2) {
    const auto value = parse_number<int64_t>(text);
    if (!value) wrong(text);
    return *value;
  }
  if (type == 3) {
    const auto value = parse_number<double>(text);
    if (!value) wrong(text);
    return *value;
  }
  if (type == 6) return split(text);
  std::vector<int64_t> list;
  for (const auto& part : split(text)) {
    const auto value = parse_number<int64_t>(part);
    if (!value) wrong(text);
    list.push_back(*value);
  }
  return list;
}

std::string to_string(const Value& value) {
  struct Writer {
    std::string operator()(std::monostate) const { return "none"; }
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(int64_t value) const { return fmt::format("{}", value); }
    std::string operator()(double value) const {
      const auto text = fmt::format("{}", value);
      return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
    }
    std::string operator()(const std::string& value) const {
      std::string result = "\"";
      for (const char c : value) {
        if (c == '"' || c == '\\') {
          result += fmt::format("\\{}", c);
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          result += fmt::format("\\u{:04x}", c);
        } else {
          result += c;
        }
      }
      return result + '"';
    }
    std::string operator()(const std::vector<int64_t>& value) const {
      return fmt::format("[{}]", fmt::join(value, ", "));
    }
    std::string operator()(const std::vector<std::string>& value) const {
      std::vector<std::string> items;
      for (const auto& item : value) items.push_back((*this)(item));
      return fmt::format("[{}]", fmt::join(items, ", "));
    }
  };
  return std::visit(Writer{}, value);
}

std::string flag_of(const std::string& key) {
  auto flag = "--" + key;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

Values merge(Values under, const Values& over) {
  for (const auto& [key, value] : over) under[key] = value;
  return under;
}

void check_same_results(const Schema& schema, const Values& saved, const Values& wanted,
                        const std::string& saved_name) {
  for (const auto& setting : schema.settings) {
    const auto old = saved.find(setting.key);
    const auto asked = wanted.find(setting.key);
    if (!setting.shapes_results || asked == wanted.end()) continue;
    TORCH_CHECK(old != saved.end() && old->second == asked->second, saved_name, " was made with ", setting.key, " = ",
                old == saved.end() ? "none" : to_string(old->second), ", but ", setting.key, " = ",
                to_string(asked->second), " is asked for; numbers would not continue");
  }
}

std::string suggestion(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string* nearest = nullptr;
  size_t distance = std::max<size_t>(2, word.size() / 2);
  for (const auto& candidate : candidates) {
    const auto d = edit_distance(word, candidate);
    if (d < distance || (d == distance && !nearest)) {
      distance = d;
      nearest = &candidate;
    }
  }
  return nearest ? fmt::format("; did you mean '{}'?", *nearest) : "";
}

}  // namespace gimli::app
