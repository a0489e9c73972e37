#include "app/command.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <iostream>
#include <sstream>

#include "app/file.h"
#include "app/gnuplot.h"
#include "app/interrupt.h"
#include "app/metrics.h"
#include "app/plot.h"
#include "app/preset.h"
#include "app/trainer.h"
#include "gimli/data/omniglot.h"

namespace gimli::app {
namespace {

namespace fs = std::filesystem;

/// Columns of a help.
constexpr size_t kHelpWidth = 100;

/// The flags of some settings, as they were given.
class SettingFlags final {
 public:
  void add(CLI::App& command, const Schema& schema, const Setting& setting) {
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

  Values values() const {
    Values values;
    for (const auto& slot : slots_) {
      if (slot->option->count() == 0) continue;
      const bool is_flag = std::holds_alternative<bool>(slot->setting.defaults.front());
      values[slot->setting.key] = is_flag ? Value(slot->on) : parse_value(slot->setting, slot->text);
    }
    return values;
  }

 private:
  struct Slot {
    Setting setting;
    CLI::Option* option = nullptr;
    std::string text;
    bool on = false;
  };

  /// The choices of a setting, as its flag shows them.
  static std::string choices_of(const Setting& setting) { return fmt::format("{}", fmt::join(setting.choices, "|")); }

  /// Whether a line has room for them beside the flag.
  static bool shows_choices(const Setting& setting) {
    return !setting.choices.empty() && setting.key.size() + choices_of(setting).size() < kHelpWidth - 10;
  }

  static std::string type_name(const Setting& setting) {
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

  static std::string plain(const Value& value) {
    if (const auto* text = std::get_if<std::string>(&value)) return *text;
    if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) return fmt::format("{}", fmt::join(*list, ","));
    const auto* const texts = std::get_if<std::vector<std::string>>(&value);
    return texts ? fmt::format("{}", fmt::join(*texts, ",")) : to_string(value);
  }

  static std::string defaults_of(const Schema& schema, const Setting& setting) {
    if (setting.key == "dataset") return " [" + plain(setting.defaults.front()) + "]";
    const auto& first = setting.defaults.front();
    if (first == Value(std::string())) return "";
    std::vector<std::string> parts;
    for (size_t i = 0; i < schema.datasets.size(); ++i) {
      if (setting.default_for(i).index() == 0) continue;
      parts.push_back(schema.datasets[i] + ": " + plain(setting.default_for(i)));
    }
    const bool same = std::all_of(setting.defaults.begin(), setting.defaults.end(),
                                  [&](const Value& value) { return value == first; });
    return same ? " [" + plain(first) + "]" : fmt::format(" [{}]", fmt::join(parts, "; "));
  }

  std::vector<std::unique_ptr<Slot>> slots_;
};

/// A path as a shell reads it.
std::string quoted(const fs::path& path) {
  constexpr auto kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:@%,";
  const auto text = path.string();
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

/// The command that goes on with a run.
std::string how_to_continue(const ExperimentEntry& entry, const fs::path& folder) {
  return fmt::format("gimli train {} --resume --out {}", entry.name, quoted(folder));
}

/// Draws what can be drawn; a failure is no more than a warning.
void draw(const fs::path& folder) {
  std::string reason = "gnuplot is not installed";
  if (can_plot()) {
    try {
      for (const auto& file : plot_run(folder)) fmt::print("{}\n", file.string());
      return;
    } catch (const c10::Error& error) {
      reason = error.what_without_backtrace();
    }
  }
  std::fflush(stdout);
  fmt::print(stderr, "gimli: warning: no plots: {}; later: gimli plot {}\n", reason, quoted(folder));
}

constexpr const char* kRunFiles[] = {"config.toml", "metrics.jsonl", "checkpoint.pt", "report.md",
                                     "report.json", "figures.json",  "training.png"};

/// Prints the report of what was learned up to `iteration` and, if there is a folder, writes it there. False if
/// interrupted.
bool write_report(Experiment& experiment, const fs::path& metrics, int64_t iteration,
                  const std::optional<fs::path>& folder) {
  auto lines = fs::exists(metrics) ? read_metrics(metrics) : std::vector<nlohmann::json>();
  std::erase_if(lines, [&](const auto& line) { return line["iteration"] > iteration; });
  const auto report = experiment.report(lines);
  if (!report) return false;
  fmt::print("\n{}\n", report->markdown);
  std::fflush(stdout);
  if (!folder) return true;
  write_file(*folder / "report.md", report->markdown);
  write_file(*folder / "report.json", report->numbers.dump(2) + "\n");
  write_figures(*folder / "figures.json", report->figures);
  return true;
}

// train

struct TrainFlags {
  std::string preset, config_file;
  bool resume = false, overwrite = false;
  SettingFlags settings;
};

bool holds_run(const fs::path& folder) {
  return fs::exists(folder / "checkpoint.pt") || fs::exists(folder / "metrics.jsonl");
}

/// A run to begin or to go on with.
struct Run {
  Config config;
  fs::path folder;
  std::unique_ptr<FolderLock> lock;
  std::optional<Checkpoint> checkpoint;
};

Run open_run(const ExperimentEntry& entry, const TrainFlags& flags) {
  const auto& schema = entry.schema;
  auto given = flags.settings.values();
  if (!flags.config_file.empty()) given = merge(read_config(schema, flags.config_file), given);
  if (!flags.preset.empty()) {
    const auto& preset = find_preset(entry.name, flags.preset);
    given = merge(parse_config(schema, preset.toml, "the preset " + preset.name), given);
  }
  TORCH_CHECK(!flags.resume || !flags.overwrite, "give --resume or --overwrite, not both");

  const Config asked(schema, given);
  fs::path folder = asked.text("out");
  if (folder.empty()) {
    folder = fs::path("runs") / (entry.name + "-" + (flags.preset.empty() ? asked.text("dataset") : flags.preset));
  }
  given["out"] = folder.string();
  if (!flags.resume) {
    Config config(schema, given);
    auto lock = std::make_unique<FolderLock>(folder);
    TORCH_CHECK(flags.overwrite || !holds_run(folder), folder.string(),
                " already holds a run; continue it with "
                "--resume, replace it with --overwrite, or choose another folder with --out");
    return {std::move(config), folder, std::move(lock), std::nullopt};
  }

  const auto file = folder / "checkpoint.pt";
  TORCH_CHECK(fs::exists(file), "there is nothing to resume in ", folder.string(), ": it has no checkpoint.pt");
  auto lock = std::make_unique<FolderLock>(folder);
  auto checkpoint = load_checkpoint(file);
  const auto& state = checkpoint.state;
  TORCH_CHECK(state.experiment == entry.name, file.string(), " is of the experiment ", state.experiment, ", not ",
              entry.name);
  const auto saved = parse_config(schema, state.configuration, file.string());
  check_same_results(schema, Config(schema, saved).values(), given, file.string());
  Config config(schema, merge(saved, given));
  return {std::move(config), folder, std::move(lock), std::move(checkpoint)};
}

int run_train(const ExperimentEntry& entry, const TrainFlags& flags) {
  const InterruptGuard guard;
  const auto run = open_run(entry, flags);
  const auto& config = run.config;
  const auto experiment = entry.make(config);
  const auto begun = run.checkpoint ? run.checkpoint->state.iteration : 0;
  TORCH_CHECK(experiment->iterations() >= begun, (run.folder / "checkpoint.pt").string(), " is already at iteration ",
              begun, ", beyond the ", experiment->iterations(), " that are asked for");
  if (!run.checkpoint) {
    for (const auto* name : kRunFiles) fs::remove(run.folder / name);
  }
  if (!config.flag("quiet")) {
    fmt::print(stderr, "{} on {}: {} iterations, {}, in {}\n", entry.name, config.text("dataset"),
               experiment->iterations(), begun > 0 ? fmt::format("from iteration {}", begun) : "from the start",
               run.folder.string());
  }
  write_file(run.folder / "config.toml", fmt::format("# gimli train {}\n{}", entry.name, config.toml()));
  const bool finished = train(*experiment, entry, config, run.folder, run.checkpoint) &&
                        write_report(*experiment, run.folder / "metrics.jsonl", experiment->iterations(), run.folder);
  if (!finished) {
    fmt::print(stderr, "gimli: interrupted, and saved; continue with: {}\n", how_to_continue(entry, run.folder));
    return kInterrupted;
  }
  draw(run.folder);
  return kDone;
}

// list

int run_list() {
  for (const auto& entry : experiments()) {
    fmt::print("gimli train {:<28} {}\n", entry.name, entry.summary);
    for (const auto& preset : presets()) {
      if (preset.experiment == entry.name) fmt::print("  --preset {:<29} {}\n", preset.name, preset.summary);
    }
  }
  return kDone;
}

// eval

struct EvalFlags {
  std::string checkpoint;
  std::string out;
  SettingFlags settings;
};

int run_eval(const EvalFlags& flags) {
  const InterruptGuard guard;
  const auto file = checkpoint_path(flags.checkpoint);
  const auto checkpoint = load_checkpoint(file);
  const auto& entry = find_experiment(checkpoint.state.experiment);
  const auto saved = parse_config(entry.schema, checkpoint.state.configuration, file.string());
  const Config config(entry.schema, merge(saved, flags.settings.values()));
  const auto experiment = entry.make(config);
  restore(checkpoint, experiment->state());
  std::optional<fs::path> folder;
  std::unique_ptr<FolderLock> lock;
  if (!flags.out.empty()) {
    folder = flags.out;
    TORCH_CHECK(!holds_run(*folder) || fs::equivalent(*folder, fs::absolute(file).parent_path()), folder->string(),
                " holds another run; choose another folder with --out");
    lock = std::make_unique<FolderLock>(*folder);
  }
  fmt::print("{}: {} on {}, after {} iterations\n", file.string(), entry.name, config.text("dataset"),
             checkpoint.state.iteration);
  const auto metrics = fs::absolute(file).parent_path() / "metrics.jsonl";
  if (!write_report(*experiment, metrics, checkpoint.state.iteration, folder)) return kInterrupted;
  if (folder) draw(*folder);
  return kDone;
}

// data check

int run_data_check(const std::string& dataset, const std::string& data_root) {
  if (dataset == "sinusoid") {
    fmt::print("sinusoid is drawn as it is needed: there is nothing to read.\n");
    return kDone;
  }
  const auto began = std::chrono::steady_clock::now();
  const auto images = data::load_omniglot(data::OmniglotOptions(data_root).cache(false));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  auto text = data::describe(data::summarize(images));
  if (!text.ends_with('\n')) text += '\n';
  fmt::print("{}read in {:.1f} s\n", text, seconds);
  return kDone;
}

// the command line

/// Shows a flag that can be taken back as --[no-]flag, and keeps lines within kHelpWidth.
class HelpFormatter final : public CLI::Formatter {
 public:
  std::string make_option_name(const CLI::Option* option, bool is_positional) const override {
    const auto name = CLI::Formatter::make_option_name(option, is_positional);
    const auto negation = name.find(",--no-");
    return negation == std::string::npos ? name : "--[no-]" + name.substr(2, negation - 2);
  }

  std::string make_option_desc(const CLI::Option* option) const override {
    return in_lines(CLI::Formatter::make_option_desc(option));
  }

  std::string make_subcommand(const CLI::App* command) const override {
    std::ostringstream text;
    CLI::detail::format_help(text, command->get_name(), in_lines(command->get_description()), column_width_);
    return text.str();
  }

 private:
  /// Broken between words to fit beside the first column.
  std::string in_lines(const std::string& text) const {
    std::istringstream words(text);
    std::string lines, word;
    size_t used = 0;
    while (words >> word) {
      const bool fits = used == 0 || used + 1 + word.size() <= kHelpWidth - column_width_;
      if (used > 0) lines += fits ? ' ' : '\n';
      used = (fits && used > 0 ? used + 1 : 0) + word.size();
      lines += word;
    }
    return lines;
  }
};

/// The words that call a command.
std::string path_of(const CLI::App& command) {
  const auto* parent = command.get_parent();
  return parent ? path_of(*parent) + " " + command.get_name() : command.get_name();
}

/// What is wrong, in terms of the flag: CLI11 speaks of types and overrides.
std::string describe(const CLI::ParseError& error) {
  const std::string said = error.what();
  const auto begin = std::min(said.find("--"), said.size());
  const auto flag = said.substr(begin, said.find_first_of(":,. ", begin) - begin);
  if (flag.empty()) return said;
  if (dynamic_cast<const CLI::ConversionError*>(&error)) return flag + " takes no value but true or false";
  if (!dynamic_cast<const CLI::ArgumentMismatch*>(&error)) return said;
  return flag + (said.find("required") != std::string::npos ? " needs a value" : " was given a value it does not take");
}

/// Refuses arguments that no command knows.
void check_no_extras(const CLI::App& command) {
  const auto extras = command.remaining();
  if (extras.empty()) return;
  std::vector<std::string> known;
  if (extras.front().starts_with("-")) {
    for (const auto* option : command.get_options()) {
      for (const auto& name : option->get_lnames()) known.push_back("--" + name);
    }
  } else {
    for (const auto* sub : command.get_subcommands([](const CLI::App*) { return true; })) {
      known.push_back(sub->get_name());
    }
  }
  const auto hint = suggestion(extras.front(), known);
  TORCH_CHECK(false, "'", extras.front(), "' is not known here", hint.empty() ? "." : hint, " See ", path_of(command),
              " --help");
}

int dispatch(int argc, char** argv) {
  CLI::App app("Generalized inner-loop meta-learning: trains, evaluates and plots.", "gimli");
  app.set_version_flag("--version", "gimli " GIMLI_VERSION);
  app.set_help_flag("-h,--help", "Print this help");
  app.formatter(std::make_shared<HelpFormatter>());
  app.get_formatter()->column_width(44);
  app.footer("Exit codes: 0 done; 2 a mistake in what was given; 130 interrupted, with the work saved.");
  std::function<int()> action;

  auto* train_command = app.add_subcommand("train", "Meta-train; continue a training");
  std::vector<std::unique_ptr<TrainFlags>> train_flags;
  for (const auto& entry : experiments()) {
    auto* flags = train_flags.emplace_back(std::make_unique<TrainFlags>()).get();
    auto* command = train_command->add_subcommand(entry.name, entry.summary);
    command
        ->add_option("--config", flags->config_file,
                     "TOML file with any of the settings below, as inner_lr for --inner-lr; flags win")
        ->type_name("FILE");
    command->add_option("--preset", flags->preset, "Settings by name, see gimli list; --config and flags win")
        ->type_name("NAME");
    command->add_flag("--resume", flags->resume,
                      "Continue the run in --out from its checkpoint, with the settings it was started with");
    command->add_flag("--overwrite", flags->overwrite, "Replace the run in --out");
    for (const auto& setting : entry.schema.settings) flags->settings.add(*command, entry.schema, setting);
    command->footer(
        "Written to --out: config.toml, metrics.jsonl, checkpoint.pt, report.md, report.json, figures.json,\n"
        "and pictures. Ctrl-C saves a checkpoint and stops; twice, it stops at once.");
    command->callback([&action, &entry, flags] { action = [&entry, flags] { return run_train(entry, *flags); }; });
  }

  auto* list_command = app.add_subcommand("list", "What can be trained, and the presets of each");
  list_command->callback([&] { action = run_list; });

  EvalFlags eval_flags;
  auto* eval_command = app.add_subcommand("eval", "Evaluate a checkpoint on held-out tasks");
  eval_command->add_option("--checkpoint", eval_flags.checkpoint, "A checkpoint, or the folder of a run")
      ->required()
      ->type_name("DIR|FILE");
  const auto& schema = experiments().front().schema;
  for (const auto* key : {"eval_tasks", "eval_steps", "threads", "data_root", "device", "quiet"}) {
    auto setting = *schema.find(key);
    setting.group = "Options";
    eval_flags.settings.add(*eval_command, schema, setting);
  }
  eval_command->add_option("--out", eval_flags.out, "Folder to write the evaluation to, besides printing it")
      ->type_name("DIR");
  eval_command->footer("What is not given is as in the checkpoint's run.");
  eval_command->callback([&] { action = [&] { return run_eval(eval_flags); }; });

  std::string plot_folder;
  auto* plot_command = app.add_subcommand("plot", "Draw the plots of a run again, from its files");
  plot_command->add_option("DIR", plot_folder, "The folder of a run")->required()->type_name("");
  plot_command->callback([&] {
    action = [&] {
      TORCH_CHECK(can_plot(), "plot needs gnuplot, which is not installed");
      for (const auto& file : plot_run(plot_folder)) fmt::print("{}\n", file.string());
      return kDone;
    };
  });

  auto* data_command = app.add_subcommand("data", "Look after data sets");
  auto* check_command = data_command->add_subcommand("check", "Read a data set and say what is in it");
  SettingFlags data_flags;
  for (const auto* key : {"dataset", "data_root"}) {
    auto setting = *schema.find(key);
    setting.group = "Options";
    data_flags.add(*check_command, schema, setting);
  }
  check_command->callback([&] {
    action = [&] {
      const Config config(schema, data_flags.values());
      return run_data_check(config.text("dataset"), config.has("data_root") ? config.text("data_root") : "");
    };
  });

  const std::vector<CLI::App*> commands = [&] {
    std::vector<CLI::App*> list{&app,         train_command, list_command, eval_command,
                                plot_command, data_command,  check_command};
    for (auto* command : train_command->get_subcommands([](const CLI::App*) { return true; })) list.push_back(command);
    return list;
  }();
  for (auto* command : commands) command->allow_extras();

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.help();
    return kDone;
  } catch (const CLI::CallForVersion& version) {
    std::cout << version.what() << '\n';
    return kDone;
  } catch (const CLI::ParseError& error) {
    for (const auto* command : commands) check_no_extras(*command);
    TORCH_CHECK(false, describe(error));
  }
  for (const auto* command : commands) check_no_extras(*command);
  if (action) return action();
  if (app.got_subcommand(train_command)) TORCH_CHECK(false, "train what? For example: gimli train maml");
  if (app.got_subcommand(data_command)) TORCH_CHECK(false, "data what? For example: gimli data check");
  std::cout << app.help();
  return kDone;
}

int fail(const std::string& reason) {
  std::fputs(("gimli: " + reason + '\n').c_str(), stderr);
  return kFailed;
}

}  // namespace

int run_command(int argc, char** argv) {
  at::set_num_threads(1);
  try {
    const int code = dispatch(argc, argv);
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
    return fail(fmt::format("cannot write to standard output: {}", std::strerror(errno)));
  } catch (const c10::Error& error) {
    return fail(error.what_without_backtrace());
  } catch (const fs::filesystem_error& error) {
    return fail(fmt::format("cannot use {}: {}", error.path1().string(), error.code().message()));
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}

}  // namespace gimli::app
