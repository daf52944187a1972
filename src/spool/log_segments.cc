// Segments from file to file: prepared ahead of need, taken into use, sealed with an index, released by
// every shard once nothing in them is needed, wiped and used again.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/crc32c.h"
#include "base/log.h"
#include "spool/front.h"
#include "spool/log.h"

namespace millrace::spool {
namespace {

constexpr size_t kFillChunk = 512 << 10;  // one write of it at a time: filling leaves the disk to commits
constexpr size_t kAhead = 2;              // prepared segments beyond the reserve
constexpr size_t kAheadMax = 16;
constexpr size_t kFreeMax = 64;           // more are removed
constexpr int kActivateAttempts = 4;

// Writes all of `part`, going on after short writes. 0 or -errno.
reactor::Task<int> write_all(reactor::Io& io, reactor::Handle handle, const char* data, uint64_t size,
                             uint64_t offset, bool durable, uint32_t align) {
  while (size > 0) {
    iovec part{const_cast<char*>(data), size};
    int32_t result = co_await reactor::started(
        [&](reactor::Op& op) { io.write(op, handle, {&part, 1}, offset, durable); });
    if (result < 0) co_return result;
    uint64_t wrote = round_down(static_cast<uint64_t>(result), align);
    if (wrote == 0) co_return -EIO;
    data += wrote;
    offset += wrote;
    size -= std::min(size, wrote);
  }
  co_return 0;
}

// A header that says: nothing here. The block after it is blanked too, so that no old batch is found
// where a first one would be, should the header be lost.
void make_free_header(const Uuid& uuid, uint32_t generation, uint64_t segment_size, int64_t wall_ms, char* to) {
  std::memset(to, 0, 2 * kBlock);
  SegmentHeader header{};
  header.magic = kSegmentMagic;
  header.format_version = kFormatVersion;
  header.state = SegmentState::free;
  header.uuid = uuid;
  header.generation = generation;
  header.segment_size = segment_size;
  header.created_ms = wall_ms;
  seal_crc(header);
  std::memcpy(to, &header, sizeof header);
}

}  // namespace

void Log::start_job(reactor::Task<bool> task) {
  jobs_.push_back(std::make_unique<Job>(std::move(task)));
  jobs_.back()->handle.resume();
}

void Log::reap_jobs() {
  std::erase_if(jobs_, [](const std::unique_ptr<Job>& job) { return job->handle.done(); });
}

uint32_t Log::reserve_segments() const {
  return static_cast<uint32_t>((settings_.reserve + settings_.segment_size - 1) / settings_.segment_size);
}

size_t Log::target_free() const { return reserve_segments() + std::min(kAhead + unfilled_used_, kAheadMax); }

// ---- before use

reactor::Task<Status> Log::start(Contents contents) {
  next_sequence_ = contents.next_sequence;
  // An event replayed by the handler may have been marked as emitted already.
  emitted_written_ = contents.emitted;
  emitted_ = std::max(emitted_, contents.emitted);
  outcomes_ = contents.outcomes;
  segments_ = std::move(contents.segments);
  keys_ = std::move(contents.keys);
  free_ = std::move(contents.free);
  next_generation_ = contents.next_generation;
  next_file_ = contents.next_file;
  for (uint32_t i = 0; i < kStreams; ++i) previous_[i] = std::move(contents.tails[i]);
  update_room();
  if (free_.empty()) {
    Status prepared = co_await prepare_file(path(fmt::format("{:010}.new", next_file_++)));
    if (!prepared.ok()) co_return prepared;
  }
  for (auto& tail : previous_) seal_tail(tail);
  started_ = true;
  release_due_ = true;
  io_.defer(commit_);
  want_prepared();
  co_return success();
}

void Log::want_prepared() {
  if (preparing_ || stopping_ || free_.size() >= target_free()) return;
  preparing_ = true;
  start_job(prepare());
}

reactor::Task<bool> Log::prepare() {
  while (!stopping_ && free_.size() < target_free()) {
    Status prepared = co_await prepare_file(path(fmt::format("{:010}.new", next_file_++)));
    if (!prepared.ok()) {
      if (!stopping_) log::warning("spool: cannot prepare a segment: {}", prepared.error().text);
      break;
    }
  }
  preparing_ = false;
  co_return true;
}

// A new file whose every block has been written once: what is written later changes no metadata of the
// file system, which would cost a journal commit with each batch.
reactor::Task<Status> Log::prepare_file(std::string file_path) {
  auto handle = io_.open_file(file_path, {.create = true, .write = true, .direct = true});
  if (!handle.ok()) co_return fail(handle.error());
  uint64_t size = settings_.segment_size;
  Status status = io_.allocate(*handle, size);
  reactor::Alignment alignment = io_.alignment(*handle);
  uint32_t align = std::max({1u, alignment.memory, alignment.offset});
  AlignedBytes zeros;
  zeros.reserve(std::max<size_t>(kFillChunk, 2 * kBlock));
  std::memset(zeros.data(), 0, zeros.capacity());
  int result = 0;
  for (uint64_t at = 0; status.ok() && result == 0 && at < size && !stopping_; at += kFillChunk) {
    result = co_await write_all(io_, *handle, zeros.data(), std::min<uint64_t>(kFillChunk, size - at), at,
                                false, align);
  }
  if (status.ok() && result == 0 && !stopping_) {
    result = co_await reactor::started([&](reactor::Op& op) { io_.sync(op, *handle); });
  }
  if (status.ok() && result == 0 && !stopping_) {
    make_free_header(settings_.uuid, 0, size, io_.wall_ms(), zeros.data());
    result = co_await write_all(io_, *handle, zeros.data(), 2 * kBlock, 0, true, align);
  }
  io_.close(*handle);
  if (status.ok() && result < 0) {
    status = fail(fmt::format("writing {}: {}", file_path, std::strerror(-result)), -result);
  }
  if (status.ok() && stopping_) status = fail("stopping", ECANCELED);
  if (status.ok()) status = io_.sync_directory(settings_.directory);
  if (!status.ok()) {
    (void)io_.remove_file(file_path);
    co_return status;
  }
  free_.push_back({file_path, true});
  co_return success();
}

Status Log::activate(Stream& stream, bool intake) {
  update_room();
  if (intake && !intake_open_) return fail("the spool's disk is full", ENOSPC);
  Error last{"no free segment", ENOSPC};
  for (int attempt = 0; attempt < kActivateAttempts; ++attempt) {
    FreeFile file;
    if (!free_.empty()) {
      file = std::move(free_.front());
      free_.pop_front();
    } else {
      // None is ready: better a slow segment than none.
      ++unfilled_used_;
      file.path = path(fmt::format("{:010}.new", next_file_++));
      auto made = io_.open_file(file.path, {.create = true, .write = true, .direct = true});
      if (!made.ok()) {
        last = made.error();
        continue;
      }
      Status status = io_.allocate(*made, settings_.segment_size);
      io_.close(*made);
      if (status.ok()) status = io_.sync_directory(settings_.directory);
      if (!status.ok()) {
        last = status.error();
        (void)io_.remove_file(file.path);
        continue;
      }
    }
    uint32_t generation = next_generation_++;
    std::string to = path(segment_name(generation));
    // The name is for people and for the readers; recovery goes by the header, so the renaming need not
    // be durable.
    Status renamed = io_.rename_file(file.path, to);
    if (!renamed.ok()) {
      last = renamed.error();
      continue;
    }
    auto handle = io_.open_file(to, {.create = false, .write = true, .direct = true});
    if (!handle.ok()) {
      last = handle.error();
      continue;
    }
    auto made = std::make_unique<Segment>();
    made->generation = generation;
    made->size = settings_.segment_size;
    made->handle = *handle;
    made->first_sequence = next_sequence_;
    Contents::Tail& previous = previous_[static_cast<uint32_t>(stream.number())];
    made->previous = previous.generation;
    made->waits_for = void_left_[static_cast<uint32_t>(stream.number())];
    stream.open(*made, previous.generation, previous.end, io_.wall_ms());
    segments_.emplace(generation, std::move(made));
    want_prepared();
    return success();
  }
  return fail(last);
}

// ---- full

void Log::retire(Stream& stream, bool to_seal) {
  Segment& segment = *stream.active();
  std::string_view index = stream.index();
  stream.leave();
  segment.closed_ns = io_.now();
  segment.messages.shrink_to_fit();
  if (segment.end == kBlock) {  // no batch in it is complete
    io_.close(segment.handle);
    segment.handle = reactor::kNoHandle;
    return discard(segment.generation);
  }
  previous_[static_cast<uint32_t>(stream.number())] = {segment.generation, segment.end, {}};
  AlignedBytes footer;
  uint64_t offset = 0, size = 0;
  bool filter = stream.number() == StreamNumber::mail && kept_in_flight_.empty();
  if (to_seal && make_footer(segment, index, filter, footer, offset, size)) {
    segment.phase = SegmentPhase::sealing;
    return start_job(seal(&segment, std::move(footer), offset, size));
  }
  io_.close(segment.handle);
  segment.handle = reactor::kNoHandle;
  segment.phase = SegmentPhase::abandoned;
  release_due_ = true;
}

void Log::discard(uint32_t generation) {
  std::string name = path(segment_name(generation));
  Status status = io_.remove_file(name);
  if (status.ok()) status = io_.sync_directory(settings_.directory);
  if (status.ok()) return forget(generation);
  // It stays on disk, and the header of the next segment says that it holds nothing. That one must
  // stay for as long.
  log::warning("spool: cannot remove {}: {}", name, status.error().text);
  Segment* segment = segments_.at(generation).get();
  segment->phase = SegmentPhase::abandoned;
  segment->stuck = true;
  for (auto& left : void_left_) left.push_back(generation);
}

// `filter`: leave out what is dead already. Only right when everything that was applied to the tables
// about this segment is durable, as it is for the stream of mail between two batches while nothing is
// being moved.
bool Log::make_footer(Segment& segment, std::string_view index, bool filter, AlignedBytes& out,
                      uint64_t& offset, uint64_t& size) {
  out.reserve(footer_size(index.size()));
  uint32_t used = 0, entries = 0;
  for (size_t at = 0; at < index.size();) {
    IndexEntry entry = load<IndexEntry>(index.data() + at);
    RecordRef record{index.data() + at + sizeof entry, entry.offset, entry.stored, false};
    size_t whole = sizeof entry + entry.stored;
    bool keep = true;
    if (filter) {
      switch (record.header().kind) {
        case RecordKind::message: {
          const MessageEntry* found = segment.find(entry.offset);
          keep = !found || found->state != EntryState::dead || found->note_segment != segment.generation;
          break;
        }
        case RecordKind::note: {
          NoteView note;
          if (!view(record, note)) break;
          Location location{note.fixed.message_segment, note.fixed.message_offset, 0};
          const MessageEntry* found = resolve(location);
          // Without an entry it is of a message that is set aside or gone; the former may be looked at.
          if (!found) {
            keep = this->segment(note.fixed.message_segment) != nullptr;
          } else {
            keep = found->note_segment == segment.generation && found->note_offset == entry.offset &&
                   !(found->state == EntryState::dead && location.segment == segment.generation);
          }
          break;
        }
        case RecordKind::state: {
          StateView state;
          if (!view(record, state)) break;
          auto found = keys_.find(std::string(state.key));
          keep = found != keys_.end() && found->second.segment == segment.generation &&
                 found->second.offset == entry.offset;
          break;
        }
        case RecordKind::tombstone:
        case RecordKind::void_: break;
      }
    }
    if (keep) {
      std::memcpy(out.data() + used, index.data() + at, whole);
      used += static_cast<uint32_t>(whole);
      ++entries;
    }
    at += whole;
  }
  size = footer_size(used);
  if (segment.end + size > segment.size) return false;
  offset = segment.size - size;
  std::memset(out.data() + used, 0, size - used);
  Trailer trailer{};
  trailer.magic = kTrailerMagic;
  trailer.format_version = kFormatVersion;
  trailer.generation = segment.generation;
  trailer.uuid = settings_.uuid;
  trailer.index_offset = static_cast<uint32_t>(offset);
  trailer.index_size = used;
  trailer.index_crc = crc32c(0, out.data(), used);
  trailer.entries = entries;
  trailer.first_sequence = segment.first_sequence;
  trailer.last_sequence = segment.last_sequence;
  trailer.last_event_sequence = segment.last_event_sequence;
  trailer.emitted = emitted_;
  trailer.chain_end = segment.end;
  seal_crc(trailer);
  std::memcpy(out.data() + size - kBlock, &trailer, sizeof trailer);
  return true;
}

reactor::Task<bool> Log::seal(Segment* segment, AlignedBytes footer, uint64_t offset, uint64_t size) {
  reactor::Alignment alignment = io_.alignment(segment->handle);
  uint32_t align = std::max({1u, alignment.memory, alignment.offset});
  int result = co_await write_all(io_, segment->handle, footer.data(), size, offset, true, align);
  stats_.bytes_written += size;
  io_.close(segment->handle);
  segment->handle = reactor::kNoHandle;
  if (result < 0) {
    log::error("spool: writing the index of {}: {}", segment_name(segment->generation),
               std::strerror(-result));
    segment->failed = true;
    segment->phase = SegmentPhase::abandoned;
  } else {
    segment->phase = SegmentPhase::sealed;
    segment->has_index = true;
  }
  release_due_ = true;
  io_.defer(commit_);
  co_return result == 0;
}

// The last segment of a stream before the restart. An index fixes where its batches end, so that the
// segment that says so need not be kept for it.
void Log::seal_tail(Contents::Tail& tail) {
  std::string index = std::move(tail.index);
  Segment* last = tail.generation ? segment(tail.generation) : nullptr;
  if (!last || index.empty()) return;
  AlignedBytes footer;
  uint64_t offset = 0, size = 0;
  if (!make_footer(*last, index, true, footer, offset, size)) return;
  auto handle = io_.open_file(path(segment_name(tail.generation)),
                              {.create = false, .write = true, .direct = true});
  if (!handle.ok()) return;
  last->handle = *handle;
  last->phase = SegmentPhase::sealing;
  start_job(seal(last, std::move(footer), offset, size));
}

// ---- empty

bool Log::may_release(const Segment& at) const {
  if (at.phase != SegmentPhase::sealed && at.phase != SegmentPhase::abandoned) return false;
  if (at.live > 0 || at.notes_needed > 0 || at.keys_needed > 0 || at.moves_unacknowledged > 0) return false;
  if (at.stuck || at.generation == reclaiming_ || releases_frozen_ || stopping_) return false;
  if (settings_.events_kept && at.last_event_sequence > emitted_) return false;
  if (at.previous != 0) {
    auto before = segments_.find(at.previous);
    if (before != segments_.end() && before->second->phase != SegmentPhase::sealed) return false;
  }
  for (uint32_t generation : at.waits_for) {
    if (segments_.contains(generation)) return false;
  }
  return true;
}

void Log::release_scan() {
  release_due_ = false;
  std::vector<Segment*> ready;
  for (const auto& [generation, at] : segments_) {
    if (may_release(*at)) ready.push_back(at.get());
  }
  std::sort(ready.begin(), ready.end(),
            [](const Segment* a, const Segment* b) { return a->generation < b->generation; });
  for (Segment* at : ready) begin_release(*at);
}

void Log::begin_release(Segment& at) {
  at.phase = SegmentPhase::releasing;
  reader_.release(at.generation, nullptr, [](void*) {});
  auto* letter = new Release;
  letter->generation = at.generation;
  letter->front = 0;
  letter->address<&Log::on_released_back>(this);
  on_released_back(*letter);
}

void Log::on_released_back(reactor::Letter& at) {
  Release& letter = static_cast<Release&>(at);
  if (letter.front < fronts_.size()) {
    Front* front = fronts_[letter.front++];
    letter.address<&Front::on_release>(front);
    return front->deliver(letter);
  }
  uint32_t generation = letter.generation;
  delete &letter;
  if (stopping_) return;
  segments_.at(generation)->phase = SegmentPhase::wiping;
  start_job(wipe(generation));
}

reactor::Task<bool> Log::wipe(uint32_t generation) {
  std::string name = path(segment_name(generation));
  Segment* at = segments_.at(generation).get();
  if (at->damaged) {
    // Set aside for whoever wants to look at it; the log has everything that could be read.
    Status status = io_.rename_file(name, name + ".damaged");
    if (status.ok()) status = io_.sync_directory(settings_.directory);
    log::warning("spool: damaged segment set aside as {}.damaged", name);
    if (status.ok()) forget(generation);
    co_return status.ok();
  }
  int result = -EIO;
  if (!at->failed && at->size == settings_.segment_size && free_.size() < kFreeMax + reserve_segments()) {
    auto handle = io_.open_file(name, {.create = false, .write = true, .direct = true});
    if (handle.ok()) {
      AlignedBytes block;
      block.reserve(2 * kBlock);
      make_free_header(settings_.uuid, generation, at->size, io_.wall_ms(), block.data());
      reactor::Alignment alignment = io_.alignment(*handle);
      uint32_t align = std::max({1u, alignment.memory, alignment.offset});
      // First the header, then the block after it: were they written together and torn, the segment
      // could look like one in use whose first batch is damaged.
      result = co_await write_all(io_, *handle, block.data(), kBlock, 0, true, align);
      if (result == 0) {
        result = co_await write_all(io_, *handle, block.data() + kBlock, kBlock, kBlock, true, align);
      }
      io_.close(*handle);
    }
  }
  if (result == 0) {
    forget(generation);
    free_.push_back({name, true});
  } else {
    Status status = io_.remove_file(name);
    if (status.ok()) status = io_.sync_directory(settings_.directory);
    if (!status.ok()) {
      log::warning("spool: cannot remove {}: {}", name, status.error().text);
      at->phase = SegmentPhase::abandoned;
      at->stuck = true;
      co_return false;
    }
    forget(generation);
  }
  release_due_ = true;
  io_.defer(commit_);
  co_return true;
}

// The segment is gone, and with it the need for final notes of its messages.
void Log::forget(uint32_t generation) {
  auto it = segments_.find(generation);
  std::unique_ptr<Segment> gone = std::move(it->second);
  segments_.erase(it);
  last_found_ = nullptr;
  for (const MessageEntry& entry : gone->messages) {
    if (entry.state == EntryState::moved || entry.note_segment == 0 || entry.note_segment == generation) continue;
    if (Segment* holder = segment(entry.note_segment)) {
      ASSERT(holder->notes_needed > 0);
      if (--holder->notes_needed == 0) release_due_ = true;
    }
  }
}

// ---- the end

reactor::Task<Status> Log::close() {
  bool started = std::exchange(started_, true);  // one that was never started answers, too
  // What has arrived is still written, for as long as the disk takes it.
  while (started && state_ == LogState::writable && (pending() || mail_.in_flight())) {
    co_await reactor::sleep(io_, 1'000'000);
  }
  stopping_ = true;
  retry_.cancel();
  mark_.cancel();
  reclaim_timer_.cancel();
  room_timer_.cancel();
  auto busy = [&] {
    reap_jobs();
    return mail_.in_flight() || kept_stream_.in_flight() || reader_.pending() > 0 || !jobs_.empty();
  };
  while (busy()) co_await reactor::sleep(io_, 1'000'000);
  for (Stream* stream : {&mail_, &kept_stream_}) {
    if (stream->active()) retire(*stream, state_ == LogState::writable);
  }
  while (busy()) co_await reactor::sleep(io_, 1'000'000);
  reader_.close_files();
  enter(LogState::closed, "");
  for (Note* note : std::exchange(batch_.notes, {})) pending_notes_.push_back(note);
  for (StatePut* put : std::exchange(batch_.states, {})) pending_states_.push_back(put);
  accepting_.store(false, std::memory_order_relaxed);
  commit();
  co_return success();
}

}  // namespace millrace::spool
