// All shards of one relay, on the Ios it is given: io_uring and a thread each in production (relay.cc),
// simulated ones in tests. Owns the spool directory, the events file and the operator's control, which
// live on shard 0.
//
// Order of life: open() on shard 0, before any other shard turns; then start() on each shard, unless it
// failed; then stop(), in either case, with every shard turning; then the Core is destroyed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "admin/server.h"
#include "relay/call.h"
#include "relay/control.h"
#include "relay/shard.h"
#include "spool/directory.h"

namespace millrace::relay {

class Core {
 public:
  struct Parts {
    std::vector<reactor::Io*> ios;  // one a shard; outlive the Core
    config::Snapshot config;
    std::vector<EventObserver> observers;
    // The resolver below cache and MX logic, one a shard: c-ares, or the simulation's model.
    std::vector<std::unique_ptr<dns::Transport>> transports;
    // Where passwords are checked; without it, on the shard that asks.
    std::unique_ptr<ingress::PasswordChecker> passwords;
    // What fetches MTA-STS policies; without it none are.
    std::unique_ptr<delivery::StsFetcher> policies;
  };
  explicit Core(Parts parts);
  ~Core();

  // On shard 0: locks and recovers the spool, opens the events file, binds every listener and the admin
  // socket. `done` comes from a turn of shard 0.
  void open(std::function<void(Status)> done);
  // On the shard's own thread, after open() is done.
  void start(unsigned shard);
  // On shard 0: drains every shard, closes what open() came to open; `done` when the threads may stop
  // turning. Every shard must keep turning meanwhile.
  void stop(std::function<void()> done);
  // On shard 0, at any time: the drain of stop(), under way or to come, ends at once.
  void stop_now();
  // On shard 0.
  void adopt(config::Snapshot config);
  void reopen_events();

  unsigned shards() const { return static_cast<unsigned>(shards_.size()); }
  Shard& shard(unsigned number) { return *shards_[number]; }
  Control& control() { return *control_; }
  const spool::RecoverySummary& recovery() const { return recovery_; }

 private:
  class Recovery;
  reactor::Task<Status> open_spool();
  Status open_rest();
  void drain(std::function<void()> done);
  void cut_short();
  void end_drain();
  // Calls `each` on every shard's thread, then `done` on shard 0.
  void on_every_shard(std::function<void(Shard&, std::function<void()>)> each, std::function<void()> done);

  config::Snapshot config_;
  std::vector<EventObserver> observers_;
  ingress::ConnectionLimits limits_;
  ingress::Accounts accounts_;
  ingress::Quotas quotas_;
  std::unique_ptr<ingress::PasswordChecker> passwords_;
  std::unique_ptr<delivery::StsFetcher> policies_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::unique_ptr<spool::Directory> directory_;
  std::unique_ptr<events::EventLog> event_log_;
  std::unique_ptr<Control> control_;
  std::unique_ptr<admin::Server> admin_;
  spool::RecoverySummary recovery_;
  reactor::Timer drain_timer_;
  bool attached_ = false;  // the shards have their spools
  enum class Drain : uint8_t { no, under_way, done } drain_ = Drain::no;
  std::function<void()> after_drain_;
  bool cut_short_ = false;
};

}  // namespace millrace::relay
