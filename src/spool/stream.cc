#include "spool/stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "base/crc32c.h"

namespace millrace::spool {
namespace {

constexpr size_t kPartsPerWrite = 1024;               // IOV_MAX
constexpr uint64_t kBytesPerWrite = uint64_t{256} << 20;  // a write's result is 31 bits

const char* align_down(const char* at, uintptr_t to) {
  return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(at) / to * to);
}
const char* align_up(const char* at, uintptr_t to) { return align_down(at + (to - 1), to); }

uint32_t record_size(uint64_t prefix, uint64_t event) {
  return static_cast<uint32_t>(round_up(prefix + event, 8));
}
uint32_t stored_size(uint64_t prefix, uint32_t size) {
  return std::min(size, static_cast<uint32_t>(round_up(prefix, 8)));
}
Footprint footprint(uint64_t prefix, uint64_t event) {
  uint32_t size = record_size(prefix, event);
  return {size, sizeof(IndexEntry) + stored_size(prefix, size), 0, 0};
}

}  // namespace

Stream::Stream(reactor::Io& io, const Uuid& uuid, StreamNumber number)
    : io_(io), uuid_(uuid), number_(number) {
  write_.bind<&Stream::on_written>(this);
  header_block_.reserve(kBlock);
  zeros_.reserve(kBlock);
  std::memset(zeros_.data(), 0, kBlock);
}

Stream::~Stream() = default;

void Stream::open(Segment& segment, uint32_t previous_generation, uint32_t previous_end, int64_t wall_ms) {
  ASSERT(!in_flight_ && active_ == nullptr);
  active_ = &segment;
  reactor::Alignment alignment = io_.alignment(segment.handle);
  align_ = std::max({kRangeAlign, alignment.memory, alignment.offset});
  ASSERT(align_ <= kBlock);
  header_due_ = true;
  index_.clear();
  std::memset(header_block_.data(), 0, kBlock);
  SegmentHeader header{};
  header.magic = kSegmentMagic;
  header.format_version = kFormatVersion;
  header.state = SegmentState::log;
  header.uuid = uuid_;
  header.generation = segment.generation;
  header.previous_generation = previous_generation;
  header.segment_size = segment.size;
  header.previous_end = previous_end;
  header.stream = number_;
  header.first_sequence = segment.first_sequence;
  header.created_ms = wall_ms;
  seal_crc(header);
  std::memcpy(header_block_.data(), &header, sizeof header);
}

Stream::Shape Stream::shape(std::span<const Piece> pieces) const {
  Shape shape;
  uint64_t size = 0;
  const char* last = nullptr;
  for (const Piece& piece : pieces) {
    if (piece.size == 0) continue;
    if (!piece.buffer) shape.copy = true;
    const char* from = align_down(piece.data, align_);
    if (piece.data == last) {
      from = align_up(last, align_);
    } else {
      ++shape.extents;
    }
    last = piece.data + piece.size;
    size += piece.size;
    shape.payload += static_cast<uint64_t>(align_up(last, align_) - from);
  }
  // Many small pieces far apart: writing what lies between would cost more than copying them together.
  if (shape.payload > 2 * size + 2 * uint64_t{align_}) shape.copy = true;
  if (shape.copy) {
    shape.payload = round_up(size, align_);
    shape.extents = size > 0 ? 1 : 0;
  }
  return shape;
}

Footprint Stream::measure(const MessageInput& message) const {
  Shape s = shape(message.pieces);
  uint64_t prefix = uint64_t{kMessageOverhead} + s.extents * sizeof(Extent) + message.metadata.size() +
                    message.state.size();
  Footprint result = footprint(prefix, message.event.size());
  result.payload = s.payload;
  result.parts = s.copy ? 1 : static_cast<uint32_t>(message.pieces.size());
  return result;
}
Footprint Stream::measure_note(size_t state_size, size_t event_size) {
  return footprint(uint64_t{kNoteOverhead} + state_size, event_size);
}
Footprint Stream::measure_state(size_t key_size, size_t value_size) {
  return footprint(uint64_t{kStateOverhead} + key_size + value_size, 0);
}

bool Stream::fits(const Footprint& batch) const {
  uint64_t bytes = round_up(round_up(sizeof(BatchHeader) + batch.records, align_) + batch.payload, kBlock);
  return active_->end + bytes + footer_size(index_.size() + batch.index) <= active_->size;
}

bool Stream::too_large(const Footprint& item, uint64_t segment_size) {
  uint64_t bytes = kBlock + sizeof(BatchHeader) + item.records + kBlock + item.payload + kBlock;
  return bytes + footer_size(item.index) > segment_size;
}

void Stream::begin(uint64_t records_size, uint64_t first_sequence, uint64_t emitted, int64_t wall_ms) {
  ASSERT(!in_flight_ && active_ != nullptr);
  head_.reserve(round_up(sizeof(BatchHeader) + records_size, kBlock));
  batch_offset_ = active_->end;
  head_used_ = sizeof(BatchHeader);
  records_ = 0;
  payload_size_ = 0;
  first_sequence_ = sequence_ = first_sequence;
  last_event_sequence_ = active_->last_event_sequence;
  emitted_ = emitted;
  wall_ms_ = wall_ms;
  pieces_.clear();
  messages_.clear();
  copies_.clear();
  parts_.clear();
}

char* Stream::begin_record(RecordKind kind, uint16_t flags, uint64_t prefix_size, uint64_t event_size) {
  RecordHeader header{};
  header.size = record_size(prefix_size, event_size);
  header.kind = kind;
  header.flags = flags;
  header.sequence = sequence_++;
  header.event_size = static_cast<uint32_t>(event_size);
  ASSERT(head_used_ + header.size <= head_.capacity());
  char* at = head_.data() + head_used_;
  std::memset(at + header.size - 8, 0, 8);  // the padding
  std::memcpy(at, &header, sizeof header);
  head_used_ += header.size;
  ++records_;
  if (event_size > 0) last_event_sequence_ = header.sequence;
  return at;
}

void Stream::finish_record(char* record) {
  uint32_t crc = record_crc(record, load<RecordHeader>(record).size);
  std::memcpy(record + offsetof(RecordHeader, crc), &crc, sizeof crc);
}

Location Stream::add_message(const MessageInput& message) {
  Shape s = shape(message.pieces);
  uint32_t at = head_used_;
  uint64_t prefix = uint64_t{kMessageOverhead} + s.extents * sizeof(Extent) + message.metadata.size() +
                    message.state.size();
  char* record = begin_record(RecordKind::message, static_cast<uint16_t>(message.flags | RecordFlags::refuse),
                              prefix, message.event.size());
  MessageFixed fixed{};
  fixed.id_high = message.id.high;
  fixed.id_low = message.id.low;
  fixed.body_size = message.body_size;
  fixed.body_crc = message.body_crc;
  fixed.metadata_size = static_cast<uint32_t>(message.metadata.size());
  fixed.state_size = static_cast<uint32_t>(message.state.size());
  fixed.extents = s.extents;
  fixed.recipients = message.recipients;
  char* to = record + sizeof(RecordHeader);
  std::memcpy(to, &fixed, sizeof fixed);
  to += sizeof fixed + s.extents * sizeof(Extent);
  for (std::string_view part : {message.metadata, message.state, message.event}) {
    if (!part.empty()) std::memcpy(to, part.data(), part.size());
    to += part.size();
  }

  uint32_t first_piece = static_cast<uint32_t>(pieces_.size());
  auto add_range = [&](const char* data, uint32_t size) {
    pieces_.push_back({data, align_down(data, align_), align_up(data + size, align_), size, 0});
  };
  if (s.copy) {
    AlignedBytes copy;
    uint64_t used = 0;
    copy.reserve(std::max<uint64_t>(s.payload, kBlock));
    for (const Piece& piece : message.pieces) {
      if (piece.size > 0) std::memcpy(copy.data() + used, piece.data, piece.size);
      used += piece.size;
    }
    bytes_copied += used;
    if (used > 0) {
      std::memset(copy.data() + used, 0, s.payload - used);
      add_range(copy.data(), static_cast<uint32_t>(used));
      copies_.push_back(std::move(copy));
    }
  } else {
    for (const Piece& piece : message.pieces) {
      if (piece.size == 0) continue;
      if (pieces_.size() > first_piece && pieces_.back().data + pieces_.back().size == piece.data) {
        pieces_.back().size += piece.size;
        pieces_.back().end = align_up(piece.data + piece.size, align_);
        continue;
      }
      ASSERT(piece.data >= piece.buffer->data &&
             piece.data + piece.size <= piece.buffer->data + piece.buffer->size);
      add_range(piece.data, piece.size);
    }
  }
  uint32_t count = static_cast<uint32_t>(pieces_.size()) - first_piece;
  ASSERT(count == s.extents);
  messages_.push_back({at, first_piece, count});
  return {active_->generation, batch_offset_ + at, head_used_ - at};
}

Location Stream::add_note(RecordKind kind, uint16_t flags, mail::SpoolId id, const Location& message,
                          std::string_view state, std::string_view event) {
  uint32_t at = head_used_;
  char* record = begin_record(kind, static_cast<uint16_t>(flags | RecordFlags::refuse),
                              uint64_t{kNoteOverhead} + state.size(), event.size());
  NoteFixed fixed{id.high,      id.low,       message.segment,
                  message.offset, message.size, static_cast<uint32_t>(state.size())};
  char* to = record + sizeof(RecordHeader);
  std::memcpy(to, &fixed, sizeof fixed);
  to += sizeof fixed;
  if (!state.empty()) std::memcpy(to, state.data(), state.size());
  to += state.size();
  if (!event.empty()) std::memcpy(to, event.data(), event.size());
  finish_record(record);
  return {active_->generation, batch_offset_ + at, head_used_ - at};
}

Location Stream::add_state(std::string_view key, std::string_view value) {
  uint32_t at = head_used_;
  char* record = begin_record(RecordKind::state, RecordFlags::refuse,
                              uint64_t{kStateOverhead} + key.size() + value.size(), 0);
  StateFixed fixed{static_cast<uint32_t>(key.size()), static_cast<uint32_t>(value.size())};
  char* to = record + sizeof(RecordHeader);
  std::memcpy(to, &fixed, sizeof fixed);
  to += sizeof fixed;
  std::memcpy(to, key.data(), key.size());
  if (!value.empty()) std::memcpy(to + key.size(), value.data(), value.size());
  finish_record(record);
  return {active_->generation, batch_offset_ + at, head_used_ - at};
}

// Gives every aligned range its place after the head. Ranges that touch or overlap in memory (messages
// received one after the other into one buffer) become one run and are written once.
void Stream::place_payload() {
  uint32_t head_size = static_cast<uint32_t>(round_up(head_used_, align_));
  std::memset(head_.data() + head_used_, 0, head_size - head_used_);
  if (header_due_) parts_.push_back({header_block_.data(), kBlock});
  parts_.push_back({head_.data(), head_size});

  order_.resize(pieces_.size());
  std::iota(order_.begin(), order_.end(), 0u);
  auto before = [&](uint32_t a, uint32_t b) { return pieces_[a].begin < pieces_[b].begin; };
  if (!std::is_sorted(order_.begin(), order_.end(), before)) {
    std::sort(order_.begin(), order_.end(), before);
    // Runs then follow each other as their first pieces came: where memory happens to lie decides nothing.
    leads_.resize(pieces_.size());
    for (size_t i = 0; i < order_.size();) {
      size_t first = i;
      uint32_t lead = order_[i];
      for (const char* end = pieces_[lead].end; i < order_.size() && (i == first || pieces_[order_[i]].begin < end); ++i) {
        end = std::max(end, pieces_[order_[i]].end);
        lead = std::min(lead, order_[i]);
      }
      for (size_t of_run = first; of_run < i; ++of_run) leads_[order_[of_run]] = lead;
    }
    std::sort(order_.begin(), order_.end(), [&](uint32_t a, uint32_t b) {
      return leads_[a] != leads_[b] ? leads_[a] < leads_[b] : pieces_[a].begin < pieces_[b].begin;
    });
  }

  uint32_t offset = batch_offset_ + head_size;
  const char* run_begin = nullptr;
  const char* run_end = nullptr;
  uint32_t run_offset = offset;
  auto close_run = [&] {
    if (!run_begin) return;
    size_t size = static_cast<size_t>(run_end - run_begin);
    parts_.push_back({const_cast<char*>(run_begin), size});
    offset = run_offset + static_cast<uint32_t>(size);
  };
  for (uint32_t index : order_) {
    PieceRef& piece = pieces_[index];
    if (!run_begin || piece.begin > run_end || piece.begin < run_begin) {
      close_run();
      run_begin = piece.begin;
      run_end = piece.end;
      run_offset = offset;
    } else if (piece.end > run_end) {
      run_end = piece.end;
    }
    piece.offset = run_offset + static_cast<uint32_t>(piece.data - run_begin);
  }
  close_run();
  uint32_t end = static_cast<uint32_t>(round_up(offset, kBlock));
  if (end > offset) parts_.push_back({zeros_.data(), end - offset});
  payload_size_ = end - batch_offset_ - head_size;

  for (const MessageRef& message : messages_) {
    char* record = head_.data() + message.head_offset;
    char* to = record + kMessageOverhead;
    for (uint32_t i = 0; i < message.pieces; ++i, to += sizeof(Extent)) {
      const PieceRef& piece = pieces_[message.first_piece + i];
      Extent extent{piece.offset, piece.size};
      std::memcpy(to, &extent, sizeof extent);
    }
    finish_record(record);
  }
  BatchHeader header{};
  header.magic = kBatchMagic;
  header.generation = active_->generation;
  header.uuid_part = uuid_part(uuid_);
  header.sequence = first_sequence_;
  header.emitted = emitted_;
  header.offset = batch_offset_;
  header.head_size = head_size;
  header.payload_size = payload_size_;
  header.records_size = head_used_ - static_cast<uint32_t>(sizeof(BatchHeader));
  header.records = records_;
  header.time_s = static_cast<uint32_t>(wall_ms_ / 1000);
  header.crc = batch_crc(header, head_.data() + sizeof(BatchHeader));
  std::memcpy(head_.data(), &header, sizeof header);
}

void Stream::submit(bool durable) {
  ASSERT(!in_flight_);
  place_payload();
  ASSERT(batch_offset_ + round_up(head_used_, align_) + payload_size_ <= active_->size);
  part_ = 0;
  file_offset_ = header_due_ ? batch_offset_ - kBlock : batch_offset_;
  durable_ = durable;
  in_flight_ = true;
  write_more();
}

// One write as a rule: head and payload in one go, made durable together. A batch of very many ranges
// takes several; it counts as complete after the last one, and its checksums tell if any is missing.
void Stream::write_more() {
  size_t count = 0;
  uint64_t bytes = 0;
  while (part_ + count < parts_.size() && count < kPartsPerWrite && bytes < kBytesPerWrite) {
    bytes += parts_[part_ + count].iov_len;
    ++count;
  }
  io_.write(write_, active_->handle, {parts_.data() + part_, count}, file_offset_, durable_);
}

void Stream::on_written(reactor::Completion& completion) {
  if (completion.result < 0) {
    return finish(fail(fmt::format("writing {} at offset {}: {}", segment_name(active_->generation),
                                   file_offset_, std::strerror(-completion.result)),
                       -completion.result));
  }
  // A short write is continued where a direct write may start.
  uint64_t wrote = round_down(static_cast<uint64_t>(completion.result), align_);
  if (wrote == 0) {
    return finish(fail(fmt::format("writing {} at offset {}: no progress", segment_name(active_->generation),
                                   file_offset_),
                       EIO));
  }
  file_offset_ += wrote;
  bytes_written += wrote;
  while (wrote > 0) {
    iovec& part = parts_[part_];
    size_t step = std::min<uint64_t>(wrote, part.iov_len);
    part.iov_base = static_cast<char*>(part.iov_base) + step;
    part.iov_len -= step;
    wrote -= step;
    if (part.iov_len == 0) ++part_;
  }
  if (part_ < parts_.size()) return write_more();
  finish(success());
}

void Stream::finish(const Status& status) {
  in_flight_ = false;
  if (status.ok()) {
    header_due_ = false;
    extend_index();
    active_->end = batch_offset_ + static_cast<uint32_t>(round_up(head_used_, align_)) + payload_size_;
    if (records_ > 0) active_->last_sequence = sequence_ - 1;
    active_->last_event_sequence = last_event_sequence_;
  }
  copies_.clear();
  on_batch(status);
}

void Stream::extend_index() {
  const char* at = head_.data() + sizeof(BatchHeader);
  const char* end = head_.data() + head_used_;
  while (at < end) {
    append_index_entry(index_, at, batch_offset_ + static_cast<uint32_t>(at - head_.data()));
    at += load<RecordHeader>(at).size;
  }
}

}  // namespace millrace::spool
