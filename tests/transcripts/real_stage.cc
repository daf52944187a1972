// The real stage: the `millrace` program over the loopback of a network namespace, where the addresses of the
// stage are local (tests/system/transcripts.py sees to that). Time is real.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "name_server.h"
#include "reactor/uring.h"
#include "stage.h"

namespace millrace::transcripts {
namespace {

constexpr int64_t kSecond = 1'000'000'000, kMillisecond = 1'000'000;
constexpr uint16_t kNamePort = 5353;

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::unique_ptr<reactor::Io> make_io() {
  reactor::UringOptions options;
  options.submission_entries = 64;
  options.completion_entries = 512;
  options.control_bytes = 256 << 20;
  Result<std::unique_ptr<reactor::Io>> io = reactor::make_uring(options);
  if (!io.ok()) throw std::runtime_error(io.error().text);
  return std::move(*io);
}

class RealStage final : public Stage {
 public:
  RealStage(std::string program, std::string folder, unsigned slot)
      : program_(std::move(program)), folder_(std::move(folder)), slot_(slot), io_(make_io()),
        names_(*io_, *reactor::Address::parse(fmt::format("{}:{}", relay_address(), kNamePort))) {
    mkdir((folder_ + "/spool").c_str(), 0700);
  }
  ~RealStage() override {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
  }

  reactor::Io& io() override { return *io_; }
  reactor::Io& host_io(unsigned) override { return *io_; }
  bool simulated() const override { return false; }

  bool run_until(const std::function<bool()>& done, int64_t for_ns) override {
    int64_t deadline = clock_ns() + for_ns;
    while (!done()) {
      if (clock_ns() >= deadline) return false;
      io_->turn(2 * kMillisecond);
    }
    return true;
  }

  Status start_relay(const std::vector<std::string>& flags) override {
    std::string log = folder_ + "/log";
    size_t before = text_of(log).size();
    std::vector<std::string> all = with_defaults(
        flags, {"--spool", folder_ + "/spool", "--events", folder_ + "/events", "--dns-server",
                fmt::format("{}:{}", relay_address(), kNamePort), "--listen",
                fmt::format("{}:{}", relay_address(), kRelayPort), "--drain-timeout", "2s"});
    all.insert(all.begin(), program_);
    std::vector<char*> arguments;
    for (std::string& one : all) arguments.push_back(one.data());
    arguments.push_back(nullptr);
    process_ = fork();
    if (process_ == 0) {
      int file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      dup2(file, STDOUT_FILENO);
      dup2(file, STDERR_FILENO);
      signal(SIGPIPE, SIG_DFL);
      execv(program_.c_str(), arguments.data());
      _exit(127);
    }
    std::string said;
    bool served = run_until(
        [&] {
          said = text_of(log).substr(before);
          return said.find(" is ready; ") != said.npos || ended();
        },
        60 * kSecond);
    if (process_ <= 0) return fail(fmt::format("exit code {}: {}", exit_code_, said));
    if (!served) return fail("not ready within a minute");
    memory_at_start_ = resident();
    return success();
  }

  Status stop_relay() override {
    kill(process_, SIGTERM);
    if (!run_until([&] { return ended(); }, 60 * kSecond)) return fail("the relay does not stop within a minute");
    if (exit_code_ != 0) return fail(fmt::format("exit code {} after SIGTERM", exit_code_));
    return success();
  }

  void kill_relay(bool) override {
    kill(process_, SIGKILL);
    run_until([&] { return ended(); }, 60 * kSecond);
  }

  Status reload_relay(const std::vector<std::string>&) override { return fail("simulated only"); }
  bool relay_runs() const override { return process_ > 0; }

  const std::vector<std::string>& events() override {
    std::ifstream file(folder_ + "/events", std::ios::binary);
    file.seekg(static_cast<std::streamoff>(events_read_));
    std::string line;
    while (std::getline(file, line)) {
      if (file.eof()) break;  // still being written
      events_read_ += line.size() + 1;
      if (!line.empty()) events_.push_back(line);
    }
    return events_;
  }

  uint64_t memory_used() override {
    uint64_t now = resident();
    return now > memory_at_start_ ? now - memory_at_start_ : 0;
  }

  bool relay_is_connected_to(unsigned host) override {
    // Lines of /proc/net/tcp: number, local, remote address, state; addresses as the bytes lie in memory.
    auto hex = [](const std::string& address, uint16_t port) {
      unsigned a = 0, b = 0, c = 0, d = 0;
      std::sscanf(address.c_str(), "%u.%u.%u.%u", &a, &b, &c, &d);
      return fmt::format("{:02X}{:02X}{:02X}{:02X}:{:04X}", d, c, b, a, port);
    };
    const std::string remote = hex(host_address(host), kReceiverPort);
    std::istringstream lines(text_of("/proc/self/net/tcp"));
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string number, local, peer, state;
      words >> number >> local >> peer >> state;
      if (peer != remote) continue;
      if (state == "01" || state == "02" || state == "08") return true;  // established, connecting, closed by the peer
    }
    return false;
  }

  void add_mx(const std::string& domain, uint16_t preference, const std::string& host) override {
    names_.zones.add_mx(domain, preference, host);
  }
  void add_address(const std::string& name, const std::string& address) override {
    names_.zones.add_address(name, address);
  }
  void add_alias(const std::string& name, const std::string& target) override { names_.zones.add_alias(name, target); }
  void add_empty(const std::string& name) override { names_.zones.add_empty(name); }
  void remove_name(const std::string& name) override { names_.zones.remove(name); }
  void set_name_fault(const std::string& name, NameFault fault) override {
    names_.faults[dns::canonical_name(name)] = fault;
  }
  void set_name_outage(bool down) override { names_.outage = down; }

  void set_disk_full(bool) override { throw std::runtime_error("simulated only"); }
  void set_disk_errors(bool) override { throw std::runtime_error("simulated only"); }
  void step_clock(int64_t) override { throw std::runtime_error("simulated only"); }
  void set_silent(unsigned, bool) override { throw std::runtime_error("simulated only"); }

  std::string relay_address() const override { return fmt::format("192.0.2.{}", 1 + slot_); }
  std::string client_address(unsigned n) const override { return fmt::format("203.0.113.{}", n); }
  std::string host_address(unsigned n) const override { return fmt::format("198.51.{}.{}", slot_, n); }

 private:
  static int64_t clock_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  bool ended() {
    if (process_ <= 0) return true;
    int status = 0;
    if (waitpid(process_, &status, WNOHANG) != process_) return false;
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    process_ = 0;
    return true;
  }

  uint64_t resident() const {
    std::ifstream file(fmt::format("/proc/{}/statm", process_));
    uint64_t pages = 0, resident_pages = 0;
    file >> pages >> resident_pages;
    return resident_pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  }

  const std::string program_, folder_;
  const unsigned slot_;
  std::unique_ptr<reactor::Io> io_;
  NameServer names_;
  pid_t process_ = 0;
  int exit_code_ = 0;
  std::vector<std::string> events_;
  uint64_t events_read_ = 0;
  uint64_t memory_at_start_ = 0;
};

}  // namespace

std::unique_ptr<Stage> make_real_stage(const std::string& relay_program, const std::string& folder, unsigned slot) {
  return std::make_unique<RealStage>(relay_program, folder, slot);
}

}  // namespace millrace::transcripts
