#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace gimli::app {

/// The value of a setting; empty where a setting has no meaning.
using Value =
    std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<std::string>>;

/// How tables of settings write them.
inline constexpr std::monostate kNone{};
inline Value integer(int64_t value) { return value; }
inline Value text(std::string value) { return value; }

/// Values by key, as one source gave them: a file, the command line.
using Values = std::map<std::string, Value>;

/// A key of a configuration file and, with - for _, a flag of the command line.
struct Setting {
  std::string key;
  std::string group;  ///< its heading in --help
  std::string help;
  /// One for each of the schema's data sets, empty where it has no meaning; or one for all of them.
  std::vector<Value> defaults;
  bool shapes_results = true;                                 ///< whether the numbers of a run depend on it
  double minimum = -std::numeric_limits<double>::infinity();  ///< of a number, or of each one in a list
  std::vector<std::string> choices = {};                      ///< of a text, or of each one in a list
  double maximum = std::numeric_limits<double>::infinity();   ///< likewise

  /// The default for the schema's data set number `dataset`.
  const Value& default_for(size_t dataset) const { return defaults[defaults.size() == 1 ? 0 : dataset]; }
};

/// The settings of an experiment, with the defaults for each data set: the one table that says what can be set. Its
/// first setting is "dataset".
struct Schema {
  std::vector<std::string> datasets;
  std::vector<Setting> settings;

  const Setting* find(std::string_view key) const;
};

/// The settings of a run, every one with a value.
class Config final {
 public:
  /// `values` over the defaults for their data set. Throws if there is no such setting, or if one has no meaning for
  /// the data set or a value outside its range.
  Config(const Schema& schema, const Values& values);

  bool has(const std::string& key) const;
  bool flag(const std::string& key) const;
  int64_t integer(const std::string& key) const;
  double number(const std::string& key) const;
  const std::string& text(const std::string& key) const;
  const std::vector<int64_t>& integers(const std::string& key) const;
  const std::vector<std::string>& texts(const std::string& key) const;

  /// As TOML, in the order of the schema.
  std::string toml() const;

  const Values& values() const { return values_; }

 private:
  const Value& get(const std::string& key) const;

  std::vector<std::string> order_;
  Values values_;
};

/// Reads TOML. `name` is what to call it in errors: a key that the schema does not have, a value of another type.
Values parse_config(const Schema& schema, const std::string& toml, const std::string& name);
Values read_config(const Schema& schema, const std::filesystem::path& file);

/// The value of a flag, from its text.
Value parse_value(const Setting& setting, const std::string& text);

/// The value as TOML writes it.
std::string to_string(const Value& value);

/// The flag of a key: --inner-lr for inner_lr.
std::string flag_of(const std::string& key);

/// `over` where it has a value, `under` elsewhere.
Values merge(Values under, const Values& over);

/// Throws, with both values, if `wanted` differs from `saved` in a setting that the numbers of a run depend on.
void check_same_results(const Schema& schema, const Values& saved, const Values& wanted, const std::string& saved_name);

/// "; did you mean 'x'?" for the candidate nearest to `word`, or nothing if none is near.
std::string suggestion(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace gimli::app
