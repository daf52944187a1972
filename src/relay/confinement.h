// What the process gives up, so that whoever takes it over by a fault in a parser gains little: other files
// (Landlock), and system calls that no relay needs (seccomp). Rings are restricted where they are made
// (reactor/uring.cc). All of it holds for the rest of the process's life; docs/threat-model.md says what for.
//
// Limits: reading a file's name, size and times is not confined, nor are connections to anywhere.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "config/parse.h"

namespace millrace::relay {

// Directories, with all that is below them.
struct ReachableFiles {
  std::vector<std::string> read;   // or single files
  std::vector<std::string> write;  // read, write, make and remove
  std::vector<std::string> sync;   // opened as directories, to sync them, and no file in them
};

// The files that a reload reads again: configuration, certificates, keys.
std::vector<std::string> read_again(const config::Invocation& invocation);

// What a relay with these settings opens after its start: spool, log and socket directories, configuration,
// and what resolvers read. Files of the configuration count with their directory, since editors replace files.
ReachableFiles reachable_files(const config::Invocation& invocation);

// Forbids new privileges, and all files but those; a path that does not exist is passed over. For this
// thread and those it starts from now on, so: before any thread is started. `number` of the error is
// EOPNOTSUPP or ENOSYS where the kernel has no Landlock.
Status confine_files(const ReachableFiles& files);

// Forbids, for all threads, what is not needed once everything is set up: programs, debugging, mounts,
// namespaces, kernel modules, users, clocks, new rings, executable memory, new processes, exotic sockets.
// They fail with EPERM.
Status confine_system_calls();

}  // namespace millrace::relay
