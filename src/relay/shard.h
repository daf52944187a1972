// One core of the relay, wired top to bottom in flow order: what comes in, what stores it, what decides,
// what delivers, what reports. Everything here runs on the shard's own thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bounce/reports.h"
#include "config/config.h"
#include "delivery/agent.h"
#include "delivery/source_check.h"
#include "dns/cache.h"
#include "dns/mx.h"
#include "dns/resolver.h"
#include "events/log.h"
#include "ingress/acceptance.h"
#include "ingress/inject.h"
#include "ingress/listener.h"
#include "millrace/events.h"
#include "millrace/status.h"
#include "queue/scheduler.h"
#include "reactor/mailbox.h"
#include "spool/spool.h"

namespace millrace::relay {

// Hands each event to the events file and to the program's observers.
class EventTee final : public events::Sink {
 public:
  EventTee(std::string node, const std::vector<EventObserver>& observers) : node_(std::move(node)), observers_(observers) {}
  void set_file(events::ShardEvents* file) { file_ = file; }
  // Who counts what becomes of accounts' mail; `wall_ms` is the shard's clock.
  void set_accounts(ingress::Accounts* accounts, reactor::Io* io) { accounts_ = accounts, io_ = io; }
  bool wanted() const override { return file_ || accounts_ || !observers_.empty(); }
  bool behind() const override { return file_ && file_->behind(); }
  void emit(uint64_t sequence, const events::Event& event) override;

 private:
  const std::string node_;
  const std::vector<EventObserver>& observers_;
  events::ShardEvents* file_ = nullptr;
  ingress::Accounts* accounts_ = nullptr;  // while there are accounts
  reactor::Io* io_ = nullptr;
  std::string line_;
};

class Shard {
 public:
  struct Parts {
    reactor::Io& io;
    unsigned number = 0;
    unsigned shards = 1;
    config::Snapshot config;
    ingress::ConnectionLimits& limits;
    ingress::Accounts& accounts;
    ingress::Quotas& quotas;
    ingress::PasswordChecker& passwords;
    delivery::StsFetcher* policies;  // nullptr: none are fetched
    const std::vector<EventObserver>& observers;
    std::unique_ptr<dns::Transport> transport;
  };
  explicit Shard(Parts parts);
  ~Shard();
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  // Where its events go, when there is an events file. Before recovery.
  void set_events_file(std::unique_ptr<events::ShardEvents> file);
  // After recovery: builds what stands on the spool. Before any turn of the shard's own.
  void attach(std::unique_ptr<spool::Spool> spool);
  // After attach(): mail accepted from now on has ids of this time or later.
  void ids_not_before(int64_t ms) { context_->ids.not_before(ms); }
  Status listen(const std::vector<config::Listen>& where);
  // Mail may go. On the shard's own thread.
  void start();
  // `done` once nothing is under way: no transaction, no attempt, no outcome unrecorded.
  void drain(std::function<void()> done);
  // The drain has lasted long enough: transactions and connections end at once.
  void cut_short();
  // Ends what is left (resolver, connections); `done` when the shard may be destroyed.
  void close(std::function<void()> done);
  void adopt(config::Snapshot config);
  void add_status(RelayStatus& status) const;

  unsigned number() const { return number_; }
  reactor::Io& io() { return io_; }
  reactor::Mailbox& mailbox() { return mailbox_; }
  queue::Scheduler& scheduler() { return *scheduler_; }
  delivery::DeliveryAgent& delivery() { return *delivery_; }
  ingress::Injector& injector() { return *injector_; }
  ingress::SmtpListener& listener() { return *listener_; }
  const delivery::SourceCheck& sources() const { return *sources_; }
  dns::Cache& dns_cache() { return *cache_; }
  EventTee& events() { return tee_; }
  spool::Spool* spool() { return spool_.get(); }  // nullptr before attach()

 private:
  void report_drained();
  void count_accounts();
  void tell_source(const delivery::SourceCheck::Finding& finding);

  reactor::Io& io_;
  const unsigned number_;
  const unsigned shards_;
  config::Snapshot config_;
  ingress::ConnectionLimits& limits_;
  ingress::Accounts& accounts_;
  ingress::Quotas& quotas_;
  ingress::PasswordChecker& passwords_;
  reactor::Mailbox mailbox_;

  // In flow order.
  EventTee tee_;
  std::unique_ptr<events::ShardEvents> file_;
  std::unique_ptr<spool::Spool> spool_;
  std::unique_ptr<dns::Transport> transport_;
  std::unique_ptr<dns::Cache> cache_;
  std::unique_ptr<dns::Mx> mx_;
  std::unique_ptr<delivery::SourceCheck> sources_;
  std::unique_ptr<delivery::DeliveryAgent> delivery_;
  std::unique_ptr<queue::Scheduler> scheduler_;
  std::unique_ptr<ingress::Context> context_;
  std::unique_ptr<ingress::Acceptance> acceptance_;
  std::unique_ptr<ingress::Injector> injector_;
  std::unique_ptr<bounce::Reports> reports_;
  std::unique_ptr<ingress::SmtpListener> listener_;

  std::function<void()> drained_;
  bool intake_drained_ = false, queue_drained_ = false;
};

}  // namespace millrace::relay
