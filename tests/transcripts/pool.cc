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

[[noreturn]] void run_case(const Case& one, const PoolOptions& options, const std::function<int(const Case&)>& play) {
  setpgid(0, 0);
  int log = open((one.folder / "log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  int said = open((one.folder / "said").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (!options.verbose) {
    dup2(log, STDERR_FILENO);
    dup2(said, STDOUT_FILENO);
  }
  signal(SIGPIPE, SIG_IGN);
  alarm(options.seconds * one.pace);
  int result = 1;
  try {
    result = play(one);
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

std::vector<CaseResult> run_cases(size_t count, const PoolOptions& options, const std::function<int(const Case&)>& play) {
  const char* temporary = std::getenv("TMPDIR");
  std::string scratch = std::string(temporary ? temporary : "/var/tmp") + "/millrace-cases-XXXXXX";
  if (!mkdtemp(scratch.data())) throw std::runtime_error("no folder: " + scratch);
  struct Running {
    Case one;
    std::chrono::steady_clock::time_point began;
  };
  std::map<pid_t, Running> running;
  std::vector<bool> slots(kSlots, false);
  std::vector<CaseResult> results(count);
  unsigned slot = 0;

  auto begin = [&](size_t number, unsigned pace, bool again) {
    results[number].again = again;
    // In turn: what a process leaves behind in the kernel takes a moment to go.
    while (slots[slot = (slot + 1) % kSlots]) {
    }
    Case one{number, std::filesystem::path(scratch) / std::to_string(number), slot, pace};
    std::filesystem::create_directory(one.folder);
    std::fflush(stdout);
    pid_t child = fork();
    if (child == 0) run_case(one, options, play);
    if (child < 0) throw std::runtime_error("fork fails");
    slots[slot] = true;
    running.emplace(child, Running{std::move(one), std::chrono::steady_clock::now()});
  };
  auto await_one = [&] {
    int status = 0;
    pid_t child = waitpid(-1, &status, 0);
    auto found = running.find(child);
    if (found == running.end()) return;
    const Running done = std::move(found->second);
    running.erase(found);
    kill(-child, SIGKILL);  // a relay that outlives its case
    slots[done.one.slot] = false;
    CaseResult& result = results[done.one.number];
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - done.began).count();
    result.passed = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    result.said = text_of(done.one.folder / "said");
    if (WIFSIGNALED(status)) {
      result.said += WTERMSIG(status) == SIGALRM ? fmt::format("not done in {} s\n", options.seconds * done.one.pace)
                                                 : fmt::format("{}\n", strsignal(WTERMSIG(status)));
      std::istringstream log(text_of(done.one.folder / "log"));
      std::vector<std::string> lines;
      for (std::string line; std::getline(log, line);) lines.push_back(line);
      for (size_t i = lines.size() > kShownLogLines ? lines.size() - kShownLogLines : 0; i < lines.size(); ++i) {
        result.said += "| " + lines[i] + "\n";
      }
    }
    std::filesystem::remove_all(done.one.folder);
  };

  for (size_t next = 0; next < count || !running.empty();) {
    if (next < count && running.size() < options.jobs) {
      begin(next++, 1, false);
    } else {
      await_one();
    }
  }
  // When many fail it is not for the machine.
  auto failed = std::count_if(results.begin(), results.end(), [](const CaseResult& result) { return !result.passed; });
  const bool second_chance = options.slower > 0 && static_cast<size_t>(failed) <= std::max<size_t>(count / 20, 1);
  for (size_t number = 0; number < count && second_chance; ++number) {
    if (results[number].passed) continue;
    begin(number, options.slower, true);
    while (!running.empty()) await_one();
  }
  auto saved = std::count_if(results.begin(), results.end(), [&](const CaseResult& result) { return result.passed && result.again; });
  if (saved > 0) fmt::print("{} passed when played once more, alone and at {} times the pace\n", saved, options.slower);
  std::filesystem::remove_all(scratch);
  return results;
}

}  // namespace millrace::transcripts
