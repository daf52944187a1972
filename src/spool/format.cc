#include "spool/format.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/crc32c.h"

namespace millrace::spool {
namespace {

constexpr size_t kRecordCrcAt = offsetof(RecordHeader, crc);

bool known(RecordKind kind) {
  return kind >= RecordKind::message && kind <= RecordKind::state;
}

bool all_zero(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return c == 0; });
}

// The batch at `offset`, if there is a whole and undamaged head. `plausible`: something that was meant
// as one, damaged or not.
bool read_batch(std::string_view image, uint64_t part, uint32_t generation, uint32_t offset,
                BatchHeader& out, bool& plausible) {
  plausible = false;
  if (offset + sizeof(BatchHeader) > image.size()) return false;
  out = load<BatchHeader>(image.data() + offset);
  plausible = out.magic == kBatchMagic && out.generation == generation && out.uuid_part == part;
  if (!plausible || out.offset != offset || out.head_size % kRangeAlign != 0) return false;
  if (uint64_t{out.records_size} + sizeof(BatchHeader) > out.head_size) return false;
  uint64_t end = uint64_t{offset} + out.head_size + out.payload_size;
  if (end > image.size() || end % kBlock != 0) return false;
  return batch_crc(out, image.data() + offset + sizeof(BatchHeader)) == out.crc;
}

bool body_matches(std::string_view image, const MessageView& message) {
  uint32_t crc = 0;
  uint64_t size = 0;
  for (uint32_t i = 0; i < message.fixed.extents; ++i) {
    Extent extent = message.extent(i);
    if (uint64_t{extent.offset} + extent.size > image.size()) return false;
    crc = crc32c(crc, image.data() + extent.offset, extent.size);
    size += extent.size;
  }
  return size == message.fixed.body_size && crc == message.fixed.body_crc;
}

}  // namespace

std::string_view to_string(RecordKind kind) {
  switch (kind) {
    case RecordKind::message: return "message";
    case RecordKind::note: return "note";
    case RecordKind::tombstone: return "tombstone";
    case RecordKind::void_: return "void";
    case RecordKind::state: return "state";
  }
  return "unknown";
}

uint64_t uuid_part(const Uuid& uuid) { return load<uint64_t>(reinterpret_cast<const char*>(uuid.data())); }

std::string to_string(const Uuid& uuid) {
  std::string text;
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", uuid[i]);
  }
  return text;
}

std::string segment_name(uint32_t generation) { return fmt::format("{:010}.seg", generation); }

void seal_crc(SegmentHeader& header) { header.crc = crc32c(0, &header, offsetof(SegmentHeader, crc)); }
void seal_crc(Trailer& trailer) { trailer.crc = crc32c(0, &trailer, offsetof(Trailer, crc)); }

uint32_t batch_crc(const BatchHeader& header, const char* records) {
  uint32_t crc = crc32c(0, &header, offsetof(BatchHeader, crc));
  return crc32c(crc, records, header.records_size);
}

uint32_t record_crc(const char* record, uint32_t size) {
  uint32_t crc = crc32c(0, record, kRecordCrcAt);
  return crc32c(crc, record + sizeof(RecordHeader), size - sizeof(RecordHeader));
}

HeaderVerdict read_segment_header(std::string_view block, SegmentHeader& out) {
  if (block.size() < sizeof(SegmentHeader)) return HeaderVerdict::damaged;
  out = load<SegmentHeader>(block.data());
  if (out.magic != kSegmentMagic) {
    return all_zero(block) ? HeaderVerdict::blank : HeaderVerdict::damaged;
  }
  if (out.crc != crc32c(0, &out, offsetof(SegmentHeader, crc))) return HeaderVerdict::damaged;
  if (out.format_version > kFormatVersion) return HeaderVerdict::newer_format;
  if (out.state != SegmentState::free && out.state != SegmentState::log) return HeaderVerdict::damaged;
  return HeaderVerdict::good;
}

bool read_trailer(std::string_view block, const SegmentHeader& segment, uint32_t file_size, Trailer& out) {
  if (block.size() < sizeof(Trailer)) return false;
  out = load<Trailer>(block.data());
  if (out.magic != kTrailerMagic || out.generation != segment.generation || out.uuid != segment.uuid) {
    return false;
  }
  if (out.crc != crc32c(0, &out, offsetof(Trailer, crc))) return false;
  return out.index_offset % kBlock == 0 && out.chain_end <= out.index_offset &&
         uint64_t{out.index_offset} + footer_size(out.index_size) <= file_size;
}

bool view(const RecordRef& record, MessageView& out) {
  if (record.stored < kMessageOverhead) return false;
  out.header = load<RecordHeader>(record.data);
  out.fixed = load<MessageFixed>(record.data + sizeof(RecordHeader));
  out.id = {out.fixed.id_high, out.fixed.id_low};
  uint64_t need = uint64_t{kMessageOverhead} + uint64_t{out.fixed.extents} * sizeof(Extent) +
                  out.fixed.metadata_size + out.fixed.state_size;
  if (need + out.header.event_size > out.header.size || need > record.stored) return false;
  out.extents = record.data + kMessageOverhead;
  const char* at = out.extents + out.fixed.extents * sizeof(Extent);
  out.metadata = {at, out.fixed.metadata_size};
  at += out.fixed.metadata_size;
  out.state = {at, out.fixed.state_size};
  at += out.fixed.state_size;
  bool has_event = need + out.header.event_size <= record.stored;
  out.event = has_event ? std::string_view(at, out.header.event_size) : std::string_view();
  return true;
}

bool view(const RecordRef& record, NoteView& out) {
  if (record.stored < kNoteOverhead) return false;
  out.header = load<RecordHeader>(record.data);
  out.fixed = load<NoteFixed>(record.data + sizeof(RecordHeader));
  out.id = {out.fixed.id_high, out.fixed.id_low};
  uint64_t need = uint64_t{kNoteOverhead} + out.fixed.state_size;
  if (need + out.header.event_size > out.header.size || need > record.stored) return false;
  const char* at = record.data + kNoteOverhead;
  out.state = {at, out.fixed.state_size};
  at += out.fixed.state_size;
  bool has_event = need + out.header.event_size <= record.stored;
  out.event = has_event ? std::string_view(at, out.header.event_size) : std::string_view();
  return true;
}

bool view(const RecordRef& record, StateView& out) {
  if (record.stored < kStateOverhead) return false;
  out.header = load<RecordHeader>(record.data);
  StateFixed fixed = load<StateFixed>(record.data + sizeof(RecordHeader));
  if (uint64_t{kStateOverhead} + fixed.key_size + fixed.value_size > record.stored) return false;
  out.key = {record.data + kStateOverhead, fixed.key_size};
  out.value = {record.data + kStateOverhead + fixed.key_size, fixed.value_size};
  return true;
}

bool check_record(std::string_view bytes) {
  if (bytes.size() < sizeof(RecordHeader)) return false;
  RecordHeader header = load<RecordHeader>(bytes.data());
  if (header.size < sizeof(RecordHeader) || header.size > bytes.size() || header.size % 8 != 0) return false;
  return record_crc(bytes.data(), header.size) == header.crc;
}

Scan scan_segment(std::string_view image, const Uuid& uuid, uint32_t generation, const ScanOptions& options,
                  std::string_view name) {
  Scan scan;
  uint64_t part = uuid_part(uuid);
  uint32_t limit = static_cast<uint32_t>(image.size());
  if (options.known_end != 0) limit = std::min(limit, options.known_end);
  uint32_t at = kBlock;
  auto remark = [&](std::string text) { scan.remarks.push_back(fmt::format("{}: {}", name, text)); };
  // What the last batch added, should it turn out to be torn.
  struct Mark {
    size_t records = 0;
    uint32_t offset = kBlock, damaged = 0;
    uint64_t last_event_sequence = 0, emitted = 0;
  } before_last;
  std::vector<std::string> damage_in_last;  // bodies of the last batch that do not match

  while (at < limit) {
    BatchHeader batch;
    bool plausible;
    if (!read_batch(image.substr(0, limit), part, generation, at, batch, plausible)) {
      // The end of the log, a torn last batch, or damage: it was damage if a batch follows somewhere,
      // since a batch is begun only after the one before it is complete.
      uint32_t next = at + kBlock;
      BatchHeader found;
      bool dummy;
      while (next < limit && !read_batch(image.substr(0, limit), part, generation, next, found, dummy)) {
        next += kBlock;
      }
      bool more = next < limit;
      if (more || options.known_end != 0) {
        remark(fmt::format("damaged batch head at offset {}, set aside up to offset {}", at,
                           more ? next : limit));
        scan.damaged = true;
        ++scan.records_damaged;
        if (!more) {
          scan.end = limit;
          return scan;
        }
        for (auto& text : damage_in_last) remark(std::move(text));  // not the last batch after all
        damage_in_last.clear();
        at = next;
        continue;
      }
      if (plausible) {
        remark(fmt::format("incomplete batch at offset {} cut: its head did not reach the disk whole", at));
        ++scan.batches_cut;
      }
      break;
    }
    for (auto& text : damage_in_last) remark(std::move(text));
    damage_in_last.clear();
    before_last = {scan.records.size(), at, scan.records_damaged, scan.last_event_sequence, scan.emitted};
    scan.emitted = std::max(scan.emitted, batch.emitted);
    ++scan.batches;
    uint32_t pos = at + static_cast<uint32_t>(sizeof(BatchHeader));
    uint32_t records_end = pos + batch.records_size;
    for (uint32_t i = 0; i < batch.records; ++i) {
      std::string_view rest = image.substr(pos, records_end - pos);
      if (!check_record(rest)) {  // under a good head checksum: written wrong
        remark(fmt::format("damaged record at offset {}, the rest of its batch set aside", pos));
        scan.damaged = true;
        ++scan.records_damaged;
        break;
      }
      RecordHeader header = load<RecordHeader>(rest.data());
      RecordRef record{rest.data(), pos, header.size, false};
      pos += header.size;
      scan.last_sequence = std::max(scan.last_sequence, header.sequence);
      if (!known(header.kind)) {
        if (header.flags & RecordFlags::refuse) {
          scan.refused = fmt::format("{}: record of unknown kind {} at offset {} must not be skipped", name,
                                     static_cast<int>(header.kind), record.offset);
        }
        continue;
      }
      if (header.event_size > 0) {
        scan.last_event_sequence = std::max(scan.last_event_sequence, header.sequence);
      }
      if (header.kind == RecordKind::message && (options.verify_bodies || options.newest)) {
        MessageView message;
        if (!view(record, message) || !body_matches(image, message)) {
          record.body_damaged = true;
          ++scan.records_damaged;
          damage_in_last.push_back(fmt::format("message {} at offset {}: its bytes do not match its checksum",
                                               message.id.to_string(), record.offset));
        }
      }
      scan.records.push_back(record);
    }
    at += batch.head_size + batch.payload_size;
  }
  scan.end = at;
  if (!damage_in_last.empty()) {
    if (options.newest && options.known_end == 0) {
      // Power failed while the last batch was written; nothing of it was acknowledged.
      remark(fmt::format("incomplete batch at offset {} cut: {} of its messages did not reach the disk whole",
                         before_last.offset, damage_in_last.size()));
      scan.records.resize(before_last.records);
      scan.records_damaged = before_last.damaged;
      scan.last_event_sequence = before_last.last_event_sequence;
      scan.emitted = before_last.emitted;
      scan.end = before_last.offset;
      ++scan.batches_cut;
      --scan.batches;
    } else {
      for (auto& text : damage_in_last) remark(std::move(text));
    }
  }
  for (const RecordRef& record : scan.records) scan.damaged = scan.damaged || record.body_damaged;
  return scan;
}

void append_index_entry(std::string& index, const char* record, uint32_t offset) {
  RecordHeader header = load<RecordHeader>(record);
  uint64_t prefix = header.size;
  if (header.kind == RecordKind::message) {
    MessageFixed fixed = load<MessageFixed>(record + sizeof(RecordHeader));
    prefix = uint64_t{kMessageOverhead} + uint64_t{fixed.extents} * sizeof(Extent) + fixed.metadata_size +
             fixed.state_size;
  } else if (header.kind == RecordKind::note) {
    prefix = uint64_t{kNoteOverhead} + load<NoteFixed>(record + sizeof(RecordHeader)).state_size;
  }
  IndexEntry entry{offset, std::min(header.size, static_cast<uint32_t>(round_up(prefix, 8)))};
  index.append(reinterpret_cast<const char*>(&entry), sizeof entry);
  index.append(record, entry.stored);
}

bool scan_index(std::string_view index, const Trailer& trailer, std::vector<RecordRef>& records,
                std::string& refused) {
  if (index.size() < trailer.index_size || crc32c(0, index.data(), trailer.index_size) != trailer.index_crc) {
    return false;
  }
  if (trailer.entries > trailer.index_size / (sizeof(IndexEntry) + sizeof(RecordHeader))) return false;
  uint32_t pos = 0;
  records.reserve(trailer.entries);
  for (uint32_t i = 0; i < trailer.entries; ++i) {
    if (trailer.index_size - pos < sizeof(IndexEntry)) return false;
    IndexEntry entry = load<IndexEntry>(index.data() + pos);
    pos += sizeof(IndexEntry);
    if (entry.stored < sizeof(RecordHeader) || entry.stored > trailer.index_size - pos) return false;
    RecordRef record{index.data() + pos, entry.offset, entry.stored, false};
    pos += entry.stored;
    RecordHeader header = record.header();
    if (!known(header.kind)) {
      if (header.flags & RecordFlags::refuse) {
        refused = fmt::format("{}: record of unknown kind {} at offset {} must not be skipped",
                              segment_name(trailer.generation), static_cast<int>(header.kind), entry.offset);
      }
      continue;
    }
    records.push_back(record);
  }
  return true;
}

}  // namespace millrace::spool
