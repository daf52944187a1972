#include "spool/log.h"

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "spool/front.h"

namespace millrace::spool {
namespace {

constexpr uint64_t kBatchPayload = 8u << 20;  // new mail in one batch, unless one message is larger
constexpr uint64_t kBatchRecords = 2u << 20;
constexpr uint32_t kBatchParts = 1000;        // below IOV_MAX with the head and padding
constexpr uint64_t kOutcomeBytes = 1024;      // room kept for the outcome of a recipient
constexpr int64_t kSecond = 1'000'000'000;

MessageInput input(const Append& append) {
  MessageInput input;
  input.id = append.id;
  input.pieces = append.pieces;
  input.body_crc = append.body_crc;
  input.metadata = append.metadata;
  input.event = append.event;
  input.recipients = append.recipients;
  return input;
}

}  // namespace

std::string_view to_string(LogState state) {
  switch (state) {
    case LogState::writable: return "writable";
    case LogState::unwritable: return "unwritable";
    case LogState::closed: return "closed";
  }
  return "unknown";
}

Log::Log(reactor::Io& io, reactor::Mailbox& mailbox, LogSettings settings)
    : io_(io),
      mailbox_(mailbox),
      settings_(std::move(settings)),
      mail_(io, settings_.uuid, StreamNumber::mail),
      kept_stream_(io, settings_.uuid, StreamNumber::kept),
      reader_(io, settings_.directory, true) {
  commit_.bind<&Log::commit>(this);
  retry_.bind<&Log::on_retry_due>(this);
  mark_.bind<&Log::on_mark_due>(this);
  reclaim_timer_.bind<&Log::consider_reclaim>(this);
  room_timer_.bind<&Log::update_room>(this);
  mail_.on_batch = [this](const Status& status) { on_mail_batch(status); };
  kept_stream_.on_batch = [this](const Status& status) { on_kept_batch(status); };
}

Log::~Log() { commit_.cancel(); }

void Log::enter(LogState state, const std::string& why) {
  if (state == state_) return;
  if (state == LogState::unwritable) {
    log::error("spool: {} -> {}: {}", to_string(state_), to_string(state), why);
  } else {
    log::info("spool: {} -> {}", to_string(state_), to_string(state));
  }
  state_ = state;
  unwritable_why_ = why;
  if (state == LogState::closed) return;
  for (Front* front : fronts_) tell_writable(*front);
}

void Log::tell_writable(Front& front) {
  Writable& letter = *writable_letters_[front.number_at_log];
  if (letter.under_way) return;  // told on its return
  letter.under_way = true;
  letter.writable = state_ == LogState::writable;
  letter.why = letter.writable ? std::string() : unwritable_why_;
  letter.address<&Front::on_writable_changed>(&front);
  front.deliver(letter);
}

void Log::on_writable_back(reactor::Letter& at) {
  Writable& letter = static_cast<Writable&>(at);
  letter.under_way = false;
  if (state_ != LogState::closed && letter.writable != (state_ == LogState::writable)) {
    tell_writable(*letter.front);
  }
}

void Log::on_hello(reactor::Letter& letter) {
  Front* front = static_cast<Hello&>(letter).front;
  ASSERT(fronts_.size() < kHomeUnknown);
  front->number_at_log = static_cast<uint16_t>(fronts_.size());
  fronts_.push_back(front);
  writable_letters_.push_back(std::make_unique<Writable>());
  writable_letters_.back()->front = front;
  if (state_ == LogState::unwritable) tell_writable(*front);
}

// ---- what arrives

void Log::on_append(reactor::Letter& letter) {
  pending_appends_.push_back(static_cast<Append*>(&letter));
  io_.defer(commit_);
}

void Log::on_note(reactor::Letter& letter) {
  pending_notes_.push_back(static_cast<Note*>(&letter));
  io_.defer(commit_);
}

void Log::on_state(reactor::Letter& letter) {
  pending_states_.push_back(static_cast<StatePut*>(&letter));
  io_.defer(commit_);
}

void Log::on_emitted(reactor::Letter& at) {
  Emitted& letter = static_cast<Emitted&>(at);
  if (letter.sequence > emitted_) {
    emitted_ = letter.sequence;
    release_due_ = true;
    // The next batch carries the mark; when none comes it is written alone, so that a crash after a
    // quiet time replays little.
    if (!mark_.armed() && !stopping_) io_.timers().arm(mark_, io_.now() + kSecond);
    io_.defer(commit_);
  }
  Front* front = letter.front;
  letter.address<&Front::on_emitted_back>(front);
  front->deliver(letter);
}

void Log::on_mark_due() {
  if (emitted_ == emitted_written_) return;
  mark_due_ = true;
  io_.defer(commit_);
}

// ---- group commit

void Log::commit() {
  if (!started_) return;
  reap_jobs();
  if (state_ == LogState::closed) {
    refuse_pending_appends({"the spool is closed", ESHUTDOWN});
    for (Note* note : std::exchange(pending_notes_, {})) {
      note->status = fail("the spool is closed", ESHUTDOWN);
      answer(*note);
    }
    for (StatePut* put : std::exchange(pending_states_, {})) {
      put->status = fail("the spool is closed", ESHUTDOWN);
      answer(*put);
    }
    return;
  }
  if (state_ == LogState::unwritable) {
    return refuse_pending_appends({"the spool cannot be written: " + unwritable_why_, EIO});
  }
  if (mail_.in_flight() || stopping_) return;
  // Everything applied so far is durable here.
  if (release_due_ && kept_in_flight_.empty()) release_scan();
  if (!intake_open_) {
    update_room();
    if (!intake_open_) refuse_pending_appends({"the spool's disk is full", ENOSPC});
  }
  if (pending() || mark_due_) {
    select();
  } else {
    consider_reclaim();
  }
}

void Log::refuse_pending_appends(const Error& error) {
  if (pending_appends_.empty()) return;
  for (Append* append : std::exchange(pending_appends_, {})) {
    append->status = fail(error);
    answer(*append);
  }
}

// Takes from what is pending what fits into one batch, notes first: they free what they are about.
void Log::select() {
  bool full = false;
  do {
    if (!mail_.active()) {
      bool only_mail = pending_notes_.empty() && pending_states_.empty() && !mark_due_;
      Status activated = activate(mail_, only_mail);
      if (!activated.ok()) {
        if (only_mail) return refuse_pending_appends(activated.error());
        unwritable_why_ = activated.error().text;
        return give_up();
      }
    }
    full = false;
    Footprint total;
    uint64_t size = mail_.active()->size;
    size_t taken = 0;
    for (; taken < pending_notes_.size() && total.records < kBatchRecords; ++taken) {
      Note* note = pending_notes_[taken];
      Footprint item = Stream::measure_note(note->state.size(), note->event.size());
      if (Stream::too_large(item, size)) {
        note->status = fail("the note is larger than a segment", EFBIG);
        answering_notes_.push_back(note);
        continue;
      }
      Footprint with = total;
      with += item;
      if (!mail_.fits(with)) {
        full = true;
        break;
      }
      total = with;
      batch_.notes.push_back(note);
    }
    pending_notes_.erase(pending_notes_.begin(), pending_notes_.begin() + static_cast<ptrdiff_t>(taken));
    taken = 0;
    for (; !full && taken < pending_states_.size() && total.records < kBatchRecords; ++taken) {
      StatePut* put = pending_states_[taken];
      Footprint item = Stream::measure_state(put->key.size(), put->value.size());
      if (Stream::too_large(item, size)) {
        put->status = fail("the value is larger than a segment", EFBIG);
        answering_states_.push_back(put);
        continue;
      }
      Footprint with = total;
      with += item;
      if (!mail_.fits(with)) {
        full = true;
        break;
      }
      total = with;
      batch_.states.push_back(put);
    }
    pending_states_.erase(pending_states_.begin(), pending_states_.begin() + static_cast<ptrdiff_t>(taken));
    taken = 0;
    for (; !full && taken < pending_appends_.size(); ++taken) {
      Append* append = pending_appends_[taken];
      Footprint item = mail_.measure(input(*append));
      if (Stream::too_large(item, size)) {
        append->status = fail("the message is larger than a segment", EFBIG);
        answering_appends_.push_back(append);
        continue;
      }
      Footprint with = total;
      with += item;
      if (!batch_.appends.empty() &&
          (with.payload > kBatchPayload || with.records > kBatchRecords || with.parts > kBatchParts)) {
        break;
      }
      if (!mail_.fits(with)) {
        full = true;
        break;
      }
      total = with;
      batch_.appends.push_back(append);
    }
    pending_appends_.erase(pending_appends_.begin(),
                           pending_appends_.begin() + static_cast<ptrdiff_t>(taken));
    if (full && batch_.empty()) retire(mail_, true);
  } while (full && batch_.empty());
  for (Note* note : std::exchange(answering_notes_, {})) answer(*note);
  for (StatePut* put : std::exchange(answering_states_, {})) answer(*put);
  for (Append* append : std::exchange(answering_appends_, {})) answer(*append);
  if (!batch_.empty() || mark_due_) build();
}

void Log::build() {
  Segment& active = *mail_.active();
  uint64_t records = 0;
  for (const Note* note : batch_.notes) {
    records += Stream::measure_note(note->state.size(), note->event.size()).records;
  }
  for (const StatePut* put : batch_.states) {
    records += Stream::measure_state(put->key.size(), put->value.size()).records;
  }
  records += batch_.refused.size() * Stream::measure_note(0, 0).records;
  for (const Append* append : batch_.appends) records += mail_.measure(input(*append)).records;

  mark_due_ = false;
  started_ns_ = io_.now();
  // Nobody wants the events: a later run with an events file must not be told what is long past.
  if (!settings_.events_kept) emitted_ = next_sequence_ - 1;
  emitted_written_ = emitted_;
  mail_.begin(records, next_sequence_, emitted_, io_.wall_ms());
  batch_.messages_before = active.messages.size();
  for (Note* note : batch_.notes) {
    MessageEntry* entry = resolve(note->message);
    note->sequence = mail_.next_sequence();
    Location at = mail_.add_note(RecordKind::note, note->final ? uint16_t{RecordFlags::final} : uint16_t{0}, note->id,
                                 note->message, note->state, note->event);
    if (!entry) continue;  // of a message that recovery set aside: the record stands for itself
    set_note(*entry, note->message.segment, at.segment, at.offset);
    if (note->front->number_at_log != kHomeUnknown) entry->home = note->front->number_at_log;
    if (note->final) kill(*entry, note->message.segment);
  }
  for (StatePut* put : batch_.states) {
    Location at = mail_.add_state(put->key, put->value);
    set_key(put->key, put->value, at, false);
  }
  for (Append* append : batch_.refused) {
    mail_.add_note(RecordKind::void_, RecordFlags::final, append->id, {}, {}, {});
  }
  for (Append* append : batch_.appends) {
    MessageInput message = input(*append);
    for (const Piece& piece : append->pieces) message.body_size += piece.size;
    append->sequence = mail_.next_sequence();
    append->location = mail_.add_message(message);
    MessageEntry entry;
    entry.offset = append->location.offset;
    entry.size = append->location.size;
    entry.bytes = static_cast<uint32_t>(append->location.size + message.body_size);
    entry.recipients = append->recipients;
    entry.home = append->front->number_at_log;
    active.messages.push_back(entry);
    ++active.live;
    active.live_bytes += entry.bytes;
    outcomes_ += entry.recipients;
  }
  next_sequence_ = mail_.next_sequence();
  mail_.submit(settings_.durable);
}

// Takes the messages of a failed batch out of the tables. Its notes stay applied: they are written
// again, and nothing is released before they are.
void Log::roll_back() {
  Segment& active = *mail_.active();
  while (active.messages.size() > batch_.messages_before) {
    const MessageEntry& entry = active.messages.back();
    --active.live;
    active.live_bytes -= entry.bytes;
    outcomes_ -= entry.recipients;
    active.messages.pop_back();
  }
}

void Log::on_mail_batch(const Status& status) {
  stats_.bytes_written = mail_.bytes_written + kept_stream_.bytes_written;
  if (!status.ok()) return on_mail_failed(status.error());
  ++stats_.batches;
  if (settings_.durable) ++stats_.syncs;
  // The answers may hand in new requests at once, so the lists are taken out first; they swap places
  // with empty ones that keep their memory.
  std::swap(answering_appends_, batch_.appends);
  std::swap(answering_notes_, batch_.notes);
  std::swap(answering_states_, batch_.states);
  std::vector<Append*> refused = std::move(batch_.refused);
  Status why_refused = std::move(batch_.why_refused);
  batch_.clear();
  bool again = state_ != LogState::writable;
  enter(LogState::writable, "");
  if (again || stats_.batches % 64 == 0 || io_.now() - free_disk_at_ns_ > kSecond) update_room();
  for (Note* note : answering_notes_) answer(*note);
  for (StatePut* put : answering_states_) answer(*put);
  for (Append* append : answering_appends_) answer(*append);
  for (Append* append : refused) {
    append->status = fail(why_refused.error());
    answer(*append);
  }
  answering_notes_.clear();
  answering_states_.clear();
  answering_appends_.clear();
  if (pending() || release_due_) io_.defer(commit_);
  if (io_.now() - reclaim_checked_ns_ > kSecond / 10) consider_reclaim();
}

void Log::on_mail_failed(const Error& error) {
  log::error("spool: {}; going on in a new segment", error.text);
  unwritable_why_ = error.text;
  roll_back();
  mail_.active()->failed = true;
  retire(mail_, false);
  ++batch_.attempt;
  if (batch_.attempt == 2) {
    batch_.refused = std::move(batch_.appends);
    batch_.appends.clear();
    batch_.why_refused = fail(error);
  }
  if (batch_.attempt >= 3 || batch_.probe) return give_up();
  Status activated = activate(mail_, false);
  if (!activated.ok()) {
    unwritable_why_ = activated.error().text;
    return give_up();
  }
  build();
}

// Nothing can be written. Messages whose bytes went to a write are neither accepted nor refused: a
// refusal would be a lie if they came back after a crash.
void Log::give_up() {
  bool submitted = batch_.attempt > 0;
  std::vector<Append*> lost = std::move(batch_.refused);
  batch_.refused.clear();
  lost.insert(lost.end(), batch_.appends.begin(), batch_.appends.end());
  batch_.appends.clear();
  std::string why = unwritable_why_;
  enter(LogState::unwritable, why);
  if (!stopping_) io_.timers().arm(retry_, io_.now() + kSecond);
  accepting_.store(false, std::memory_order_relaxed);
  for (Append* append : lost) {
    append->status = fail("the spool cannot be written: " + why, EIO);
    append->close_silently = submitted;
    answer(*append);
  }
  refuse_pending_appends({"the spool cannot be written: " + why, EIO});
}

void Log::on_retry_due() {
  ASSERT(state_ == LogState::unwritable && !stopping_);  // else it was not armed
  Status activated = activate(mail_, false);
  if (!activated.ok()) {
    unwritable_why_ = activated.error().text;
    io_.timers().arm(retry_, io_.now() + kSecond);
    return;
  }
  batch_.probe = true;
  build();  // the notes that wait, or nothing but a head
}

void Log::answer(Append& append) {
  append.address<&Front::on_append_back>(append.front);
  append.front->deliver(append);
}
void Log::answer(Note& note) {
  note.address<&Front::on_note_back>(note.front);
  note.front->deliver(note);
}
void Log::answer(StatePut& put) {
  put.address<&Front::on_state_back>(put.front);
  put.front->deliver(put);
}

// ---- tables

Segment* Log::segment(uint32_t generation) {
  if (last_found_ && last_found_->generation == generation) return last_found_;
  auto it = segments_.find(generation);
  if (it == segments_.end()) return nullptr;
  last_found_ = it->second.get();
  return last_found_;
}

MessageEntry* Log::resolve(Location& location) {
  for (;;) {
    Segment* in = segment(location.segment);
    MessageEntry* entry = in ? in->find(location.offset) : nullptr;
    if (!entry || entry->state != EntryState::moved) return entry;
    location.segment = entry->note_segment;
    location.offset = entry->note_offset;
    Segment* to = segment(location.segment);
    MessageEntry* target = to ? to->find(location.offset) : nullptr;
    if (!target) return nullptr;
    location.size = target->size;
  }
}

void Log::set_note(MessageEntry& entry, uint32_t holder, uint32_t at_segment, uint32_t offset) {
  if (entry.note_segment != at_segment) {
    if (entry.note_segment != 0 && entry.note_segment != holder) {
      if (Segment* old = segment(entry.note_segment)) {
        ASSERT(old->notes_needed > 0);
        if (--old->notes_needed == 0) release_due_ = true;
      }
    }
    if (at_segment != 0 && at_segment != holder) ++segment(at_segment)->notes_needed;
  }
  entry.note_segment = at_segment;
  entry.note_offset = offset;
}

void Log::kill(MessageEntry& entry, uint32_t in) {
  if (entry.state != EntryState::live) return;
  entry.state = EntryState::dead;
  Segment* holder = segment(in);
  ASSERT(holder->live > 0);
  holder->live_bytes -= entry.bytes;
  outcomes_ -= entry.recipients;
  if (--holder->live == 0) release_due_ = true;
}

void Log::set_key(std::string_view key, std::string_view value, const Location& at, bool carried) {
  KeyEntry& entry = keys_[std::string(key)];
  if (entry.segment != at.segment) {
    if (Segment* old = entry.segment ? segment(entry.segment) : nullptr) {
      ASSERT(old->keys_needed > 0);
      if (--old->keys_needed == 0) release_due_ = true;
    }
    ++segment(at.segment)->keys_needed;
  }
  entry.segment = at.segment;
  entry.offset = at.offset;
  if (!carried) entry.value = value;
  if (!value.empty()) entry.last_put = std::max(entry.last_put, at.segment);
}

// How much the disk still takes, after what is kept for outcomes and compaction.
void Log::update_room() {
  auto free = io_.free_space(settings_.directory);
  free_disk_at_ns_ = io_.now();
  if (free.ok()) free_disk_ = *free;
  uint64_t room = free_disk_ + free_.size() * settings_.segment_size;
  uint64_t need = settings_.reserve + outcomes_ * kOutcomeBytes;
  intake_open_ = room >= need;
  bool accept = state_ == LogState::writable && !stopping_ && room >= need + 2 * settings_.segment_size;
  if (accept != accepting()) {
    if (accept) {
      log::info("spool: room for new mail again");
    } else if (state_ == LogState::writable && !stopping_) {
      log::warning("spool: {} MiB left, {} MiB are kept for outcomes and compaction: no new mail", room >> 20,
                   need >> 20);
    }
    accepting_.store(accept, std::memory_order_relaxed);
  }
  // Refused at the door, no mail leads here any more; and of a queue that waits, no outcome does.
  if (!accept && state_ == LogState::writable && !stopping_ && !room_timer_.armed()) {
    io_.timers().arm(room_timer_, io_.now() + kSecond);
  }
  stats_.segments = segments_.size();
  stats_.segments_free = free_.size();
  stats_.bytes_live = 0;
  stats_.bytes_on_disk = free_.size() * settings_.segment_size;
  for (const auto& [generation, at] : segments_) {
    stats_.bytes_live += at->live_bytes;
    stats_.bytes_on_disk += at->size;
  }
}

}  // namespace millrace::spool
