#include "pool.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace millrace::transcripts {
namespace {

constexpr unsigned kSlots = 200;
constexpr size_t kShownLogLines = 12;

[[noreturn]] void run_case(size_t number, const PoolOptions& options, const std::filesystem::path& folder, unsigned slot,
                           const std::function<int(size_t, const std::filesystem::path&, unsigned)>& play) {
  setpgid(0, 0);
  int log = open((folder / "log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  int said = open((folder / "said").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (!options.verbose) {
    dup2(log, STDERR_FILENO);
    dup2(said, STDOUT_FILENO);
  }
  signal(SIGPIPE, SIG_IGN);
  alarm(options.seconds);
  int result = 1;
  try {
    result = play(number, folder, slot);
  } catch (const std::exception& problem) {
    fmt::print("{}\n", problem.what());
  }
  std::fflush(stdout);
  _exit(result);
}

}  // namespace

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string fault_of_log(const std::string& log) {
  for (char c : log) {
    auto octet = static_cast<unsigned char>(c);
    if ((octet < 0x20 && octet != '\n') || octet == 0x7f) return fmt::format("octet {} stands raw in the log", octet);
  }
  return {};
}

std::vector<CaseResult> run_cases(size_t count, const PoolOptions& options,
                                  const std::function<int(size_t, const std::filesystem::path&, unsigned)>& play) {
  const char* temporary = std::getenv("TMPDIR");
  std::string scratch = std::string(temporary ? temporary : "/var/tmp") + "/millrace-cases-XXXXXX";
  if (!mkdtemp(scratch.data())) throw std::runtime_error("no folder: " + scratch);
  struct Running {
    size_t number;
    unsigned slot;
    std::chrono::steady_clock::time_point began;
  };
  std::map<pid_t, Running> running;
  std::vector<bool> slots(kSlots, false);
  std::vector<CaseResult> results(count);
  unsigned slot = 0;
  size_t next = 0;
  while (next < count || !running.empty()) {
    if (next < count && running.size() < options.jobs) {
      // In turn: what a process leaves behind in the kernel takes a moment to go.
      while (slots[slot = (slot + 1) % kSlots]) {
      }
      std::filesystem::path folder = std::filesystem::path(scratch) / std::to_string(next);
      std::filesystem::create_directory(folder);
      std::fflush(stdout);
      pid_t child = fork();
      if (child == 0) run_case(next, options, folder, slot, play);
      if (child < 0) throw std::runtime_error("fork fails");
      slots[slot] = true;
      running[child] = {next++, slot, std::chrono::steady_clock::now()};
      continue;
    }
    int status = 0;
    pid_t child = waitpid(-1, &status, 0);
    auto found = running.find(child);
    if (found == running.end()) continue;
    const Running done = found->second;
    running.erase(found);
    kill(-child, SIGKILL);  // a relay that outlives its case
    slots[done.slot] = false;
    CaseResult& result = results[done.number];
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - done.began).count();
    result.passed = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    std::filesystem::path folder = std::filesystem::path(scratch) / std::to_string(done.number);
    result.said = text_of(folder / "said");
    if (WIFSIGNALED(status)) {
      result.said += WTERMSIG(status) == SIGALRM ? fmt::format("not done in {} s\n", options.seconds)
                                                 : fmt::format("{}\n", strsignal(WTERMSIG(status)));
      std::istringstream log(text_of(folder / "log"));
      std::vector<std::string> lines;
      for (std::string line; std::getline(log, line);) lines.push_back(line);
      for (size_t i = lines.size() > kShownLogLines ? lines.size() - kShownLogLines : 0; i < lines.size(); ++i) {
        result.said += "| " + lines[i] + "\n";
      }
    }
    std::filesystem::remove_all(folder);
  }
  std::filesystem::remove_all(scratch);
  return results;
}

}  // namespace millrace::transcripts
