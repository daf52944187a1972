// Each call that the relay makes to the outside fails once, and from then on, with each error it can have: the first
// call of its kind, the second, and so on, until a run meets no fault. The run is small: a relay starts, takes six
// messages, delivers them, one of them at the second attempt, stops, and starts again. Where the fault keeps it from
// starting, it says why; the fault ends, and it starts again. In the end everything accepted has arrived, once.
//
// MILLRACE_TEST_LONG: every occurrence; otherwise, past the first 40 of a kind, every seventh.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "config/parse.h"
#include "dns/model.h"
#include "leave.h"
#include "ledger.h"
#include "mail/spool_id.h"
#include "reactor/sim.h"
#include "receiver.h"
#include "relay/core.h"
#include "sender.h"

namespace millrace::sim {
namespace {

using reactor::Address;
using reactor::Call;
using reactor::SingleFault;

constexpr int64_t kSecond = 1'000'000'000;

// What a failed assertion of the relay stands in.
std::string context;
void tell_context(int) {
  (void)!write(2, context.data(), context.size());
  signal(SIGABRT, SIG_DFL);
  abort();
}

std::vector<int> errors_of(Call call) {
  switch (call) {
    case Call::listen: return {EADDRINUSE, EACCES};
    case Call::local_address: return {ENOBUFS};
    case Call::peer_address: return {ENOTCONN};
    case Call::open_socket: return {EMFILE, ENOBUFS, EADDRNOTAVAIL};
    case Call::accept: return {EMFILE, ENFILE, ENOBUFS, ECONNABORTED};
    case Call::connect: return {ECONNREFUSED, ETIMEDOUT, ENETUNREACH, EADDRNOTAVAIL, EACCES};
    case Call::receive: return {ECONNRESET, ETIMEDOUT, ENOBUFS};
    case Call::send: return {ECONNRESET, EPIPE, ENOBUFS};
    case Call::allocate_buffer: return {ENOMEM};
    case Call::open_file: return {EMFILE, EIO, ENOSPC};
    case Call::file_size: return {EIO};
    case Call::allocate: return {ENOSPC, EIO};
    case Call::read: return {EIO};
    case Call::write: return {EIO, ENOSPC};
    case Call::sync: return {EIO};
    case Call::list_directory: return {EIO, EMFILE};
    case Call::make_directory: return {ENOSPC, EROFS};
    case Call::rename_file: return {EIO, ENOSPC};
    case Call::remove_file: return {EIO};
    case Call::sync_directory: return {EIO};
    case Call::lock_file: return {EWOULDBLOCK};
    case Call::free_space: return {EIO};
  }
  return {};
}

config::Snapshot settings() {
  auto parsed = config::parse({"--hostname", "relay.example", "--spool", "/spool", "--events", "/spool/events.json",
                               "--listen", "192.0.2.1:2525", "--relay-from", "192.0.2.0/24",
                               "--allow-private-destinations", "--shards", "1", "--memory", "64M",
                               "--segment-size", "1M", "--spool-reserve", "2M", "--max-message-size", "300000",
                               "--retry", "2s", "--retry-uncertain", "2s", "--hold", "1s", "--tls-ca-file", ""},
                              config::System{"relay.example", uint64_t{8} << 30});
  EXPECT_TRUE(parsed.ok()) << parsed.error().text;
  auto config = std::make_shared<config::Config>(*parsed->config);
  // Small enough that segments fill and are used again.
  config->segment_size = 256 << 10;
  config->spool_reserve = 256 << 10;
  config->max_message_size = 64 << 10;
  config->messages_per_connection = 2;
  config->command_timeout_ms = config->data_timeout_ms = 20'000;
  config->greeting_timeout_ms = config->mail_timeout_ms = config->rcpt_timeout_ms = config->data_done_timeout_ms = 20'000;
  return config;
}

class Scene {
 public:
  Scene() : world_(7, options()), relay_(world_.add_host({"192.0.2.1"})), near_(world_.add_host({"192.0.2.2"})),
            far_(world_.add_host({"198.51.100.1"})) {
    sender_io_ = world_.make_io(near_);
    receiver_io_ = world_.make_io(far_);
    zones_.add_mx("dest.example", 10, "mx.dest.example");
    zones_.add_address("mx.dest.example", "198.51.100.1");
    receiver_ = std::make_unique<Receiver>(*receiver_io_, 3, ReceiverBehaviour{});
    receiver_->on_message = [this](const ReceivedMessage& message) {
      for (const std::string& recipient : message.recipients) {
        ledger_.received(message.content, recipient, message.copy, message.at_ns);
      }
    };
    // One recipient is deferred the first time.
    receiver_->behaviour.on_recipient = [this](std::string_view recipient) {
      return recipient.starts_with("r3") && ++deferred_ == 1 ? std::string("451 4.2.1 later") : std::string();
    };
    EXPECT_TRUE(receiver_->listen(*Address::parse("198.51.100.1:25")).ok());
    SenderBehaviour sends;
    sends.attempts_most = 100'000;
    sends.retry_ns = kSecond / 2;
    sends.messages_per_connection = 4;
    sender_ = std::make_unique<Sender>(*sender_io_, *Address::parse("192.0.2.1:2525"), 5, ledger_, sends);
    for (uint64_t number = 1; number <= 6; ++number) {
      std::vector<std::string> to{fmt::format("r{}@dest.example", number)};
      if (number == 2) to.push_back("second@dest.example");
      sender_->add(number, "from@dest.example", to, numbered_message(number, number * 7'000));
    }
    EXPECT_TRUE(world_.disk(relay_).make_directory("/spool").ok() && world_.disk(relay_).sync_directory("/").ok());
  }
  // How often the fault struck.
  uint64_t run(const SingleFault& fault) {
    SingleFault here = fault;
    here.host = relay_;
    world_.set_single_fault(here);
    bool up = boot();
    sender_->start();
    world_.run_until([this] { return sender_->idle() && done(); }, world_.now() + 40 * kSecond);
    uint64_t struck = world_.single_faults();
    world_.set_single_fault(std::nullopt);
    if (!up) {
      EXPECT_FALSE(why_.empty()) << context << "it does not start and does not say why";
      if (core_) crash();
      EXPECT_TRUE(boot()) << context << "without the fault it does not start either: " << why_;
    }
    world_.run_until([this] { return sender_->idle() && done(); }, world_.now() + 3'600 * kSecond);
    EXPECT_TRUE(sender_->idle()) << context << "the sender is not done: " << sender_->last_refusal;
    EXPECT_TRUE(done()) << context << "the queue does not drain";
    // What has ended is not there again, whatever the fault has left on the disk.
    crash(reactor::Crash::power);
    EXPECT_TRUE(boot()) << context << "it does not start again: " << why_;
    world_.run_for(5 * kSecond);
    EXPECT_TRUE(done()) << context << "what has ended is in the queue again";
    stop();
    receiver_->close();
    world_.run_until([this] { return receiver_->closed(); }, world_.now() + 60 * kSecond);
    for (const std::string& violation : ledger_.violations(true)) ADD_FAILURE() << context << violation;
    return struck;
  }

 private:
  static reactor::SimOptions options() {
    reactor::SimOptions options;
    options.buffer_layout = reactor::BufferLayout::small;
    return options;
  }
  bool boot() {
    io_ = world_.make_io(relay_);
    relay::Core::Parts parts;
    parts.config = settings_;
    parts.ios.push_back(io_.get());
    parts.transports.push_back(std::make_unique<dns::ModelTransport>(*io_, zones_));
    core_ = std::make_unique<relay::Core>(std::move(parts));
    bool answered = false;
    why_.clear();
    core_->open([&](Status status) {
      answered = true;
      if (!status.ok()) why_ = status.error().text.empty() ? "no words" : status.error().text;
    });
    EXPECT_TRUE(world_.run_until([&] { return answered; }, world_.now() + 600 * kSecond)) << context << "no answer";
    if (!answered || !why_.empty()) return false;
    core_->start(0);
    return true;
  }
  void crash(reactor::Crash kind = reactor::Crash::process) {
    world_.crash(relay_, kind);
    if (kind == reactor::Crash::power) ledger_.crashed(world_.now(), kSecond / 2);
    (void)core_.release();  // a killed process destroys nothing
    (void)io_.release();
  }
  void stop() {
    bool stopped = false;
    core_->stop([&] { stopped = true; });
    EXPECT_TRUE(world_.run_until([&] { return stopped; }, world_.now() + 120 * kSecond)) << context << "it does not stop";
    if (!stopped) return crash();
    core_.reset();
    EXPECT_EQ(world_.open_handles(relay_), 0u) << context;
    io_.reset();
  }
  bool done() { return core_ && core_->shard(0).scheduler().stats().items == 0; }

  reactor::SimWorld world_;
  const reactor::HostId relay_, near_, far_;
  config::Snapshot settings_ = settings();
  dns::ModelZones zones_;
  Ledger ledger_;
  int deferred_ = 0;
  std::unique_ptr<reactor::Io> sender_io_, receiver_io_, io_;
  std::unique_ptr<Receiver> receiver_;
  std::unique_ptr<Sender> sender_;
  std::unique_ptr<relay::Core> core_;
  std::string why_;
};

enum Verdict : int { kNoFault = 0, kFailed = 1, kKept = 10 };

// In a process of its own: what is left of crashed relays goes with it, and a failed assertion ends only this run.
int verdict_of(const SingleFault& fault) {
  std::fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    uint64_t struck = (new Scene)->run(fault);
    leave(::testing::Test::HasFailure() ? kFailed : struck > 0 ? kKept : kNoFault);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return kFailed;
  return WEXITSTATUS(status);
}

class SingleFaults : public ::testing::TestWithParam<Call> {};

TEST_P(SingleFaults, EachOccurrenceOnceAndFromThenOn) {
  log::set_level(log::Level::error);
  signal(SIGABRT, tell_context);
  const Call call = GetParam();
  const bool all = std::getenv("MILLRACE_TEST_LONG") != nullptr;
  uint64_t runs = 0, most = 0;
  for (int error : errors_of(call)) {
    for (bool from_then_on : {false, true}) {
      for (uint64_t nth = 1;; nth += all || nth < 40 ? 1 : 7) {
        SingleFault fault;
        fault.call = call;
        fault.nth = nth;
        fault.error = error;
        fault.from_then_on = from_then_on;
        context = fmt::format("{} number {} fails with {}{}: ", to_string(call), nth, strerrorname_np(error),
                              from_then_on ? " from then on" : "");
        ++runs;
        int verdict = verdict_of(fault);
        ASSERT_TRUE(verdict == kKept || verdict == kNoFault) << context;
        if (verdict == kNoFault) break;
        most = std::max(most, nth);
      }
    }
  }
  fmt::print("{}: {} runs, up to occurrence {}\n", to_string(call), runs, most);
  // These are not made by this run.
  if (call != Call::remove_file) {
    EXPECT_GT(most, 0u);
  }
}

std::vector<Call> every_call() {
  std::vector<Call> calls;
  for (int i = 0; i < reactor::kCalls; ++i) calls.push_back(static_cast<Call>(i));
  return calls;
}
INSTANTIATE_TEST_SUITE_P(Calls, SingleFaults, ::testing::ValuesIn(every_call()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

}  // namespace
}  // namespace millrace::sim
