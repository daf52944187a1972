// millrace::Relay: a Core on io_uring, one thread a shard.
#include "millrace/relay.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/log.h"
#include "base/out_of_memory.h"
#include "config/parse.h"
#include "millrace/version.h"
#include "reactor/uring.h"
#include "relay/core.h"
#include "relay/descriptors.h"
#include "relay/password_threads.h"
#include "relay/policy_fetcher.h"

namespace millrace {

const char* version() { return MILLRACE_VERSION; }

TlsStatus& TlsStatus::operator+=(const TlsStatus& part) {
  handshakes += part.handshakes;
  resumed += part.resumed;
  unverified += part.unverified;
  not_offered += part.not_offered;
  refused += part.refused;
  failed_plaintext += part.failed_plaintext;
  failed_no_common += part.failed_no_common;
  failed_certificate += part.failed_certificate;
  failed_alert += part.failed_alert;
  failed_protocol += part.failed_protocol;
  failed_ended += part.failed_ended;
  sessions_in_the_clear += part.sessions_in_the_clear;
  verified_dane += part.verified_dane;
  verified_mta_sts += part.verified_mta_sts;
  policies_fetched += part.policies_fetched;
  policies_no_host += part.policies_no_host;
  policies_too_many += part.policies_too_many;
  policies_no_https += part.policies_no_https;
  policies_malformed += part.policies_malformed;
  policies_kept = std::max(policies_kept, part.policies_kept);
  blocked += part.blocked;
  reports_sent += part.reports_sent;
  reports_given_up += part.reports_given_up;
  reports_mail_only += part.reports_mail_only;
  return *this;
}

AuthStatus& AuthStatus::operator+=(const AuthStatus& part) {
  succeeded += part.succeeded;
  failed += part.failed;
  shut_out += part.shut_out;
  busy += part.busy;
  mail_refused += part.mail_refused;
  return *this;
}

RelayStatus& RelayStatus::operator+=(const RelayStatus& part) {
  accepted += part.accepted;
  rejected += part.rejected;
  bytes_accepted += part.bytes_accepted;
  delivered += part.delivered;
  deferred += part.deferred;
  bounced += part.bounced;
  expired += part.expired;
  removed += part.removed;
  queued += part.queued;
  ready += part.ready;
  in_flight += part.in_flight;
  inbound_connections += part.inbound_connections;
  outbound_connections += part.outbound_connections;
  tls_in += part.tls_in;
  tls_out += part.tls_out;
  auth += part.auth;
  connects += part.connects;
  attempts += part.attempts;
  syncs += part.syncs;
  bytes_written += part.bytes_written;
  body_bytes += part.body_bytes;
  body_bytes_copied += part.body_bytes_copied;
  bodies_read_back += part.bodies_read_back;
  memory_buffers += part.memory_buffers;
  return *this;
}

namespace {

constexpr int64_t kLongestWait = 1'000'000'000;
constexpr size_t kPasswordsWaiting = 256;

// One value handed from a shard's thread to the caller's.
template <typename T>
class Handover {
 public:
  void put(T value) {
    std::lock_guard lock(mutex_);
    value_ = std::move(value);
    ready_ = true;
    changed_.notify_one();
  }
  T take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return ready_; });
    return std::move(value_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = false;
  T value_{};
};

// Without its threads there is no relay: too little memory, or too many processes.
template <typename Body>
void start_thread(std::vector<std::thread>& threads, Body body) {
  try {
    threads.emplace_back(std::move(body));
  } catch (const std::system_error& problem) {
    std::fprintf(stderr, "millrace: cannot start a thread: %s\n", problem.what());
    end_out_of_memory();
  }
}

}  // namespace

struct Relay::State {
  config::Invocation invocation;
  config::Snapshot config;
  std::vector<EventObserver> observers;
  std::vector<std::unique_ptr<reactor::Io>> ios;
  std::unique_ptr<relay::Core> core;
  std::vector<std::thread> threads;
  std::mutex ending;  // stop_now() comes at any time, also while `core` goes
  std::atomic<bool> turning{false};
  std::atomic<unsigned> next_shard{0};

  void adopt(config::Invocation parsed) {
    invocation = std::move(parsed);
    config = invocation.config;
    auto chosen = std::make_shared<config::Config>(*config);
    // One a core: on two cores, in four comparisons, two shards did 4 to 22 % more messages a second than one,
    // at 6 % less to 11 % more CPU each.
    if (chosen->shards == 0) chosen->shards = std::max(1u, std::thread::hardware_concurrency());
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
      relay::DescriptorSplit split = relay::split_descriptors(*chosen, limit.rlim_cur);
      chosen->max_connections = split.inbound;
      chosen->total_connections = split.outbound;
    }
    config = std::move(chosen);
  }
  void turn(unsigned shard) {
    while (turning.load(std::memory_order_acquire)) ios[shard]->turn(kLongestWait);
  }
  // Ends the loops and takes everything down, in the order in which it must go.
  void take_down() {
    turning.store(false, std::memory_order_release);
    for (auto& io : ios) io->wake();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
    std::lock_guard lock(ending);
    // What stop_now() still sent: nobody turns any more, so it is taken here.
    core->shard(0).mailbox().drain();
    core.reset();
    ios.clear();
  }
};

Relay::Relay() : state_(std::make_unique<State>()) {}

Relay::~Relay() { stop(); }

Problem Relay::configure(const std::vector<std::string>& arguments) {
  Result<config::Invocation> parsed = config::parse(arguments, config::System::this_machine());
  if (!parsed.ok()) return {parsed.error().text};
  state_->adopt(std::move(*parsed));
  return {};
}

void Relay::observe(EventObserver observer) { state_->observers.push_back(std::move(observer)); }

Problem Relay::start() {
  State& state = *state_;
  if (!state.config) return {"configure() comes before start()"};
  const config::Config& config = *state.config;
  Result<reactor::Features> features = reactor::parse_features(config.io_features);
  if (!features.ok()) return {features.error().text};
  reactor::UringOptions options;
  options.features = *features;
  // Half of --memory is buffers (the rest is what is queued, and room): most of it for mail coming in.
  uint64_t share = config.memory / 2 / config.shards;
  options.ingress_bytes = share / 8 * 5;
  options.delivery_bytes = share / 8;
  options.spool_bytes = share / 8;
  options.control_bytes = share / 16;
  for (unsigned shard = 0; shard < config.shards; ++shard) {
    Result<std::unique_ptr<reactor::Io>> io = reactor::make_uring(options);
    if (!io.ok()) {
      state.ios.clear();
      return {io.error().text};
    }
    state.ios.push_back(std::move(*io));
  }
  relay::Core::Parts parts;
  for (auto& io : state.ios) parts.ios.push_back(io.get());
  parts.config = state.config;
  parts.observers = state.observers;
  // Half of the cores at most: mail goes on while passwords are guessed. What waits longer than some seconds has
  // given up anyway.
  parts.passwords = std::make_unique<relay::PasswordThreads>(std::clamp(std::thread::hardware_concurrency() / 2, 1u, 8u), kPasswordsWaiting);
  parts.policies = std::make_unique<relay::PolicyFetcher>();
  dns::AresOptions dns{config.dns_servers, config.dns_timeout_ms, config.dnssec_resolvers};
  for (auto& io : state.ios) {
    Result<std::unique_ptr<dns::Transport>> transport = dns::make_ares_transport(*io, dns);
    if (!transport.ok()) {
      parts.transports.clear();  // they stand on the Ios
      state.ios.clear();
      return {transport.error().text};
    }
    parts.transports.push_back(std::move(*transport));
  }
  state.core = std::make_unique<relay::Core>(std::move(parts));
  state.turning = true;
  Handover<Problem> opened;
  start_thread(state.threads, [&state, &opened] {
    state.core->open([&](Status status) {
      if (status.ok()) state.core->start(0);
      opened.put(status.ok() ? Problem{} : Problem{status.error().text});
    });
    state.turn(0);
  });
  Problem problem = opened.take();
  for (unsigned shard = 1; shard < config.shards; ++shard) {
    start_thread(state.threads, [&state, shard, start = !problem] {
      if (start) state.core->start(shard);
      state.turn(shard);
    });
  }
  if (problem) stop();  // what was opened until then
  return problem;
}

std::string Relay::listen_address(unsigned n) const {
  return state_->core->shard(0).listener().address(n).to_string();
}

void Relay::inject(Message message, std::function<void(const Injected&)> done) {
  State& state = *state_;
  unsigned number = state.next_shard.fetch_add(1, std::memory_order_relaxed) % state.core->shards();
  relay::Shard* shard = &state.core->shard(number);
  struct Job {
    Message message;
    ingress::Injection injection;
    std::function<void(const Injected&)> done;
  };
  auto* job = new Job{std::move(message), {}, std::move(done)};
  relay::Call::post(shard->mailbox(), [shard, job] {
    mail::Envelope& envelope = job->injection.envelope;
    envelope.reverse_path = job->message.reverse_path;
    envelope.smtputf8 = job->message.smtputf8;
    for (const std::string& address : job->message.recipients) envelope.recipients.push_back({address, {}, {}, 0});
    job->injection.content = job->message.content;
    job->injection.owner = job;
    job->injection.done = [](void* self, ingress::Injection& injection) {
      std::unique_ptr<Job> owned(static_cast<Job*>(self));
      Injected answer;
      answer.code = injection.code;
      answer.text = injection.text;
      if (injection.accepted()) answer.id = injection.id.to_string();
      owned->done(answer);
    };
    shard->injector().inject(job->injection);
  });
}

RelayStatus Relay::status() const {
  Handover<RelayStatus> answer;
  relay::Core& core = *state_->core;
  relay::Call::post(core.shard(0).mailbox(), [&] { core.control().status([&](RelayStatus status) { answer.put(status); }); });
  return answer.take();
}

Problem Relay::reload() {
  State& state = *state_;
  Result<config::Reloaded> reloaded = config::reload(state.invocation, config::System::this_machine());
  relay::Core& core = *state.core;
  relay::Call::post(core.shard(0).mailbox(), [&core] { core.reopen_events(); });
  if (!reloaded.ok()) return {reloaded.error().text};
  for (const std::string& name : reloaded->needs_restart) {
    log::warning("reload: {} has changed, but only a restart changes it", name);
  }
  for (const std::string& name : reloaded->changed) log::info("reload: {} has changed", name);
  state.adopt(std::move(reloaded->invocation));
  relay::Call::post(core.shard(0).mailbox(), [&core, config = state.config] { core.adopt(config); });
  return {};
}

void Relay::stop() {
  State& state = *state_;
  if (!state.core) return;
  Handover<bool> stopped;
  relay::Call::post(state.core->shard(0).mailbox(), [&] { state.core->stop([&] { stopped.put(true); }); });
  stopped.take();
  state.take_down();
}

void Relay::stop_now() {
  std::lock_guard lock(state_->ending);
  relay::Core* core = state_->core.get();
  if (!core) return;  // stopped already
  relay::Call::post(core->shard(0).mailbox(), [core] { core->stop_now(); });
}

}  // namespace millrace
