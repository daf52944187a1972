// Runs transcripts (README.md), each scenario in a process of its own:
//
//   transcripts [--relay PROGRAM] [--jobs N] [--only TEXT] [--seed N] [--verbose] [--list] FILE...
//
// Without --relay in simulation, with it against that program, in a network namespace where 192.0.2.0/24,
// 198.51.0.0/16 and 203.0.113.0/24 are local (tests/system/transcripts.py). --only plays those whose file:name
// holds the text. A file may be a folder.
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "base/log.h"
#include "player.h"

namespace millrace::transcripts {
namespace {

constexpr unsigned kScenarioSeconds = 120;
constexpr unsigned kSlots = 200;  // addresses of the real stage; more than jobs

struct Options {
  std::string relay, only;
  unsigned jobs = 2;
  uint64_t seed = 1;
  bool verbose = false, list = false;
  std::vector<std::string> files;
};

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Nothing a peer has said may stand in the log as it was sent (checklist row 26).
std::string fault_of_log(const std::string& log) {
  for (size_t i = 0; i < log.size(); ++i) {
    auto octet = static_cast<unsigned char>(log[i]);
    if ((octet < 0x20 && octet != '\n') || octet == 0x7f) return fmt::format("octet {} stands raw in the log", octet);
  }
  return {};
}

[[noreturn]] void play(const Scenario& scenario, const Options& options, const std::filesystem::path& folder, unsigned slot) {
  setpgid(0, 0);
  int log = open((folder / "log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  int said = open((folder / "said").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (!options.verbose) {
    dup2(log, STDERR_FILENO);
    dup2(said, STDOUT_FILENO);
  }
  signal(SIGPIPE, SIG_IGN);
  alarm(kScenarioSeconds);
  int result = 0;
  try {
    log::set_level(options.relay.empty() ? log::Level::debug : log::Level::warning);
    // Never destroyed: a scenario that has failed stops wherever it is.
    Stage* stage = options.relay.empty() ? make_sim_stage(options.seed).release()
                                         : make_real_stage(options.relay, folder.string(), slot).release();
    auto* player = new Player(*stage, scenario, options.verbose);
    try {
      player->play();
      std::string fault = fault_of_log(text_of(folder / "log"));
      if (!fault.empty()) throw Failure{scenario.line, fault};
    } catch (const Failure& failure) {
      fmt::print("{}:{}: {}\n", scenario.file, failure.line, failure.text);
      result = 1;
      if (stage->relay_runs()) stage->kill_relay(false);
    }
  } catch (const std::exception& problem) {
    fmt::print("{}:{}: {}\n", scenario.file, scenario.line, problem.what());
    result = 1;
  }
  std::fflush(stdout);
  _exit(result);
}

// The result in the form of GoogleTest's, where GTEST_OUTPUT=xml:FILE asks for it: each scenario counts as a test.
void write_report(const std::vector<Scenario>& scenarios, const std::vector<bool>& failed, const std::vector<std::string>& left_out) {
  const char* where = std::getenv("GTEST_OUTPUT");
  if (!where || std::strncmp(where, "xml:", 4) != 0) return;
  auto clean = [](const std::string& text) {
    std::string out;
    for (char c : text) out += std::strchr("<>&\"", c) ? "_" : std::string(1, c);
    return out;
  };
  std::ofstream file(where + 4);
  file << "<testsuites><testsuite name=\"transcripts\">\n";
  for (size_t i = 0; i < scenarios.size(); ++i) {
    file << fmt::format("<testcase classname=\"{}\" name=\"{}\" status=\"run\">{}</testcase>\n", clean(scenarios[i].file),
                        clean(scenarios[i].name), failed[i] ? "<failure/>" : "");
  }
  for (const std::string& name : left_out) {
    file << fmt::format("<testcase classname=\"sim only\" name=\"{}\" status=\"notrun\"/>\n", clean(name));
  }
  file << "</testsuite></testsuites>\n";
}

int run(const Options& options) {
  std::vector<Scenario> scenarios;
  for (const std::string& name : options.files) {
    std::vector<std::filesystem::path> paths;
    if (std::filesystem::is_directory(name)) {
      for (const auto& entry : std::filesystem::directory_iterator(name)) {
        if (entry.path().extension() == ".txt") paths.push_back(entry.path());
      }
      std::sort(paths.begin(), paths.end());
    } else {
      paths.emplace_back(name);
    }
    for (const std::filesystem::path& path : paths) {
      Result<std::vector<Scenario>> parsed = parse(text_of(path), path.filename().string());
      if (!parsed.ok()) {
        fmt::print("{}\n", parsed.error().text);
        return 2;
      }
      for (Scenario& scenario : *parsed) scenarios.push_back(std::move(scenario));
    }
  }
  if (options.list) {
    for (const Scenario& scenario : scenarios) {
      fmt::print("{}\t{}\t{}\t{}\n", scenario.file, scenario.name, fmt::join(scenario.rows, ","), scenario.sim_only.empty() ? "both" : "sim");
    }
    return 0;
  }
  std::erase_if(scenarios, [&](const Scenario& scenario) {
    return fmt::format("{}:{}", scenario.file, scenario.name).find(options.only) == std::string::npos;
  });
  std::vector<std::string> left_out;
  if (!options.relay.empty()) {
    for (const Scenario& scenario : scenarios) {
      if (!scenario.sim_only.empty()) left_out.push_back(scenario.name);
    }
    std::erase_if(scenarios, [](const Scenario& scenario) { return !scenario.sim_only.empty(); });
  }
  if (scenarios.empty()) {
    fmt::print("no scenario\n");
    return 2;
  }

  const char* temporary = std::getenv("TMPDIR");
  std::string scratch = std::string(temporary ? temporary : "/var/tmp") + "/millrace-transcripts-XXXXXX";
  if (!mkdtemp(scratch.data())) return 2;
  struct Running {
    size_t scenario;
    unsigned slot;
    std::chrono::steady_clock::time_point began;
  };
  std::map<pid_t, Running> running;
  std::vector<bool> slots(kSlots, false);
  unsigned slot = 0;
  std::vector<std::pair<double, size_t>> slowest;
  size_t next = 0, failed = 0;
  std::vector<bool> failures(scenarios.size(), false);
  auto began = std::chrono::steady_clock::now();
  auto seconds_since = [](std::chrono::steady_clock::time_point at) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - at).count();
  };
  std::fflush(stdout);
  while (next < scenarios.size() || !running.empty()) {
    if (next < scenarios.size() && running.size() < options.jobs) {
      // In turn: what a process leaves behind in the kernel takes a moment to go.
      while (slots[slot = (slot + 1) % kSlots]) {
      }
      std::filesystem::path folder = std::filesystem::path(scratch) / std::to_string(next);
      std::filesystem::create_directory(folder);
      std::fflush(stdout);
      pid_t child = fork();
      if (child == 0) play(scenarios[next], options, folder, slot);
      if (child < 0) return 2;
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
    kill(-child, SIGKILL);  // a relay that outlives its scenario
    slots[done.slot] = false;
    const Scenario& scenario = scenarios[done.scenario];
    slowest.emplace_back(seconds_since(done.began), done.scenario);
    std::filesystem::path folder = std::filesystem::path(scratch) / std::to_string(done.scenario);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      ++failed;
      failures[done.scenario] = true;
      fmt::print("FAILED {}:{}: {}\n", scenario.file, scenario.line, scenario.name);
      std::istringstream said(text_of(folder / "said"));
      for (std::string line; std::getline(said, line);) fmt::print("  {}\n", line);
      if (WIFSIGNALED(status)) {
        fmt::print("  {}\n", WTERMSIG(status) == SIGALRM ? fmt::format("not done in {} s", kScenarioSeconds) : strsignal(WTERMSIG(status)));
        std::istringstream log(text_of(folder / "log"));
        std::vector<std::string> lines;
        for (std::string line; std::getline(log, line);) lines.push_back(line);
        for (size_t i = lines.size() > 12 ? lines.size() - 12 : 0; i < lines.size(); ++i) fmt::print("  | {}\n", lines[i]);
      }
    }
    std::filesystem::remove_all(folder);
  }
  std::filesystem::remove_all(scratch);
  std::sort(slowest.rbegin(), slowest.rend());
  if (options.verbose || seconds_since(began) > 20) {
    for (size_t i = 0; i < std::min<size_t>(5, slowest.size()); ++i) {
      fmt::print("slow: {:.1f} s {}: {}\n", slowest[i].first, scenarios[slowest[i].second].file, scenarios[slowest[i].second].name);
    }
  }
  fmt::print("{} transcripts {}: {} failed, {} of simulation only left out, {:.1f} s\n", scenarios.size(),
             options.relay.empty() ? "in simulation" : "against the program", failed, left_out.size(), seconds_since(began));
  write_report(scenarios, failures, left_out);
  return failed > 0 ? 1 : 0;
}

int usage() {
  fmt::print(stderr, "usage: transcripts [--relay PROGRAM] [--jobs N] [--only TEXT] [--seed N] [--verbose] [--list] FILE...\n");
  return 2;
}

}  // namespace
}  // namespace millrace::transcripts

int main(int argc, char** argv) {
  using namespace millrace::transcripts;
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    bool more = i + 1 < argc;
    if (word == "--relay" && more) {
      options.relay = argv[++i];
    } else if (word == "--jobs" && more) {
      options.jobs = static_cast<unsigned>(std::clamp(std::atoi(argv[++i]), 1, 100));
    } else if (word == "--only" && more) {
      options.only = argv[++i];
    } else if (word == "--seed" && more) {
      options.seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (word == "--verbose") {
      options.verbose = true;
    } else if (word == "--list") {
      options.list = true;
    } else if (word.starts_with("--")) {
      return usage();
    } else {
      options.files.push_back(word);
    }
  }
  if (options.files.empty()) return usage();
  return run(options);
}
