// Runs transcripts (README.md), each scenario in a process of its own:
//
//   transcripts [--relay PROGRAM] [--jobs N] [--only TEXT] [--seed N] [--verbose] [--list] FILE...
//
// Without --relay in simulation, with it against that program, in a network namespace where 192.0.2.0/24,
// 198.51.0.0/16 and 203.0.113.0/24 are local (tests/system/transcripts.py). --only plays those whose file:name
// holds the text. A file may be a folder.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "player.h"
#include "pool.h"

namespace millrace::transcripts {
namespace {

struct Options {
  std::string relay, only;
  unsigned jobs = 2;
  uint64_t seed = 1;
  bool verbose = false, list = false;
  std::vector<std::string> files;
};

int play(const Scenario& scenario, const Options& options, const std::filesystem::path& folder, unsigned slot) {
  log::set_level(options.relay.empty() ? log::Level::debug : log::Level::warning);
  // Never destroyed: a scenario that has failed stops wherever it is.
  Stage* stage = options.relay.empty() ? make_sim_stage(options.seed).release()
                                       : make_real_stage(options.relay, folder.string(), slot).release();
  auto* player = new Player(*stage, scenario, options.verbose);
  try {
    player->play();
    std::string fault = fault_of_log(text_of(folder / "log"));
    if (!fault.empty()) throw Failure{scenario.line, fault};
    return 0;
  } catch (const Failure& failure) {
    fmt::print("{}:{}: {}\n", scenario.file, failure.line, failure.text);
    if (stage->relay_runs()) stage->kill_relay(false);
    return 1;
  }
}

// The result in the form of GoogleTest's, where GTEST_OUTPUT=xml:FILE asks for it: each scenario counts as a test.
void write_report(const std::vector<Scenario>& scenarios, const std::vector<CaseResult>& results, const std::vector<std::string>& left_out) {
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
                        clean(scenarios[i].name), results[i].passed ? "" : "<failure/>");
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
      for (Scenario& scenario : *parsed) {
        scenario.folder = std::filesystem::absolute(path).parent_path().string();
        scenarios.push_back(std::move(scenario));
      }
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

  auto began = std::chrono::steady_clock::now();
  std::vector<CaseResult> results = run_cases(
      scenarios.size(), {.jobs = options.jobs, .slower = options.relay.empty() ? 0u : 1u, .verbose = options.verbose},
      [&](const Case& one) { return play(scenarios[one.number], options, one.folder, one.slot); });
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  size_t failed = 0;
  std::vector<std::pair<double, size_t>> slowest;
  for (size_t i = 0; i < scenarios.size(); ++i) {
    slowest.emplace_back(results[i].seconds, i);
    if (results[i].passed) continue;
    ++failed;
    fmt::print("FAILED {}:{}: {}\n", scenarios[i].file, scenarios[i].line, scenarios[i].name);
    std::istringstream said(results[i].said);
    for (std::string line; std::getline(said, line);) fmt::print("  {}\n", line);
  }
  std::sort(slowest.rbegin(), slowest.rend());
  if (options.verbose || seconds > 20) {
    for (size_t i = 0; i < std::min<size_t>(5, slowest.size()); ++i) {
      fmt::print("slow: {:.1f} s {}: {}\n", slowest[i].first, scenarios[slowest[i].second].file, scenarios[slowest[i].second].name);
    }
  }
  fmt::print("{} transcripts {}: {} failed, {} of simulation only left out, {:.1f} s\n", scenarios.size(),
             options.relay.empty() ? "in simulation" : "against the program", failed, left_out.size(), seconds);
  write_report(scenarios, results, left_out);
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
