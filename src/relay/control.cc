#include "relay/control.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <set>
#include <tuple>

#include "auth/crypto.h"
#include "base/log.h"
#include "relay/call.h"

namespace millrace::relay {

Control::Control(std::vector<std::unique_ptr<Shard>>& shards, ingress::Accounts& accounts, ingress::Quotas& quotas,
                 delivery::StsFetcher* fetcher)
    : shards_(shards), accounts_(accounts), quotas_(quotas), reporter_(shards[0]->io(), shards[0]->dns_cache()) {
  reporter_.set_fetcher(fetcher, &shards[0]->mailbox());
  reporter_.gather = [this](std::function<void(delivery::TlsCounts)> done) {
    auto parts = std::make_shared<std::vector<delivery::TlsCounts>>(shards_.size());
    on_every_shard([parts](Shard& shard) { (*parts)[shard.number()] = shard.delivery().take_tls_counts(); },
                   [parts, done = std::move(done)] {
                     delivery::TlsCounts sum = std::move(parts->front());
                     for (size_t i = 1; i < parts->size(); ++i) sum.add((*parts)[i]);
                     done(std::move(sum));
                   });
  };
  reporter_.store = [this](std::string key, std::string value, std::function<void()> done) {
    state().put_state(std::move(key), std::move(value), [done = std::move(done)](Status) {
      if (done) done();
    });
  };
}

void Control::configure(const config::Config& config) {
  delivery::TlsReporter::Options options;
  options.on = sends_reports_ = config.sends_tls_reports();
  options.organization = config.tls_reports_organization.empty() ? config.hostname : config.tls_reports_organization;
  options.contact = config.tls_reports;
  options.node = config.hostname;
  options.authorities = std::make_shared<const std::string>(config.tls_client ? config.tls_client->ca_pem : std::string());
  options.ipv6 = config.ipv6 != config::Ipv6::off;
  options.allow_private = config.allow_private_destinations;
  reporter_.configure(std::move(options));
}

std::vector<admin::Control::TlsReportRow> Control::tls_reports() const {
  std::vector<TlsReportRow> rows;
  for (delivery::TlsReporter::Row& row : reporter_.rows()) {
    rows.push_back({std::move(row.domain), row.successful, row.failed, row.start_s * 1000, row.due_ms, std::move(row.why)});
  }
  return rows;
}

void Control::send_tls_reports(std::function<void(Result<uint64_t>)> done) {
  if (!sends_reports_) return done(fail("no reports are made: --tls-reports is off"));
  reporter_.send_now([done = std::move(done)](size_t count) { done(uint64_t{count}); });
}

std::string Control::key(uint64_t number, queue::Command command) {
  return std::string(queue::to_string(command)) + "/" + std::to_string(number);
}

void Control::on_state(std::string_view key, std::string_view value) {
  size_t slash = key.find('/');
  if (slash == key.npos) return;
  std::string_view word = key.substr(0, slash);
  if (word == "tls") {
    recovered_tls_.emplace_back(std::strtoull(std::string(key.substr(slash + 1)).c_str(), nullptr, 16),
                                std::strtoll(std::string(value).c_str(), nullptr, 10));
    return;
  }
  if (word == "mta-sts") {
    if (std::optional<delivery::StsPolicy> policy = delivery::decode_sts_policy(value)) {
      recovered_policies_.emplace_back(key.substr(slash + 1), std::move(*policy));
    }
    return;
  }
  if (word == "tlsrpt") return reporter_.recover(key.substr(slash + 1), value);
  if (word == "account") {
    std::string_view rest = key.substr(slash + 1);
    if (rest.starts_with("f/")) {
      frozen_[std::string(rest.substr(2))].why = value;
    } else {
      accounts_.recover(rest, value, shards_[0]->io().now(), shards_[0]->io().wall_ms());
    }
    return;
  }
  if (word == "quota") {
    quotas_.recover(key.substr(slash + 1), value, shards_[0]->io().now(), shards_[0]->io().wall_ms());
    return;
  }
  if (word == "auth") {
    auth_secret_ = value;
    return;
  }
  Rule rule;
  if (word == queue::to_string(queue::Command::pause)) {
    rule.command = queue::Command::pause;
  } else if (word == queue::to_string(queue::Command::remove)) {
    rule.command = queue::Command::remove;
  } else if (word == queue::to_string(queue::Command::bounce)) {
    rule.command = queue::Command::bounce;
  } else {
    return;
  }
  uint64_t number = std::strtoull(std::string(key.substr(slash + 1)).c_str(), nullptr, 10);
  Result<queue::Filter> filter = queue::decode_filter(value);
  next_ = std::max(next_, number + 1);
  if (!filter.ok()) {
    log::error("operator's action {}: {}; it is not carried out", key, filter.error().text);
    return;
  }
  rule.filter = std::move(*filter);
  rules_[number] = std::move(rule);
}

void Control::learn_tls(uint64_t site, int64_t wall_ms) {
  state().put_state(fmt::format("tls/{:016x}", site), std::to_string(wall_ms), [](Status) {});
  on_every_shard([site, wall_ms](Shard& shard) { shard.delivery().tls_memory().note(site, wall_ms); }, [] {});
}

void Control::learn_policy(const std::string& domain, const delivery::StsPolicy& policy) {
  state().put_state("mta-sts/" + domain, delivery::encode(policy), [](Status) {});
  on_every_shard([domain, policy](Shard& shard) { shard.delivery().sts_policies().note(domain, policy); }, [] {});
}

void Control::write_account(const std::string& account) {
  reactor::Io& io = shards_[0]->io();
  for (ingress::Accounts::Record& record : accounts_.records(account, io.now(), io.wall_ms())) {
    state().put_state(std::move(record.key), std::move(record.value), [](Status) {});
  }
}

void Control::write_quota(const std::string& tenant) {
  reactor::Io& io = shards_[0]->io();
  for (ingress::Quotas::Record& record : quotas_.records(tenant, io.now(), io.wall_ms())) {
    state().put_state(std::move(record.key), std::move(record.value), [](Status) {});
  }
}

// Mail of the account neither comes in nor goes out, on any shard.
void Control::hold_account(const std::string& account) {
  Frozen& frozen = frozen_[account];
  frozen.number = next_++;
  accounts_.set_frozen(account, true);
  queue::Filter filter;
  filter.account = account;
  on_every_shard([number = frozen.number, filter](Shard& shard) { shard.scheduler().add_pause(number, filter); }, [] {});
}

void Control::set_frozen(const std::string& account, const std::string& why, std::function<void(Status)> done) {
  const bool held = frozen_.contains(account);
  frozen_[account].why = why;
  if (!held) {
    hold_account(account);
    log::warning("account {} is frozen: {}", account, why);
    events::Event event;
    event.type = events::Type::held;
    event.time_ms = shards_[0]->io().wall_ms();
    event.account = account;
    event.reason = why;
    shards_[0]->events().emit(0, event);
  }
  state().put_state("account/f/" + account, why, std::move(done));
}

void Control::freeze_by_itself(const std::string& account, const std::string& why) {
  if (!frozen_.contains(account)) set_frozen(account, why, [](Status) {});
}

void Control::freeze(const std::string& account, bool frozen, std::function<void(Status)> done) {
  if (frozen) return set_frozen(account, "by the operator", std::move(done));
  auto at = frozen_.find(account);
  if (at == frozen_.end()) {
    return done(fail(fmt::format("account {} is not frozen; 'millracectl account list' shows those that are", account)));
  }
  const uint64_t number = at->second.number;
  frozen_.erase(at);
  state().put_state("account/f/" + account, "", [this, account, number, done = std::move(done)](Status status) {
    if (!status.ok()) return done(status);
    if (frozen_.contains(account)) return done(fail(fmt::format("account {} has been frozen again", account)));
    accounts_.set_frozen(account, false);
    log::info("account {} is not frozen any more", account);
    on_every_shard([number](Shard& shard) { shard.scheduler().remove_pause(number); }, [done] { done(success()); });
  });
}

void Control::forget_tls(const std::string& domain, std::function<void(Result<std::vector<std::string>>)> done) {
  // Not from queue_rows(), whose rows are sums: mail of one domain may have several sites (what messages ask of TLS takes hosts
  // out), or none yet.
  auto parts = std::make_shared<std::vector<std::set<std::string>>>(shards_.size());
  const auto collect = [parts, domain](Shard& shard) {
    for (queue::QueueRow& row : shard.scheduler().queue_rows()) {
      if (row.domain == domain && !row.site.empty()) (*parts)[shard.number()].insert(std::move(row.site));
    }
  };
  on_every_shard(collect, [this, parts, domain, done = std::move(done)] {
    std::set<std::string> sites;
    for (std::set<std::string>& part : *parts) sites.merge(part);
    if (sites.empty()) {
      return done(fail(fmt::format("no mail for {} is queued whose hosts are known", domain)));
    }
    auto left = std::make_shared<size_t>(sites.size());
    auto problem = std::make_shared<Status>(success());
    for (const std::string& site : sites) {
      const uint64_t key = delivery::TlsMemory::key(site);
      const auto forgotten = [sites, left, problem, done] {
        if (--*left > 0) return;
        if (!problem->ok()) return done(fail(problem->error()));
        done(std::vector<std::string>(sites.begin(), sites.end()));
      };
      state().put_state(fmt::format("tls/{:016x}", key), "", [this, key, problem, forgotten](Status status) {
        if (!status.ok()) {
          *problem = status;
          return forgotten();
        }
        on_every_shard([key](Shard& shard) { shard.delivery().tls_memory().forget(key); }, forgotten);
      });
    }
  });
}

std::vector<std::pair<std::string, std::string>> Control::frozen_accounts() const {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const auto& [account, frozen] : frozen_) rows.emplace_back(account, frozen.why);
  return rows;
}

void Control::accounts_configured() {
  if (secret_given_) return;
  secret_given_ = true;
  if (auth_secret_.empty()) {
    auth_secret_ = auth::random_octets(auth::kDigestSize);
    state().put_state("auth/secret", auth_secret_, [](Status) {});
  }
  accounts_.set_secret(auth_secret_);
}

void Control::apply_recovered() {
  for (const auto& [account, frozen] : frozen_) hold_account(account);
  const int64_t now_ms = shards_[0]->io().wall_ms();
  for (const auto& [site, wall_ms] : std::exchange(recovered_tls_, {})) {
    if (now_ms - wall_ms >= delivery::TlsMemory::kRememberMs) {
      state().put_state(fmt::format("tls/{:016x}", site), "", [](Status) {});
      continue;
    }
    for (auto& shard : shards_) shard->delivery().tls_memory().note(site, wall_ms);
  }
  for (const auto& [domain, policy] : std::exchange(recovered_policies_, {})) {
    if (now_ms >= policy.expires_ms()) {
      state().put_state("mta-sts/" + domain, "", [](Status) {});
      continue;
    }
    for (auto& shard : shards_) shard->delivery().sts_policies().note(domain, policy);
  }
  for (const auto& [number, rule] : rules_) {
    if (rule.command == queue::Command::pause) {
      for (auto& shard : shards_) shard->scheduler().add_pause(number, rule.filter);
    } else {
      log::info("going on with the operator's {} number {}", queue::to_string(rule.command), number);
      for (auto& shard : shards_) shard->ids_not_before(rule.filter.before_ms);
      end_matching(number, rule);
    }
  }
}

void Control::on_every_shard(std::function<void(Shard&)> each, std::function<void()> done) {
  auto left = std::make_shared<size_t>(shards_.size());
  auto answered = [left, done = std::move(done)] {
    if (--*left == 0) done();
  };
  Shard* home = shards_[0].get();
  for (auto& shard : shards_) {
    if (shard.get() == home) {
      each(*home);
      answered();
      continue;
    }
    Call::post(shard->mailbox(), [each, home, answered, at = shard.get()] {
      each(*at);
      Call::post(home->mailbox(), answered);
    });
  }
}

void Control::queue_rows(std::function<void(std::vector<queue::QueueRow>)> done) {
  auto parts = std::make_shared<std::vector<std::vector<queue::QueueRow>>>(shards_.size());
  on_every_shard([parts](Shard& shard) { (*parts)[shard.number()] = shard.scheduler().queue_rows(); },
                 [parts, done = std::move(done)] {
                   // A destination's mail may wait on several shards (and leave by several sources).
                   std::map<std::pair<std::string, std::string>, queue::QueueRow> merged;
                   for (auto& rows : *parts) {
                     for (queue::QueueRow& row : rows) {
                       auto [at, fresh] = merged.try_emplace({row.domain, row.pool}, row);
                       if (fresh) continue;
                       queue::QueueRow& sum = at->second;
                       sum.messages += row.messages;
                       sum.ready += row.ready;
                       sum.in_flight += row.in_flight;
                       sum.waiting += row.waiting;
                       sum.paused += row.paused;
                       sum.delivered += row.delivered;
                       sum.deferred += row.deferred;
                       sum.bounced += row.bounced;
                       sum.connections += row.connections;
                       if (row.oldest_ms != 0) sum.oldest_ms = std::min(sum.oldest_ms, row.oldest_ms);
                       if (row.next_attempt_ms != 0 &&
                           (sum.next_attempt_ms == 0 || row.next_attempt_ms < sum.next_attempt_ms)) {
                         sum.next_attempt_ms = row.next_attempt_ms;
                       }
                       if (row.last_reply_ms > sum.last_reply_ms) {
                         sum.last_reply_ms = row.last_reply_ms;
                         sum.last_reply = row.last_reply;
                       }
                       if (sum.why.empty()) sum.why = row.why;
                     }
                   }
                   std::vector<queue::QueueRow> rows;
                   rows.reserve(merged.size());
                   for (auto& [name, row] : merged) rows.push_back(std::move(row));
                   std::stable_sort(rows.begin(), rows.end(),
                                    [](const auto& a, const auto& b) { return a.messages > b.messages; });
                   done(std::move(rows));
                 });
}

void Control::show(const mail::SpoolId& id, std::function<void(Result<queue::MessageRow>)> done) {
  // The home knows; the others say that they do not.
  struct Search {
    size_t left;
    bool found = false;
    std::function<void(Result<queue::MessageRow>)> done;
  };
  auto search = std::make_shared<Search>(Search{shards_.size(), false, std::move(done)});
  auto answered = [search](Result<queue::MessageRow> row) {
    --search->left;
    if (search->found) return;
    if (!row.ok() && search->left > 0) return;
    search->found = true;
    search->done(std::move(row));
  };
  Shard* home = shards_[0].get();
  for (auto& shard : shards_) {
    Call::post(shard->mailbox(), [id, home, answered, at = shard.get()] {
      at->scheduler().show(id, [home, answered](Result<queue::MessageRow> row) {
        Call::post(home->mailbox(), [answered, row = std::move(row)] { answered(row); });
      });
    });
  }
}

void Control::explain(const std::string& domain, const mail::SpoolId& id,
                      std::function<void(Result<std::vector<queue::ExplainRow>>)> done) {
  auto parts = std::make_shared<std::vector<std::vector<queue::ExplainRow>>>(shards_.size());
  on_every_shard(
      [parts, domain, id](Shard& shard) { (*parts)[shard.number()] = shard.scheduler().explain(domain, id); },
      [this, parts, domain, id, done = std::move(done)] {
        // Mail of one sub-queue may wait on several shards.
        std::vector<queue::ExplainRow> rows;
        for (auto& part : *parts) {
          for (queue::ExplainRow& row : part) {
            auto same = [&](const queue::ExplainRow& other) {
              return std::tie(other.domain, other.pool, other.tenant, other.job, other.source_number) ==
                     std::tie(row.domain, row.pool, row.tenant, row.job, row.source_number);
            };
            auto at = std::find_if(rows.begin(), rows.end(), same);
            if (at == rows.end()) {
              rows.push_back(std::move(row));
              continue;
            }
            at->messages += row.messages;
            at->ready += row.ready;
            at->in_flight += row.in_flight;
            at->waiting += row.waiting;
            at->connections += row.connections;
            if (at->site.empty()) {
              at->site = row.site;
              at->provider = row.provider;
            }
            if (at->why.empty()) at->why = row.why;
            at->held_until_ms = std::max(at->held_until_ms, row.held_until_ms);
            if (row.next_attempt_ms != 0 && (at->next_attempt_ms == 0 || row.next_attempt_ms < at->next_attempt_ms)) {
              at->next_attempt_ms = row.next_attempt_ms;
            }
          }
        }
        if (rows.empty() && domain.empty()) return done(fail("no such message in the queue: " + id.to_string()));
        if (rows.empty()) {
          // Nothing is queued for it: what would hold, as far as that is known without its MX hosts.
          queue::ExplainRow& row = rows.emplace_back();
          row.domain = domain;
          row.why = "nothing is queued for it, and its MX hosts are not known";
        }
        for (queue::ExplainRow& row : rows) {
          shards_[0]->scheduler().explain_limits(row);
          row.source_wrong = shards_[0]->sources().wrong(row.source_number);
        }
        done(std::move(rows));
      });
}

void Control::status(std::function<void(RelayStatus)> done) {
  auto parts = std::make_shared<std::vector<RelayStatus>>(shards_.size());
  on_every_shard([parts](Shard& shard) { shard.add_status((*parts)[shard.number()]); },
                 [this, parts, done = std::move(done)] {
                   RelayStatus sum;
                   for (const RelayStatus& part : *parts) sum += part;
                   sum.tls_out.reports_sent = reporter_.stats().sent;
                   sum.tls_out.reports_given_up = reporter_.stats().given_up;
                   sum.tls_out.reports_mail_only = reporter_.stats().mail_only;
                   sum.shards = static_cast<unsigned>(parts->size());
                   done(sum);
                 });
}

void Control::end_matching(uint64_t number, const Rule& rule) {
  auto left = std::make_shared<size_t>(shards_.size());
  Shard* home = shards_[0].get();
  auto finished = [this, left, number, command = rule.command] {
    if (--*left > 0) return;
    rules_.erase(number);
    state().put_state(key(number, command), "", [](Status) {});
  };
  for (auto& shard : shards_) {
    Call::post(shard->mailbox(), [at = shard.get(), rule, home, finished] {
      at->scheduler().end_matching(rule.command, rule.filter,
                                   [home, finished] { Call::post(home->mailbox(), finished); });
    });
  }
}

void Control::command(queue::Command command, queue::Filter filter, bool dry_run,
                      std::function<void(Result<uint64_t>)> done) {
  struct Found {
    uint64_t matched = 0;
    int64_t newest_ms = 0;
  };
  auto found = std::make_shared<std::vector<Found>>(shards_.size());
  auto find = [found, filter](Shard& shard) {
    (*found)[shard.number()] = {shard.scheduler().count_matching(filter), shard.scheduler().newest_ms()};
  };
  on_every_shard(find, [this, found, command, filter, dry_run, done = std::move(done)]() mutable {
    uint64_t matched = 0;
    int64_t newest_ms = 0;
    for (const Found& part : *found) {
      matched += part.matched;
      newest_ms = std::max(newest_ms, part.newest_ms);
    }
    if (dry_run) return done(matched);
    switch (command) {
      case queue::Command::retry:
        on_every_shard([filter](Shard& shard) { shard.scheduler().retry_matching(filter); },
                       [done, matched] { done(matched); });
        return;
      case queue::Command::resume: {
        // Takes away the pauses that were made with this filter, or all of them when it names nothing.
        std::vector<uint64_t> gone;
        for (const auto& [number, rule] : rules_) {
          if (rule.command == queue::Command::pause &&
              (filter.all() || queue::encode_filter(rule.filter) == queue::encode_filter(filter))) {
            gone.push_back(number);
          }
        }
        if (gone.empty()) return done(fail("no pause was made with these words; 'millracectl status' lists those in force"));
        auto left = std::make_shared<size_t>(gone.size());
        for (uint64_t number : gone) {
          rules_.erase(number);
          state().put_state(key(number, queue::Command::pause), "", [this, number, left, done, matched](Status status) {
            if (!status.ok()) return done(fail(status.error()));
            on_every_shard([number](Shard& shard) { shard.scheduler().remove_pause(number); },
                           [left, done, matched] {
                             if (--*left == 0) done(matched);
                           });
          });
        }
        return;
      }
      case queue::Command::pause: keep(command, filter, matched, done); return;
      case queue::Command::remove:
      case queue::Command::bounce:
        // It concerns what is queued now on any shard, not what comes later to any.
        filter.before_ms = newest_ms + 1;
        on_every_shard([before = filter.before_ms](Shard& shard) { shard.ids_not_before(before); },
                       [this, command, filter, matched, done] { keep(command, filter, matched, done); });
        return;
    }
  });
}

// Makes a pause, delete or bounce durable and brings it to every shard.
void Control::keep(queue::Command command, queue::Filter filter, uint64_t matched,
                   std::function<void(Result<uint64_t>)> done) {
  uint64_t number = next_++;
  Rule rule{command, std::move(filter)};
  rules_[number] = rule;
  state().put_state(key(number, command), queue::encode_filter(rule.filter),
                    [this, number, rule, matched, done = std::move(done)](Status status) {
                      if (!status.ok()) {
                        rules_.erase(number);
                        return done(fail(status.error()));
                      }
                      if (rule.command != queue::Command::pause) {
                        end_matching(number, rule);
                        return done(matched);
                      }
                      on_every_shard([number, rule](Shard& shard) { shard.scheduler().add_pause(number, rule.filter); },
                                     [done, matched] { done(matched); });
                    });
}

std::vector<queue::Filter> Control::pauses() const {
  std::vector<queue::Filter> filters;
  for (const auto& [number, rule] : rules_) {
    if (rule.command == queue::Command::pause) filters.push_back(rule.filter);
  }
  return filters;
}

}  // namespace millrace::relay
