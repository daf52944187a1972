#include "queue/scheduler.h"

#include <algorithm>

#include "base/crc32c.h"
#include "base/log.h"
#include "config/credentials.h"
#include "dns/mx.h"
#include "queue/outcome.h"

namespace millrace::queue {
namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMillisecond;

constexpr uint32_t kMaxLoads = 512;  // over all destinations
// No new attempt starts while an outcome has waited longer than this for its record to be durable.
constexpr int64_t kOutcomesBehind = 100 * kMillisecond;
// How long intake is slowed at the most for one transaction before it goes on with its body on disk only.
constexpr int64_t kAdmissionDelay = 1 * kSecond;
// Attempts of a site that are lent to another shard at once: a few for each of its connections.
constexpr uint32_t kLent = 16;
// How long a slot is kept for a site that waits for a permit too.
constexpr int64_t kOwed = 120 * kSecond;
constexpr uint32_t kDrainFatal = 64;  // items ended in one go

}  // namespace

std::string_view to_string(State state) {
  switch (state) {
    case State::ready: return "ready";
    case State::paused: return "paused";
    case State::loading: return "being read from the spool";
    case State::loaded: return "ready";
    case State::in_flight: return "in delivery";
    case State::recording: return "outcome being recorded";
    case State::waiting: return "waiting for its next attempt";
  }
  return "?";
}

std::string_view to_string(Command command) {
  switch (command) {
    case Command::pause: return "pause";
    case Command::resume: return "resume";
    case Command::retry: return "retry";
    case Command::remove: return "delete";
    case Command::bounce: return "bounce";
  }
  return "?";
}

// A configuration that was not read by config/parse.h may come without.
static std::shared_ptr<const config::Shaping> rules_of(const config::Config& config) {
  if (config.shaping_rules) return config.shaping_rules;
  return *config::Shaping::parse({}, {}, config.sources, config.destination_rate, config.limit_share);
}

Scheduler::Scheduler(Context context) : context_(std::move(context)), prng_(context_.io.random()) {
  waiter_timer_.bind<&Scheduler::on_waiter_timer>(this);
  note_timer_.bind<&Scheduler::retry_failed_notes>(this);
  sweep_timer_.bind<&Scheduler::sweep>(this);
  owed_timer_.bind<&Scheduler::forget_owed>(this);
  gate_timer_.bind<&Scheduler::open_gate>(this);
  loads_freed_.bind<&Scheduler::on_loads_freed>(this);
  removal_timer_.bind<&Scheduler::run_removals>(this);
  grant_timer_.bind<&Scheduler::expire_grants>(this);
  answering_.bind<&Scheduler::tell_answers>(this);
  wall_base_ms_ = context_.io.wall_ms();
  monotonic_base_ = now();
  rules_ = rules_of(config());
  if (context_.shard == 0) {
    arbiter_ = std::make_unique<shaping::Arbiter>(context_.io, rules_);
    arbiter_->on_contended = [this](std::string_view provider, std::string_view site, unsigned source) {
      recall(provider, site, source);
    };
    arbiter_->on_mode = [this](const shaping::Arbiter::Mode& mode, bool backed_off) { tell_mode(mode, backed_off); };
  }
}

Scheduler::~Scheduler() {
  // Only memory is given back here: what is queued stays in the spool.
  arbiter_.reset();
  answering_.cancel();
  while (grants_.pop_front()) {
  }
  while (answers_.pop_front()) {
  }
  while (AdmissionWaiter* waiter = waiters_.pop_front()) (void)waiter;
  for (size_t slot = 0; slot < index_.capacity(); ++slot) {
    Item* item = index_.at(slot);
    if (!item) continue;
    if (Fanout* fanout = item->fanout) {
      for (Item* part : fanout->items) {
        part->link.unlink();
        delete part;
      }
      delete fanout;
    } else {
      item->link.unlink();
      delete item;
    }
  }
  while (slot_waiters_.pop_front()) {
  }
  for (auto& attempt : attempts_) {  // what is out
    attempt->link.unlink();
    attempt->home_link.unlink();
  }
  loads_freed_.cancel();
  while (load_waiters_.pop_front()) {
  }
  for (auto& [name, site] : sites_) {
    for (LaneGroup& group : site->groups) {
      group.ready.clear();
      while (group.idle.pop_front() || group.opening.pop_front()) {
      }
      while (group.borrowed.pop_front()) {
      }
    }
  }
  if (spool_) spool_->on_moved = nullptr;
}

void Scheduler::start(spool::Spool& spool, Reporter& reporter) {
  spool_ = &spool;
  reporter_ = &reporter;
  spool_->on_moved = [this](const mail::SpoolId& id, spool::Location from, spool::Location to) {
    set_moved(id, from, to);
  };
  started_ = true;
  if (arbiter_) {
    arbiter_->keep_budgets([this](std::string key, std::string value, std::function<void(Status)> done) {
      spool_->put_state(std::move(key), std::move(value), std::move(done));
    });
  }
  for (auto& [name, destination] : destinations_) {
    if (destination->ready > 0) work_arrived(*destination);
  }
  sweep_timer_.cancel();
  context_.io.timers().arm(sweep_timer_, now() + kSecond);
  if (!removals_.empty()) run_removals();
}

void Scheduler::stop(std::function<void()> done) {
  stopping_ = true;
  stopped_ = std::move(done);
  sweep_timer_.cancel();
  removal_timer_.cancel();
  release_waiters(UINT32_MAX);
  for (auto& [name, site] : sites_) {
    for (LaneGroup& group : site->groups) {
      while (Lane* lane = group.idle.pop_front()) lane->retire();
      // A host that is silent would be waited for until the drain's time-out.
      while (Lane* lane = group.opening.pop_front()) lane->retire();
      return_all_borrowed(group);
    }
  }
  report_stopped();
}

void Scheduler::report_stopped() {
  if (!stopping_ || !stopped_ || stats_.in_flight > 0 || loads_ > 0 || outcomes_open_ > 0 || lanes_open_ > 0) return;
  auto done = std::move(stopped_);
  stopped_ = nullptr;
  done();
}

void Scheduler::adopt(config::Snapshot config) {
  const config::Rate before = config::own_connect_rate(this->config()), after = config::own_connect_rate(*config);
  const bool same_rate = before.count == after.count && before.period_ms == after.period_ms &&
                         this->config().connect_rate_given == config->connect_rate_given;
  const bool same_tls = this->config().tls == config->tls && this->config().shaping == config->shaping &&
                        rules_->text() == rules_of(*config)->text();
  context_.config = std::move(config);
  rules_ = rules_of(this->config());
  ++rules_version_;
  if (arbiter_) arbiter_->adopt(rules_);
  flows_.adopt(*rules_);
  for (auto& [name, site] : sites_) {
    for (LaneGroup& group : site->groups) group.ready.rebuild();
    // One that stays goes on: begun anew, it would let one more connection into its period.
    if (!same_rate || !site->connect_rate.limited()) set_connect_rate(*site);
    if (!site->of_domain) site->provider = provider_of(*site->route, {});
    // A source that is gone keeps its group until its lanes have ended; new ones get a group.
    size_t wanted = std::max<size_t>(1, this->config().sources.size());
    size_t known = site->groups.size();
    while (site->groups.size() < wanted) site->groups.emplace_back();
    for (unsigned source = 0; source < site->groups.size(); ++source) {
      find_limits(*site, source);
      if (source >= known) site->groups[source].window = first_window(*site, site->groups[source]);
    }
  }
  // What is borrowed has the limits of before: its home lends it anew.
  return_all_borrowed();
  // What is asked of TLS is part of a route.
  for (auto& [name, destination] : destinations_) {
    if (same_tls || stopping_ || !destination->site) continue;
    destination->route_until = INT64_MIN;
    if (destination->ready == 0 || destination->resolving) continue;
    destination->resolving = true;
    context_.agent.resolve(*destination);
  }
  // A limit that rose lets more go; where this shard has no share any more, its mail is lent to one that has.
  if (!started_ || stopping_) return;
  for (auto& [name, site] : sites_) on_site_timer(*site);
}

// ---- intake ------------------------------------------------------------------------------------------

namespace {
// An item, its entry in the index and its share of a queue.
constexpr uint64_t kBytesPerItem = 200;
// Resident mail that waits for its turn: up to here intake runs free, so that bursts pass at full speed
// and what is delivered is still in the processor's cache.
constexpr uint64_t kBacklogBytes = 16u << 20;
}  // namespace

// Memory is what the limit is about: bodies of mail that is about to go (blocked mail keeps none) and a
// fixed cost for each queued item.
Admission Scheduler::admit(AdmissionWaiter& waiter, std::string& why) {
  if (stopping_) {
    why = "shutting down";
    return Admission::refused;
  }
  uint64_t memory = config().memory / context_.shards;
  if (memory > 0 && index_.size() * kBytesPerItem > memory / 2) {
    ++stats_.admissions_refused;
    why = "too many messages queued for --memory";
    return Admission::refused;
  }
  reactor::BufferPool& pool = context_.io.buffers(reactor::BufferGroup::ingress);
  bool ahead = backlog_bytes_ > std::min(kBacklogBytes, pool.bytes_limit() / 4);
  if (!ahead && waiters_.empty()) return Admission::now;
  ++stats_.admissions_delayed;
  waiter.since = now();
  waiters_.push_back(waiter);
  if (!waiter_timer_.armed()) context_.io.timers().arm(waiter_timer_, now() + kAdmissionDelay);
  return Admission::later;
}

// Each delivery lets one message in.
void Scheduler::release_waiters(unsigned count) {
  while (count-- > 0) {
    AdmissionWaiter* waiter = waiters_.pop_front();
    if (!waiter) return;
    waiter->on_admitted(stopping_, stopping_ ? "shutting down" : "");
  }
}

void Scheduler::on_waiter_timer() {
  while (AdmissionWaiter* waiter = waiters_.front()) {
    if (waiter->since + kAdmissionDelay > now()) {
      context_.io.timers().arm(waiter_timer_, waiter->since + kAdmissionDelay);
      return;
    }
    release_waiters(1);
  }
}

unsigned Scheduler::source_of(const mail::SpoolId& id, std::string_view pool, std::string_view account) const {
  if (!account.empty() && config().accounts) {
    const config::Account* found = config().accounts->find(account);
    if (found && !found->sources.empty()) {
      return found->sources[(mail::SpoolIdHash()(id) >> 7) % found->sources.size()];
    }
  }
  return rules_->source_of(pool, mail::SpoolIdHash()(id) >> 7, static_cast<unsigned>(config().sources.size()));
}

void Scheduler::enqueue(MessageRef message) {
  ++stats_.enqueued;
  newest_ms_ = std::max(newest_ms_, message->id.time_ms());
  const mail::Envelope& envelope = message->envelope;
  unsigned source = source_of(message->id, envelope.pool, envelope.account);
  auto adopt_item = [&](Item& item) {
    item.location = message->location;
    item.expires_s = static_cast<uint32_t>(envelope.expires_ms / 1000);
    item.sender_hash = crc32c(0, envelope.reverse_path);
    item.events = 1;  // `received` was the first
  };
  if (envelope.recipients.size() == 1) {
    Destination& destination = destination_of(envelope.recipients[0].domain, envelope.pool, source, envelope.tls);
    Item& item = make_item(message->id, sub_queue_of(destination, envelope.tenant, envelope.job, envelope.account));
    adopt_item(item);
    index_.insert(item);
    if (!blocked(destination) && !item.queue->held && !(item.queue->parked && item.queue->due() >= kLoadAhead)) {
      keep_resident(item, std::move(message));
    }
    enter(item, State::ready);
    work_arrived(destination);
    relieve_memory();
    return;
  }
  auto* fanout = new Fanout;
  fanout->recipients.resize(envelope.recipients.size());
  fanout->pending = static_cast<uint32_t>(envelope.recipients.size());
  fanout->events = 1;
  for (uint32_t number = 0; number < envelope.recipients.size(); ++number) {
    Destination& destination = destination_of(envelope.recipients[number].domain, envelope.pool, source, envelope.tls);
    Item* item = nullptr;
    for (Item* part : fanout->items) {
      if (part->queue->destination == &destination) item = part;
    }
    if (!item) {
      item = &make_item(message->id, sub_queue_of(destination, envelope.tenant, envelope.job, envelope.account));
      adopt_item(*item);
      item->fanout = fanout;
      fanout->items.push_back(item);
    }
    fanout->recipients[number].item = item;
  }
  index_.insert(*fanout->items.front());
  std::vector<Item*> items = fanout->items;
  for (Item* item : items) {
    if (!blocked(*item->queue->destination) && !item->queue->held && !(item->queue->parked && item->queue->due() >= kLoadAhead)) {
      keep_resident(*item, message);
    }
    enter(*item, State::ready);
  }
  for (Item* item : items) work_arrived(*item->queue->destination);
  relieve_memory();
}

// ---- items -------------------------------------------------------------------------------------------

Destination& Scheduler::destination_of(std::string_view domain, std::string_view pool, unsigned source, mail::TlsWish tls) {
  key_.assign(domain);
  key_ += '/';
  key_ += pool;
  if (source > 0) {
    key_ += '#';
    key_ += std::to_string(source);
  }
  if (tls != mail::TlsWish::none) key_ += tls == mail::TlsWish::required ? "|required" : "|not required";
  auto found = destinations_.find(key_);
  if (found != destinations_.end()) return *found->second;
  auto destination = std::make_unique<Destination>();
  destination->domain = domain;
  destination->pool = pool;
  destination->source = source;
  destination->tls = tls;
  destination->scheduler = this;
  destination->timer.owner = destination.get();
  destination->timer.call = [](void* self) {
    auto* it = static_cast<Destination*>(self);
    it->scheduler->work_arrived(*it);
  };
  return *destinations_.emplace(key_, std::move(destination)).first->second;
}

SubQueue& Scheduler::sub_queue_of(Destination& destination, std::string_view tenant, std::string_view job,
                                  std::string_view account) {
  constexpr size_t kFew = 8;
  auto name_of = [this](std::string_view one, std::string_view two, std::string_view three) -> const std::string& {
    return key_.assign(one).append(1, '\0').append(two).append(1, '\0').append(three);
  };
  if (destination.queues.size() <= kFew) {
    for (auto& queue : destination.queues) {
      if (queue->tenant == tenant && queue->job == job && queue->account == account) return *queue;
    }
  } else if (auto at = destination.by_name.find(name_of(tenant, job, account)); at != destination.by_name.end()) {
    return *at->second;
  }
  auto& queue = destination.queues.emplace_back(std::make_unique<SubQueue>());
  queue->destination = &destination;
  queue->tenant = tenant;
  queue->job = job;
  queue->account = account;
  queue->flow = &flows_.find(*rules_, tenant, destination.pool, job);
  if (!pauses_.empty()) update_held(*queue);
  if (destination.queues.size() == kFew + 1) {
    for (auto& each : destination.queues) destination.by_name[name_of(each->tenant, each->job, each->account)] = each.get();
  } else if (destination.queues.size() > kFew) {
    destination.by_name[name_of(tenant, job, account)] = queue.get();
  }
  return *queue;
}

Item& Scheduler::make_item(const mail::SpoolId& id, SubQueue& queue) {
  auto* item = new Item;
  item->id = id;
  item->queue = &queue;
  item->owner = item;
  item->call = [](void* self) {
    auto* it = static_cast<Item*>(self);
    it->queue->destination->scheduler->on_due(*it);
  };
  ++queue.items;
  ++queue.destination->items;
  ++stats_.items;
  item->state = State::recording;  // on no list yet
  return *item;
}

// Takes the item off the list, wheel or count that goes with its state.
void Scheduler::leave(Item& item) {
  SubQueue& queue = *item.queue;
  Destination& destination = *queue.destination;
  switch (item.state) {
    case State::ready:
      (item.attempts > 0 ? queue.retry : queue.fresh).remove(item);
      update_turn(queue);
      --destination.ready;
      --stats_.ready;
      break;
    case State::loaded:
      queue.loaded.remove(item);
      update_turn(queue);
      --loaded_;
      if (!load_waiters_.empty()) context_.io.defer(loads_freed_);
      --destination.ready;
      --stats_.ready;
      break;
    case State::loading:
      --queue.loading;
      --loads_;
      queue.reading = false;
      update_turn(queue, true);
      if (!load_waiters_.empty()) context_.io.defer(loads_freed_);
      --destination.ready;
      --stats_.ready;
      break;
    case State::paused: queue.paused.remove(item); break;
    case State::waiting: item.cancel(); break;
    case State::in_flight:
      --destination.in_flight;
      --stats_.in_flight;
      break;
    case State::recording: break;
  }
}

// The only place that changes an item's state. `front`: ahead of what waits there already.
void Scheduler::enter(Item& item, State state, bool front) {
  leave(item);
  item.state = state;
  SubQueue& queue = *item.queue;
  Destination& destination = *queue.destination;
  switch (state) {
    case State::ready: {
      ItemList& list = item.attempts > 0 ? queue.retry : queue.fresh;
      front ? list.push_front(item) : list.push_back(item);
      update_turn(queue);
      ++destination.ready;
      ++stats_.ready;
      break;
    }
    case State::loaded:
      queue.loaded.push_back(item);
      update_turn(queue, true);
      ++loaded_;
      ++destination.ready;
      ++stats_.ready;
      break;
    case State::loading:
      ++queue.loading;
      ++loads_;
      ++destination.ready;
      ++stats_.ready;
      break;
    case State::paused: queue.paused.push_back(item); break;
    case State::waiting: break;  // wait_until() arms the timer
    case State::in_flight:
      ++destination.in_flight;
      ++stats_.in_flight;
      break;
    case State::recording: break;
  }
}

void Scheduler::wait_until(Item& item, int64_t due) {
  drop_resident(item);
  enter(item, State::waiting);
  context_.io.timers().arm(item, due);
}

void Scheduler::on_due(Item& item) {
  item.state = State::recording;  // the wheel has let it go
  enter(item, State::ready);
  work_arrived(*item.queue->destination);
}

// Gone from memory: every recipient of the item is final.
void Scheduler::destroy(Item& item) {
  if (item.ending) take_ending(item);
  leave(item);
  drop_resident(item);
  if (Fanout* fanout = item.fanout) {
    std::erase(fanout->items, &item);
    if (fanout->items.empty()) {
      ASSERT(fanout->pending == 0);
      index_.erase(item.id);
      delete fanout;
    } else if (index_.find(item.id) == &item) {
      index_.replace(*fanout->items.front());
    }
  } else {
    index_.erase(item.id);
  }
  --item.queue->items;
  --item.queue->destination->items;
  --stats_.items;
  item.state = State::recording;
  delete &item;
}

int64_t Scheduler::expiry_clock_s() const {
  int64_t derived_ms = wall_base_ms_ + (now() - monotonic_base_) / kMillisecond;
  return std::min(derived_ms, context_.io.wall_ms()) / 1000;  // one set back is believed at once
}

// Steps ahead of the wall clock move the expiry of mail only slowly: a jump of more than an hour, which
// may be a mistake, is logged and believed after a quarter of an hour.
void Scheduler::watch_wall_clock() {
  int64_t derived_ms = wall_base_ms_ + (now() - monotonic_base_) / kMillisecond;
  int64_t wall_ms = context_.io.wall_ms();
  if (wall_ms - derived_ms > 3'600'000) {
    if (no_expiry_until_ == INT64_MIN) {
      log::warning("the clock has jumped ahead by {} s: nothing expires for 15 minutes", (wall_ms - derived_ms) / 1000);
      no_expiry_until_ = now() + 900 * kSecond;
      return;
    }
    if (now() < no_expiry_until_) return;
  }
  no_expiry_until_ = INT64_MIN;
  wall_base_ms_ = wall_ms;
  monotonic_base_ = now();
}

bool Scheduler::item_expired(const Item& item) const {
  if (item.expires_s == 0 || expiry_clock_s() < item.expires_s || now() < no_expiry_until_) return false;
  const Destination& destination = *item.queue->destination;
  return item.attempted_since_start || destination.tried ||
         (destination.site && destination.site->groups[destination.source].tried);
}

void Scheduler::keep_resident(Item& item, MessageRef message) {
  if (!message->item) {
    message->item = &item;
    backlog_bytes_ += message->content.raw_size;
  }
  if (!message->resident_link.linked()) residents_.push_back(*message);
  item.message = std::move(message);
}

void Scheduler::drop_resident(Item& item) {
  if (!item.message) return;
  Message& message = *item.message;
  if (message.item == &item) {
    message.item = nullptr;
    if (item.fanout) {
      for (Item* part : item.fanout->items) {
        if (part != &item && part->message.get() == &message) message.item = part;
      }
    }
    if (!message.item) backlog_bytes_ -= message.content.raw_size;
  }
  item.message = MessageRef();
}

void Scheduler::set_moved(const mail::SpoolId& id, spool::Location from, spool::Location to) {
  Item* item = index_.find(id);
  if (!item) return;
  auto move = [&](Item& part) {
    if (part.location == from) part.location = to;
    if (part.message && part.message->location == from) part.message->location = to;
  };
  if (item->fanout) {
    for (Item* part : item->fanout->items) move(*part);
  } else {
    move(*item);
  }
}

void Scheduler::recipients_of(const Item& item, std::vector<uint32_t>& out) const {
  out.clear();
  if (!item.fanout) {
    out.push_back(item.recipient);
    return;
  }
  const auto& recipients = item.fanout->recipients;
  for (uint32_t number = 0; number < recipients.size(); ++number) {
    if (recipients[number].item == &item) out.push_back(number);
  }
}

// Moves `recipients` of the item to an item of their own, with the same history.
Item& Scheduler::split(Item& item, const std::vector<uint32_t>& recipients) {
  ASSERT(item.fanout);
  Item& part = make_item(item.id, *item.queue);
  part.fanout = item.fanout;
  part.location = item.location;
  part.expires_s = item.expires_s;
  part.first_attempt_s = item.first_attempt_s;
  part.sender_hash = item.sender_hash;
  part.attempts = item.attempts;
  part.attempted_since_start = item.attempted_since_start;
  item.fanout->items.push_back(&part);
  for (uint32_t number : recipients) item.fanout->recipients[number].item = &part;
  return part;
}

// ---- dispatch ----------------------------------------------------------------------------------------

bool Scheduler::blocked(const Destination& destination) const {
  if (destination.hold.active(now()) || destination.fatal) return true;
  return destination.site && destination.site->groups[destination.source].held(now());
}

// Mail of the destination may be able to go: find out what it still needs, in the order of the needs.
void Scheduler::work_arrived(Destination& destination) {
  if (!started_ || stopping_ || destination.ready == 0) return;
  if (destination.fatal) {
    unlist(destination);
    return drain_fatal(destination);
  }
  reactor::TimerWheel& timers = context_.io.timers();
  if (destination.hold.active(now())) {
    unlist(destination);
    if (!destination.timer.armed()) timers.arm(destination.timer, destination.hold.until());
    return;
  }
  if (!destination.site || now() >= destination.route_until) {
    if (!destination.resolving) {
      destination.resolving = true;
      context_.agent.resolve(destination);
    }
    if (!destination.site) return;  // else the old route serves until the new one is here
  }
  if (!destination.listed) list(destination);
  pump(*destination.site, destination.source);
}

bool Scheduler::in_turn(const SubQueue& queue) const {
  return queue.destination->listed && !queue.parked && !queue.reading && !queue.held && queue.due() > 0;
}

// REQUIRES: it has a site.
void Scheduler::list(Destination& destination) {
  destination.listed = true;
  for (auto& queue : destination.queues) update_turn(*queue);
}

void Scheduler::unlist(Destination& destination) {
  if (!destination.listed) return;
  destination.listed = false;
  for (auto& queue : destination.queues) update_turn(*queue);
}

// One share of a limit a shard, the remainder to the first ones: the sum never exceeds it.
uint32_t Scheduler::share_of(uint32_t limit) const {
  return limit / context_.shards + (context_.shard < limit % context_.shards ? 1 : 0);
}

// What the shaping file says is for all shards, and the arbiter sees to it.
uint32_t Scheduler::connection_limit(const LaneGroup& group) const {
  if (!group.connections_said) return share_of(config::own_connections(config()));
  return group.connections > 0 ? group.connections : config().total_connections;
}

uint32_t Scheduler::total_share() const { return share_of(config().total_connections); }

double Scheduler::first_window(const Site& site, const LaneGroup& group) const {
  uint32_t limit = connection_limit(group);
  // It may be none, of a shard without a share: the ramp is there when a reload gives it one.
  return std::max(1.0, site.explicit_hop ? limit : std::min<double>(config().initial_connections, limit));
}

// --connect-rate in whole connections a shard: fractions would let each begin one more than its part.
void Scheduler::set_connect_rate(Site& site) const {
  config::Rate rate = config::own_connect_rate(config());
  site.connect_share = UINT32_MAX;
  site.connect_rate = {};
  if (!rate.limited() || (site.explicit_hop && !config().connect_rate_given)) return;
  site.connect_share = share_of(static_cast<uint32_t>(rate.count));
  rate.count = site.connect_share;
  site.connect_rate = shaping::RateLimiter(rate);
}

// Wakes idle lanes and opens new ones for the mail that may go.
void Scheduler::pump(Site& site, unsigned source) {
  LaneGroup& group = site.groups[source];
  if (gated_ || stopping_ || (group.ready.empty() && group.borrowed.empty()) || group.held(now())) {
    if (group.held(now()) && !site.timer.armed()) context_.io.timers().arm(site.timer, group.held_until(now()));
    return;
  }
  uint32_t share = total_share();
  if (connection_limit(group) == 0 || share == 0 || site.base->connect_share == 0) return lend(site, source);
  uint32_t limit = std::clamp(static_cast<uint32_t>(group.window), 1u, connection_limit(group));
  if (group.probing()) limit = std::min(limit, 1u);  // one probe until it works again
  // More work than lanes need not be counted. A sub-queue that asks before each attempt has some for one.
  uint32_t work = 0;
  for (Attempt* at = group.borrowed.front(); at && work <= limit; at = group.borrowed.next(*at)) {
    work += !at->request || at->request->state != Permit::State::asked;
  }
  group.ready.each([&](const SubQueue& queue) {
    work += queue.limited ? 1 : queue.due();
    return work <= limit;
  });
  uint32_t coming = group.connecting + group.called;
  while (coming < work) {
    Lane* lane = group.idle.pop_front();
    if (!lane) break;
    ++coming;
    ++group.called;
    lane->called = true;
    lane->wake();
  }
  // Mail behind a hold brings no look-up with it. The probe goes to where its hosts are now, and by what they publish now.
  // Before its permit is asked for, which is good for less time than a look-up takes.
  const bool asked = group.permit && group.permit->state != Permit::State::none;
  if (coming < work && group.open < limit && group.probing() && !asked) {
    SubQueue* next = group.ready.front();
    Destination* first = next ? next->destination : nullptr;
    if (first && now() >= first->route_until && !first->hold.active(now())) {
      if (!std::exchange(first->resolving, true)) context_.agent.resolve(*first);
      return;  // on_route() comes back here
    }
  }
  while (coming < work && group.open < limit) {
    const bool owed = owed_ == &site && owed_source_ == source;
    if (lanes_open_ + (owed_ && !owed) >= share) {
      // The next lane that closes, whatever its site, makes room here.
      if (!site.slot_link.linked()) slot_waiters_.push_back(site);
      return;
    }
    LaneGroup& all = site.base->groups[source];
    if (all.open_all >= connection_limit(group)) {
      // Its kin have the connections that there may be: one that has nothing to do ends, or the next to close makes room.
      for (Site* other : site.base->kin) {
        Lane* lane = other->groups[source].idle.front();
        if (!lane) continue;
        if (now() - lane->idle_at >= kRecallAfter) {
          lane->idle_link.unlink();
          lane->retire();
        } else if (!site.timer.armed()) {
          context_.io.timers().arm(site.timer, lane->idle_at + kRecallAfter);
        }
        break;
      }
      return;
    }
    shaping::RateLimiter& connect_rate = site.base->connect_rate;
    if (!connect_rate.allowed(now())) {
      if (!site.timer.armed()) context_.io.timers().arm(site.timer, connect_rate.allowed_at());
      return;
    }
    if (group.limited && !connection_permitted(site, source)) return;
    connect_rate.charge(now());
    if (owed) owed_ = nullptr;
    ++group.open;
    ++all.open_all;
    ++group.connecting;
    ++lanes_open_;
    ++stats_.connects;
    ++coming;
    Lane* lane = context_.agent.open(site, source);
    lane->site = &site;
    lane->source = source;
    lane->connecting = true;
    group.opening.push_back(*lane);
    lane->opened_at = now();
    lane->messages_most = group.messages_most;
    lane->permit = group.limited ? use(*group.permit) : shaping::Release{};
  }
}

void Scheduler::on_site_timer(Site& site) {
  for (unsigned source = 0; source < site.groups.size(); ++source) pump(site, source);
}

// The next item of the sub-queue that is resident and may go; starts reading what is not. Without one it is out of its
// turn, unless there is no room to read anything.
Item* Scheduler::next_item(SubQueue& queue) {
  while (queue.due() > 0) {
    Item* item = queue.loaded.front();
    if (!item) {
      // Three new messages for each retry, so neither starves.
      bool retry = queue.fresh.empty() || (++queue.turn % 4 == 0 && !queue.retry.empty());
      item = (retry ? queue.retry : queue.fresh).front();
    }
    if (!pauses_.empty() && paused(*item)) {
      drop_resident(*item);
      enter(*item, State::paused);
      continue;
    }
    if (!item->message) {
      if (may_load(queue)) {
        load(*item);
        continue;
      }
      queue.reading = queue.loading > 0;
      update_turn(queue);
      return nullptr;
    }
    if (item_expired(*item)) {
      end_item(*item, events::Type::expired, expiry_result(), true);
      continue;
    }
    load_ahead(queue);
    return item;
  }
  return nullptr;
}

// Reading ahead leaves half of the room to those that have nothing yet, so a sub-queue whose mail goes slowly
// keeps no other waiting.
bool Scheduler::may_load(const SubQueue& queue) const {
  uint32_t ahead = queue.loading + queue.loaded.size();
  uint32_t all = loads_ + loaded_;
  return ahead == 0 ? all < kMaxLoads : ahead < kLoadAhead && all < kMaxLoads / 2;
}

// Those that found no room, the one that waits longest first.
void Scheduler::on_loads_freed() {
  for (uint32_t in_use = loads_ + loaded_; in_use < kMaxLoads; ++in_use) {
    Site* site = load_waiters_.pop_front();
    if (!site) return;
    on_site_timer(*site);
  }
}

// While one read-back message goes, the following ones are read.
void Scheduler::load_ahead(SubQueue& queue) {
  if (queue.loaded.empty() || queue.limited) return;  // what waits for permits keeps no room
  while (may_load(queue)) {
    Item* item = queue.fresh.empty() ? queue.retry.front() : queue.fresh.front();
    if (!item || item->message || (!pauses_.empty() && paused(*item))) return;
    load(*item);
  }
}

struct Scheduler::Loading : spool::Read {
  Scheduler* scheduler = nullptr;
  Item* item = nullptr;
  int64_t begun_at = 0;
};

void Scheduler::load(Item& item) {
  enter(item, State::loading);
  underway_ = true;
  ++stats_.reads;
  Loading& loading = loadings_.take([this](Loading& made) {
    made.scheduler = this;
    made.owner = &made;
    made.done = [](void* self, spool::Read&) {
      auto* it = static_cast<Loading*>(self);
      Scheduler* scheduler = it->scheduler;
      scheduler->on_loaded(*it);
      if (scheduler->stopping_) scheduler->report_stopped();
    };
  });
  loading.item = &item;
  loading.begun_at = now();
  loading.message = item.location;
  loading.id = item.id;
  spool_->read(loading);
}

void Scheduler::on_loaded(Loading& loading) {
  Item& item = *loading.item;
  Status status = std::move(loading.status);
  MessageRef message;
  if (status.ok()) {
    Result<mail::Metadata> metadata = mail::decode_metadata(loading.metadata);
    if (metadata.ok()) {
      message = MessageRef::make();
      message->id = item.id;
      message->envelope = std::move(metadata->envelope);
      message->content = std::move(metadata->content);
      message->content.raw = loading.pieces;
      message->buffers = std::move(loading.buffers);
      message->location = loading.message;
    } else {
      status = fail(metadata.error());
    }
  }
  item.queue->slow_reads = now() - loading.begun_at > shaping::kGrantNs / 2;
  bool moved = !(loading.message == item.location);
  loading.metadata = {};
  loading.pieces.clear();
  loading.buffers.clear();
  loading.status = success();
  loadings_.give_back(loading);
  Destination& destination = *item.queue->destination;
  if (!status.ok()) {
    if (moved) return load_again(item);
    // Nothing is lost yet: a read error may pass, and the record stays for millrace-spool to look at.
    log::error("message {}: cannot be read from the spool: {}; tried again in 15 minutes", item.id.to_string(),
               status.error().text);
    wait_until(item, now() + 900 * kSecond);
    return work_arrived(destination);
  }
  message->location = item.location;
  keep_resident(item, std::move(message));
  if (item.ending) {
    PendingEnd end = take_ending(item);
    if (end.filter_matches(*item.message)) {
      end_item(item, end.type, end.why, end.report);
    } else {
      enter(item, State::ready, true);
      spare(item, end);
    }
    return work_arrived(destination);
  }
  if (item.queue->held) {
    // A pause came while it was being read; it would keep the room of others until that ends.
    enter(item, State::ready, true);
    drop_resident(item);
  } else {
    enter(item, State::loaded);
  }
  work_arrived(destination);
}

// The segment was compacted while its message was being read: read the new copy.
void Scheduler::load_again(Item& item) {
  enter(item, State::ready, true);
  load(item);
}

// No new attempt starts while the disk has not taken what the last ones said (promise 2), or the events file is
// far behind.
bool Scheduler::outcomes_behind() const {
  if (context_.events.behind()) return true;
  int64_t oldest = spool_->stats().oldest_unsynced_ns;
  return oldest != 0 && now() - oldest > kOutcomesBehind;
}

void Scheduler::open_gate() {
  if (!gated_) return;
  if (outcomes_behind()) {
    context_.io.timers().arm(gate_timer_, now() + 20 * kMillisecond);
    return;
  }
  gated_ = false;
  for (auto& [name, site] : sites_) on_site_timer(*site);
}

Attempt* Scheduler::take(Lane& lane) {
  Site& site = *lane.site;
  LaneGroup& group = site.groups[lane.source];
  group.called -= std::exchange(lane.called, false);
  // A connection that was begun before there was a limit on them is in nobody's count.
  if (stopping_ || group.held(now()) || (group.limited && !lane.permit.set)) {
    lane.retire();
    return nullptr;
  }
  if (!gated_ && outcomes_behind()) {
    gated_ = true;
    context_.io.timers().arm(gate_timer_, now() + 20 * kMillisecond);
  }
  underway_ = false;
  if (!gated_) {
    if (Attempt* attempt = next_attempt(site, group)) {
      // Mail under a limit asks for one lane at a time; the next may go beside this one.
      if (attempt->permit.set && !(group.ready.empty() && group.borrowed.empty())) pump(site, lane.source);
      return attempt;
    }
  }
  // A lane with nothing to send: no further one is wanted, and what waits for one is then somebody else's.
  if (group.permit) withdraw(*group.permit);
  const bool kin = kin_waits(site, lane.source);
  if (!underway_) {
    const bool others = arbiter_ && lane.permit.set && arbiter_->wanted(*lane.permit.set);
    if (kin || others) {
      lane.retire();
      return nullptr;
    }
  } else if (kin) {
    // They look again when that has had its time. Those of other sites recall what idles too long by themselves.
    for (Site* other : site.base->kin) {
      if (other != &site && !other->timer.armed()) context_.io.timers().arm(other->timer, now() + kRecallAfter);
    }
  }
  if (!lane.idle_link.linked() && !lane.connecting) {
    lane.idle_at = now();
    group.idle.push_front(lane);
  }
  return nullptr;
}

// The next transaction of the group, own or borrowed, or nullptr. One that is lent asks for its permit where its
// lane is.
Attempt* Scheduler::next_attempt(Site& site, LaneGroup& group, bool lending) {
  group.borrowed_turn = !group.borrowed_turn;
  if (group.borrowed_turn || group.ready.empty()) {
    if (Attempt* attempt = next_borrowed(group)) return attempt;
  }
  while (SubQueue* queue = group.ready.front()) {
    uint32_t loads = loads_;
    Item* item = next_item(*queue);
    if (!item && loads_ > loads) break;  // a lane has no use for more than it asked for; that wakes it
    if (!item && queue->turn_link.linked()) {
      if (!site.load_link.linked()) load_waiters_.push_back(site);
      break;
    }
    if (!item) continue;  // being read, paused or ended
    if (lending && !lendable(site, *item)) continue;
    // Who has to wait for a permit has had this turn: with the permit it goes first.
    bool paid = std::exchange(queue->paid, false);
    group.ready.served(*queue, paid ? 0 : shaping::turn_cost(item->message->content.size()));
    if (!lending && !permitted(site, *item)) {
      queue->paid = true;
      continue;
    }
    Attempt* attempt = make_attempt(*item, site);
    if (queue->limited && !lending) attempt->permit = use(*queue->permit);
    return attempt;
  }
  return next_borrowed(group);
}

// The first that may go; others ask, of each sub-queue one at a time as at home.
Attempt* Scheduler::next_borrowed(LaneGroup& group) {
  auto& asking = scratch_queues_;
  asking.clear();
  for (Attempt* at = group.borrowed.front(); at; at = group.borrowed.next(*at)) {
    if (at->request && at->request->state == Permit::State::asked) asking.push_back(at->lent_from);
  }
  for (Attempt *at = group.borrowed.front(), *next; at; at = next) {
    next = group.borrowed.next(*at);
    bool goes_home = at->unwanted.load(std::memory_order_relaxed) || (!pauses_.empty() && paused(*at));
    if (!goes_home && !borrowed_permitted(*at, asking)) continue;
    at->link.unlink();
    --group.borrowed_count;
    if (!goes_home) return at;
    forget_request(*at);
    return_borrowed(*at);
  }
  return nullptr;
}

// This shard has no share of the site's connections: a shard that has one serves its attempts. A few at
// a time: each that comes back makes room for the next.
void Scheduler::lend(Site& site, unsigned source) {
  LaneGroup& group = site.groups[source];
  // While a reload is on its way, this shard may have been lent what it has no share for.
  return_all_borrowed(group);
  while (group.lent < kLent) {
    Attempt* attempt = next_attempt(site, group, true);
    if (!attempt) return;
    ++group.lent;
    SubQueue& queue = *attempt->item->queue;
    ++queue.lent;
    const Destination& destination = *queue.destination;
    attempt->route = site.route;
    attempt->lent_by = &site;
    lent_.push_back(*attempt);
    attempt->lent_from = &queue;
    attempt->source = source;
    attempt->subject = {{}, {}, source, destination.domain, destination.pool, queue.tenant, queue.job};
    attempt->held_until = 0;
    // Every shard below all of these has a share of each.
    uint32_t sharing = std::min(config::own_connections(config()), config().total_connections);
    if (site.base->connect_share != UINT32_MAX) sharing = std::min(sharing, static_cast<uint32_t>(config::own_connect_rate(config()).count));
    const Peer& peer = peers_[context_.shard % sharing];
    attempt->address<&Scheduler::on_borrowed>(peer.scheduler);
    peer.mailbox->push(*attempt);
  }
}

void Scheduler::on_borrowed(reactor::Letter& letter) {
  auto& attempt = static_cast<Attempt&>(letter);
  Site& site = site_of(attempt.route, attempt.message->envelope.recipients[attempt.recipients[0]].domain);
  LaneGroup& group = site.groups[attempt.source];
  group.borrowed.push_back(attempt);
  ++group.borrowed_count;
  if (stopping_ || group.held(now())) return return_all_borrowed(group);
  find_limits(attempt, site);
  pump(site, attempt.source);
}

void Scheduler::return_all_borrowed() {
  for (auto& [name, site] : sites_) {
    for (LaneGroup& group : site->groups) return_all_borrowed(group);
  }
}

void Scheduler::return_all_borrowed(LaneGroup& group) {
  while (Attempt* attempt = group.borrowed.pop_front()) {
    --group.borrowed_count;
    attempt->held_until = group.held_until(now());
    forget_request(*attempt);
    return_borrowed(*attempt);
  }
}

void Scheduler::return_borrowed(Attempt& attempt) {
  const Peer& home = peers_[attempt.home_shard];
  attempt.address<&Scheduler::on_returned>(home.scheduler);
  home.mailbox->push(attempt);
}

void Scheduler::on_returned(reactor::Letter& letter) {
  auto& attempt = static_cast<Attempt&>(letter);
  // The site that lent it; the destination may have moved to another since.
  Site& site = *attempt.lent_by;
  attempt.home_link.unlink();
  LaneGroup& group = site.groups[attempt.source];
  --group.lent;
  if (attempt.held_until > now()) {
    group.hold.fail(now(), attempt.taken_at, {}, (attempt.held_until - now()) / kMillisecond + 1, "held on the shard that has its connections");
  }
  unsigned source = attempt.source;
  attempt.route.reset();
  SubQueue& queue = *attempt.item->queue;
  --queue.lent;
  if (queue.parked && queue.permit->state != Permit::State::asked) {
    queue.parked = false;
    update_turn(queue);
    work_arrived(*queue.destination);
  }
  finished(attempt);
  pump(site, source);
}

Attempt* Scheduler::make_attempt(Item& item, const Site& site) {
  Attempt* attempt = &attempts_.take([](Attempt&) {});
  enter(item, State::in_flight);
  Message& message = *item.message;
  message.resident_link.unlink();
  attempt->message = &message;
  attempt->item = &item;
  attempt->domain = item.queue->destination->domain;
  attempt->home_shard = context_.shard;
  attempt->taken_at = now();
  recipients_of(item, attempt->recipients);
  uint32_t most = config().recipients_per_transaction;
  const SubQueue& queue = *item.queue;
  if (uint32_t said = queue.recipients_most ? queue.recipients_most
                                            : site.groups[queue.destination->source].recipients_most) {
    most = said;
  }
  if (site.recipients_learned > 0) most = std::min(most, site.recipients_learned);
  if (attempt->recipients.size() > most) attempt->recipients.resize(most);
  attempt->results.resize(attempt->recipients.size());
  for (RecipientResult& result : attempt->results) {
    result.action = Action::give_back;
    result.scope = events::Scope::none;
    result.stage = events::Stage::none;
    result.code = 0;
    result.enhanced.clear();
    result.bounce_class = {};
    result.reply.clear();
    result.rest_ms = 0;
    if (result.asks.any()) result.asks = {};
  }
  attempt->recipients_learned = 0;
  attempt->receiver_reports = false;
  attempt->unwanted.store(false, std::memory_order_relaxed);
  ++stats_.attempts;
  return attempt;
}

void Scheduler::release_attempt(Attempt& attempt) {
  attempt.message = nullptr;
  attempt.item = nullptr;
  attempts_.give_back(attempt);
}

void Scheduler::waiting_domains(const Lane& lane, size_t most, std::vector<std::string_view>& domains) {
  constexpr size_t kMostLookedAt = 200;
  LaneGroup& group = lane.site->groups[lane.source];
  size_t looked_at = 0;
  const auto add = [&](std::string_view domain) {
    if (std::find(domains.begin(), domains.end(), domain) == domains.end()) domains.push_back(domain);
    return domains.size() < most && ++looked_at < kMostLookedAt;
  };
  bool more = most > 0;
  if (more) group.ready.each([&](const SubQueue& queue) { return more = add(queue.destination->domain); });
  for (Attempt* at = group.borrowed.front(); more && at; at = group.borrowed.next(*at)) more = add(at->domain);
}

void Scheduler::lane_ready(Lane& lane) {
  LaneGroup& group = lane.site->groups[lane.source];
  if (lane.connecting) {
    lane.connecting = false;
    lane.idle_link.unlink();
    --group.connecting;
  }
  if (group.hold.failures() > 0) {
    group.hold.clear();
    pump(*lane.site, lane.source);
  }
}

void Scheduler::lane_closed(Lane& lane, const LaneEnd& end) {
  Site& site = *lane.site;
  LaneGroup& group = site.groups[lane.source];
  if (lane.connecting) {
    lane.connecting = false;
    --group.connecting;
  }
  lane.idle_link.unlink();
  group.called -= std::exchange(lane.called, false);
  give_back_all(lane.permit, true, true);
  if (end.asks.back_off) back_off(site, lane.source, end.reply, end.asks.where);
  --group.open;
  --site.base->groups[lane.source].open_all;
  --lanes_open_;
  switch (end.cause) {
    case LaneEnd::Cause::idle:
    case LaneEnd::Cause::peer_limit:
    case LaneEnd::Cause::lost: break;
    case LaneEnd::Cause::failed:
    case LaneEnd::Cause::told_to_slow:
      ++stats_.connection_failures;
      group.tried = true;
      if (end.cause == LaneEnd::Cause::told_to_slow) group.window = std::max(1.0, group.window * 0.8);
      // Other lanes of the group that work show that the site does: only this one failed.
      if (end.cause == LaneEnd::Cause::told_to_slow || group.open == group.connecting) {
        hold_site(site, lane.source, end, lane.opened_at);
      }
      break;
  }
  if (stopping_) return report_stopped();
  // Sites that wait for a slot come first, in their order; this one goes to the end of them.
  if (slot_waiters_.empty()) return pump_kin(site, lane.source);
  if (!site.slot_link.linked()) slot_waiters_.push_back(site);
  serve_slot_waiters();
  if (!site.base->kin.empty()) pump_kin(site, lane.source);
}

// One that has no use for the slot now (held, paced, its mail gone) leaves it to the next.
void Scheduler::serve_slot_waiters() {
  if (owed_) on_site_timer(*owed_);
  while (lanes_open_ < total_share()) {
    Site* waiting = slot_waiters_.pop_front();
    if (!waiting) return;
    on_site_timer(*waiting);
    if (waiting->slot_link.linked()) return;  // what is free is kept for another
  }
}

// Whether others that share the site's limits have mail, and no connection may be added for it.
bool Scheduler::kin_waits(const Site& site, unsigned source) const {
  if (site.base->kin.empty() || site.base->groups[source].open_all < connection_limit(site.groups[source])) return false;
  return std::any_of(site.base->kin.begin(), site.base->kin.end(), [&](const Site* other) {
    const LaneGroup& group = other->groups[source];
    return other != &site && !group.ready.empty() && !group.held(now());
  });
}

// A connection of the site has ended: those that share its limits may have waited for that, and come first in their turn.
void Scheduler::pump_kin(Site& site, unsigned source) {
  std::vector<Site*>& kin = site.base->kin;
  if (!kin.empty()) {
    std::rotate(kin.begin(), kin.begin() + 1, kin.end());
    for (Site* other : kin) {
      if (other != &site) pump(*other, source);
    }
  }
  pump(site, source);
}

void Scheduler::keep_slot(Site& site, unsigned source) {
  if (owed_) return;
  owed_ = &site;
  owed_source_ = source;
  context_.io.timers().arm(owed_timer_, now() + kOwed);
}

void Scheduler::forget_owed() {
  owed_ = nullptr;
  serve_slot_waiters();
}

void Scheduler::hold_site(Site& site, unsigned source, const LaneEnd& end, int64_t begun) {
  LaneGroup& group = site.groups[source];
  // A reply speaks for the whole provider; silence and broken connections are this site's.
  bool about_pair = group.pair_hold && end.code != 0 &&
                    (end.scope == events::Scope::source || end.scope == events::Scope::provider);
  shaping::Hold& hold = about_pair ? *group.pair_hold : group.hold;
  bool was_held = hold.active(now());
  std::string why = end.reply.empty() ? std::string(to_string(end.stage)) + " failed" : end.reply;
  hold.fail(now(), begun, config().hold_ms, end.rest_ms, why);
  if (was_held || !hold.active(now())) return;
  queue_event(site, end, source);
  if (about_pair) tell_hold(site.provider, source, hold);
  // What waits behind a hold leaves memory; the spool has it.
  std::vector<SubQueue*> waiting;
  group.ready.each([&](SubQueue& queue) { return waiting.push_back(&queue), true; });
  for (SubQueue* queue : waiting) {
    evict_ready(*queue);
    queue->destination->last_reply = {why, end.code, context_.io.wall_ms()};
  }
  while (Lane* lane = group.idle.pop_front()) lane->retire();
  return_all_borrowed(group);
  if (!site.timer.armed()) context_.io.timers().arm(site.timer, group.held_until(now()));
}

void Scheduler::queue_event(Site& site, const LaneEnd& end, unsigned source) {
  events::Event event;
  event.type = events::Type::queue;
  event.time_ms = context_.io.wall_ms();
  event.next_attempt_ms = event.time_ms + (site.groups[source].held_until(now()) - now()) / kMillisecond;
  event.site = site.key;
  event.provider = site.provider.empty() ? std::string_view(site.key) : site.provider;
  event.stage = end.stage;
  event.code = end.code;
  event.enhanced = end.enhanced;
  event.reply = end.reply;
  event.mx = end.mx;
  std::string peer = end.peer.empty() ? std::string() : end.peer.to_string();
  event.peer = peer;
  event.scope = end.scope;
  if (const shaping::Hold* hold = site.groups[source].holding(now())) event.reason = hold->reason();
  std::string from;
  if (source < config().sources.size()) {
    const config::Source& at = config().sources[source];
    from = at.ipv4.empty() ? at.ipv6.host_string() : at.ipv4.host_string();
  }
  event.source = from;
  context_.events.emit(0, event);
}

Site& Scheduler::site_of(const std::shared_ptr<const dns::Route>& route, std::string_view domain) {
  // Hosts shared by domains of different providers have connections of each.
  std::string_view provider = provider_of(*route, domain);
  key_ = route->site;
  const bool of_domain = !provider.empty() && provider != provider_of(*route, {});
  if (of_domain) key_.append("@").append(provider);
  Site* site = &site_named(key_, route, provider, nullptr);
  site->of_domain = of_domain;
  if (!route->tls.key.empty()) {
    Site& base = *site;
    key_.append("|").append(route->tls.key);
    site = &site_named(key_, route, provider, &base);
    site->of_domain = of_domain;
  }
  site->route = route;
  return *site;
}

// `base`: of a site that has one beside itself.
Site& Scheduler::site_named(const std::string& name, const std::shared_ptr<const dns::Route>& route,
                            std::string_view provider, Site* base) {
  auto& site = sites_[name];
  if (!site) {
    site = std::make_unique<Site>();
    site->key = route->site;
    site->base = base ? base : site.get();
    if (base) {
      if (base->kin.empty()) base->kin.push_back(base);
      base->kin.push_back(site.get());
    }
    site->provider = provider;
    site->route = route;
    site->explicit_hop = route->explicit_hop;
    site->scheduler = this;
    set_connect_rate(*site);
    size_t groups = std::max<size_t>(1, config().sources.size());
    for (unsigned source = 0; source < groups; ++source) {
      site->groups.emplace_back();
      find_limits(*site, source);
      site->groups[source].window = first_window(*site, site->groups[source]);
    }
    site->timer.owner = site.get();
    site->timer.call = [](void* self) {
      auto* it = static_cast<Site*>(self);
      it->scheduler->on_site_timer(*it);
    };
  }
  return *site;
}

void Scheduler::on_route(Destination& destination, std::shared_ptr<const dns::Route> route) {
  destination.resolving = false;
  if (stopping_) return;
  int64_t begun = now();
  Site* before = destination.site;
  switch (route->verdict) {
    case dns::Verdict::usable: {
      destination.hold.clear();
      destination.missing_since = 0;
      destination.route = route;
      destination.route_until = std::max(route->valid_until_ns, now() + kSecond);
      Site& site = site_of(route, destination.domain);
      if (destination.site != &site) {
        unlist(destination);
        destination.site = &site;
      }
      break;
    }
    case dns::Verdict::temporary:
      destination.tried = true;
      destination.hold.fail(now(), begun, config().hold_ms, 0, route->reason);
      look_up_failed(destination, *route);
      break;
    case dns::Verdict::no_such_domain: {
      // Bounces only when a second look, at least ten minutes later, agrees.
      destination.tried = true;
      if (destination.missing_since == 0) destination.missing_since = std::max<int64_t>(now(), 1);
      int64_t left_ms = config().nxdomain_confirm_ms - (now() - destination.missing_since) / kMillisecond;
      if (left_ms > 0) {
        destination.hold.fail(now(), begun, {}, left_ms, route->reason);
        look_up_failed(destination, *route);
      } else {
        destination.missing_since = 0;
        set_fatal(destination, *route);
      }
      break;
    }
    case dns::Verdict::null_mx:
    case dns::Verdict::no_usable_host:
    case dns::Verdict::loop:
    case dns::Verdict::unprotected: set_fatal(destination, *route); break;
  }
  if (destination.ready == 0) destination.fatal.reset();  // whose mail that was has gone: what comes next asks anew
  work_arrived(destination);
  // A probe that waited for this look-up may be another's now.
  if (before) pump(*before, destination.source);
}

// The destination is held: one event, and its mail leaves memory.
void Scheduler::look_up_failed(Destination& destination, const dns::Route& route) {
  evict_ready(destination);
  events::Event event;
  event.type = events::Type::queue;
  event.time_ms = context_.io.wall_ms();
  event.next_attempt_ms = event.time_ms + (destination.hold.until() - now()) / kMillisecond;
  event.queue = destination.domain;
  event.pool = destination.pool;
  event.stage = events::Stage::dns;
  event.scope = events::Scope::destination;
  event.enhanced = dns::enhanced_status(route.verdict);
  event.reason = route.reason;
  context_.events.emit(0, event);
}

void Scheduler::set_fatal(Destination& destination, const dns::Route& route) {
  RecipientResult why;
  why.action = Action::bounce;
  why.scope = events::Scope::destination;
  why.stage = events::Stage::dns;
  why.enhanced = dns::enhanced_status(route.verdict);
  why.bounce_class = route.verdict == dns::Verdict::loop          ? "routing-errors"
                     : route.verdict == dns::Verdict::unprotected ? "policy-related"
                                                                  : "bad-domain";
  why.reply = route.reason;
  destination.fatal = std::move(why);
}

// Ends what waits for a domain that takes no mail, a slice at a time; then the domain is asked anew by
// whatever comes next.
void Scheduler::drain_fatal(Destination& destination) {
  uint32_t ended = 0, loading = 0;
  bool more = false;
  for (auto& queue : destination.queues) {
    while (!queue->parked && !queue->held && ended < kDrainFatal) {
      Item* item = next_item(*queue);
      if (!item) break;
      end_item(*item, events::Type::bounced, RecipientResult(*destination.fatal), true);
      ++ended;
    }
    loading += queue->loading;
    more |= !queue->parked && !queue->held && queue->due() > 0;
  }
  if (!more && loading == 0) {
    // What is left is paused or waits for a limit: it asks anew when its time comes.
    destination.fatal.reset();
  } else if (more && (ended == kDrainFatal || loading == 0)) {
    context_.io.timers().arm(destination.timer, now());
  }
}

// Bodies of mail that may not go now leave memory; the first few stay, to go at once when it may.
void Scheduler::evict_ready(Destination& destination) {
  for (auto& queue : destination.queues) evict_ready(*queue);
}

void Scheduler::evict_ready(SubQueue& queue, const Item* keep) {
  while (Item* item = queue.loaded.front()) {
    // The one to keep comes last, and so before the others.
    Item* next = queue.loaded.next(*item);
    enter(item == keep && next ? *next : *item, State::ready, true);
  }
  for (ItemList* list : {&queue.fresh, &queue.retry}) {
    for (Item* item = list->front(); item; item = list->next(*item)) {
      if (!item->message || item == keep) continue;
      drop_resident(*item);
      ++stats_.evictions;
    }
  }
}

// Bodies that have waited longest leave memory: a large receive buffer goes back only when its last
// message has gone.
void Scheduler::relieve_memory() {
  reactor::BufferPool& pool = context_.io.buffers(reactor::BufferGroup::ingress);
  uint64_t high = pool.bytes_limit() / 4 * 3;
  while (pool.bytes_in_use() > high) {
    Message* message = residents_.pop_front();
    if (!message) return;
    auto drop = [&](Item& item) {
      if (item.message.get() != message) return;
      if (item.state == State::loaded) enter(item, State::ready, true);
      if (item.state == State::ready) drop_resident(item);
      ++stats_.evictions;
    };
    MessageRef guard(message);
    Item* item = message->item;
    if (!item) continue;
    if (item->fanout) {
      for (Item* part : item->fanout->items) drop(*part);
    } else {
      drop(*item);
    }
  }
}

// ---- recovery ----------------------------------------------------------------------------------------

void Scheduler::recover(const spool::Recovered& found) {
  newest_ms_ = std::max(newest_ms_, found.id.time_ms());
  Result<mail::MetadataSummary> summary = mail::summarize_metadata(found.metadata);
  if (!summary.ok()) {
    log::error("message {}: metadata cannot be read ({}): it stays in the spool, not in the queue",
               found.id.to_string(), summary.error().text);
    return;
  }
  QueueState state;
  if (!found.state.empty()) {
    Result<QueueState> decoded = decode_state(found.state);
    if (decoded.ok() && std::all_of(decoded->recipients.begin(), decoded->recipients.end(), [&](const RecipientState& one) {
          return one.recipient < summary->recipient_domains.size();
        })) {
      state = std::move(*decoded);
    } else {
      log::error("message {}: {}; all of its recipients are tried again", found.id.to_string(),
                 decoded.ok() ? "queue state: names a recipient that it does not have" : decoded.error().text);
    }
  }
  if (state.recipients.empty()) {
    state.events = std::max(state.events, 1u);
    for (uint32_t number = 0; number < summary->recipient_domains.size(); ++number) {
      state.recipients.push_back({number, 0, summary->received_ms, 0});
    }
  }
  unsigned source = source_of(found.id, summary->pool, summary->account);
  Fanout* fanout = nullptr;
  if (summary->recipient_domains.size() > 1) {
    fanout = new Fanout;
    fanout->recipients.resize(summary->recipient_domains.size());
    fanout->pending = static_cast<uint32_t>(state.recipients.size());
    fanout->events = state.events;
  }
  int64_t wall_ms = context_.io.wall_ms();
  struct Part {
    Item* item;
    int64_t due_ms;
  };
  std::vector<Part> parts;
  for (const RecipientState& recipient : state.recipients) {
    Destination& destination =
        destination_of(summary->recipient_domains[recipient.recipient], summary->pool, source, summary->tls);
    Item* item = nullptr;
    for (Part& part : parts) {
      if (part.item->queue->destination == &destination && part.due_ms == recipient.due_ms &&
          part.item->attempts == recipient.attempts) {
        item = part.item;
      }
    }
    if (!item) {
      item = &make_item(found.id, sub_queue_of(destination, summary->tenant, summary->job, summary->account));
      item->location = found.location;
      item->expires_s = static_cast<uint32_t>(summary->expires_ms / 1000);
      item->sender_hash = crc32c(0, summary->reverse_path);
      item->attempts = recipient.attempts;
      item->first_attempt_s = recipient.first_attempt_s;
      item->events = static_cast<uint16_t>(state.events);
      item->recipient = recipient.recipient;
      item->fanout = fanout;
      if (fanout) fanout->items.push_back(item);
      parts.push_back({item, recipient.due_ms});
    }
    if (fanout) fanout->recipients[recipient.recipient].item = item;
  }
  index_.insert(*parts.front().item);
  const int64_t longest_ms = longest_wait_ms();
  for (const Part& part : parts) {
    // The one conversion from UTC to the monotonic clock. A wait that is longer than any which is ever set shows
    // that the clock has been set back since: the mail then waits for its step, not until the old time comes again.
    int64_t wait_ms = part.due_ms - wall_ms;
    if (wait_ms > longest_ms) wait_ms = retry_delay_ms(part.item->attempts);
    if (wait_ms > 0) {
      wait_until(*part.item, now() + wait_ms * kMillisecond);
    } else {
      enter(*part.item, State::ready);
    }
  }
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = stats_;
  stats.lanes = lanes_open_;
  return stats;
}

void Scheduler::check() const {
  uint64_t items = 0, ready = 0, in_flight = 0;
  for (const auto& [name, destination] : destinations_) {
    uint32_t here = 0, due = 0;
    bool may_go = false;
    for (const auto& queue : destination->queues) {
      here += queue->items;
      due += queue->due() + queue->loading;
      may_go |= queue->due() > 0;
      ASSERT(queue->turn_link.linked() == in_turn(*queue));
      ASSERT(!queue->parked || queue->permit->state == Permit::State::asked || queue->lent > 0);
      ASSERT(!queue->reading || queue->loading > 0);
    }
    ASSERT(here == destination->items);
    ASSERT(due == destination->ready);
    // Whatever may go has somebody who will look at it.
    if (started_ && !stopping_ && may_go && !blocked(*destination) && destination->site) {
      ASSERT(destination->listed || destination->resolving || destination->timer.armed());
    }
    items += here;
    ready += due;
    in_flight += destination->in_flight;
  }
  ASSERT(items == stats_.items && ready == stats_.ready && in_flight == stats_.in_flight);
  uint32_t open = 0;
  for (const auto& [name, site] : sites_) {
    for (const LaneGroup& group : site->groups) {
      ASSERT(group.connecting <= group.open && group.open <= connection_limit(group));
      open += group.open;
    }
    if (site->base != site.get()) continue;
    for (unsigned source = 0; source < site->groups.size(); ++source) {
      uint32_t all = site->kin.empty() ? site->groups[source].open : 0;
      for (const Site* one : site->kin) all += one->groups[source].open;
      ASSERT(all == site->groups[source].open_all && all <= connection_limit(site->groups[source]));
    }
  }
  ASSERT(open == lanes_open_);
}

}  // namespace millrace::queue
