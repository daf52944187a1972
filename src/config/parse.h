// From the command line and the --config file to an immutable Config, checked whole. A flag
// overrides the file, the file the default; where each value came from is kept and shown by
// --check-config. Everything that is wrong is reported at once, each error on a line of its own
// that names the flag, or the file and line, and the remedy. Unknown flags and keys are errors.
//
// Also the reload: the same command line over the file as it is now; what cannot change while
// running is named and keeps its old value.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "config/config.h"

namespace millrace::config {

// What the defaults depend on besides the settings; tests make their own.
struct System {
  std::string hostname;  // gethostname
  uint64_t memory = 0;   // bytes, physical
  static System this_machine();
};

// Where a value came from.
struct Origin {
  enum class From : uint8_t { preset, derived, file, flag };
  From from = From::preset;
  unsigned line = 0;     // file: where; flag: the line of the file that it overrides, or 0
  std::string_view why;  // derived: from what
};

struct Invocation {
  enum class Action : uint8_t { run, help, version, check_config };
  Action action = Action::run;
  std::string output;           // what help, version and check_config print to standard output
  Snapshot config;              // run and check_config
  std::vector<Origin> origins;  // by index of schema()
  std::string config_file;      // empty: none
  std::vector<std::string> arguments;  // kept for reload
};

// An error is bad usage: print its text, exit with 2.
Result<Invocation> parse(int argc, const char* const* argv);
Result<Invocation> parse(const std::vector<std::string>& arguments, const System& system);

struct Reloaded {
  Invocation invocation;             // replaces the running one; its config is the new snapshot
  std::vector<std::string> changed;  // names of settings, for the log
  std::vector<std::string> needs_restart;  // changed in the file, but kept as they were
};
Result<Reloaded> reload(const Invocation& running, const System& system);

// The reference table of docs/configuration.md.
std::string reference_markdown();

}  // namespace millrace::config
