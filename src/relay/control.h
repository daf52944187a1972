// The operator's hand on the whole relay: looks at and commands the queues of all shards. Lives on shard
// 0, makes commands durable in the spool's state before it answers, and carries unfinished ones on after a
// restart.
//
// It also keeps what the shards have learnt of sites with TLS (delivery/tls_policy.h) alike and durable.
//
// It gathers what the shards have counted for TLS reports, which are sent from here.
//
// Accounts that are frozen are held by a pause of their own.
//
// Keys in the spool's state: "account/f/NAME" with why it is frozen (the rest of "account/" is ingress/accounts.h's),
// "quota/" (ingress/quotas.h), "auth/secret", "tls/HASH" (the site's, with the time), "mta-sts/DOMAIN",
// "tlsrpt/SECOND/DOMAIN" (delivery/tls_reporter.h), "pause/N", "delete/N",
// "bounce/N", each with the filter; N rises for ever.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "admin/control.h"
#include "delivery/tls_reporter.h"
#include "queue/scheduler.h"
#include "relay/shard.h"

namespace millrace::relay {

class Control final : public admin::Control {
 public:
  Control(std::vector<std::unique_ptr<Shard>>& shards, ingress::Accounts& accounts, ingress::Quotas& quotas,
          delivery::StsFetcher* fetcher);

  delivery::TlsReporter& reporter() { return reporter_; }
  void configure(const config::Config& config);

  // At recovery, before the shards start.
  void on_state(std::string_view key, std::string_view value);
  // After recovery, before the shards start: brings what was found to every shard.
  void apply_recovered();

  // A shard's delivery completed TLS with a site that it did not know of. On shard 0.
  void learn_tls(uint64_t site, int64_t wall_ms);
  void learn_policy(const std::string& domain, const delivery::StsPolicy& policy);

  // There are accounts: after recovery, and before any shard knows of them. On shard 0.
  void accounts_configured();
  // The numbers of an account have changed: writes them down. On shard 0.
  void write_account(const std::string& account);
  void write_quota(const std::string& tenant);
  // An account's mail looks like somebody else's. On shard 0.
  void freeze_by_itself(const std::string& account, const std::string& why);

  // Each answers on shard 0, not necessarily later than the call.
  void queue_rows(std::function<void(std::vector<queue::QueueRow>)> done) override;
  void show(const mail::SpoolId& id, std::function<void(Result<queue::MessageRow>)> done) override;
  void status(std::function<void(RelayStatus)> done) override;
  void explain(const std::string& domain, const mail::SpoolId& id,
               std::function<void(Result<std::vector<queue::ExplainRow>>)> done) override;
  // The number of recipients that match (and, unless `dry_run`, on whom the command has begun to act).
  void command(queue::Command command, queue::Filter filter, bool dry_run,
               std::function<void(Result<uint64_t>)> done) override;
  void freeze(const std::string& account, bool frozen, std::function<void(Status)> done) override;
  std::vector<std::pair<std::string, std::string>> frozen_accounts() const override;
  void forget_tls(const std::string& domain, std::function<void(Result<std::vector<std::string>>)> done) override;
  std::vector<TlsReportRow> tls_reports() const override;
  void send_tls_reports(std::function<void(Result<uint64_t>)> done) override;
  // The pauses in force, as the operator wrote them.
  std::vector<queue::Filter> pauses() const override;

 private:
  struct Rule {
    queue::Command command;
    queue::Filter filter;
  };
  // Calls `each` on every shard's thread and `done` here once all have answered.
  void on_every_shard(std::function<void(Shard&)> each, std::function<void()> done);
  void end_matching(uint64_t number, const Rule& rule);
  void keep(queue::Command command, queue::Filter filter, uint64_t matched,
            std::function<void(Result<uint64_t>)> done);
  static std::string key(uint64_t number, queue::Command command);
  spool::Spool& state() { return *shards_[0]->spool(); }

  void set_frozen(const std::string& account, const std::string& why, std::function<void(Status)> done);
  void hold_account(const std::string& account);

  std::vector<std::unique_ptr<Shard>>& shards_;
  ingress::Accounts& accounts_;
  ingress::Quotas& quotas_;
  struct Frozen {
    std::string why;
    uint64_t number = 0;  // of the schedulers' pause
  };
  std::map<std::string, Frozen> frozen_;
  std::string auth_secret_;  // what salts of unknown names are made from; found at recovery
  bool secret_given_ = false;
  std::vector<std::pair<uint64_t, int64_t>> recovered_tls_;  // until apply_recovered()
  std::vector<std::pair<std::string, delivery::StsPolicy>> recovered_policies_;
  delivery::TlsReporter reporter_;
  bool sends_reports_ = false;
  std::map<uint64_t, Rule> rules_;  // pauses, and removals not yet finished
  uint64_t next_ = 1;
};

}  // namespace millrace::relay
