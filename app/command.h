#pragma once

namespace gimli::app {

/// What the command returns to the shell.
enum ExitCode : int {
  kDone = 0,
  kFailed = 2,        ///< the caller's mistake or bad input, said in one sentence on standard error
  kInterrupted = 130  ///< by SIGINT or SIGTERM, with the work saved
};

/// The command `gimli`.
int run_command(int argc, char** argv);

}  // namespace gimli::app
