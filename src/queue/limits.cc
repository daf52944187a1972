// What the shaping file limits, as the scheduler of one shard sees it: which sub-queues and lane groups need
// permits, asking for them, using them and giving them back. The arbiter (shaping/arbiter.h) decides; it is
// this shard's own or one letter away.
//
// A sub-queue that asks leaves its destination's turn until the answer: it is parked, and costs nothing while
// it waits. A permit that is not used in time is given back.
#include "base/log.h"
#include "dns/mx.h"
#include "queue/scheduler.h"

namespace millrace::queue {
namespace {

using Key = config::ShapingKey;

struct ReleaseLetter : reactor::Letter {
  shaping::Release release;
};

struct WithdrawalLetter : reactor::Letter {
  Permit* permit = nullptr;
};

struct BackOffLetter : reactor::Letter {
  std::string provider, site, reason;
  unsigned source = 0;
};

struct BounceLetter : reactor::Letter {
  std::string domain;
  RecipientResult why;
};

struct ModeLetter : reactor::Letter {
  std::string provider, site;
  unsigned source = 0;
  bool backed_off = false;
};

struct HoldLetter : reactor::Letter {
  std::string provider, reason;
  unsigned source = 0;
  int64_t rest_ms = 0;  // 0: it has ended
};

struct RecallLetter : reactor::Letter {
  std::string provider, site;
  unsigned source = 0;
};

}  // namespace

// Puts the sub-queue into its lane group's turn, or takes it out, as its mail and its permit say.
void Scheduler::update_turn(SubQueue& queue, bool front) {
  bool in = in_turn(queue);
  if (in == queue.turn_link.linked()) return;
  const Destination& destination = *queue.destination;
  auto& turns = destination.site->groups[destination.source].ready;
  if (!in) {
    turns.remove(queue);
  } else if (queue.paid) {
    turns.push_first(queue);
  } else if (front) {
    turns.push_front(queue);
  } else {
    turns.push_back(queue);
  }
}

// ---- which limits there are

// Empty: the site stands for itself. Views stay valid. Without a domain only the hosts decide.
std::string_view Scheduler::provider_of(const dns::Route& route, std::string_view domain) {
  if (!route.provider.empty()) {
    const config::Provider* named = rules_->provider(route.provider);
    return named ? std::string_view(*provider_names_.insert(named->name).first) : std::string_view();
  }
  if (route.explicit_hop) return {};
  std::vector<std::string_view> hosts;
  for (const dns::Host& host : route.hosts) {
    if (host.preference == route.hosts.front().preference) hosts.push_back(host.name);
  }
  const config::Provider* provider = rules_->provider_of(domain, hosts);
  return provider ? std::string_view(*provider_names_.insert(provider->name).first) : std::string_view();
}

void Scheduler::find_limits(Site& site, unsigned source) {
  LaneGroup& group = site.groups[source];
  const config::Provider* provider = site.provider.empty() ? nullptr : rules_->provider(site.provider);
  config::ShapingChoice choice = rules_->pair(provider, source);
  const config::ShapingValue* connections = config::at(choice, Key::connections);
  group.connections_said = connections != nullptr;
  group.connections = connections ? static_cast<uint32_t>(connections->number) : 0;
  const config::ShapingValue* messages = config::at(choice, Key::messages_per_connection);
  group.messages_most.reset();
  if (messages) group.messages_most = static_cast<uint32_t>(messages->number);
  const config::ShapingValue* recipients = config::at(choice, Key::recipients_per_transaction);
  group.recipients_most = recipients ? static_cast<uint32_t>(recipients->number) : 0;
  if (config::at(choice, Key::connect_rate)) {  // it takes the place of --connect-rate
    site.connect_share = UINT32_MAX;
    site.connect_rate = {};
  }
  shaping::Subject subject{.provider = site.provider, .site = site.key, .source = source};
  shaping::find_scopes(*rules_, subject, shaping::Purpose::connect, backed_off(subject), scratch_scopes_);
  group.limited = !scratch_scopes_.empty();
  if (!site.provider.empty()) group.pair_hold = pair_hold_of(site.provider, source);
  if (!group.limited || group.permit) return;
  group.permit = std::make_unique<Permit>();
  group.permit->scheduler = this;
  group.permit->purpose = shaping::Purpose::connect;
  group.permit->site = &site;
  group.permit->subject.source = source;
}

void Scheduler::find_limits(SubQueue& queue, Site& site) {
  const Destination& destination = *queue.destination;
  queue.limits_site = &site;
  queue.limits_version = rules_version_;
  shaping::Subject subject{site.provider, site.key, destination.source, destination.domain, destination.pool,
                           queue.tenant, queue.job};
  shaping::find_scopes(*rules_, subject, shaping::Purpose::attempt, backed_off(subject), scratch_scopes_);
  queue.limited = !scratch_scopes_.empty();
  queue.recipients_most = 0;
  for (const config::ShapingChoice& choice :
       {rules_->domain(destination.domain), rules_->domain_source(destination.domain, destination.source)}) {
    if (const auto* said = config::at(choice, Key::recipients_per_transaction)) {
      queue.recipients_most = static_cast<uint32_t>(said->number);
    }
  }
  if (!queue.limited || queue.permit) return;
  queue.permit = std::make_unique<Permit>();
  queue.permit->scheduler = this;
  queue.permit->purpose = shaping::Purpose::attempt;
  queue.permit->queue = &queue;
}

void Scheduler::find_limits(Attempt& borrowed, Site& site) {
  shaping::Subject& subject = borrowed.subject;
  subject.provider = site.provider;
  subject.site = site.key;
  shaping::find_scopes(*rules_, subject, shaping::Purpose::attempt, backed_off(subject), scratch_scopes_);
  if (scratch_scopes_.empty()) return;
  Permit& request = requests_.take([this](Permit& made) {
    made.scheduler = this;
    made.purpose = shaping::Purpose::attempt;
  });
  request.attempt = &borrowed;
  request.site = &site;
  request.subject = subject;
  request.flow = nullptr;
  request.set = nullptr;
  request.recipients = static_cast<uint32_t>(borrowed.recipients.size());
  request.octets = borrowed.message->content.size();
  borrowed.request = &request;
}

// ---- asking

// Whether the item may be attempted now; if not, its sub-queue is parked until it may.
bool Scheduler::permitted(Site& site, Item& item) {
  SubQueue& queue = *item.queue;
  if (queue.limits_site != &site || queue.limits_version != rules_version_) find_limits(queue, site);
  if (!queue.limited) return true;
  Permit& permit = *queue.permit;
  uint32_t recipients = 1;
  if (item.fanout) {
    recipients = 0;
    for (const Fanout::Recipient& recipient : item.fanout->recipients) recipients += recipient.item == &item;
  }
  uint64_t octets = item.message->content.size();
  if (permit.state == Permit::State::granted) {
    // It was asked for the message that was first then.
    if (permit.site == &site && permit.valid_until >= now() && permit.recipients >= recipients && permit.octets >= octets) {
      return true;
    }
    give_back(permit);
  }
  name_subject(permit, queue, site);
  permit.recipients = recipients;
  permit.octets = octets;
  if (ask(permit)) return true;
  park(queue, item);
  return false;
}

// Whether the item may be lent now: some of each sub-queue that is under a limit, so that the others' find room. Its
// permit is asked for where it is lent to.
bool Scheduler::lendable(Site& site, Item& item) {
  constexpr uint32_t kMostLimited = 4;
  SubQueue& queue = *item.queue;
  if (queue.limits_site != &site || queue.limits_version != rules_version_) find_limits(queue, site);
  if (!queue.limited) return true;
  if (queue.permit->state == Permit::State::granted) give_back(*queue.permit);
  if (queue.lent < kMostLimited) return true;
  park(queue, item);
  return false;
}

// Whether it may go now; if not, it has asked, or another of its sub-queue (`asking`) has.
bool Scheduler::borrowed_permitted(Attempt& borrowed, std::vector<const SubQueue*>& asking) {
  if (!borrowed.request) return true;
  Permit& request = *borrowed.request;
  if (request.state == Permit::State::asked) return false;
  if (request.state == Permit::State::granted && request.valid_until < now()) give_back(request);
  if (request.state == Permit::State::none) {
    if (std::find(asking.begin(), asking.end(), borrowed.lent_from) != asking.end()) return false;
    if (!ask(request)) {
      asking.push_back(borrowed.lent_from);
      return false;
    }
  }
  borrowed.permit = use(request);
  borrowed.request = nullptr;
  free_request(request);
  return true;
}

void Scheduler::free_request(Permit& request) {
  request.attempt = nullptr;
  requests_.give_back(request);
}

// The borrowed attempt goes home without having been taken by a lane.
void Scheduler::forget_request(Attempt& borrowed) {
  Permit* request = std::exchange(borrowed.request, nullptr);
  if (!request) return;
  request->attempt = nullptr;
  if (request->state == Permit::State::granted) give_back(*request);
  withdraw(*request);
  if (request->state == Permit::State::none) free_request(*request);  // else once the arbiter has answered
}

void Scheduler::name_subject(Permit& permit, const SubQueue& queue, Site& site) {
  if (permit.site == &site) return;
  const Destination& destination = *queue.destination;
  permit.site = &site;
  permit.subject = {site.provider, site.key, destination.source, destination.domain, destination.pool, queue.tenant, queue.job};
  permit.set = nullptr;
}

void Scheduler::park(SubQueue& queue, Item& first) {
  queue.parked = true;
  update_turn(queue);
  // What waits behind a limit leaves memory, but for the first few; and keeps no room of what is being read back. Where
  // reading takes about as long as a permit is good for, the one that is asked for stays: it would be late every time.
  if (queue.due() > kLoadAhead || !queue.loaded.empty()) evict_ready(queue, queue.slow_reads ? &first : nullptr);
}

bool Scheduler::connection_permitted(Site& site, unsigned source) {
  LaneGroup& group = site.groups[source];
  Permit& permit = *group.permit;
  switch (permit.state) {
    case Permit::State::asked: return false;
    case Permit::State::granted:
      if (permit.valid_until >= now()) return true;
      give_back(permit);
      break;
    case Permit::State::none: break;
  }
  permit.subject = {.provider = site.provider, .site = site.key, .source = source};
  permit.flow = nullptr;
  permit.for_attempt = waits_for_attempt(site, group, permit.subject);
  return ask(permit);
}

// For whose mail a new connection of the group would be: somebody's that no limit of attempts is on, or who has a
// permit, if there is one; else the first one's, and true: it is of use once that may go.
bool Scheduler::waits_for_attempt(Site& site, LaneGroup& group, shaping::Subject& subject) {
  constexpr int kMostAsked = 16;
  SubQueue* first = nullptr;
  int asked = 0;
  bool free = false;
  group.ready.each([&](SubQueue& queue) {
    if (queue.limits_site != &site || queue.limits_version != rules_version_) find_limits(queue, site);
    free = !queue.limited || queue.permit->state == Permit::State::granted;
    if (!first) first = &queue;
    return !free && ++asked < kMostAsked;
  });
  if (free) return false;
  if (first) {
    if (!first->limited) return false;
    const Destination& destination = *first->destination;
    subject = {site.provider, site.key, destination.source, destination.domain, destination.pool, first->tenant, first->job};
    return true;
  }
  for (Attempt* at = group.borrowed.front(); at; at = group.borrowed.next(*at)) {
    if (!at->request || at->request->state == Permit::State::granted) return false;
    if (at->request->state == Permit::State::asked) continue;
    subject = at->subject;
    return true;
  }
  return false;
}

// True: granted at once.
bool Scheduler::ask(Permit& permit) {
  ASSERT(permit.state == Permit::State::none);
  permit.state = Permit::State::asked;
  underway_ = true;
  if (!arbiter_) {
    const Peer& first = peers_[0];
    permit.address<&Scheduler::on_asked>(first.scheduler);
    first.mailbox->push(permit);
    return false;
  }
  permit.owner = this;
  permit.granted = &Scheduler::on_granted;
  if (!arbiter_->submit(permit)) return false;
  permit.state = Permit::State::granted;
  return true;
}

void Scheduler::on_asked(reactor::Letter& letter) {
  auto& permit = static_cast<Permit&>(letter);
  permit.owner = this;
  permit.granted = &Scheduler::on_granted;
  if (arbiter_->submit(permit)) on_granted(this, permit);
}

// On the arbiter's shard: the answer goes back to where it was asked, or is told at the end of the turn.
void Scheduler::on_granted(void* owner, shaping::Request& request) {
  auto* self = static_cast<Scheduler*>(owner);
  auto& permit = static_cast<Permit&>(request);
  if (permit.scheduler == self) {
    self->answers_.push_back(permit);
    self->context_.io.defer(self->answering_);
    return;
  }
  const Peer& home = self->peers_[permit.scheduler->context_.shard];
  permit.address<&Scheduler::on_answered>(home.scheduler);
  home.mailbox->push(permit);
}

void Scheduler::tell_answers() {
  while (Permit* permit = answers_.pop_front()) answered(*permit);
}

// What was asked for is wanted no more, unless it is granted already.
void Scheduler::withdraw(Permit& permit) {
  if (permit.state != Permit::State::asked || permit.withdrawn) return;
  if (arbiter_) {
    if (!permit.waits_for) return;
    arbiter_->cancel(permit);
    permit.state = Permit::State::none;
    return;
  }
  permit.withdrawn = true;
  auto* letter = new WithdrawalLetter;
  letter->permit = &permit;
  letter->address<&Scheduler::on_withdrawal>(peers_[0].scheduler);
  peers_[0].mailbox->push(*letter);
}

void Scheduler::on_withdrawal(reactor::Letter& letter) {
  std::unique_ptr<WithdrawalLetter> owned(static_cast<WithdrawalLetter*>(&letter));
  Permit& permit = *owned->permit;
  if (!permit.waits_for) return;  // the grant is on its way
  arbiter_->cancel(permit);
  const Peer& home = peers_[permit.scheduler->context_.shard];
  permit.address<&Scheduler::on_withdrawn>(home.scheduler);
  home.mailbox->push(permit);
}

void Scheduler::on_withdrawn(reactor::Letter& letter) {
  auto& permit = static_cast<Permit&>(letter);
  permit.state = Permit::State::none;
  permit.withdrawn = false;
  if (permit.purpose == shaping::Purpose::attempt) return free_request(permit);  // of a borrowed one that went home
  pump(*permit.site, permit.subject.source);
}

// Until it is used or has run out.
void Scheduler::hold_grant(Permit& permit) {
  grants_.push_back(permit);
  if (!grant_timer_.armed()) context_.io.timers().arm(grant_timer_, permit.valid_until + 1);
}

void Scheduler::on_answered(reactor::Letter& letter) { answered(static_cast<Permit&>(letter)); }

void Scheduler::answered(Permit& permit) {
  permit.state = Permit::State::granted;
  permit.withdrawn = false;
  if (permit.purpose == shaping::Purpose::attempt && !permit.queue && !permit.attempt) {
    give_back(permit);
    return free_request(permit);
  }
  hold_grant(permit);
  if (!permit.queue) {
    pump(*permit.site, permit.subject.source);
    if (permit.purpose == shaping::Purpose::connect && permit.state == Permit::State::granted &&
        permit.site->slot_link.linked()) {
      keep_slot(*permit.site, permit.subject.source);
    }
    return;
  }
  SubQueue& queue = *permit.queue;
  queue.parked = false;
  update_turn(queue, true);
  if (queue.due() == 0) queue.paid = false;
  if (stopping_ || queue.due() == 0) return give_back(permit);
  work_arrived(*queue.destination);
}

// ---- using, giving back

// REQUIRES: granted. What the attempt or lane gives back when it ends.
shaping::Release Scheduler::use(Permit& permit) {
  ASSERT(permit.state == Permit::State::granted);
  permit.state = Permit::State::none;
  permit.link.unlink();
  return permit.release();
}

void Scheduler::give_back(Permit& permit) {
  use(permit);
  release(permit.release());
}

void Scheduler::give_back_all(shaping::Release& permit, bool used, bool accepted) {
  if (!permit.set) return;
  permit.used = used;
  permit.accepted = accepted;
  release(std::exchange(permit, {}));
}

void Scheduler::release(const shaping::Release& what) {
  if (arbiter_) return arbiter_->release(what);
  auto* letter = new ReleaseLetter;
  letter->release = what;
  letter->address<&Scheduler::on_released>(peers_[0].scheduler);
  peers_[0].mailbox->push(*letter);
}

void Scheduler::on_released(reactor::Letter& letter) {
  std::unique_ptr<ReleaseLetter> owned(static_cast<ReleaseLetter*>(&letter));
  arbiter_->release(owned->release);
}

// Nobody took them: no lane was free in time, or the mail is gone.
void Scheduler::expire_grants() {
  while (Permit* permit = grants_.front()) {
    if (permit->valid_until >= now()) {
      context_.io.timers().arm(grant_timer_, permit->valid_until + 1);
      return;
    }
    give_back(*permit);
  }
}

// ---- connections that others wait for

void Scheduler::recall(std::string_view provider, std::string_view site, unsigned source) {
  retire_idle(provider, site, source, 1, kRecallAfter);
  for (unsigned shard = 1; shard < peers_.size(); ++shard) {
    auto* letter = new RecallLetter;
    letter->provider = provider;
    letter->site = site;
    letter->source = source;
    letter->address<&Scheduler::on_recall>(peers_[shard].scheduler);
    peers_[shard].mailbox->push(*letter);
  }
}

void Scheduler::on_recall(reactor::Letter& letter) {
  std::unique_ptr<RecallLetter> owned(static_cast<RecallLetter*>(&letter));
  retire_idle(owned->provider, owned->site, owned->source, 1, kRecallAfter);
}

// Up to `most` of each lane group, of those that have idled for so long.
void Scheduler::retire_idle(std::string_view provider, std::string_view site, unsigned source, uint32_t most,
                            int64_t idle_ns) {
  for (auto& [name, each] : sites_) {
    if (source >= each->groups.size()) continue;
    if (!provider.empty() ? each->provider != provider : !site.empty() && each->key != site) continue;
    LaneGroup& group = each->groups[source];
    for (uint32_t n = 0; n < most; ++n) {
      Lane* lane = group.idle.front();
      if (!lane || now() - lane->idle_at < idle_ns) break;
      lane->idle_link.unlink();
      lane->retire();
    }
  }
}

// ---- what replies ask for

bool Scheduler::backed_off(const shaping::Subject& subject) const {
  return !backed_off_.empty() && backed_off_.contains(shaping::pair_name(*rules_, subject));
}

void Scheduler::obey(Destination& destination, const RecipientResult& result, int64_t begun) {
  if (result.asks.back_off) back_off(*destination.site, destination.source, result.reply, result.asks.where);
  if (result.asks.bounce_queue) {
    log::warning("{}: what waits for it bounces, by {}: {}", destination.domain, result.asks.where, result.reply);
    bounce_queue(destination.domain, result);
    for (unsigned shard = 0; shard < peers_.size(); ++shard) {
      if (shard == context_.shard) continue;
      auto* letter = new BounceLetter;
      letter->domain = destination.domain;
      letter->why = result;
      letter->address<&Scheduler::on_bounce_queue>(peers_[shard].scheduler);
      peers_[shard].mailbox->push(*letter);
    }
  } else if (result.asks.defer_queue) {
    destination.hold.fail(now(), begun, config().hold_ms, result.rest_ms, result.reply + " (" + result.asks.where + ")");
    unlist(destination);
    evict_ready(destination);
    // When the hold ends, or at once if there is a newer one.
    if (!destination.timer.armed()) context_.io.timers().arm(destination.timer, std::max(now(), destination.hold.until()));
  }
}

// Ends all mail for the domain that has been accepted until now.
void Scheduler::bounce_queue(std::string_view domain, const RecipientResult& why) {
  Filter filter;
  filter.domain = domain;
  filter.before_ms = newest_ms_ + 1;
  end_matching(Command::bounce, std::move(filter), [] {});
  removals_.back().why = why;
  removals_.back().why->action = Action::bounce;
  removals_.back().why->asks = {};
}

void Scheduler::on_bounce_queue(reactor::Letter& letter) {
  std::unique_ptr<BounceLetter> owned(static_cast<BounceLetter*>(&letter));
  bounce_queue(owned->domain, owned->why);
}

void Scheduler::back_off(Site& site, unsigned source, std::string_view reply, std::string_view where) {
  std::string reason = std::string(reply) + " (" + std::string(where) + ")";
  if (arbiter_) return arbiter_->back_off({.provider = site.provider, .site = site.key, .source = source}, reason);
  auto* letter = new BackOffLetter;
  letter->provider = site.provider;
  letter->site = site.key;
  letter->reason = std::move(reason);
  letter->source = source;
  letter->address<&Scheduler::on_back_off>(peers_[0].scheduler);
  peers_[0].mailbox->push(*letter);
}

void Scheduler::on_back_off(reactor::Letter& letter) {
  std::unique_ptr<BackOffLetter> owned(static_cast<BackOffLetter*>(&letter));
  arbiter_->back_off({.provider = owned->provider, .site = owned->site, .source = owned->source}, owned->reason);
}

void Scheduler::tell_mode(const shaping::Arbiter::Mode& mode, bool backed_off) {
  set_mode(mode.provider, mode.site, mode.source, backed_off);
  for (unsigned shard = 1; shard < peers_.size(); ++shard) {
    auto* letter = new ModeLetter;
    letter->provider = mode.provider;
    letter->site = mode.site;
    letter->source = mode.source;
    letter->backed_off = backed_off;
    letter->address<&Scheduler::on_mode>(peers_[shard].scheduler);
    peers_[shard].mailbox->push(*letter);
  }
}

void Scheduler::on_mode(reactor::Letter& letter) {
  std::unique_ptr<ModeLetter> owned(static_cast<ModeLetter*>(&letter));
  set_mode(owned->provider, owned->site, owned->source, owned->backed_off);
}

// Other limits hold for the pair from now on: its lanes and sub-queues find theirs anew.
void Scheduler::set_mode(std::string_view provider, std::string_view site, unsigned source, bool is_backed_off) {
  shaping::Subject subject{.provider = provider, .site = site, .source = source};
  std::string name = shaping::pair_name(*rules_, subject);
  if (is_backed_off) {
    backed_off_.insert(std::move(name));
  } else {
    backed_off_.erase(name);
  }
  ++rules_version_;
  for (auto& [key, each] : sites_) {
    if (!provider.empty() ? each->provider != provider : each->key != site || !each->provider.empty()) continue;
    find_limits(*each, source);
    return_all_borrowed(each->groups[source]);
  }
  retire_idle(provider, site, source);
  if (provider.empty()) {
    for (auto& [key, each] : sites_) {
      if (each->key == site && each->provider.empty()) pump(*each, source);
    }
  } else {
    pump_pair(provider, source);
  }
}

shaping::Hold* Scheduler::pair_hold_of(std::string_view provider, unsigned source) {
  return &pair_holds_[{std::string(provider), source}];
}

// The other shards hold it as long, or know that it works again.
void Scheduler::tell_hold(std::string_view provider, unsigned source, const shaping::Hold& hold) {
  if (!hold.active(now())) pump_pair(provider, source);
  for (unsigned shard = 0; shard < peers_.size(); ++shard) {
    if (shard == context_.shard) continue;
    auto* letter = new HoldLetter;
    letter->provider = provider;
    letter->source = source;
    if (hold.active(now())) {
      letter->reason = hold.reason();
      letter->rest_ms = (hold.until() - now()) / 1'000'000 + 1;
    }
    letter->address<&Scheduler::on_hold>(peers_[shard].scheduler);
    peers_[shard].mailbox->push(*letter);
  }
}

void Scheduler::on_hold(reactor::Letter& letter) {
  std::unique_ptr<HoldLetter> owned(static_cast<HoldLetter*>(&letter));
  shaping::Hold& hold = *pair_hold_of(owned->provider, owned->source);
  if (owned->rest_ms > 0) {
    hold.fail(now(), now(), {}, owned->rest_ms, owned->reason);
    retire_idle(owned->provider, {}, owned->source);
  } else {
    hold.clear();
  }
  pump_pair(owned->provider, owned->source);
}

void Scheduler::pump_pair(std::string_view provider, unsigned source) {
  for (auto& [key, each] : sites_) {
    if (each->provider == provider) pump(*each, source);
  }
}

// ---- the operator's view

std::vector<ExplainRow> Scheduler::explain(std::string_view domain, const mail::SpoolId& id) const {
  std::vector<ExplainRow> rows;
  std::unordered_map<const SubQueue*, size_t> by_queue;
  int64_t wall_ms = context_.io.wall_ms();
  auto utc_of = [&](int64_t monotonic) { return wall_ms + (monotonic - now()) / 1'000'000; };
  auto add = [&](const Item& item) {
    const SubQueue& queue = *item.queue;
    const Destination& destination = *queue.destination;
    if (domain.empty() ? item.id != id : destination.domain != domain) return;
    auto [at, fresh] = by_queue.try_emplace(&queue, rows.size());
    if (fresh) {
      ExplainRow& row = rows.emplace_back();
      row.domain = destination.domain;
      row.pool = destination.pool;
      row.tenant = queue.tenant;
      row.job = queue.job;
      row.source_number = destination.source;
      row.source = rules_->source_name(destination.source);
      const Site* site = destination.site;
      const LaneGroup* group = site ? &site->groups[destination.source] : nullptr;
      if (site) row.site = site->key;
      if (site) row.provider = site->provider;
      if (group) row.connections = group->open;
      const shaping::Hold* hold = destination.hold.active(now())     ? &destination.hold
                                  : group ? group->holding(now()) : nullptr;
      if (hold) {
        row.why = "held: " + hold->reason();
        row.held_until_ms = utc_of(hold == &destination.hold ? hold->until() : group->held_until(now()));
      } else if (destination.fatal) {
        row.why = "its domain takes no mail: " + destination.fatal->reply;
      } else if (!site) {
        row.why = "looking for its MX hosts";
      } else if (gated_) {
        row.why = "outcomes wait for the disk";
      } else if (queue.held) {
        row.why = "paused by the operator";
      } else if (queue.parked) {
        row.why = "waits for a limit";
      } else if (group->limited && group->permit->state == Permit::State::asked) {
        row.why = "waits for a connection";
      }
    }
    ExplainRow& row = rows[at->second];
    ++row.messages;
    int64_t due_ms = 0;
    if (item.state == State::waiting) {
      ++row.waiting;
      due_ms = utc_of(item.deadline);
    } else if (item.state == State::in_flight) {
      ++row.in_flight;
    } else if (item.state == State::ready || item.state == State::loaded || item.state == State::loading) {
      ++row.ready;
      due_ms = wall_ms;
    }
    if (due_ms != 0 && (row.next_attempt_ms == 0 || due_ms < row.next_attempt_ms)) row.next_attempt_ms = due_ms;
  };
  if (domain.empty()) {
    const Item* item = index_.find(id);
    if (item && item->fanout) {
      for (const Item* part : item->fanout->items) add(*part);
    } else if (item) {
      add(*item);
    }
  } else {
    each_item(add);
  }
  for (ExplainRow& row : rows) row.next_attempt_ms = std::max(row.next_attempt_ms, row.held_until_ms);
  return rows;
}

void Scheduler::explain_limits(ExplainRow& row) {
  ASSERT(arbiter_);
  if (row.source.empty()) row.source = rules_->source_name(row.source_number);
  if (row.site.empty()) {
    const config::Provider* by_domain = rules_->provider_of(row.domain, {});
    if (by_domain) row.provider = by_domain->name;
  }
  shaping::Subject subject{row.provider, row.site, row.source_number, row.domain, row.pool, row.tenant, row.job};
  row.connection_limits = arbiter_->describe(subject, shaping::Purpose::connect);
  row.attempt_limits = arbiter_->describe(subject, shaping::Purpose::attempt);
  if (const shaping::Arbiter::Mode* mode = arbiter_->mode(subject)) {
    row.mode = "backed off: " + mode->reason;
    row.mode_until_ms = context_.io.wall_ms() + (mode->until - now()) / 1'000'000;
  }
  const config::Provider* provider = row.provider.empty() ? nullptr : rules_->provider(row.provider);
  config::ShapingChoice pair = rules_->pair(provider, row.source_number);
  auto say = [](const config::ShapingValue* value, Key key, std::string& text, std::string& where) {
    if (!value) return;
    text = config::to_string(key, *value);
    where = value->where;
  };
  say(config::at(pair, Key::messages_per_connection), Key::messages_per_connection, row.messages_per_connection,
      row.messages_per_connection_where);
  for (const config::ShapingChoice& choice :
       {pair, rules_->domain(row.domain), rules_->domain_source(row.domain, row.source_number)}) {
    say(config::at(choice, Key::recipients_per_transaction), Key::recipients_per_transaction,
        row.recipients_per_transaction, row.recipients_per_transaction_where);
  }
  // Ready mail that a limit holds back goes when the limit lets it.
  if (row.waiting > 0 && row.ready == 0) return;
  for (const auto* limits : {&row.connection_limits, &row.attempt_limits}) {
    if (limits == &row.connection_limits && row.connections > 0) continue;
    for (const shaping::LimitRow& limit : *limits) {
      if (limit.free_at == 0 || limit.free_at == INT64_MAX) continue;
      row.next_attempt_ms = std::max(row.next_attempt_ms, context_.io.wall_ms() + (limit.free_at - now()) / 1'000'000);
    }
  }
}

}  // namespace millrace::queue
