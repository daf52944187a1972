// Runs numbered cases, each in a process of its own, several at a time: what a case breaks, it breaks for itself.
//
// On real sockets and a real disk, a machine that stands still for a second fails a case whose time-outs are a second.
// With `slower` the few that have failed are played once more, one at a time and so many times as slow; one that fails
// again has failed.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace millrace::transcripts {

struct PoolOptions {
  unsigned jobs = 2;
  unsigned seconds = 120;  // a case that takes longer has failed; times its pace
  unsigned slower = 0;     // the pace of the second chance; 0: there is none
  bool verbose = false;    // what cases say is shown as they say it
};

struct CaseResult {
  bool passed = false;
  bool again = false;  // this is the second time
  double seconds = 0;
  std::string said;  // on standard output; with the end of its log, when it died
};

struct Case {
  size_t number;
  std::filesystem::path folder;  // the case's own, with "log" for what goes to standard error
  unsigned slot;                 // 0 to 199: given to no two cases at a time and not again soon
  unsigned pace;                 // what to multiply times by, those of time-outs and of judges
};

// `play` runs in the new process: 0 is success.
std::vector<CaseResult> run_cases(size_t count, const PoolOptions& options, const std::function<int(const Case&)>& play);

std::string text_of(const std::filesystem::path& path);
// Why a log is not clean; empty: it is. Nothing that a peer has said may stand there as it was sent.
std::string fault_of_log(const std::string& log);

}  // namespace millrace::transcripts
