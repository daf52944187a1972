// Runs numbered cases, each in a process of its own, several at a time: what a case breaks, it breaks for itself.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace millrace::transcripts {

struct PoolOptions {
  unsigned jobs = 2;
  unsigned seconds = 120;  // a case that takes longer has failed
  bool verbose = false;    // what cases say is shown as they say it
};

struct CaseResult {
  bool passed = false;
  double seconds = 0;
  std::string said;  // on standard output; with the end of its log, when it died
};

// `play` runs in the new process: 0 is success. `folder` is the case's own, with "log" for what goes to standard error;
// `slot`, 0 to 199, is given to no two cases at a time and not again soon.
std::vector<CaseResult> run_cases(size_t count, const PoolOptions& options,
                                  const std::function<int(size_t number, const std::filesystem::path& folder, unsigned slot)>& play);

std::string text_of(const std::filesystem::path& path);
// Why a log is not clean; empty: it is. Nothing that a peer has said may stand there as it was sent.
std::string fault_of_log(const std::string& log);

}  // namespace millrace::transcripts
