#include "app/config.h"

#include <set>

#include "app/experiment.h"
#include "app_fixture.h"
#include "expect.h"

namespace gimli::app {
namespace {

using Integers = std::vector<int64_t>;
using Texts = std::vector<std::string>;

/// Two data sets, and a setting of each type.
const Schema& schema() {
  static const Schema schema{
      {"waves", "letters"},
      {
          {"dataset", "Data", "What", {std::string("waves"), std::string("letters")}, true, 0, {"waves", "letters"}},
          {"ways", "Data", "Classes", {std::monostate(), int64_t{5}}, true, 2},
          {"rate", "Run", "Rate", {0.5, 0.25}, true, 0},
          {"steps", "Run", "Steps", {Integers{1, 2}}, true, 0},
          {"rules", "Run", "Rules", {Texts{"sgd", "adam"}}, true, 0, {"sgd", "adam", "lion"}},
          {"words", "Run", "Any words", {Texts{}}},
          {"out", "Run", "Folder", {std::string()}, false},
          {"quiet", "Run", "No progress", {false}, false},
      }};
  return schema;
}

Config parse(const std::string& toml) { return Config(schema(), parse_config(schema(), toml, "the file")); }

TEST(ConfigTest, DefaultsAreThoseOfTheDataset) {
  const Config sinusoid(maml_schema(), {});
  EXPECT_EQ(sinusoid.text("dataset"), "sinusoid");
  EXPECT_EQ(sinusoid.integer("shots"), 10);
  EXPECT_FALSE(sinusoid.has("ways"));
  const Config omniglot(maml_schema(), {{"dataset", std::string("omniglot")}});
  EXPECT_EQ(omniglot.integer("shots"), 1);
  EXPECT_EQ(omniglot.integer("ways"), 5);
}

TEST(ConfigTest, ADefaultCanBeOneForAllDatasets) {
  const auto& rate = *schema().find("rate");
  EXPECT_EQ(rate.default_for(0), Value(0.5));
  EXPECT_EQ(rate.default_for(1), Value(0.25));
  const auto& steps = *schema().find("steps");
  EXPECT_EQ(steps.default_for(0), Value(Integers{1, 2}));
  EXPECT_EQ(steps.default_for(1), Value(Integers{1, 2}));
  const auto letters = parse("dataset = \"letters\"");
  EXPECT_EQ(letters.number("rate"), 0.25);
  EXPECT_EQ(letters.integers("steps"), (Integers{1, 2}));
  EXPECT_EQ(letters.texts("rules"), (Texts{"sgd", "adam"}));
  EXPECT_EQ(letters.texts("words"), Texts{});
}

TEST(ConfigTest, EverySettingOfEveryExperimentHasAMeaningAndAHelp) {
  for (const auto& entry : experiments()) {
    SCOPED_TRACE(entry.name);
    EXPECT_EQ(entry.schema.settings.front().key, "dataset");
    for (const auto& run_setting : run_settings(1)) EXPECT_TRUE(entry.schema.find(run_setting.key)) << run_setting.key;
    std::set<std::string> keys;
    for (const auto& setting : entry.schema.settings) {
      SCOPED_TRACE(setting.key);
      EXPECT_TRUE(keys.insert(setting.key).second) << "it is there twice";
      EXPECT_FALSE(setting.help.empty());
      EXPECT_TRUE(setting.defaults.size() == 1 || setting.defaults.size() == entry.schema.datasets.size());
      std::set<size_t> types;
      for (const auto& value : setting.defaults) {
        if (value.index()) types.insert(value.index());
      }
      EXPECT_EQ(types.size(), 1) << "its defaults are of several types, or of none";
    }
    for (const auto& dataset : entry.schema.datasets) {
      EXPECT_EQ(Config(entry.schema, {{"dataset", dataset}}).text("dataset"), dataset);
    }
  }
}

TEST(ConfigTest, WritesAndReadsItself) {
  const Values rows[] = {
      {},
      {{"dataset", std::string("letters")}, {"ways", int64_t{20}}},
      {{"rate", 1e-30}},
      {{"rate", 1e22}},
      {{"rate", 3.}},
      {{"steps", Integers{}}},
      {{"steps", Integers{3, 7}}},
      {{"rules", Texts{"lion"}}},
      {{"words", Texts{"a \"b\"\\c\n\x7f", "", "d, e", "Δ'"}}},
      {{"out", std::string("a \"b\"\\c\n\t\x01")}},
      {{"quiet", true}},
  };
  for (const auto& values : rows) {
    const Config config(schema(), values);
    SCOPED_TRACE(config.toml());
    const auto again = parse(config.toml());
    EXPECT_EQ(config.values(), again.values());
    EXPECT_EQ(config.toml(), again.toml());
    for (const auto& [key, value] : values) EXPECT_EQ(again.values().at(key), value) << key;
  }
}

TEST(ConfigTest, FlagsAreReadAsTheirSettingSays) {
  const struct {
    std::string key, text;
    Value value;
  } rows[] = {
      {"ways", "7", int64_t{7}},
      {"rate", "0.125", 0.125},
      {"rate", "2", 2.},
      {"steps", "4", Integers{4}},
      {"steps", "4,5", Integers{4, 5}},
      {"rules", "lion", Texts{"lion"}},
      {"rules", "lion,sgd", Texts{"lion", "sgd"}},
      {"words", "a b,,c", Texts{"a b", "", "c"}},
      {"out", "a,b", std::string("a,b")},
      {"quiet", "true", true},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(parse_value(*schema().find(row.key), row.text), row.value) << row.key << " " << row.text;
  }
}

TEST(ConfigTest, RefusesWhatIsNotASetting) {
  const struct {
    std::string toml, words;
  } rows[] = {
      {"rules = [\"sgd\", \"lino\"]", "rules must be one of sgd, adam, lion, got 'lino'; did you mean 'lion'?"},
      {"rules = [\"\"]", "rules must be one of sgd, adam, lion, got ''"},
      {"rules = \"sgd\"", "the file: rules must be a list of texts"},
      {"rules = [\"sgd\", 1]", "the file: rules must be a list of texts"},
      {"words = [[\"a\"]]", "the file: words must be a list of texts"},
      {"steps = [1, -1]", "steps must be at least 0, got -1"},
      {"steps = [\"1\"]", "the file: steps must be a list of whole numbers"},
      {"ways = 5", "ways has no meaning with the dataset waves"},
      {"dataset = \"letters\"\nways = 1", "ways must be at least 2, got 1"},
      {"dataset = \"digits\"", "dataset must be one of waves, letters, got 'digits'"},
      {"rate = inf", "rate must be finite"},
      {"rat = 1", "the file: there is no setting 'rat'; did you mean 'rate'?"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.toml);
    expect_error([&] { parse(row.toml); }, row.words);
  }
  expect_error([] { Config(schema(), {{"shots", int64_t{1}}}); }, "there is no setting 'shots' here");
}

TEST(ConfigTest, WholeNumbersAreNumbersToo) { EXPECT_EQ(parse("rate = 1").number("rate"), 1.); }

TEST(ConfigTest, WhatIsAskedForMustNotChangeTheNumbersOfARun) {
  const auto saved = parse("rate = 1").values();
  check_same_results(schema(), saved, {{"rate", 1.}, {"quiet", true}, {"out", std::string("b")}}, "c.pt");
  expect_error(
      [&] {
        check_same_results(schema(), saved, {{"rate", 2.}}, "c.pt");
      },
      "c.pt was made with rate = 1.0, but rate = 2.0 is asked for");
  expect_error(
      [&] {
        check_same_results(schema(), saved, {{"rules", Texts{"adam"}}}, "c.pt");
      },
      "rules = [\"sgd\", \"adam\"], but rules = [\"adam\"]");
}

TEST(ConfigTest, SuggestsWhatIsNear) {
  EXPECT_EQ(suggestion("iteratoins", {"tasks", "iterations"}), "; did you mean 'iterations'?");
  EXPECT_EQ(suggestion("zzzzzzz", {"tasks", "iterations"}), "");
}

}  // namespace
}  // namespace gimli::app
