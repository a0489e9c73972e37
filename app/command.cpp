#include "app/command.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <sstream>

#include "app/ablation.h"
#include "app/data_check.h"
#include "app/file.h"
#include "app/gnuplot.h"
#include "app/interrupt.h"
#include "app/plot.h"
#include "app/preset.h"
#include "app/run.h"
#include "app/setting_flags.h"

namespace gimli::app {
namespace {

namespace fs = std::filesystem;

// train

struct TrainFlags {
  std::string preset, config_file;
  bool resume = false, overwrite = false;
  SettingFlags settings;
};

/// A run to begin or to go on with.
struct Run {
  Config config;
  fs::path folder;
  std::unique_ptr<FolderLock> lock;
  std::optional<Checkpoint> checkpoint;
};

/// A preset below a file below flags.
Values given_settings(const std::string& experiment, const Schema& schema, const std::string& preset,
                      const std::string& config_file, const SettingFlags& flags) {
  Values given;
  if (!preset.empty()) given = parse_config(schema, find_preset(experiment, preset).toml, "the preset " + preset);
  if (!config_file.empty()) given = merge(std::move(given), read_config(schema, config_file));
  return merge(std::move(given), flags.values());
}

Run open_run(const ExperimentEntry& entry, const TrainFlags& flags) {
  const auto& schema = entry.schema;
  auto given = given_settings(entry.name, schema, flags.preset, flags.config_file, flags.settings);
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
  if (run_training(entry, run.config, run.folder, run.checkpoint)) return kDone;
  fmt::print(stderr, "gimli: interrupted, and saved; continue with: gimli train {} --resume --out {}\n", entry.name,
             quoted(run.folder));
  return kInterrupted;
}

// ablate

struct AblateFlags {
  std::string preset, config_file;
  SettingFlags settings;
};

int run_ablate(const AblateFlags& flags) {
  const InterruptGuard guard;
  const auto& schema = ablation_schema();
  const auto given = given_settings("ablation", schema, flags.preset, flags.config_file, flags.settings);
  Config config(schema, given);
  fs::path folder = config.text("out");
  if (folder.empty())
    folder = fs::path("runs") / ("ablation-" + (flags.preset.empty() ? config.text("dataset") : flags.preset));
  const FolderLock lock(folder);
  if (ablate(config, folder)) return kDone;
  fmt::print(stderr, "gimli: interrupted, and saved; the same command goes on where it stopped\n");
  return kInterrupted;
}

// list

int run_list() {
  const auto print = [](const std::string& command, const std::string& experiment, const std::string& summary) {
    fmt::print("gimli {:<34} {}\n", command, summary);
    for (const auto& preset : presets()) {
      if (preset.experiment == experiment) fmt::print("  --preset {:<29} {}\n", preset.name, preset.summary);
    }
  };
  for (const auto& entry : experiments()) print("train " + entry.name, entry.name, entry.summary);
  print("ablate maml++", "ablation", kAblationSummary);
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
  const auto given = flags.settings.values();
  for (const auto& [key, value] : given) {
    TORCH_CHECK(entry.schema.find(key), flag_of(key), " has no meaning for ", file.string(), ", which is of ",
                entry.name);
  }
  const Config config(entry.schema, merge(saved, given));
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
  return report_run(*experiment, metrics, checkpoint.state.iteration, folder) ? kDone : kInterrupted;
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

/// The flags that name many settings at once.
void add_sources(CLI::App& command, std::string& preset, std::string& config_file) {
  command
      .add_option("--config", config_file,
                  "TOML file with any of the settings below, as inner_lr for --inner-lr; flags win")
      ->type_name("FILE");
  command.add_option("--preset", preset, "Settings by name, see gimli list; --config and flags win")->type_name("NAME");
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
    add_sources(*command, flags->preset, flags->config_file);
    command->add_flag("--resume", flags->resume,
                      "Continue the run in --out from its checkpoint, with the settings it was started with");
    command->add_flag("--overwrite", flags->overwrite, "Replace the run in --out");
    for (const auto& setting : entry.schema.settings) flags->settings.add(*command, entry.schema, setting);
    command->footer(
        "Written to --out: config.toml, metrics.jsonl, checkpoint.pt, report.md, report.json, figures.json,\n"
        "and pictures. Ctrl-C saves a checkpoint and stops; twice, it stops at once.");
    command->callback([&action, &entry, flags] { action = [&entry, flags] { return run_train(entry, *flags); }; });
  }

  AblateFlags ablate_flags;
  auto* ablate_command = app.add_subcommand("ablate", "Train a grid of networks, inner optimizers and tasks");
  auto* ablate_maml = ablate_command->add_subcommand("maml++", kAblationSummary);
  add_sources(*ablate_maml, ablate_flags.preset, ablate_flags.config_file);
  for (const auto& setting : ablation_schema().settings) {
    ablate_flags.settings.add(*ablate_maml, ablation_schema(), setting);
  }
  ablate_maml->footer(
      "Each row of the table is a run, in a folder of its own in --out. Ctrl-C saves and stops; the same\n"
      "command goes on where it stopped.");
  ablate_maml->callback([&] { action = [&] { return run_ablate(ablate_flags); }; });

  auto* list_command = app.add_subcommand("list", "What can be trained, and the presets of each");
  list_command->callback([&] { action = run_list; });

  EvalFlags eval_flags;
  auto* eval_command = app.add_subcommand("eval", "Evaluate a checkpoint on held-out tasks");
  eval_command->add_option("--checkpoint", eval_flags.checkpoint, "A checkpoint, or the folder of a run")
      ->required()
      ->type_name("DIR|FILE");
  const auto& schema = find_experiment("maml").schema;
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
  std::string dataset, data_root = "data";
  std::vector<std::string> names;
  for (const auto& row : checked_datasets()) names.push_back(row.name);
  check_command->add_option("dataset,--dataset", dataset, "The data set")
      ->required()
      ->type_name(fmt::format("{}", fmt::join(names, "|")));
  check_command
      ->add_option("--data-root", data_root, "Folder with the data set, or with a folder of its name that has it")
      ->type_name("DIR")
      ->capture_default_str();
  check_command->callback([&] {
    action = [&] {
      fmt::print("{}", check_dataset(dataset, data_root));
      return kDone;
    };
  });

  const std::vector<CLI::App*> commands = [&] {
    std::vector<CLI::App*> list{&app,         train_command, ablate_command, ablate_maml,  list_command,
                                eval_command, plot_command,  data_command,   check_command};
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
  if (app.got_subcommand(ablate_command)) TORCH_CHECK(false, "ablate what? For example: gimli ablate maml++");
  if (app.got_subcommand(data_command)) TORCH_CHECK(false, "data what? For example: gimli data check omniglot");
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
