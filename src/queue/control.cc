// The operator's view of one shard's queue and the hand on it. relay/control.h makes commands durable and
// brings them to every shard: a pause is a rule kept until it is resumed; a delete or bounce is kept until
// it has met every item, so that a restart goes on with it. None of them needs the message's body.
#include <algorithm>

#include "base/crc32c.h"
#include "base/log.h"
#include "dns/mx.h"
#include "queue/outcome.h"

namespace millrace::queue {
namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr size_t kSlice = 4096;       // index slots looked at in one go
constexpr size_t kRemovalsAhead = 256;  // messages read back at once for a delete or bounce

void put_field(std::string& out, char tag, std::string_view text) {
  if (text.empty()) return;
  out += tag;
  out += text;
  out += '\0';
}

}  // namespace

// Fields "d<domain>", "j<job>", "s<sender>", "a<account>", "t<tenant>", "i<id>", "b<ms>", each ended by a NUL.
std::string encode_filter(const Filter& filter) {
  std::string out;
  put_field(out, 'd', filter.domain);
  put_field(out, 'j', filter.job);
  put_field(out, 's', filter.sender);
  put_field(out, 'a', filter.account);
  put_field(out, 't', filter.tenant);
  if (!filter.id.empty()) put_field(out, 'i', filter.id.to_string());
  if (filter.before_ms != INT64_MAX) put_field(out, 'b', std::to_string(filter.before_ms));
  return out;
}

Result<Filter> decode_filter(std::string_view text) {
  Filter filter;
  while (!text.empty()) {
    size_t end = text.find('\0');
    if (end == text.npos || end == 0) return fail("operator action: cut short");
    std::string_view value = text.substr(1, end - 1);
    switch (text[0]) {
      case 'd': filter.domain = value; break;
      case 'j': filter.job = value; break;
      case 's': filter.sender = value; break;
      case 'a': filter.account = value; break;
      case 't': filter.tenant = value; break;
      case 'i': {
        Result<mail::SpoolId> id = mail::SpoolId::parse(value);
        if (!id.ok()) return fail(id.error());
        filter.id = *id;
        break;
      }
      case 'b': filter.before_ms = std::stoll(std::string(value)); break;
      default: return fail("operator action: unknown field");
    }
    text.remove_prefix(end + 1);
  }
  return filter;
}

bool Scheduler::matches(const SubQueue& queue, const Filter& filter) {
  return (filter.domain.empty() || queue.destination->domain == filter.domain) &&
         (filter.job.empty() || queue.job == filter.job) && (filter.account.empty() || queue.account == filter.account) &&
         (filter.tenant.empty() || queue.tenant == filter.tenant);
}

// Exact but for the sender of a message that is not resident, which is compared by its hash; what ends
// mail compares the sender itself before it does.
bool Scheduler::matches(const Item& item, const Filter& filter) const {
  if (!filter.id.empty() && item.id != filter.id) return false;
  if (!matches(*item.queue, filter)) return false;
  if (!filter.sender.empty()) {
    if (item.message ? item.message->envelope.reverse_path != filter.sender
                     : item.sender_hash != crc32c(0, filter.sender)) {
      return false;
    }
  }
  return item.id.time_ms() < filter.before_ms;
}

bool Scheduler::paused(const Item& item) const {
  for (const PauseRule& rule : pauses_) {
    if (matches(item, rule.filter)) return true;
  }
  return false;
}

// What another shard has lent may have waited here since before the pause.
bool Scheduler::paused(const Attempt& borrowed) const {
  const Message& message = *borrowed.message;
  const mail::Envelope& envelope = message.envelope;
  auto of = [](const std::string& wanted, std::string_view is) { return wanted.empty() || wanted == is; };
  return std::any_of(pauses_.begin(), pauses_.end(), [&](const PauseRule& rule) {
    const Filter& filter = rule.filter;
    return (filter.id.empty() || filter.id == message.id) && of(filter.domain, borrowed.subject.domain) &&
           of(filter.job, envelope.job) && of(filter.tenant, envelope.tenant) && of(filter.account, envelope.account) &&
           of(filter.sender, envelope.reverse_path);
  });
}

// A pause of whole sub-queues takes them out of their turn, however much mail they have.
void Scheduler::update_held(SubQueue& queue) {
  bool held = false;
  for (const PauseRule& rule : pauses_) held |= rule.filter.of_sub_queues() && matches(queue, rule.filter);
  if (held == queue.held) return;
  queue.held = held;
  update_turn(queue);
  if (held) evict_ready(queue);
}

uint64_t Scheduler::count_matching(const Filter& filter) const {
  uint64_t recipients = 0;
  std::vector<uint32_t> numbers;
  auto count = [&](const Item& item) {
    if (!matches(item, filter)) return;
    recipients_of(item, numbers);
    recipients += numbers.size();
  };
  if (!filter.id.empty()) {
    Item* item = index_.find(filter.id);
    if (item && item->fanout) {
      for (Item* part : item->fanout->items) count(*part);
    } else if (item) {
      count(*item);
    }
  } else {
    each_item(count);
  }
  return recipients;
}

void Scheduler::add_pause(uint64_t number, Filter filter) {
  pauses_.push_back({number, std::move(filter)});
  if (!pauses_.back().filter.of_sub_queues()) return;
  for (auto& [name, destination] : destinations_) {
    for (auto& queue : destination->queues) update_held(*queue);
  }
}

void Scheduler::remove_pause(uint64_t number) {
  std::erase_if(pauses_, [number](const PauseRule& rule) { return rule.number == number; });
  resume_paused();
}

void Scheduler::end_matching(Command command, Filter filter, std::function<void()> done) {
  Removal& removal = removals_.emplace_back();
  removal.command = command;
  removal.filter = std::move(filter);
  removal.done = std::move(done);
  removal.capacity = index_.capacity();
  if (started_) context_.io.timers().arm(removal_timer_, now());
  return_all_borrowed();  // what is met of it ends at home
}

void Scheduler::resume_paused() {
  for (auto& [name, destination] : destinations_) {
    for (auto& queue : destination->queues) {
      update_held(*queue);
      for (Item* item = queue->paused.front(); item;) {
        Item* next = queue->paused.next(*item);
        if (!paused(*item)) enter(*item, State::ready);
        item = next;
      }
    }
    work_arrived(*destination);
  }
}

void Scheduler::retry_matching(const Filter& filter) {
  each_item([&](Item& item) {
    if (!matches(item, filter)) return;
    Destination& destination = *item.queue->destination;
    destination.hold.end_now();
    if (destination.site) {
      LaneGroup& group = destination.site->groups[destination.source];
      group.hold.end_now();
      if (group.pair_hold) group.pair_hold->end_now();
    }
    if (item.state == State::waiting) enter(item, State::ready);
  });
  for (auto& [name, destination] : destinations_) {
    if (destination->ready == 0) continue;
    destination->timer.cancel();
    if (destination->site) destination->site->timer.cancel();
    work_arrived(*destination);
  }
}

void Scheduler::name_service_back() {
  for (auto& [name, destination] : destinations_) {
    // Of a domain that seems not to exist, the second look has its own time.
    if (!destination->hold.active(now()) || destination->missing_since != 0) continue;
    destination->hold.end_now();
    if (destination->ready == 0) continue;
    destination->timer.cancel();
    work_arrived(*destination);
  }
}

// A slice of the oldest delete or bounce that has something to do. The index may change between slices, so a scan that
// meets a change of its size starts again; what it has met is gone by then or about to be. It is done once a round has
// met nothing: what is in flight, or being read, ends when it comes back, and until then a restart has to go on with it.
void Scheduler::run_removals() {
  if (removals_.empty() || stopping_) return;
  auto next = std::find_if(removals_.begin(), removals_.end(), [this](const Removal& one) { return one.next_at <= now(); });
  if (next == removals_.end()) {
    auto earliest = std::min_element(removals_.begin(), removals_.end(),
                                     [](const Removal& a, const Removal& b) { return a.next_at < b.next_at; });
    context_.io.timers().arm(removal_timer_, earliest->next_at);
    return;
  }
  Removal& removal = *next;
  PendingEnd end;
  end.type = removal.command == Command::bounce ? events::Type::bounced : events::Type::removed;
  end.why.action = Action::bounce;
  end.why.scope = events::Scope::message;
  end.why.enhanced = removal.command == Command::bounce ? "5.7.0" : "";
  end.why.bounce_class = removal.command == Command::bounce ? "policy-related" : "";
  end.why.reply = removal.command == Command::bounce ? "returned by the operator" : "deleted by the operator";
  end.report = removal.command == Command::bounce;
  if (removal.why) end.why = *removal.why;
  end.sender = removal.filter.sender;
  size_t found = 0;
  auto visit = [&](Item& item) {
    if (!matches(item, removal.filter) || removal.spared.contains(item.id)) return;
    if (item.ending) {
      ++removal.out;
      return;
    }
    ++found;
    end_when_resident(item, end);
  };
  if (removal.capacity != index_.capacity()) {
    removal.capacity = index_.capacity();
    removal.slot = 0;
  }
  if (!removal.filter.id.empty()) {
    if (Item* item = index_.find(removal.filter.id)) {
      std::vector<Item*> parts = item->fanout ? item->fanout->items : std::vector<Item*>{item};
      for (Item* part : parts) visit(*part);
    }
    removal.found = found;
    removal.slot = removal.capacity;
  } else {
    size_t until = std::min(removal.slot + kSlice, removal.capacity);
    // Ending an item may move a later one into a slot already passed (erase shifts back), never past
    // the slot that is looked at: end_when_resident() erases nothing before its note is durable.
    while (removal.slot < until && found < kRemovalsAhead && loads_ < kRemovalsAhead) {
      if (Item* item = index_.at(removal.slot)) {
        std::vector<Item*> parts = item->fanout ? item->fanout->items : std::vector<Item*>{item};
        for (Item* part : parts) visit(*part);
      }
      ++removal.slot;
    }
    removal.found += found;
  }
  if (removal.slot >= removal.capacity) {
    // Items shifted back behind the scan are met by one more round.
    bool done = removal.found == 0 && removal.out == 0;
    if (removal.found == 0) removal.next_at = now() + 1000 * kMillisecond;
    removal.slot = 0;
    removal.found = removal.out = 0;
    if (done) {
      auto finished = std::move(removal.done);
      removals_.erase(next);
      finished();
    }
  }
  if (!removals_.empty()) context_.io.timers().arm(removal_timer_, now() + kMillisecond);
}

// A slice of the index, so that every item is met about once a minute: mail that is due but may not go
// (held, paused) expires all the same.
void Scheduler::sweep() {
  watch_wall_clock();
  size_t count = std::min(index_.capacity(), std::max(index_.capacity() / 60, kSlice));
  for (size_t i = 0; i < count; ++i) {
    sweep_slot_ = (sweep_slot_ + 1) % index_.capacity();
    Item* item = index_.at(sweep_slot_);
    if (!item) continue;
    auto look_at = [&](Item& part) {
      if (part.ending || !item_expired(part)) return;
      if (part.state != State::ready && part.state != State::paused && part.state != State::waiting) return;
      end_when_resident(part, PendingEnd{events::Type::expired, expiry_result(), true, {}});
    };
    if (item->fanout) {
      std::vector<Item*> parts = item->fanout->items;  // which ending one changes
      for (Item* part : parts) look_at(*part);
    } else {
      look_at(*item);
    }
    if (loads_ > kRemovalsAhead) break;
  }
  context_.io.timers().arm(sweep_timer_, now() + 1000 * kMillisecond);
}

std::vector<QueueRow> Scheduler::queue_rows() const {
  std::vector<QueueRow> rows;
  std::unordered_map<const Destination*, size_t> by_destination;
  int64_t wall_ms = context_.io.wall_ms();
  auto utc_of = [&](int64_t monotonic) { return wall_ms + (monotonic - now()) / kMillisecond; };
  for (const auto& [name, at] : destinations_) {
    const Destination& destination = *at;
    if (destination.items == 0) continue;
    by_destination[&destination] = rows.size();
    QueueRow& row = rows.emplace_back();
    row.domain = destination.domain;
    row.pool = destination.pool;
    row.messages = destination.items;
    row.ready = destination.ready;
    row.in_flight = destination.in_flight;
    row.delivered = destination.delivered;
    row.deferred = destination.deferred;
    row.bounced = destination.bounced;
    row.last_reply = destination.last_reply.text;
    row.last_reply_ms = destination.last_reply.at_ms;
    uint32_t parked = 0;
    for (const auto& queue : destination.queues) {
      row.paused += queue->paused.size();
      if (queue->held) {
        row.paused += queue->due();
        row.ready -= queue->due();
      }
      parked += queue->parked;
    }
    const Site* site = destination.site;
    const LaneGroup* group = site ? &site->groups[destination.source] : nullptr;
    if (site) row.site = site->key;
    if (group) row.connections = group->open;
    if (row.ready > 0) row.next_attempt_ms = wall_ms;
    if (destination.hold.active(now())) {
      row.next_attempt_ms = utc_of(destination.hold.until());
      row.why = "held: " + destination.hold.reason();
    } else if (destination.resolving && !site) {
      row.why = "looking for its MX hosts";
    } else if (group && group->held(now())) {
      row.next_attempt_ms = utc_of(group->held_until(now()));
      row.why = "held: " + group->holding(now())->reason();
    } else if (parked > 0 && row.ready > 0) {
      row.why = "paced by a limit; 'millracectl explain " + destination.domain + "' tells what binds";
    } else if (gated_) {
      row.why = "outcomes wait for the disk";
    } else if (group && row.ready > 0 && group->open >= connection_limit(*group)) {
      row.why = "all connections of the site are in use";
    } else if (row.ready > 0 || destination.in_flight > 0) {
      row.why = "being delivered";
    } else if (row.paused > 0) {
      row.why = "paused by the operator";
    }
  }
  each_item([&](const Item& item) {
    QueueRow& row = rows[by_destination.at(item.queue->destination)];
    int64_t accepted_ms = item.id.time_ms();
    if (row.oldest_ms == 0 || accepted_ms < row.oldest_ms) row.oldest_ms = accepted_ms;
    if (item.state != State::waiting) return;
    ++row.waiting;
    int64_t due_ms = utc_of(item.deadline);
    if (row.next_attempt_ms == 0 || due_ms < row.next_attempt_ms) row.next_attempt_ms = due_ms;
  });
  for (QueueRow& row : rows) {
    if (row.why.empty() && row.waiting > 0) row.why = "waiting for its next attempt";
  }
  return rows;
}

void Scheduler::show(const mail::SpoolId& id, std::function<void(Result<MessageRow>)> done) {
  Item* found = index_.find(id);
  if (!found) return done(fail("no such message in the queue: " + id.to_string()));
  auto describe = [this, id](const mail::Envelope& envelope, uint64_t size, bool resident) -> Result<MessageRow> {
    Item* item = index_.find(id);
    if (!item) return fail("message " + id.to_string() + " left the queue while it was looked at");
    MessageRow row;
    row.id = id;
    row.reverse_path = envelope.reverse_path;
    row.job = envelope.job;
    row.tenant = envelope.tenant;
    row.pool = envelope.pool;
    row.account = envelope.account;
    row.client = envelope.client;
    row.message_id = envelope.message_id;
    row.received_ms = envelope.received_ms;
    row.expires_ms = envelope.expires_ms;
    row.size = size;
    row.resident = resident;
    std::vector<uint32_t> numbers;
    auto add = [&](const Item& part) {
      recipients_of(part, numbers);
      const Destination& destination = *part.queue->destination;
      for (uint32_t number : numbers) {
        RecipientRow& recipient = row.recipients.emplace_back();
        recipient.address = envelope.recipients[number].address;
        recipient.state = to_string(part.state == State::ready && part.queue->held ? State::paused : part.state);
        recipient.attempts = part.attempts;
        if (part.state == State::waiting) {
          recipient.next_attempt_ms = context_.io.wall_ms() + (part.deadline - now()) / kMillisecond;
        }
        if (destination.hold.active(now())) {
          recipient.why = destination.hold.reason();
        } else if (destination.site && destination.site->groups[destination.source].held(now())) {
          recipient.why = destination.site->groups[destination.source].holding(now())->reason();
        } else {
          recipient.why = destination.last_reply.text;
        }
      }
    };
    if (item->fanout) {
      for (const Item* part : item->fanout->items) add(*part);
    } else {
      add(*item);
    }
    return row;
  };
  if (found->message) {
    return done(describe(found->message->envelope, found->message->content.size(), true));
  }
  struct Look : spool::Read {
    std::function<void(Read&)> finish;
  };
  auto* look = new Look;
  look->message = found->location;
  look->id = id;
  look->body = false;
  look->owner = look;
  look->done = [](void* self, spool::Read& read) {
    std::unique_ptr<Look> owned(static_cast<Look*>(self));
    owned->finish(read);
  };
  look->finish = [describe, done](spool::Read& read) {
    if (!read.status.ok()) return done(fail(read.status.error()));
    Result<mail::Metadata> metadata = mail::decode_metadata(read.metadata);
    if (!metadata.ok()) return done(fail(metadata.error()));
    done(describe(metadata->envelope, metadata->content.size(), false));
  };
  spool_->read(*look);
}

}  // namespace millrace::queue
