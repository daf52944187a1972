#include "relay/shard.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "events/json.h"

namespace millrace::relay {

void EventTee::emit(uint64_t sequence, const events::Event& event) {
  if (file_) file_->emit(sequence, event);
  if (accounts_ && !event.account.empty() &&
      (event.type == events::Type::delivered || event.type == events::Type::bounced)) {
    accounts_->ended(event.account, event.type == events::Type::bounced, io_->wall_ms());
  }
  if (observers_.empty()) return;
  line_.clear();
  events::append_json(event, node_, line_);
  line_.pop_back();  // the line end
  for (const EventObserver& observer : observers_) observer(line_);
}

Shard::Shard(Parts parts)
    : io_(parts.io), number_(parts.number), shards_(parts.shards), config_(std::move(parts.config)),
      limits_(parts.limits), accounts_(parts.accounts), quotas_(parts.quotas), passwords_(parts.passwords), mailbox_(io_), tee_(config_->hostname, parts.observers),
      transport_(std::move(parts.transport)) {
  io_.on_wake = [this] { mailbox_.drain(); };
  cache_ = std::make_unique<dns::Cache>(io_, *transport_, dns::Cache::Options{.negative_ttl_ms = config_->dns_negative_ttl_ms});
  mx_ = std::make_unique<dns::Mx>(io_, *cache_, delivery::mx_options(*config_));
  delivery_ = std::make_unique<delivery::DeliveryAgent>(io_, config_, *mx_, *cache_, number_);
  // Each shard finds out for itself; the first one tells.
  sources_ = std::make_unique<delivery::SourceCheck>(io_, *cache_);
  if (number_ == 0) {
    sources_->on_finding = [this](const delivery::SourceCheck::Finding& finding) { tell_source(finding); };
  }
  delivery_->set_sources(sources_.get());
  delivery_->sts_policies().set_fetcher(parts.policies, &mailbox_);
  scheduler_ = std::make_unique<queue::Scheduler>(
      queue::Scheduler::Context{io_, config_, *delivery_, tee_, number_, shards_});
  delivery_->start(*scheduler_);
  cache_->on_recovered = [this] { scheduler_->name_service_back(); };
  count_accounts();
}

Shard::~Shard() { io_.on_wake = nullptr; }

// What becomes of mail is only told where somebody wants to know it.
void Shard::count_accounts() { tee_.set_accounts(config_->accounts ? &accounts_ : nullptr, &io_); }

void Shard::set_events_file(std::unique_ptr<events::ShardEvents> file) {
  file_ = std::move(file);
  tee_.set_file(file_.get());
}

void Shard::attach(std::unique_ptr<spool::Spool> spool) {
  spool_ = std::move(spool);
  context_ = std::make_unique<ingress::Context>(ingress::Context{
      io_, &config_, *spool_, *scheduler_, tee_, limits_, mail::SpoolIdMaker(io_.random(), number_), number_, {},
      &accounts_, &passwords_, &mailbox_, &quotas_});
  ids_not_before(scheduler_->newest_ms());
  acceptance_ = std::make_unique<ingress::Acceptance>(*context_);
  injector_ = std::make_unique<ingress::Injector>(*acceptance_);
  reports_ = std::make_unique<bounce::Reports>(io_, config_, *injector_);
  listener_ = std::make_unique<ingress::SmtpListener>(*context_, *acceptance_);
  spool_->on_writable = [this](bool writable, const std::string& why) {
    if (writable) {
      log::info("the spool can be written again: mail is accepted");
    } else {
      log::error("the spool cannot be written ({}): new mail is refused, delivery goes on", why);
    }
    listener_->set_shedding(!writable, why);
  };
}

Status Shard::listen(const std::vector<config::Listen>& where) {
  using Sharing = ingress::SmtpListener::Sharing;
  Sharing sharing = number_ > 0 ? Sharing::further : shards_ > 1 ? Sharing::first : Sharing::alone;
  return listener_->open(where, sharing);
}

void Shard::start() {
  sources_->start(config_);
  scheduler_->start(*spool_, *reports_);
}

void Shard::tell_source(const delivery::SourceCheck::Finding& finding) {
  const std::string name =
      finding.address.empty() ? finding.ehlo_name : fmt::format("{} ({})", finding.ehlo_name, finding.address);
  if (finding.wrong.empty()) return log::info("source {}: PTR and forward records match", name);
  log::warning("source {}: {}", name, finding.wrong);
  if (!tee_.wanted()) return;
  events::Event event;
  event.type = events::Type::queue;
  event.time_ms = io_.wall_ms();
  event.source = finding.address;
  event.ehlo_name = finding.ehlo_name;
  event.scope = events::Scope::source;
  event.stage = events::Stage::dns;
  event.reason = finding.wrong;
  tee_.emit(0, event);
}

void Shard::drain(std::function<void()> done) {
  drained_ = std::move(done);
  listener_->drained_owner = this;
  listener_->on_drained = [](void* self) {
    auto* shard = static_cast<Shard*>(self);
    shard->intake_drained_ = true;
    shard->report_drained();
  };
  listener_->drain();
  scheduler_->stop([this] {
    queue_drained_ = true;
    report_drained();
  });
}

void Shard::report_drained() {
  if (!intake_drained_ || !queue_drained_ || !drained_) return;
  auto done = std::move(drained_);
  drained_ = nullptr;
  done();
}

void Shard::cut_short() {
  listener_->stop();
  delivery_->abort();
}

void Shard::close(std::function<void()> done) { transport_->stop(std::move(done)); }

void Shard::adopt(config::Snapshot config) {
  config_ = std::move(config);
  count_accounts();
  mx_->configure(delivery::mx_options(*config_));
  sources_->start(config_);
  delivery_->adopt(config_);
  scheduler_->adopt(config_);
  reports_->adopt(config_);
}

void Shard::add_status(RelayStatus& status) const {
  const ingress::Stats& in = context_->stats;
  status.accepted += in.messages;
  status.bytes_accepted += in.bytes;
  status.rejected += in.rejected_relay + in.rejected_admission + in.rejected_size + in.rejected_bad_lines +
                     in.rejected_headers + in.rejected_loop + in.rejected_spool + in.rejected_account + in.rejected_quota;
  status.auth.succeeded += in.auth_succeeded;
  status.auth.failed += in.auth_failed;
  status.auth.shut_out += in.auth_shut_out;
  status.auth.busy += in.auth_busy;
  status.auth.mail_refused += in.rejected_account;
  status.inbound_connections += in.connections_open;
  status.body_bytes_copied += in.body_bytes_copied;
  status.tls_in.handshakes += in.tls_handshakes;
  status.tls_in.resumed += in.tls_resumed;
  status.tls_in.failed_plaintext += in.tls_failed_plaintext;
  status.tls_in.failed_no_common += in.tls_failed_no_common;
  status.tls_in.failed_alert += in.tls_failed_alert;
  status.tls_in.failed_protocol += in.tls_failed_protocol;
  status.tls_in.failed_ended += in.tls_failed_ended;
  const delivery::AgentStats& out = delivery_->stats();
  status.tls_out.handshakes += out.tls_handshakes;
  status.tls_out.resumed += out.tls_resumed;
  status.tls_out.unverified += out.tls_unverified;
  status.tls_out.not_offered += out.tls_not_offered;
  status.tls_out.refused += out.tls_refused;
  status.tls_out.failed_no_common += out.tls_failed_no_common;
  status.tls_out.failed_certificate += out.tls_failed_certificate;
  status.tls_out.failed_alert += out.tls_failed_alert;
  status.tls_out.failed_protocol += out.tls_failed_protocol;
  status.tls_out.failed_ended += out.tls_failed_ended;
  status.tls_out.sessions_in_the_clear += out.plaintext_sessions;
  status.tls_out.verified_dane += out.tls_dane;
  status.tls_out.verified_mta_sts += out.tls_mta_sts;
  const delivery::StsPolicies::Stats& policies = delivery_->sts_policies().stats();
  status.tls_out.policies_fetched += policies.fetched;
  status.tls_out.policies_no_host += policies.no_host;
  status.tls_out.policies_too_many += policies.too_many;
  status.tls_out.policies_no_https += policies.no_https;
  status.tls_out.policies_malformed += policies.malformed;
  status.tls_out.policies_kept = std::max<uint64_t>(status.tls_out.policies_kept, delivery_->sts_policies().size());
  status.tls_out.blocked += out.tls_blocked;
  queue::SchedulerStats queue = scheduler_->stats();
  status.delivered += queue.delivered;
  status.deferred += queue.deferred;
  status.bounced += queue.bounced;
  status.expired += queue.expired;
  status.removed += queue.removed;
  status.queued += queue.items;
  status.ready += queue.ready;
  status.in_flight += queue.in_flight;
  status.outbound_connections += queue.lanes;
  status.connects += queue.connects;
  status.attempts += queue.attempts;
  status.bodies_read_back += queue.reads;
  const spool::Stats& spool = spool_->stats();
  status.syncs += spool.syncs;
  status.bytes_written += spool.bytes_written;
  status.body_bytes += spool.bytes_body;
  for (reactor::BufferGroup group : {reactor::BufferGroup::ingress, reactor::BufferGroup::delivery,
                                     reactor::BufferGroup::spool, reactor::BufferGroup::control}) {
    status.memory_buffers += io_.buffers(group).bytes_in_use();
  }
}

}  // namespace millrace::relay
