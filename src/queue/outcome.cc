// Results become durable outcomes: schedule or end, report, note, event. The order is fixed: the report
// is durable in the queue before the outcome that says so; the outcome is durable before its event is
// emitted and its space released.
#include "queue/outcome.h"

#include <algorithm>

#include "base/log.h"

namespace millrace::queue {
namespace {

constexpr int64_t kMillisecond = 1'000'000;

events::Type event_type(Action action) {
  switch (action) {
    case Action::delivered: return events::Type::delivered;
    case Action::bounce: return events::Type::bounced;
    case Action::defer:
    case Action::uncertain:
    case Action::give_back: return events::Type::deferred;
  }
  return events::Type::deferred;
}

void set_reply(events::Event& event, const RecipientResult& result) {
  event.stage = result.stage;
  event.scope = result.scope;
  event.code = result.code;
  event.enhanced = result.enhanced;
  event.bounce_class = result.bounce_class;
  event.reply = result.reply;
}

}  // namespace

RecipientResult Scheduler::expiry_result() {
  RecipientResult result;
  result.action = Action::bounce;
  result.scope = events::Scope::message;
  result.enhanced = "4.4.7";
  result.bounce_class = "message-expired";
  result.reply = "not delivered before its time was up";
  return result;
}

// The step of the retry schedule after `attempts` counted ones, with 10 % of jitter either way.
int64_t Scheduler::retry_delay_ms(unsigned attempts) {
  const std::vector<int64_t>& steps = config().retry_ms;
  int64_t step = steps[std::min<size_t>(attempts > 0 ? attempts - 1 : 0, steps.size() - 1)];
  int64_t tenth = std::max<int64_t>(step / 10, 1);
  return step - tenth + static_cast<int64_t>(prng_.below(static_cast<uint64_t>(2 * tenth)));
}

// The longest that an item ever waits, but for a receiver that names a longer time.
int64_t Scheduler::longest_wait_ms() const {
  const std::vector<int64_t>& steps = config().retry_ms;
  int64_t longest = *std::max_element(steps.begin(), steps.end());
  return std::max(longest + std::max<int64_t>(longest / 10, 1), config().retry_uncertain_ms);
}

Scheduler::Outcome& Scheduler::make_outcome(Item& item) {
  Outcome& outcome = outcomes_.take([this](Outcome& made) {
    made.scheduler = this;
    made.owner = &made;
    made.done = &Scheduler::on_recorded;
    made.report.owner = &made;
    made.report.done = &Scheduler::on_reported;
  });
  outcome.id = item.id;
  outcome.message = item.location;
  outcome.item = &item;
  outcome.delivered = outcome.deferred = outcome.bounced = outcome.expired = outcome.removed = 0;
  outcome.item_ends = false;
  outcome.final = false;
  outcome.due = 0;
  outcome.state.clear();
  outcome.event.clear();
  outcome.report.lines.clear();
  outcome.report.message = item.message.get();
  outcome.report.sent = false;
  ++outcomes_open_;
  return outcome;
}

events::Event Scheduler::make_event(Item& item, events::Type type, uint32_t recipient, const Message& message) {
  events::Event event;
  const Destination& destination = *item.queue->destination;
  const mail::Envelope& envelope = message.envelope;
  const mail::Recipient& to = envelope.recipients[recipient];
  event.type = type;
  event.spool_id = item.id;
  event.number = item.fanout ? item.fanout->events++ : item.events++;
  event.time_ms = context_.io.wall_ms();
  event.received_ms = envelope.received_ms;
  event.first_attempt_ms = int64_t{item.first_attempt_s} * 1000;
  event.reverse_path = envelope.reverse_path;
  event.recipient = to.address;
  event.orcpt = to.orcpt;
  event.message_id = envelope.message_id;
  event.envid = envelope.envid;
  event.job = envelope.job;
  event.tenant = envelope.tenant;
  event.pool = envelope.pool;
  event.queue = destination.domain;
  if (destination.site) {
    event.site = destination.site->key;
    event.provider = destination.site->provider.empty() ? std::string_view(destination.site->key) : destination.site->provider;
  }
  event.client = envelope.client;
  event.account = envelope.account;
  event.attempt = item.attempts;
  event.size = message.content.size();
  event.total_ms = static_cast<uint32_t>(std::clamp<int64_t>(event.time_ms - envelope.received_ms, 0, UINT32_MAX));
  return event;
}

void Scheduler::add_event(Outcome& outcome, const events::Event& event) {
  switch (event.type) {
    case events::Type::delivered: ++outcome.delivered; break;
    case events::Type::deferred: ++outcome.deferred; break;
    case events::Type::bounced: ++outcome.bounced; break;
    case events::Type::expired: ++outcome.expired; break;
    case events::Type::removed: ++outcome.removed; break;
    default: UNREACHABLE();
  }
  scratch_event_.clear();
  events::encode(event, scratch_event_);
  append_event_bytes(scratch_event_, outcome.event);
}

// The events were written before it was known that the sender gets a report.
void Scheduler::mark_report_sent(Outcome& outcome) {
  std::string bytes = std::exchange(outcome.event, {});
  std::string_view left = bytes, one;
  while (take_event_bytes(left, one)) {
    Result<events::Event> event = events::decode(one);
    ASSERT(event.ok());
    event->report_sent = true;
    scratch_event_.clear();
    events::encode(*event, scratch_event_);
    append_event_bytes(scratch_event_, outcome.event);
  }
}

void Scheduler::finished(Attempt& attempt) {
  if (attempt.home_shard != context_.shard) return return_borrowed(attempt);
  Item& item = *attempt.item;
  MessageRef message = item.message;
  Destination& destination = *item.queue->destination;
  Site& site = *destination.site;
  LaneGroup& group = site.groups[destination.source];
  if (attempt.permit.set) {
    bool accepted = false;
    for (const RecipientResult& result : attempt.results) {
      accepted |= result.action == Action::delivered || result.action == Action::uncertain;
    }
    // What a lane has taken stays charged, whatever came of it: its MAIL may have been said.
    if (attempt.permit.to_release) give_back_all(attempt.permit, true, accepted);
    attempt.permit = {};
  }
  if (attempt.recipients_learned > 0) site.recipients_learned = attempt.recipients_learned;

  std::vector<uint32_t>& ended = scratch_ended_;
  std::vector<uint32_t>& deferred = scratch_deferred_;
  ended.clear();
  deferred.clear();
  bool uncertain = false;
  int64_t rest_ms = 0;
  for (uint32_t i = 0; i < attempt.results.size(); ++i) {
    RecipientResult& result = attempt.results[i];
    if (result.scope == events::Scope::source || result.scope == events::Scope::provider) {
      // The reply is about the source or the provider: only that scope slows down.
      LaneEnd end;
      end.cause = LaneEnd::Cause::told_to_slow;
      end.scope = result.scope;
      end.stage = result.stage;
      end.code = result.code;
      end.enhanced = result.enhanced;
      end.reply = result.reply;
      end.mx = attempt.mx;
      end.peer = attempt.peer;
      end.rest_ms = result.rest_ms;
      if (result.action != Action::delivered) hold_site(site, destination.source, end, attempt.taken_at);
    }
    if (result.asks.any()) obey(destination, result, attempt.taken_at);
    switch (result.action) {
      case Action::delivered:
      case Action::bounce: ended.push_back(i); break;
      case Action::uncertain: uncertain = true; [[fallthrough]];
      case Action::defer:
        rest_ms = std::max(rest_ms, result.rest_ms);
        deferred.push_back(i);
        break;
      case Action::give_back: break;
    }
  }
  if (ended.empty() && deferred.empty()) {
    // Nothing was tried: back to the head of the queue, no attempt counted.
    ++stats_.given_back;
    release_attempt(attempt);
    enter(item, State::ready, true);
    if (blocked(destination)) drop_resident(item);
    residents_again(item);
    if (!apply_pending_end(item)) work_arrived(destination);
    return report_stopped();
  }

  int64_t wall_ms = context_.io.wall_ms();
  if (item.first_attempt_s == 0) item.first_attempt_s = static_cast<uint32_t>(wall_ms / 1000);
  item.attempted_since_start = true;
  bool was_fresh = item.attempts == 0;
  ++item.attempts;  // the item is on no list now, so the choice of list may change
  Outcome& outcome = make_outcome(item);

  // What becomes of the deferred ones: due again, or out of time.
  int64_t due_ms = 0;
  bool expired = false;
  if (!deferred.empty()) {
    int64_t delay_ms = uncertain ? config().retry_uncertain_ms : retry_delay_ms(item.attempts);
    delay_ms = std::max(delay_ms, rest_ms);
    int64_t left_ms = item.expires_s == 0 ? INT64_MAX : (int64_t{item.expires_s} - expiry_clock_s()) * 1000;
    expired = left_ms <= 0 && item_expired(item);
    // The last attempt is at the end of its time, not after it.
    due_ms = wall_ms + std::clamp<int64_t>(delay_ms, 0, std::max<int64_t>(left_ms, 1000));
    outcome.due = now() + (due_ms - wall_ms) * kMillisecond;
  }

  for (uint32_t i = 0; i < attempt.results.size(); ++i) {
    const RecipientResult& result = attempt.results[i];
    if (result.action == Action::give_back) continue;
    bool ends = result.action == Action::delivered || result.action == Action::bounce || expired;
    uint32_t number = attempt.recipients[i];
    events::Type type = ends && event_type(result.action) == events::Type::deferred ? events::Type::expired
                                                                                     : event_type(result.action);
    events::Event event = make_event(item, type, number, *message);
    set_reply(event, result);
    event.next_attempt_ms = ends ? 0 : due_ms;
    event.source = attempt.source_text;
    event.ehlo_name = attempt.ehlo_name;
    event.mx = attempt.mx;
    event.peer = attempt.peer_text;
    event.tls_version = attempt.tls_version;
    event.tls_suite = attempt.tls_suite;
    event.tls_verified = attempt.tls_verified;
    event.tls_reason = attempt.tls_reason;
    event.tls_policy = attempt.tls_policy;
    event.transport = attempt.transport;
    event.session = attempt.session;
    event.session_message = attempt.session_message;
    event.recipients = static_cast<uint32_t>(attempt.recipients.size());
    event.connect_ms = attempt.connect_ms;
    event.transaction_ms = attempt.transaction_ms;
    event.queued_ms = static_cast<uint32_t>(
        std::clamp<int64_t>(int64_t{event.total_ms} - attempt.transaction_ms, 0, UINT32_MAX));
    add_event(outcome, event);
    if (result.action == Action::uncertain) ++stats_.uncertain;
    if (ends) {
      ReportKind kind = result.action == Action::delivered                  ? ReportKind::delivered
                        : expired && result.action != Action::bounce ? ReportKind::expired
                                                                     : ReportKind::failed;
      if (reporter_->wants(*message, number, kind, attempt.receiver_reports)) {
        outcome.report.lines.push_back({number, kind, result, attempt.mx});
      }
      if (item.fanout) {
        item.fanout->recipients[number].item = nullptr;
        --item.fanout->pending;
      }
    }
  }
  const RecipientResult& told = attempt.results[(ended.empty() ? deferred : ended).front()];
  if (told.action == Action::delivered) {
    group.hold.clear();
    if (group.pair_hold && group.pair_hold->failures() > 0) {
      group.pair_hold->works(attempt.taken_at);
      if (group.pair_hold->failures() == 0) tell_hold(site.provider, destination.source, *group.pair_hold);
    }
    if (group.window < connection_limit(group)) {
      group.window += 1 / group.window;
      pump(site, destination.source);
    }
    destination.last_reply.text.clear();
  } else {
    destination.last_reply = {told.reply, told.code, wall_ms};
  }

  // Recipients that were not tried go on at once, in an item of their own when others must wait.
  if (item.fanout) {
    std::vector<uint32_t> left;
    recipients_of(item, left);
    if (expired || deferred.empty()) {
      outcome.item_ends = left.empty();
      outcome.due = now();
      if (!left.empty()) --item.attempts;
    } else if (left.size() > deferred.size()) {
      std::vector<uint32_t> untried;
      for (uint32_t number : left) {
        bool waits = false;
        for (uint32_t i : deferred) waits = waits || attempt.recipients[i] == number;
        if (!waits) untried.push_back(number);
      }
      Item& part = split(item, untried);
      if (was_fresh) part.attempts = 0; else part.attempts = static_cast<uint16_t>(item.attempts - 1);
      part.message = message;
      enter(part, State::ready, true);
      work_arrived(destination);
    }
  } else {
    outcome.item_ends = expired || deferred.empty();
  }
  release_attempt(attempt);
  item.deadline = outcome.due;
  enter(item, State::recording);
  settle(outcome);
}

// First the report, if one is due.
void Scheduler::settle(Outcome& outcome) {
  if (!outcome.report.lines.empty()) return reporter_->report(outcome.report);
  record(outcome);
}

void Scheduler::on_reported(void* owner, ReportRequest& request) {
  auto& outcome = *static_cast<Outcome*>(owner);
  if (request.sent) outcome.scheduler->mark_report_sent(outcome);
  outcome.scheduler->record(outcome);
}

void Scheduler::encode_state_of(const Item& item, std::string& out) const {
  QueueState state;
  int64_t wall_ms = context_.io.wall_ms();
  auto add = [&](const Item& part, int64_t due_ms) {
    std::vector<uint32_t> numbers;
    recipients_of(part, numbers);
    for (uint32_t number : numbers) {
      state.recipients.push_back({number, part.attempts, due_ms, part.first_attempt_s});
    }
  };
  auto due_of = [&](const Item& part) {
    bool later = part.state == State::waiting || part.state == State::recording;
    return later ? wall_ms + std::max<int64_t>(part.deadline - now(), 0) / kMillisecond : wall_ms;
  };
  if (item.fanout) {
    state.events = item.fanout->events;
    for (const Item* part : item.fanout->items) add(*part, due_of(*part));
  } else {
    state.events = item.events;
    add(item, due_of(item));
  }
  encode_state(state, out);
}

void Scheduler::record(Outcome& outcome) {
  Item& item = *outcome.item;
  outcome.message = item.location;
  outcome.final = outcome.item_ends && (!item.fanout || item.fanout->pending == 0);
  if (!outcome.final) {
    encode_state_of(item, outcome.state);
  }
  outcome.status = success();
  spool_->note(outcome);
}

void Scheduler::on_recorded(void* owner, spool::Note&) {
  auto& outcome = *static_cast<Outcome*>(owner);
  outcome.scheduler->recorded(outcome);
}

// The log could not be written at all: the outcome waits in memory (take() starts nothing new meanwhile).
void Scheduler::retry_failed_notes() {
  std::vector<Outcome*> failed = std::move(outcomes_failed_);
  outcomes_failed_.clear();
  for (Outcome* outcome : failed) {
    outcome->message = outcome->item->location;
    outcome->status = success();
    spool_->note(*outcome);
  }
}

void Scheduler::recorded(Outcome& outcome) {
  if (!outcome.status.ok()) {
    outcomes_failed_.push_back(&outcome);
    if (!note_timer_.armed()) context_.io.timers().arm(note_timer_, now() + 1000 * kMillisecond);
    return;
  }
  Item& item = *outcome.item;
  Destination& destination = *item.queue->destination;
  stats_.delivered += outcome.delivered;
  stats_.deferred += outcome.deferred;
  stats_.bounced += outcome.bounced;
  stats_.expired += outcome.expired;
  stats_.removed += outcome.removed;
  destination.delivered += outcome.delivered;
  destination.deferred += outcome.deferred;
  destination.bounced += outcome.bounced;
  if (context_.events.wanted()) {
    std::string_view bytes = outcome.event, one;
    while (take_event_bytes(bytes, one)) {
      Result<events::Event> event = events::decode(one);
      ASSERT(event.ok());
      context_.events.emit(outcome.sequence, *event);
    }
  }
  bool ends = outcome.item_ends;
  int64_t due = outcome.due;
  --outcomes_open_;
  outcomes_.give_back(outcome);
  if (ends) {
    destroy(item);
    release_waiters(1);
  } else if (item.ending && !stopping_) {
    enter(item, State::ready, true);  // out of `recording`, which an end waits for
    residents_again(item);
    endings_.at(&item).due = due;
    apply_pending_end(item);
    work_arrived(destination);
  } else {
    if (due <= now()) {
      enter(item, State::ready, true);
      residents_again(item);
      work_arrived(destination);
    } else {
      wait_until(item, due);
    }
  }
  if (stopping_) report_stopped();
}

// An operator's delete, bounce or retry came while the item was out.
bool Scheduler::apply_pending_end(Item& item) {
  if (!item.ending || stopping_) return false;
  end_when_resident(item, take_ending(item));
  return true;
}

void Scheduler::residents_again(Item& item) {
  if (item.message && !item.message->resident_link.linked()) residents_.push_back(*item.message);
}

void Scheduler::end_item(Item& item, events::Type type, const RecipientResult& why, bool report) {
  ASSERT(item.message);
  MessageRef message = item.message;
  Outcome& outcome = make_outcome(item);
  std::vector<uint32_t> numbers;
  recipients_of(item, numbers);
  for (uint32_t number : numbers) {
    events::Event event = make_event(item, type, number, *message);
    set_reply(event, why);
    event.reason = why.reply;
    event.recipients = static_cast<uint32_t>(numbers.size());
    add_event(outcome, event);
    ReportKind kind = type == events::Type::expired ? ReportKind::expired : ReportKind::failed;
    if (report && reporter_->wants(*message, number, kind, false)) {
      outcome.report.lines.push_back({number, kind, why, {}});
    }
    if (item.fanout) {
      item.fanout->recipients[number].item = nullptr;
      --item.fanout->pending;
    }
  }
  outcome.item_ends = true;
  item.deadline = now();
  enter(item, State::recording);
  settle(outcome);
}

void Scheduler::set_ending(Item& item, PendingEnd end) {
  item.ending = true;
  endings_[&item] = std::move(end);
}

PendingEnd Scheduler::take_ending(Item& item) {
  item.ending = false;
  auto entry = endings_.extract(&item);
  return std::move(entry.mapped());
}

void Scheduler::end_when_resident(Item& item, PendingEnd end) {
  if (item.state == State::in_flight || item.state == State::recording || item.state == State::loading) {
    set_ending(item, std::move(end));
    // Another shard may not have begun it yet.
    for (Attempt* lent = lent_.front(); lent && item.state == State::in_flight; lent = lent_.next(*lent)) {
      if (lent->item == &item) lent->unwanted.store(true, std::memory_order_relaxed);
    }
    return;
  }
  if (item.message) {
    if (!end.filter_matches(*item.message)) return spare(item, end);
    return end_item(item, end.type, end.why, end.report);
  }
  if (item.state == State::waiting) end.due = item.deadline;
  set_ending(item, std::move(end));
  load(item);
}

// It is of another sender, whose hash is the same: it goes on as if nothing had been.
// REQUIRES: it is ready.
void Scheduler::spare(Item& item, const PendingEnd& end) {
  for (Removal& removal : removals_) {
    if (removal.filter.sender == end.sender) removal.spared.insert(item.id);
  }
  if (end.due > now()) wait_until(item, end.due);
}

}  // namespace millrace::queue
