// Compaction: what is still needed of a mostly dead segment is written to the stream of kept things, in
// bounded steps, slowly while there is room: live messages with their latest state, final notes of
// messages that other segments still hold, latest states, keys. Then nothing keeps the segment.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "spool/front.h"
#include "spool/log.h"

namespace millrace::spool {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr uint64_t kStepBytes = 1u << 20;  // read, then written, at a time
constexpr size_t kStepItems = 256;
constexpr size_t kReadsAtOnce = 8;
constexpr uint64_t kNoteCost = 512;        // of carrying a note, about
constexpr int64_t kRest = 3;               // times as long as the step took, unless room is short
constexpr int kPasses = 4;

// Runs several reads at once and waits for them all.
struct ReadGroup {
  size_t left = 0;
  std::coroutine_handle<> waiter;
  static void on_done(void* owner, Read&) {
    auto* group = static_cast<ReadGroup*>(owner);
    if (--group->left == 0 && group->waiter) std::exchange(group->waiter, {}).resume();
  }
  bool await_ready() const noexcept { return left == 0; }
  void await_suspend(std::coroutine_handle<> handle) noexcept { waiter = handle; }
  void await_resume() const noexcept {}
};

reactor::Task<Status> read_all(reactor::Io& io, reactor::Handle handle, char* to, uint64_t size,
                               uint64_t offset, uint32_t align) {
  while (size > 0) {
    iovec part{to, std::min<uint64_t>(size, 1u << 20)};
    int32_t result = co_await reactor::started(
        [&](reactor::Op& op) { io.read(op, handle, {&part, 1}, offset); });
    if (result < 0) co_return fail(std::strerror(-result), -result);
    uint64_t got = round_down(static_cast<uint64_t>(result), align);
    if (got == 0) co_return fail("the file is too short", EIO);
    to += got;
    offset += got;
    size -= std::min(size, got);
  }
  co_return success();
}

}  // namespace

void Log::consider_reclaim() {
  if (reclaiming_ != 0 || stopping_ || state_ != LogState::writable) return;
  reclaim_checked_ns_ = io_.now();
  if (releases_frozen_) return thaw();
  if (io_.now() < reclaim_rests_until_ns_) {
    if (!reclaim_timer_.armed()) io_.timers().arm(reclaim_timer_, reclaim_rests_until_ns_);
    return;
  }
  bool short_of_room = !accepting() || (free_.size() < reserve_segments() && !preparing_);
  Segment* chosen = nullptr;
  bool later = false;
  for (const auto& [generation, at] : segments_) {
    if (at->phase != SegmentPhase::sealed && at->phase != SegmentPhase::abandoned) continue;
    if (at->stuck || at->moves_unacknowledged > 0) continue;
    uint64_t cost = at->live_bytes + (uint64_t{at->notes_needed} + at->keys_needed) * kNoteCost;
    if (cost == 0) continue;  // goes by itself
    bool wanted = at->phase == SegmentPhase::abandoned ||
                  cost * 100 < at->size * settings_.compact_below_percent;
    if (!wanted) continue;
    if (!short_of_room && io_.now() - at->closed_ns < kSecond) {
      later = true;
      continue;
    }
    // The oldest first: younger ones are often held by notes of its messages only.
    if (!chosen || at->generation < chosen->generation) chosen = at.get();
  }
  if (chosen) {
    reclaiming_ = chosen->generation;
    start_job(reclaim(chosen->generation));
  } else if (later && !reclaim_timer_.armed()) {
    io_.timers().arm(reclaim_timer_, io_.now() + kSecond);
  }
}

reactor::Task<Status> Log::load_records(uint32_t generation, Image* image) {
  Segment* at = segment(generation);
  std::string name = path(segment_name(generation));
  auto handle = io_.open_file(name, {.create = false, .write = false, .direct = true});
  if (!handle.ok()) co_return fail(handle.error());
  reactor::Alignment alignment = io_.alignment(*handle);
  uint32_t align = std::max({1u, alignment.memory, alignment.offset});
  Status status = success();
  bool by_index = at->has_index;
  if (by_index) {
    image->bytes.reserve(2 * kBlock);
    status = co_await read_all(io_, *handle, image->bytes.data(), kBlock, 0, align);
    if (status.ok()) {
      status = co_await read_all(io_, *handle, image->bytes.data() + kBlock, kBlock, at->size - kBlock, align);
    }
    SegmentHeader header;
    Trailer trailer;
    by_index = status.ok() &&
               read_segment_header({image->bytes.data(), kBlock}, header) == HeaderVerdict::good &&
               read_trailer({image->bytes.data() + kBlock, kBlock}, header,
                            static_cast<uint32_t>(at->size), trailer);
    if (by_index) {
      uint64_t size = round_up(std::max(trailer.index_size, 1u), kBlock);
      image->bytes.reserve(size);
      status = co_await read_all(io_, *handle, image->bytes.data(), size, trailer.index_offset, align);
      std::string refused;
      by_index = status.ok() && scan_index({image->bytes.data(), size}, trailer, image->records, refused);
    }
  }
  if (!by_index) {
    image->records.clear();
    image->bytes.reserve(at->end);
    status = co_await read_all(io_, *handle, image->bytes.data(), at->end, 0, align);
    if (status.ok()) {
      Scan scan = scan_segment({image->bytes.data(), at->end}, settings_.uuid, generation,
                               {.known_end = at->end}, segment_name(generation));
      image->records = std::move(scan.records);
      if (scan.damaged) at->damaged = true;
      for (const std::string& text : scan.remarks) log::warning("spool: {}", text);
    }
  }
  io_.close(*handle);
  co_return status;
}

reactor::Task<Result<std::string>> Log::read_state(uint32_t generation, uint32_t offset) {
  auto handle = io_.open_file(path(segment_name(generation)), {.create = false, .write = false, .direct = true});
  if (!handle.ok()) co_return fail(handle.error());
  reactor::Alignment alignment = io_.alignment(*handle);
  uint32_t align = std::max({1u, alignment.memory, alignment.offset});
  AlignedBytes bytes;
  uint64_t from = round_down(offset, kBlock);
  uint64_t size = kBlock;
  Status status = success();
  std::string state;
  for (int round = 0; round < 2; ++round) {
    bytes.reserve(size);
    status = co_await read_all(io_, *handle, bytes.data(), size, from, align);
    if (!status.ok()) break;
    const char* record = bytes.data() + (offset - from);
    uint64_t there = from + size - offset;
    uint32_t whole = there >= sizeof(RecordHeader) ? load<RecordHeader>(record).size : 0;
    if (round == 0 && whole != 0 && whole <= there) round = 1;
    if (round == 0) {
      // A record is a multiple of 8 at a multiple of 8, so at least its size was there.
      size = round_up(uint64_t{offset} - from + std::max(load<uint32_t>(record), kBlock), kBlock);
      if (size > settings_.segment_size) {
        status = fail("a note's length is damaged", EBADMSG);
        break;
      }
      continue;
    }
    NoteView note;
    RecordRef at{record, offset, whole, false};
    if (!check_record({record, there}) || at.header().kind != RecordKind::note || !view(at, note)) {
      status = fail(fmt::format("{}, note at offset {}: damaged", segment_name(generation), offset), EBADMSG);
      break;
    }
    state = note.state;
  }
  io_.close(*handle);
  if (!status.ok()) co_return fail(status.error());
  co_return state;
}

reactor::Task<bool> Log::reclaim(uint32_t generation) {
  Segment* at = segment(generation);
  log::debug("spool: compacting {}: {} live messages, {} notes, {} keys", segment_name(generation), at->live,
             at->notes_needed, at->keys_needed);
  Image image;
  Status status = co_await load_records(generation, &image);
  if (!status.ok()) {
    log::error("spool: cannot read {} to compact it: {}", segment_name(generation), status.error().text);
    at->stuck = true;
  }
  std::vector<std::unique_ptr<Kept>> step;
  uint64_t step_bytes = 0;

  // ---- notes and keys; then the notes of messages that recovery found elsewhere than they say, because the copy that
  // they name is damaged
  std::unordered_map<uint32_t, Location> strays;
  bool any_done = false;
  for (size_t i = 0, round = 0; !stopping_ && !at->stuck;) {
    if (i == image.records.size()) {
      if (round++ > 0 || at->notes_needed == 0) break;
      strays = notes_elsewhere(generation);
      if (strays.empty()) break;
      i = 0;
    }
    int64_t started = io_.now();
    for (; i < image.records.size() && step.size() < kStepItems && step_bytes < kStepBytes; ++i) {
      const RecordRef& record = image.records[i];
      RecordKind kind = record.header().kind;
      auto item = std::make_unique<Kept>();
      item->from = {generation, record.offset, record.header().size};
      if (kind == RecordKind::note || kind == RecordKind::tombstone) {
        NoteView note;
        if (!view(record, note)) continue;
        Location message{note.fixed.message_segment, note.fixed.message_offset, note.fixed.message_size};
        if (auto stray = strays.find(record.offset); stray != strays.end()) message = stray->second;
        MessageEntry* entry = resolve(message);
        if (!entry || entry->note_segment != generation || entry->note_offset != record.offset) continue;
        item->kind = entry->state == EntryState::dead ? Kept::Kind::tombstone : Kept::Kind::note;
        item->id = note.id;
        item->message = message;
        if (item->kind == Kept::Kind::note) item->state = note.state;
      } else if (kind == RecordKind::state) {
        StateView state;
        if (!view(record, state)) continue;
        auto found = keys_.find(std::string(state.key));
        if (found == keys_.end() || found->second.segment != generation ||
            found->second.offset != record.offset) {
          continue;
        }
        if (found->second.value.empty()) {
          // A removal has done its work once no older segment can hold a value.
          bool needed = std::any_of(segments_.begin(), segments_.end(), [&](const auto& other) {
            return other.first != generation && other.first <= found->second.last_put;
          });
          if (!needed) {
            --at->keys_needed;
            keys_.erase(found);
            any_done = true;
            continue;
          }
        }
        item->kind = Kept::Kind::key;
        item->key = state.key;
        item->state = found->second.value;
      } else {
        continue;
      }
      step_bytes += 128 + item->state.size() + item->key.size();
      step.push_back(std::move(item));
    }
    if (step.empty()) continue;
    for (auto& item : step) kept_.push_back(item.get());
    commit_kept();
    co_await StepWait{*this};
    bool written = std::any_of(step.begin(), step.end(), [](const auto& item) { return item->written; });
    any_done |= written;
    step.clear();
    step_bytes = 0;
    if (!written && (state_ != LogState::writable || io_.now() < reclaim_rests_until_ns_)) break;
    if (accepting() && !stopping_) co_await reactor::sleep(io_, (io_.now() - started) * kRest);
  }

  // ---- messages; a note that arrives meanwhile sends its message to the next pass
  for (int pass = 0; pass < kPasses && at->live > 0 && !stopping_ && !at->stuck; ++pass) {
    if (io_.now() < reclaim_rests_until_ns_) break;
    for (size_t i = 0; i < at->messages.size() && !stopping_ && !at->stuck;) {
      int64_t started = io_.now();
      ReadGroup group;
      for (; i < at->messages.size() && step.size() < kReadsAtOnce && step_bytes < kStepBytes; ++i) {
        const MessageEntry& entry = at->messages[i];
        if (entry.state != EntryState::live) continue;
        auto record = std::lower_bound(image.records.begin(), image.records.end(), entry.offset,
                                       [](const RecordRef& a, uint32_t b) { return a.offset < b; });
        MessageView message;
        if (record == image.records.end() || record->offset != entry.offset || !view(*record, message)) {
          log::error("spool: {}: message record at offset {} is missing", segment_name(generation), entry.offset);
          at->stuck = true;
          break;
        }
        auto item = std::make_unique<Kept>();
        item->kind = Kept::Kind::message;
        item->id = message.id;
        item->from = {generation, entry.offset, entry.size};
        item->note_segment = entry.note_segment;
        item->note_offset = entry.note_offset;
        item->read = std::make_unique<Read>();
        item->read->id = message.id;
        item->read->message = item->from;
        item->read->owner = &group;
        item->read->done = &ReadGroup::on_done;
        step_bytes += entry.bytes;
        step.push_back(std::move(item));
      }
      if (step.empty()) continue;
      group.left = step.size();
      for (auto& item : step) reader_.read(*item->read);
      co_await group;
      for (auto& item : step) {
        if (!item->read->status.ok()) {
          log::error("spool: cannot move message {}: {}", item->id.to_string(), item->read->status.error().text);
          at->stuck = true;
          at->damaged = true;
          continue;
        }
        RecordRef record{item->read->record, item->from.offset, item->from.size, false};
        ASSERT(view(record, item->view));  // the reader has checked it
        const reactor::Buffer* body =
            item->read->buffers.size() > 1 ? item->read->buffers[1].get() : nullptr;
        for (std::string_view piece : item->read->pieces) {
          item->pieces.push_back({piece.data(), static_cast<uint32_t>(piece.size()), body});
        }
        if (item->note_segment == 0) {
          item->state = item->view.state;
        } else {
          auto state = co_await read_state(item->note_segment, item->note_offset);
          if (!state.ok()) {
            log::error("spool: cannot move message {}: {}", item->id.to_string(), state.error().text);
            at->stuck = true;
            continue;
          }
          item->state = std::move(*state);
        }
        kept_.push_back(item.get());
      }
      commit_kept();
      co_await StepWait{*this};
      any_done |= std::any_of(step.begin(), step.end(), [](const auto& item) { return item->written; });
      step.clear();
      step_bytes = 0;
      if (state_ != LogState::writable || io_.now() < reclaim_rests_until_ns_) break;
      if (accepting() && !stopping_) co_await reactor::sleep(io_, (io_.now() - started) * kRest);
    }
  }
  // Nothing could be moved: what was in the way may have gone by then.
  if (!any_done && !at->stuck) reclaim_rests_until_ns_ = std::max(reclaim_rests_until_ns_, io_.now() + kSecond);
  reclaiming_ = 0;
  release_due_ = true;
  io_.defer(commit_);
  co_return true;
}

// By the note's offset in this segment, where its message is.
std::unordered_map<uint32_t, Location> Log::notes_elsewhere(uint32_t generation) const {
  std::unordered_map<uint32_t, Location> found;
  for (const auto& [number, holder] : segments_) {
    for (const MessageEntry& entry : holder->messages) {
      if (entry.state == EntryState::moved || entry.note_segment != generation) continue;
      found.emplace(entry.note_offset, Location{number, entry.offset, entry.size});
    }
  }
  return found;
}

// ---- the stream of kept things

void Log::commit_kept() {
  if (kept_stream_.in_flight() || kept_.empty()) return;
  auto drop_all = [&] {
    kept_.clear();
    wake_step();
  };
  if (state_ != LogState::writable || releases_frozen_) return drop_all();
  std::vector<Kept*> chosen;
  Footprint total;
  for (;;) {
    if (!kept_stream_.active() && !activate(kept_stream_, false).ok()) {
      reclaim_rests_until_ns_ = io_.now() + kSecond;
      return drop_all();
    }
    bool full = false;
    size_t taken = 0;
    for (; taken < kept_.size(); ++taken) {
      Kept& item = *kept_[taken];
      Footprint add;
      switch (item.kind) {
        case Kept::Kind::message: {
          MessageInput message;
          message.pieces = item.pieces;
          message.metadata = item.view.metadata;
          message.state = item.state;
          add = kept_stream_.measure(message);
          break;
        }
        case Kept::Kind::note:
        case Kept::Kind::tombstone: add = Stream::measure_note(item.state.size(), 0); break;
        case Kept::Kind::key: add = Stream::measure_state(item.key.size(), item.state.size()); break;
      }
      if (Stream::too_large(add, kept_stream_.active()->size)) continue;  // cannot have been written
      Footprint with = total;
      with += add;
      if (!kept_stream_.fits(with)) {
        full = true;
        break;
      }
      total = with;
      chosen.push_back(&item);
    }
    kept_.erase(kept_.begin(), kept_.begin() + static_cast<ptrdiff_t>(taken));
    if (!chosen.empty() || !full) break;
    retire(kept_stream_, true);
  }
  if (chosen.empty()) return wake_step();
  kept_stream_.begin(total.records, next_sequence_, emitted_, io_.wall_ms());
  kept_messages_before_ = kept_stream_.active()->messages.size();
  for (Kept* item : chosen) {
    if (add_kept(*item)) kept_in_flight_.push_back(item);
  }
  if (kept_in_flight_.empty()) return kept_.empty() ? wake_step() : commit_kept();
  next_sequence_ = kept_stream_.next_sequence();
  kept_stream_.submit(settings_.durable);
}

// Adds the record if it is still the one that counts.
bool Log::add_kept(Kept& item) {
  switch (item.kind) {
    case Kept::Kind::message: {
      Segment* source = segment(item.from.segment);
      MessageEntry* entry = source ? source->find(item.from.offset) : nullptr;
      if (!entry || entry->state != EntryState::live || entry->note_segment != item.note_segment ||
          entry->note_offset != item.note_offset) {
        return false;
      }
      MessageInput message;
      message.id = item.id;
      message.pieces = item.pieces;
      message.body_size = item.view.fixed.body_size;
      message.body_crc = item.view.fixed.body_crc;
      message.metadata = item.view.metadata;
      message.state = item.state;
      message.recipients = item.view.fixed.recipients;
      message.flags = RecordFlags::moved;
      item.to = kept_stream_.add_message(message);
      Segment& target = *kept_stream_.active();
      MessageEntry made = *entry;
      made.offset = item.to.offset;
      made.size = item.to.size;
      made.bytes = static_cast<uint32_t>(item.to.size + message.body_size);
      made.note_segment = made.note_offset = 0;
      target.messages.push_back(made);
      ++target.live;
      target.live_bytes += made.bytes;
      if (std::find(target.waits_for.begin(), target.waits_for.end(), source->generation) ==
          target.waits_for.end()) {
        target.waits_for.push_back(source->generation);
      }
      set_note(*entry, source->generation, 0, 0);
      entry->state = EntryState::moved;
      entry->note_segment = item.to.segment;
      entry->note_offset = item.to.offset;
      ++source->moves_unacknowledged;
      return true;
    }
    case Kept::Kind::note:
    case Kept::Kind::tombstone: {
      MessageEntry* entry = resolve(item.message);
      if (!entry || entry->note_segment != item.from.segment || entry->note_offset != item.from.offset) {
        return false;
      }
      bool note = item.kind == Kept::Kind::note;
      item.to = kept_stream_.add_note(note ? RecordKind::note : RecordKind::tombstone,
                                      note ? uint16_t{0} : uint16_t{RecordFlags::final}, item.id, item.message,
                                      note ? std::string_view(item.state) : std::string_view(), {});
      set_note(*entry, item.message.segment, item.to.segment, item.to.offset);
      return true;
    }
    case Kept::Kind::key: {
      auto found = keys_.find(item.key);
      if (found == keys_.end() || found->second.segment != item.from.segment ||
          found->second.offset != item.from.offset) {
        return false;
      }
      item.to = kept_stream_.add_state(item.key, item.state);
      set_key(item.key, item.state, item.to, true);
      return true;
    }
  }
  UNREACHABLE();
}

void Log::undo_kept(Kept& item) {
  switch (item.kind) {
    case Kept::Kind::message: {
      Segment* source = segment(item.from.segment);
      MessageEntry& entry = *source->find(item.from.offset);
      MessageEntry& copy = *segment(item.to.segment)->find(item.to.offset);
      // What was noted of the copy meanwhile is true of the original.
      entry.state = EntryState::live;
      entry.note_segment = entry.note_offset = 0;
      if (copy.note_segment == 0) {
        set_note(entry, source->generation, item.note_segment, item.note_offset);
      } else {
        set_note(entry, source->generation, copy.note_segment, copy.note_offset);
        set_note(copy, item.to.segment, 0, 0);
      }
      entry.home = copy.home;
      --source->moves_unacknowledged;
      if (copy.state == EntryState::dead) {
        outcomes_ += entry.recipients;  // counted down with the copy, and by kill() once more
        kill(entry, source->generation);
      }
      return;
    }
    case Kept::Kind::note:
    case Kept::Kind::tombstone: {
      MessageEntry* entry = resolve(item.message);
      if (entry && entry->note_segment == item.to.segment && entry->note_offset == item.to.offset) {
        set_note(*entry, item.message.segment, item.from.segment, item.from.offset);
      }
      return;
    }
    case Kept::Kind::key: {
      auto found = keys_.find(item.key);
      if (found != keys_.end() && found->second.segment == item.to.segment &&
          found->second.offset == item.to.offset) {
        set_key(item.key, item.state, item.from, true);
      }
      return;
    }
  }
}

void Log::on_kept_batch(const Status& status) {
  stats_.bytes_written = mail_.bytes_written + kept_stream_.bytes_written;
  if (!status.ok()) {
    log::error("spool: {}; compaction goes on in a new segment", status.error().text);
    Segment& target = *kept_stream_.active();
    for (Kept* item : kept_in_flight_) undo_kept(*item);
    kept_in_flight_.clear();
    kept_.clear();
    target.messages.resize(kept_messages_before_);
    target.live = 0;
    target.live_bytes = 0;
    for (const MessageEntry& entry : target.messages) {
      if (entry.state != EntryState::live) continue;
      ++target.live;
      target.live_bytes += entry.bytes;
    }
    target.failed = true;
    uint32_t failed_generation = target.generation;
    retire(kept_stream_, false);
    // What was written in vain may be found after a crash until the header of the next segment of the
    // stream says where this one ends.
    if (segment(failed_generation) != nullptr) {
      releases_frozen_ = true;
      thaw();
    }
    return wake_step();
  }
  if (std::exchange(releases_frozen_, false)) release_due_ = true;
  if (release_due_) io_.defer(commit_);
  std::vector<Kept*> written = std::move(kept_in_flight_);
  kept_in_flight_.clear();
  for (Kept* item : written) {
    item->written = true;
    if (item->kind != Kept::Kind::message) continue;
    Segment* source = segment(item->from.segment);
    const MessageEntry* entry = source->find(item->from.offset);
    --source->live;
    source->live_bytes -= entry->bytes;
    stats_.bytes_compacted += entry->bytes;
    MessageEntry* copy = segment(item->to.segment)->find(item->to.offset);
    send_moved(*item, copy->home);
  }
  if (!kept_.empty()) return commit_kept();
  wake_step();
}

// An empty batch in a new segment of the stream of kept things: its header says where the failed one
// before it ends.
void Log::thaw() {
  if (kept_stream_.in_flight()) return;
  Status activated = activate(kept_stream_, false);
  if (activated.ok()) {
    kept_stream_.begin(0, next_sequence_, emitted_, io_.wall_ms());
    kept_messages_before_ = 0;
    kept_stream_.submit(settings_.durable);
  } else {
    log::error("spool: no segment for compaction: {}", activated.error().text);
  }
  if (!reclaim_timer_.armed()) io_.timers().arm(reclaim_timer_, io_.now() + kSecond);
}

void Log::wake_step() {
  if (step_waiter_ && kept_.empty() && kept_in_flight_.empty()) {
    std::exchange(step_waiter_, {}).resume();
  }
}

void Log::send_moved(const Kept& item, uint16_t home) {
  auto* letter = new Moved;
  letter->id = item.id;
  letter->from = item.from;
  letter->to = item.to;
  letter->every_front = home == kHomeUnknown;
  letter->front = 0;
  if (!letter->every_front) {
    Front* front = fronts_[home];
    letter->address<&Front::on_moved>(front);
    return front->deliver(*letter);
  }
  on_moved_back(*letter);
}

void Log::on_moved_back(reactor::Letter& at) {
  Moved& letter = static_cast<Moved&>(at);
  if (letter.every_front && letter.front < fronts_.size()) {
    Front* front = fronts_[letter.front++];
    letter.address<&Front::on_moved>(front);
    return front->deliver(letter);
  }
  Segment* source = segment(letter.from.segment);
  --source->moves_unacknowledged;
  release_due_ = true;
  io_.defer(commit_);
  delete &letter;
}

}  // namespace millrace::spool
