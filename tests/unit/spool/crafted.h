// Records and segments put together octet by octet, so that a test can say in them what no spool
// would write.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/crc32c.h"
#include "reactor/sim_disk.h"
#include "spool/format.h"
#include "spool/spool.h"

namespace millrace::spool::testing {

constexpr Uuid kUuid{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

// A record of a fixed part and what follows it, with its checksum.
template <typename Fixed>
std::string record_of(RecordKind kind, const Fixed& fixed, std::string_view rest,
                      uint32_t event_size, uint64_t sequence = 1, uint16_t flags = 0) {
  std::string bytes(round_up(sizeof(RecordHeader) + sizeof fixed + rest.size(), 8), '\0');
  RecordHeader header{};
  header.size = static_cast<uint32_t>(bytes.size());
  header.kind = kind;
  header.flags = flags;
  header.sequence = sequence;
  header.event_size = event_size;
  std::memcpy(bytes.data(), &header, sizeof header);
  std::memcpy(bytes.data() + sizeof header, &fixed, sizeof fixed);
  std::memcpy(bytes.data() + sizeof header + sizeof fixed, rest.data(), rest.size());
  header.crc = record_crc(bytes.data(), header.size);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}
inline std::string state_record(uint64_t sequence, std::string_view key, std::string_view value) {
  return record_of(
      RecordKind::state,
      StateFixed{static_cast<uint32_t>(key.size()), static_cast<uint32_t>(value.size())},
      std::string(key) + std::string(value), 0, sequence);
}
// A message without a body.
inline std::string bodyless(uint64_t sequence, uint64_t number, std::string_view state = "",
                            uint16_t flags = 0) {
  MessageFixed fixed{};
  fixed.id_high = 1;
  fixed.id_low = number;
  fixed.state_size = static_cast<uint32_t>(state.size());
  fixed.recipients = 1;
  return record_of(RecordKind::message, fixed, state, 0, sequence, flags);
}
inline std::string note_record(uint64_t sequence, uint64_t number, RecordKind kind,
                               std::string_view state, std::string_view event = "",
                               const Location& message = {}) {
  NoteFixed fixed{1,
                  number,
                  message.segment,
                  message.offset,
                  message.size,
                  static_cast<uint32_t>(state.size())};
  uint16_t flags = kind == RecordKind::note && !state.empty() ? 0 : RecordFlags::final;
  return record_of(kind, fixed, std::string(state) + std::string(event),
                   static_cast<uint32_t>(event.size()), sequence, flags);
}

// A segment of batches, each with its records and one block of payload (of 'x').
class Crafted {
 public:
  explicit Crafted(uint32_t generation, StreamNumber stream = StreamNumber::mail,
                   uint32_t previous = 0, uint32_t previous_end = 0) {
    header.magic = kSegmentMagic;
    header.format_version = kFormatVersion;
    header.state = SegmentState::log;
    header.uuid = kUuid;
    header.generation = generation;
    header.previous_generation = previous;
    header.previous_end = previous_end;
    header.stream = stream;
    header.first_sequence = 1;
    header.created_ms = 1;
  }
  SegmentHeader header{};
  std::string image = std::string(kBlock, '\0');

  // Where the batch lies.
  uint32_t add(const std::vector<std::string>& records) {
    auto at = static_cast<uint32_t>(image.size());
    std::string bytes;
    for (const std::string& one : records) {
      append_index_entry(index_, one.data(),
                         at + static_cast<uint32_t>(sizeof(BatchHeader) + bytes.size()));
      bytes += one;
      ++entries_;
    }
    BatchHeader head{};
    head.magic = kBatchMagic;
    head.generation = header.generation;
    head.uuid_part = uuid_part(header.uuid);
    head.sequence = 1;
    head.offset = at;
    head.head_size = static_cast<uint32_t>(round_up(sizeof head + bytes.size(), kBlock));
    head.payload_size = kBlock;
    head.records_size = static_cast<uint32_t>(bytes.size());
    head.records = static_cast<uint32_t>(records.size());
    head.crc = batch_crc(head, bytes.data());
    image.append(head.head_size + head.payload_size, 'x');
    std::memcpy(image.data() + at, &head, sizeof head);
    std::memcpy(image.data() + at + sizeof head, bytes.data(), bytes.size());
    return at;
  }
  // Changes a batch's head, under a good checksum.
  template <typename Change>
  void change(uint32_t at, Change&& change) {
    auto head = load<BatchHeader>(image.data() + at);
    change(head);
    if (head.records_size <= kBlock) head.crc = batch_crc(head, image.data() + at + sizeof head);
    std::memcpy(image.data() + at, &head, sizeof head);
  }
  // Appends an index of all records, and the trailer.
  void seal(uint64_t last_sequence, uint64_t last_event_sequence = 0) {
    Trailer trailer{};
    trailer.magic = kTrailerMagic;
    trailer.format_version = kFormatVersion;
    trailer.generation = header.generation;
    trailer.uuid = header.uuid;
    trailer.index_offset = trailer.chain_end = static_cast<uint32_t>(image.size());
    trailer.index_size = static_cast<uint32_t>(index_.size());
    trailer.index_crc = crc32c(0, index_);
    trailer.entries = entries_;
    trailer.last_sequence = last_sequence;
    trailer.last_event_sequence = last_event_sequence;
    seal_crc(trailer);
    image += index_;
    image.resize(round_up(image.size(), kBlock) + kBlock, '\0');
    std::memcpy(image.data() + image.size() - kBlock, &trailer, sizeof trailer);
  }
  // All of it, with its header.
  std::string bytes() const {
    SegmentHeader sealed = header;
    seal_crc(sealed);
    std::string whole = image;
    std::memcpy(whole.data(), &sealed, sizeof sealed);
    return whole;
  }

 private:
  std::string index_;
  uint32_t entries_ = 0;
};

// Puts a file on the disk, or writes over the start of one that is there.
inline void put_file(reactor::SimDisk& disk, const std::string& path, std::string bytes,
                     uint64_t offset = 0) {
  auto file = disk.open(path, !disk.exists(path));
  ASSERT_TRUE(file.ok()) << path;
  disk.write(*file, offset, bytes, true);
  disk.release(*file);
}

}  // namespace millrace::spool::testing
