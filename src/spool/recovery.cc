#include "spool/recovery.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace millrace::spool {
namespace {

constexpr size_t kLoadsAtOnce = 16;
constexpr uint64_t kReadChunk = 1u << 20;

}  // namespace

Recovery::Recovery(reactor::Io& io, std::string directory, const Uuid& uuid, uint64_t segment_size,
                   bool events_kept, RecoveryHandler& handler)
    : io_(io), directory_(std::move(directory)), uuid_(uuid), segment_size_(segment_size),
      events_kept_(events_kept), handler_(handler) {}

void Recovery::remark(std::string text) { summary.remarks.push_back(std::move(text)); }

reactor::Task<Status> Recovery::read_range(reactor::Handle handle, char* to, uint64_t size, uint64_t offset) {
  reactor::Alignment alignment = io_.alignment(handle);
  uint32_t align = std::max({1u, alignment.memory, alignment.offset});
  while (size > 0) {
    iovec part{to, std::min(size, kReadChunk)};
    int32_t result =
        co_await reactor::started([&](reactor::Op& op) { io_.read(op, handle, {&part, 1}, offset); });
    if (result < 0) co_return fail(std::strerror(-result), -result);
    uint64_t got = round_down(static_cast<uint64_t>(result), align);
    if (got == 0) co_return fail("the file is shorter than it should be", EIO);
    summary.bytes_read += got;
    to += got;
    offset += got;
    size -= std::min(size, got);
  }
  co_return success();
}

// A segment whose header is lost: its first batch tells what it is, if there is one.
reactor::Task<bool> Recovery::salvage(Directory::File* file) {
  if (file->size < 2 * kBlock) co_return false;
  auto handle = io_.open_file(directory_ + "/" + file->name, {.create = false, .write = false, .direct = true});
  if (!handle.ok()) co_return false;
  AlignedBytes image;
  image.reserve(round_up(file->size, kBlock));
  Status status = co_await read_range(*handle, image.data(), round_down(file->size, kBlock), 0);
  io_.close(*handle);
  if (!status.ok()) co_return false;
  BatchHeader first = spool::load<BatchHeader>(image.data() + kBlock);
  if (first.magic != kBatchMagic || first.uuid_part != uuid_part(uuid_) || first.offset != kBlock) co_return false;
  Scan scan = scan_segment({image.data(), round_down(file->size, kBlock)}, uuid_, first.generation, {}, file->name);
  if (scan.batches == 0 || scan.records.empty()) co_return false;
  file->header = {};
  file->header.magic = kSegmentMagic;
  file->header.format_version = kFormatVersion;
  file->header.state = SegmentState::log;
  file->header.uuid = uuid_;
  file->header.generation = first.generation;
  file->header.segment_size = round_down(file->size, kBlock);
  file->header.first_sequence = first.sequence;
  file->header.stream = StreamNumber::mail;
  for (const RecordRef& record : scan.records) {
    RecordHeader header = record.header();
    if (header.kind == RecordKind::tombstone || (header.flags & RecordFlags::moved)) {
      file->header.stream = StreamNumber::kept;
    }
  }
  file->verdict = HeaderVerdict::good;
  remark(fmt::format("{}: damaged header; its batches are readable and are used", file->name));
  co_return true;
}

// Sorts the files into streams and free ones, removes those that hold nothing.
Status Recovery::classify(std::vector<Directory::File>& files) {
  bool removed = false;
  auto remove = [&](const Directory::File& file) -> Status {
    removed = true;
    return io_.remove_file(directory_ + "/" + file.name);
  };
  for (Directory::File& file : files) {
    contents.next_file = std::max(contents.next_file, file.number + 1);
    contents.next_generation = std::max(contents.next_generation, file.number + 1);
    if (file.verdict == HeaderVerdict::good) {
      contents.next_generation = std::max(contents.next_generation, file.header.generation + 1);
    }
    if (file.verdict != HeaderVerdict::good) {
      if (file.verdict == HeaderVerdict::blank) {
        if (Status status = remove(file); !status.ok()) return status;
        continue;
      }
      std::string name = directory_ + "/" + file.name;
      remark(fmt::format("{}: damaged header and no readable batch; set aside as {}.damaged", file.name, file.name));
      ++summary.records_damaged;
      if (Status status = io_.rename_file(name, name + ".damaged"); !status.ok()) return status;
      continue;
    }
    if (file.header.uuid != uuid_) {
      remark(fmt::format("{}: belongs to the spool {}, left alone", file.name, to_string(file.header.uuid)));
      continue;
    }
    if (file.header.state == SegmentState::free) {
      if (file.size == segment_size_) {
        contents.free.push_back({directory_ + "/" + file.name, true});
      } else if (Status status = remove(file); !status.ok()) {
        return status;
      }
      continue;
    }
    uint32_t stream = static_cast<uint32_t>(file.header.stream);
    if (stream >= kStreams) {
      return fail(fmt::format("{}: stream {} is unknown to this version", file.name, stream));
    }
    streams_[stream].push_back({&file, nullptr, false, 0});
  }
  for (auto& stream : streams_) {
    std::sort(stream.begin(), stream.end(), [](const Source& a, const Source& b) {
      return a.file->header.generation > b.file->header.generation;
    });
    // What lies between a segment and the one its header names as before it was given up.
    std::vector<Source> valid;
    for (size_t i = 0; i < stream.size(); ++i) {
      Source& at = stream[i];
      bool given_up = false;
      for (const Source& later : valid) {
        const SegmentHeader& header = later.file->header;
        uint32_t generation = at.file->header.generation;
        given_up = given_up || (header.previous_generation < generation && generation < header.generation &&
                                header.created_ms != 0);
        if (header.previous_generation == generation) at.known_end = header.previous_end;
      }
      if (given_up) {
        if (Status status = remove(*at.file); !status.ok()) return status;
        continue;
      }
      at.newest = valid.empty();
      valid.push_back(at);
    }
    stream = std::move(valid);
    for (Source& source : stream) {
      Directory::File& file = *source.file;
      std::string name = segment_name(file.header.generation);
      if (file.name != name) {  // a renaming that a power cut undid
        auto there = std::find_if(files.begin(), files.end(), [&](const Directory::File& other) { return other.name == name; });
        if (there != files.end()) {
          return fail(fmt::format("{}: {} holds the segment of {}, which is there, too: move away the one that is a copy",
                                  directory_, file.name, name));
        }
        Status status = io_.rename_file(directory_ + "/" + file.name, directory_ + "/" + name);
        if (!status.ok()) return status;
        file.name = name;
      }
      auto made = std::make_unique<Segment>();
      made->generation = file.header.generation;
      // A power cut may leave a size between what was and what was allocated; blocks are what is used.
      made->size = round_down(file.size, kBlock);
      made->phase = file.sealed ? SegmentPhase::sealed : SegmentPhase::abandoned;
      made->has_index = file.sealed;
      made->first_sequence = file.header.first_sequence;
      made->previous = file.header.previous_generation;
      if (file.sealed) {
        made->end = file.trailer.chain_end;
        made->last_sequence = file.trailer.last_sequence;
        made->last_event_sequence = file.trailer.last_event_sequence;
        contents.emitted = std::max(contents.emitted, file.trailer.emitted);
        contents.next_sequence = std::max(contents.next_sequence, file.trailer.last_sequence + 1);
      }
      source.segment = made.get();
      if (!contents.segments.emplace(made->generation, std::move(made)).second) {
        return fail(fmt::format("{}: two segments of generation {}", directory_, file.header.generation));
      }
    }
  }
  summary.segments = contents.segments.size();
  if (removed) return io_.sync_directory(directory_);
  return success();
}

bool Recovery::wants_image(const Source& source) const {
  return !source.file->sealed || (events_kept_ && source.file->trailer.last_event_sequence > contents.emitted);
}

// `again`: what is worth a remark was remarked the first time.
reactor::Task<bool> Recovery::load(Source* source, Loaded* loaded, bool again) {
  Directory::File& file = *source->file;
  Segment& segment = *source->segment;
  auto handle = io_.open_file(directory_ + "/" + file.name, {.create = false, .write = false, .direct = true});
  if (!handle.ok()) {
    loaded->status = fail(handle.error());
    co_return false;
  }
  Status status = success();
  bool by_index = !wants_image(*source);
  if (by_index) {
    uint64_t size = round_up(std::max(file.trailer.index_size, 1u), kBlock);
    loaded->bytes.reserve(size);
    status = co_await read_range(*handle, loaded->bytes.data(), size, file.trailer.index_offset);
    std::string refused;
    by_index = status.ok() && scan_index({loaded->bytes.data(), size}, file.trailer, loaded->records, refused);
    if (by_index && !refused.empty()) loaded->status = fail(refused);
    if (!by_index) {
      loaded->records.clear();
      if (!again) remark(fmt::format("{}: incomplete or damaged index, its batches are read instead", file.name));
    }
  }
  if (!by_index) {
    // Of the last segment all is looked at: only so is a torn end told from damage before the end.
    uint64_t size = round_down(file.size, kBlock);
    uint32_t known_end = file.sealed ? file.trailer.chain_end : source->known_end;
    if (known_end != 0) size = std::min<uint64_t>(size, known_end);
    loaded->bytes.reserve(std::max<uint64_t>(size, kBlock));
    status = co_await read_range(*handle, loaded->bytes.data(), size, 0);
    if (status.ok()) {
      bool newest = source->newest && !file.sealed;
      Scan scan = scan_segment({loaded->bytes.data(), size}, uuid_, segment.generation,
                               {newest, false, known_end}, file.name);
      loaded->records = std::move(scan.records);
      if (!scan.refused.empty()) loaded->status = fail(scan.refused);
      segment.end = std::max(scan.end, kBlock);
      segment.last_sequence = scan.last_sequence;
      segment.last_event_sequence = scan.last_event_sequence;
      if (scan.damaged) segment.damaged = true;
      contents.emitted = std::max(contents.emitted, scan.emitted);
      contents.next_sequence = std::max(contents.next_sequence, scan.last_sequence + 1);
      if (!again) {
        for (auto& text : scan.remarks) remark(std::move(text));
        summary.batches_cut += scan.batches_cut;
        summary.records_damaged += scan.records_damaged;
        Contents::Tail& tail = contents.tails[static_cast<uint32_t>(file.header.stream)];
        if (source->newest && !file.sealed && !scan.damaged) {
          for (const RecordRef& record : loaded->records) {
            append_index_entry(tail.index, record.data, record.offset);
          }
        }
      }
    }
  }
  io_.close(*handle);
  if (!status.ok()) {
    // An unreadable disk block: what cannot be read is set aside, the rest of the spool goes on.
    if (!again) {
      remark(fmt::format("{}: cannot be read: {}; set aside", file.name, status.error().text));
      ++summary.records_damaged;
    }
    segment.damaged = true;
    segment.stuck = true;
    loaded->records.clear();
  }
  co_return true;
}

void Recovery::gather(Source& source, const std::vector<RecordRef>& records, bool events) {
  uint32_t generation = source.segment->generation;
  for (const RecordRef& record : records) {
    RecordHeader header = record.header();
    switch (header.kind) {
      case RecordKind::message: {
        MessageView message;
        if (!view(record, message)) break;
        if (events && !message.event.empty()) events_.emplace(header.sequence, message.event);
        if ((header.flags & RecordFlags::moved) && !record.body_damaged) {
          Copy& copy = copies_[message.id];
          if (header.sequence > copy.sequence) {
            copy = {header.sequence, {generation, record.offset, header.size}};
          }
        }
        break;
      }
      case RecordKind::note:
      case RecordKind::tombstone:
      case RecordKind::void_: {
        NoteView note;
        if (!view(record, note)) break;
        if (events && !note.event.empty()) events_.emplace(header.sequence, note.event);
        bool final = header.kind != RecordKind::note || (header.flags & RecordFlags::final);
        NoteRef& ref = notes_[note.id];
        if (ref.final && !final) break;
        if (header.sequence > ref.sequence || (final && !ref.final)) {
          ref.sequence = header.sequence;
          ref.segment = generation;
          ref.offset = record.offset;
          ref.final = final;
          ref.state = note.state;
        }
        break;
      }
      case RecordKind::state: {
        StateView state;
        if (!view(record, state)) break;
        KeyRef& ref = keys_[std::string(state.key)];
        if (!state.value.empty()) ref.entry.last_put = std::max(ref.entry.last_put, generation);
        if (header.sequence > ref.sequence) {
          ref.sequence = header.sequence;
          ref.entry.value = state.value;
          ref.entry.segment = generation;
          ref.entry.offset = record.offset;
        }
        break;
      }
    }
  }
}

void Recovery::deliver(Source& source, const std::vector<RecordRef>& records) {
  Segment& segment = *source.segment;
  segment.messages.reserve(static_cast<size_t>(
      std::count_if(records.begin(), records.end(), [](const RecordRef& record) { return record.header().kind == RecordKind::message; })));
  for (const RecordRef& record : records) {
    RecordHeader header = record.header();
    if (header.kind != RecordKind::message || record.body_damaged) continue;
    MessageView message;
    if (!view(record, message)) continue;
    MessageEntry entry;
    entry.offset = record.offset;
    entry.size = header.size;
    entry.bytes = static_cast<uint32_t>(header.size + message.fixed.body_size);
    entry.recipients = message.fixed.recipients;
    auto copy = copies_.empty() ? copies_.end() : copies_.find(message.id);
    if (copy != copies_.end() && copy->second.location.segment != 0 &&
        !(copy->second.location.segment == segment.generation && copy->second.location.offset == record.offset)) {
      entry.state = EntryState::moved;
      entry.note_segment = copy->second.location.segment;
      entry.note_offset = copy->second.location.offset;
      segment.messages.push_back(entry);
      auto& waits_for = contents.segments.at(entry.note_segment)->waits_for;
      if (entry.note_segment != segment.generation &&
          std::find(waits_for.begin(), waits_for.end(), segment.generation) == waits_for.end()) {
        waits_for.push_back(segment.generation);
      }
      continue;
    }
    std::string_view state = message.state;
    auto note = notes_.find(message.id);
    if (note != notes_.end() && (note->second.final || note->second.sequence > header.sequence)) {
      entry.note_segment = note->second.segment;
      entry.note_offset = note->second.offset;
      state = note->second.state;
      if (note->second.final) entry.state = EntryState::dead;
      if (entry.note_segment != segment.generation) {
        ++contents.segments.at(entry.note_segment)->notes_needed;
      }
    }
    segment.messages.push_back(entry);
    if (entry.state == EntryState::dead) continue;
    ++segment.live;
    segment.live_bytes += entry.bytes;
    contents.outcomes += entry.recipients;
    ++summary.messages;
    Recovered recovered;
    recovered.id = message.id;
    recovered.location = {segment.generation, record.offset, header.size};
    recovered.metadata = message.metadata;
    recovered.state = state;
    recovered.body_size = message.fixed.body_size;
    handler_.on_message(recovered);
  }
}

void Recovery::finish() {
  for (auto& [sequence, event] : events_) {
    if (sequence > contents.emitted) handler_.on_event(sequence, event);
  }
  for (auto& [key, ref] : keys_) {
    if (ref.entry.value.empty() && ref.entry.last_put == 0) continue;
    ++contents.segments.at(ref.entry.segment)->keys_needed;
    if (!ref.entry.value.empty()) handler_.on_state(key, ref.entry.value);
    contents.keys.emplace(key, std::move(ref.entry));
  }
  for (uint32_t i = 0; i < kStreams; ++i) {
    if (streams_[i].empty()) continue;
    Segment& newest = *streams_[i].front().segment;
    contents.tails[i].generation = newest.generation;
    contents.tails[i].end = newest.end;
  }
}

reactor::Task<Status> Recovery::run(std::vector<Directory::File>* files) {
  int64_t started = io_.now();
  for (Directory::File& file : *files) {
    if (file.verdict == HeaderVerdict::damaged) co_await salvage(&file);
  }
  Status status = classify(*files);
  if (!status.ok()) co_return status;

  // Reads the segments of a stream in their order, several indexes at a time but one whole segment
  // after the other, and hands each to `use`.
  auto& kept = streams_[static_cast<uint32_t>(StreamNumber::kept)];
  auto& mail = streams_[static_cast<uint32_t>(StreamNumber::mail)];
  for (int phase = 0; phase < 3; ++phase) {
    std::vector<Source>& stream = phase == 1 ? mail : kept;
    bool again = phase == 2;
    for (size_t at = 0; at < stream.size();) {
      size_t count = 1;
      if (!wants_image(stream[at])) {
        while (count < kLoadsAtOnce && at + count < stream.size() && !wants_image(stream[at + count])) ++count;
      }
      std::vector<Loaded> loaded(count);
      co_await in_parallel(io_, count, kLoadsAtOnce,
                           [&, at](size_t i) { return load(&stream[at + i], &loaded[i], again); });
      for (size_t i = 0; i < count; ++i) {
        if (!loaded[i].status.ok()) co_return fail(loaded[i].status.error());
        Source& source = stream[at + i];
        if (phase != 2) gather(source, loaded[i].records, phase == 1 && events_kept_ && wants_image(source));
        if (phase != 0) deliver(source, loaded[i].records);
      }
      at += count;
    }
  }
  finish();
  summary.milliseconds = (io_.now() - started) / 1'000'000;
  co_return success();
}

}  // namespace millrace::spool
