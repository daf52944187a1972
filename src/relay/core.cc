#include "relay/core.h"

#include <fmt/format.h>

#include <utility>

#include "base/log.h"
#include "events/event.h"
#include "queue/state.h"

namespace millrace::relay {

// Gives each message found to its home for this run, events to the first shard's log, state to whom it
// belongs.
class Core::Recovery final : public spool::RecoveryHandler {
 public:
  explicit Recovery(Core& core) : core_(core) {}

  void on_message(const spool::Recovered& message) override {
    size_t home = mail::SpoolIdHash()(message.id) % core_.shards_.size();
    core_.shards_[home]->scheduler().recover(message);
  }
  void on_event(uint64_t sequence, std::string_view bytes) override {
    std::string_view one;
    while (queue::take_event_bytes(bytes, one)) {
      Result<events::Event> event = events::decode(one);
      if (event.ok()) {
        core_.shards_[0]->events().emit(sequence, *event);
      } else {
        log::error("event of record {}: {}", sequence, event.error().text);
      }
    }
  }
  void on_state(std::string_view key, std::string_view value) override { core_.control_->on_state(key, value); }

 private:
  Core& core_;
};

Core::Core(Parts parts) : config_(std::move(parts.config)), observers_(std::move(parts.observers)), passwords_(std::move(parts.passwords)), policies_(std::move(parts.policies)) {
  if (!passwords_) passwords_ = std::make_unique<ingress::InlineChecker>();
  unsigned count = static_cast<unsigned>(parts.ios.size());
  for (unsigned number = 0; number < count; ++number) {
    reactor::Io& io = *parts.ios[number];
    shards_.push_back(std::make_unique<Shard>(
        Shard::Parts{io, number, count, config_, limits_, accounts_, quotas_, *passwords_, policies_.get(), observers_,
                     std::move(parts.transports[number])}));
  }
  control_ = std::make_unique<Control>(shards_, accounts_, quotas_, policies_.get());
  control_->configure(*config_);
  accounts_.on_changed = [this](const std::string& account) {
    Call::post(shards_[0]->mailbox(), [this, account] { control_->write_account(account); });
  };
  quotas_.on_changed = [this](const std::string& tenant) {
    Call::post(shards_[0]->mailbox(), [this, tenant] { control_->write_quota(tenant); });
  };
  accounts_.on_suspicious = [this](const std::string& account, const std::string& why) {
    Call::post(shards_[0]->mailbox(), [this, account, why] { control_->freeze_by_itself(account, why); });
  };
  for (auto& shard : shards_) {
    shard->delivery().on_tls_news = [this](uint64_t site, int64_t wall_ms) {
      Call::post(shards_[0]->mailbox(), [this, site, wall_ms] { control_->learn_tls(site, wall_ms); });
    };
    shard->delivery().sts_policies().on_news = [this](const std::string& domain, const delivery::StsPolicy& policy) {
      Call::post(shards_[0]->mailbox(), [this, domain, policy] { control_->learn_policy(domain, policy); });
    };
  }
  drain_timer_.bind<&Core::stop_now>(this);
}

Core::~Core() = default;

void Core::open(std::function<void(Status)> done) {
  reactor::spawn(open_spool(), [this, done = std::move(done)](Status status) {
    if (status.ok()) status = open_rest();
    done(std::move(status));
  });
}

reactor::Task<Status> Core::open_spool() {
  Shard& home = *shards_[0];
  Result<std::unique_ptr<spool::Directory>> opened =
      co_await spool::Directory::open(home.io(), home.mailbox(), *config_);
  if (!opened.ok()) co_return fail(opened.error());
  directory_ = std::move(*opened);
  if (!config_->events.empty()) {
    event_log_ = std::make_unique<events::EventLog>(
        home.io(), events::EventLogOptions{.path = config_->events, .node = config_->hostname, .max_size = config_->events_max_size});
    event_log_->on_emitted = [this](uint64_t sequence) {
      if (spool::Spool* spool = shards_[0]->spool()) spool->events_emitted(sequence);
    };
    Status status = event_log_->open();
    if (!status.ok()) {
      event_log_.reset();
      co_return status;
    }
  }
  if (event_log_) {
    for (auto& shard : shards_) {
      shard->set_events_file(
          std::make_unique<events::ShardEvents>(shard->io(), shard->mailbox(), *event_log_, home.mailbox()));
    }
  }
  Recovery handler(*this);
  Result<spool::RecoverySummary> recovered = co_await directory_->recover(handler);
  if (!recovered.ok()) co_return fail(recovered.error());
  recovery_ = std::move(*recovered);
  for (auto& shard : shards_) shard->attach(directory_->shard(shard->io(), shard->mailbox()));
  attached_ = true;
  co_return success();
}

Status Core::open_rest() {
  std::vector<queue::Scheduler::Peer> peers;
  for (auto& shard : shards_) peers.push_back({&shard->scheduler(), &shard->mailbox()});
  for (auto& shard : shards_) shard->scheduler().set_peers(peers);
  control_->apply_recovered();
  control_->reporter().set_spool(fmt::format("{:016x}", spool::uuid_part(directory_->uuid())));
  control_->reporter().start();
  if (config_->accounts) control_->accounts_configured();
  std::vector<config::Listen> listen = config::listeners(*config_);
  for (auto& shard : shards_) {
    Status status = shard->listen(listen);
    if (!status.ok()) return status;
    // Where port 0 was asked for, all shards listen on the port that the first was given.
    for (size_t n = 0; n < listen.size(); ++n) listen[n].address = shard->listener().address(n);
  }
  admin_ = std::make_unique<admin::Server>(shards_[0]->io(), *control_, config_->hostname);
  Status status = admin_->open(config_->admin_socket);
  if (!status.ok()) admin_.reset();
  return status;
}

void Core::start(unsigned shard) { shards_[shard]->start(); }

void Core::on_every_shard(std::function<void(Shard&, std::function<void()>)> each, std::function<void()> done) {
  auto left = std::make_shared<size_t>(shards_.size());
  Shard* home = shards_[0].get();
  auto answered = [left, done = std::move(done)] {
    if (--*left == 0) done();
  };
  for (auto& shard : shards_) {
    Call::post(shard->mailbox(), [each, home, answered, at = shard.get()] {
      each(*at, [home, answered] { Call::post(home->mailbox(), answered); });
    });
  }
}

void Core::drain(std::function<void()> done) {
  drain_ = Drain::under_way;
  reactor::Io& io = shards_[0]->io();
  io.timers().arm(drain_timer_, io.now() + config_->drain_timeout_ms * 1'000'000);
  on_every_shard([](Shard& shard, std::function<void()> drained) { shard.drain(std::move(drained)); },
                 [this, done = std::move(done)] {
                   drain_ = Drain::done;
                   drain_timer_.cancel();
                   // No session is left: what is still being checked comes back to nobody.
                   passwords_->stop();
                   if (policies_) policies_->stop();
                   after_drain_ = done;
                   control_->reporter().stop([this] { end_drain(); });
                 });
  if (cut_short_) cut_short();
}

void Core::stop(std::function<void()> done) {
  auto close_shards = [this, done = std::move(done)] {
    on_every_shard([](Shard& shard, std::function<void()> closed) { shard.close(std::move(closed)); }, done);
  };
  auto close_admin = [this, close_shards] {
    if (!admin_) return close_shards();
    admin_->close(close_shards);
  };
  auto close_spool = [this, close_admin] {
    if (!directory_) return close_admin();
    reactor::spawn(directory_->close(), [close_admin](Status status) {
      if (!status.ok()) log::error("closing the spool: {}", status.error().text);
      close_admin();
    });
  };
  auto close_events = [this, close_spool] {
    if (!event_log_) return close_spool();
    event_log_->close(close_spool);
  };
  if (!attached_) return close_events();
  drain(close_events);
}

void Core::stop_now() {
  cut_short_ = true;
  if (drain_ == Drain::under_way) return cut_short();
  if (drain_ == Drain::done) end_drain();
}

// Once: the last counts are gathered, or a second stop does not wait for them.
void Core::end_drain() {
  if (after_drain_) std::exchange(after_drain_, nullptr)();
}

void Core::cut_short() {
  drain_timer_.cancel();
  for (auto& shard : shards_) {
    Call::post(shard->mailbox(), [at = shard.get()] { at->cut_short(); });
  }
}

void Core::adopt(config::Snapshot config) {
  config_ = config;
  control_->configure(*config_);
  if (config_->accounts && attached_) control_->accounts_configured();
  for (auto& shard : shards_) {
    Call::post(shard->mailbox(), [at = shard.get(), config] { at->adopt(config); });
  }
}

void Core::reopen_events() {
  if (event_log_) event_log_->reopen();
}

}  // namespace millrace::relay
