// What lies on disk, as constants and structures; docs/spool-format.md is the page beside it, with the
// grammar, a worked example and the reasons. Everything is little endian. Pure: bytes in, values out.
//
//   segment := header-block batch* unused index? trailer-block?
//   batch   := head payload          both padded to kBlock together; the next batch follows at once
//   head    := BatchHeader record* padding
//   record  := RecordHeader fixed-part variable-part event padding
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "mail/spool_id.h"

namespace millrace::spool {

static_assert(std::endian::native == std::endian::little, "the format is written as the memory lies");

inline constexpr uint32_t kFormatVersion = 1;
inline constexpr uint32_t kBlock = 4096;       // batches, index and trailer start at multiples of it
inline constexpr uint32_t kRangeAlign = 512;   // least alignment of a range of body bytes
inline constexpr std::array<char, 8> kSegmentMagic = {'M', 'L', 'R', 'S', 'E', 'G', '\r', '\n'};
inline constexpr std::array<char, 8> kTrailerMagic = {'M', 'L', 'R', 'I', 'D', 'X', '\r', '\n'};
inline constexpr uint32_t kBatchMagic = 0x42524c4d;  // "MLRB"

using Uuid = std::array<uint8_t, 16>;

enum class SegmentState : uint32_t {
  free = 1,  // holds nothing: may be taken into use
  log = 2,   // part of the log
};

// Two streams of segments: mail as it comes, with its notes; and what compaction has moved or carried
// forward, apart from it so that what has lived long is not written again with every passing message.
// Both draw sequences from one counter; what has the higher sequence is the newer.
enum class StreamNumber : uint32_t { mail = 0, kept = 1 };
inline constexpr uint32_t kStreams = 2;

// At offset 0. In use: written together with the segment's first batch. Within 512 bytes, so that a
// disk writes it whole or not at all.
struct SegmentHeader {
  std::array<char, 8> magic;
  uint32_t format_version;
  SegmentState state;
  Uuid uuid;                     // of the spool
  uint32_t generation;           // of this use of the file; never used twice in a spool
  uint32_t previous_generation;  // the segment of this stream that came before; 0: none. Generations of
                                 // the stream between the two were given up and hold nothing.
  uint64_t segment_size;
  uint32_t previous_end;         // where that one's batches end: what follows there is void
  StreamNumber stream;
  uint64_t first_sequence;       // of the records here
  int64_t created_ms;            // UTC
  uint32_t reserved2;
  uint32_t crc;                  // CRC32C of what stands before it
};
static_assert(sizeof(SegmentHeader) == 80);

struct BatchHeader {
  uint32_t magic;
  uint32_t generation;
  uint64_t uuid_part;      // the first 8 octets of the spool's UUID
  uint64_t sequence;       // of the first record; the others follow by one
  uint64_t emitted;        // events up to this sequence are in the events file
  uint32_t offset;         // of this batch in its segment
  uint32_t head_size;      // bytes to the payload, a multiple of kRangeAlign
  uint32_t payload_size;   // head_size + payload_size is a multiple of kBlock
  uint32_t records_size;   // bytes of records after this structure
  uint32_t records;
  uint32_t time_s;         // UTC seconds; for the reader of a dump
  uint32_t reserved;
  uint32_t crc;            // CRC32C of this structure up to here and of the records
};
static_assert(sizeof(BatchHeader) == 64);

enum class RecordKind : uint16_t {
  message = 1,
  note = 2,       // what became of a message
  tombstone = 3,  // a final note carried forward: nothing of the message is queued any more
  void_ = 4,      // a message that was refused after bytes of it may have reached the disk
  state = 5,      // a key and its value
};
std::string_view to_string(RecordKind kind);

struct RecordFlags {
  enum : uint16_t {
    refuse = 1,  // a program that does not know the kind must not go on; without it: skip
    moved = 2,   // message: a copy made by compaction; replaces every older one of the same id
    final = 4,   // note: the message's space may go
  };
};

struct RecordHeader {
  uint32_t size;        // of the whole record, a multiple of 8
  RecordKind kind;
  uint16_t flags;
  uint64_t sequence;
  uint32_t event_size;  // the event is the last part of the record, before its padding
  uint32_t crc;         // CRC32C of the record without this field
};
static_assert(sizeof(RecordHeader) == 24);

struct Extent {
  uint32_t offset;  // in the segment
  uint32_t size;
};
static_assert(sizeof(Extent) == 8);

// Followed by Extent[extents], metadata, state, event.
struct MessageFixed {
  uint64_t id_high, id_low;
  uint64_t body_size;
  uint32_t body_crc;       // CRC32C of the extents' bytes, in order
  uint32_t metadata_size;
  uint32_t state_size;     // moved copies: the latest queue state at the time of the move
  uint32_t extents;
  uint32_t recipients;
  uint32_t reserved;
};
static_assert(sizeof(MessageFixed) == 48);

// Followed by state, event (note). Tombstone and void: state_size is 0.
struct NoteFixed {
  uint64_t id_high, id_low;
  uint32_t message_segment, message_offset, message_size;  // Location; 0, 0, 0 in a void record
  uint32_t state_size;
};
static_assert(sizeof(NoteFixed) == 32);

// Followed by key, value. An empty value removes the key.
struct StateFixed {
  uint32_t key_size, value_size;
};
static_assert(sizeof(StateFixed) == 8);

// One record in the index of a sealed segment, followed by the record's first `stored` bytes: all of it
// but the event.
struct IndexEntry {
  uint32_t offset;  // of the record in the segment
  uint32_t stored;  // a multiple of 8
};
static_assert(sizeof(IndexEntry) == 8);

// In the last block of a sealed segment. The index leaves out what was dead when it was written: a
// message together with its final note, states and values that a later record replaces.
struct Trailer {
  std::array<char, 8> magic;
  uint32_t format_version;
  uint32_t generation;
  Uuid uuid;
  uint32_t index_offset;         // a multiple of kBlock
  uint32_t index_size;
  uint32_t index_crc;
  uint32_t entries;
  uint64_t first_sequence;
  uint64_t last_sequence;        // of the segment's records, those left out too
  uint64_t last_event_sequence;  // of those with an event
  uint64_t emitted;              // as in BatchHeader, when it was sealed
  uint32_t chain_end;            // where the batches end
  uint32_t crc;                  // CRC32C of what stands before it
};
static_assert(sizeof(Trailer) == 88);

// ---- small helpers

template <typename T>
T load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}
constexpr uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }
constexpr uint64_t round_down(uint64_t value, uint64_t to) { return value / to * to; }
// Bytes at the end of a segment that an index of `index_size` bytes and the trailer take.
constexpr uint64_t footer_size(uint64_t index_size) { return round_up(index_size, kBlock) + kBlock; }

inline constexpr uint32_t kMessageOverhead = sizeof(RecordHeader) + sizeof(MessageFixed);
inline constexpr uint32_t kNoteOverhead = sizeof(RecordHeader) + sizeof(NoteFixed);
inline constexpr uint32_t kStateOverhead = sizeof(RecordHeader) + sizeof(StateFixed);

uint64_t uuid_part(const Uuid& uuid);
std::string to_string(const Uuid& uuid);
// "0000000012.seg"
std::string segment_name(uint32_t generation);

void seal_crc(SegmentHeader& header);
void seal_crc(Trailer& trailer);
uint32_t batch_crc(const BatchHeader& header, const char* records);
uint32_t record_crc(const char* record, uint32_t size);

// ---- reading

enum class HeaderVerdict : uint8_t { good, blank, damaged, newer_format };
// `block`: the first kBlock bytes. Blank: all zero.
HeaderVerdict read_segment_header(std::string_view block, SegmentHeader& out);
// The trailer of this very generation, or false.
bool read_trailer(std::string_view block, const SegmentHeader& segment, uint32_t file_size, Trailer& out);

// A record in memory: as it stands in a batch, or without its event as it stands in an index.
struct RecordRef {
  const char* data = nullptr;
  uint32_t offset = 0;  // in the segment
  uint32_t stored = 0;  // bytes at `data`
  bool body_damaged = false;  // message: its bytes do not match its checksum (only if they were checked)
  RecordHeader header() const { return load<RecordHeader>(data); }
};

struct MessageView {
  RecordHeader header;
  MessageFixed fixed;
  mail::SpoolId id;
  const char* extents;  // fixed.extents of them, unaligned
  std::string_view metadata, state, event;
  Extent extent(uint32_t i) const { return load<Extent>(extents + i * sizeof(Extent)); }
};
struct NoteView {
  RecordHeader header;
  NoteFixed fixed;
  mail::SpoolId id;
  std::string_view state, event;
};
struct StateView {
  RecordHeader header;
  std::string_view key, value;
};
// False when the lengths inside the record do not add up. `event` is empty when it is not stored.
bool view(const RecordRef& record, MessageView& out);
bool view(const RecordRef& record, NoteView& out);
bool view(const RecordRef& record, StateView& out);

// Checks a record that starts at `bytes`: lengths, checksum. Whole records only.
bool check_record(std::string_view bytes);

// ---- a whole segment

struct ScanOptions {
  bool newest = false;         // what follows the last completed batch may be cut
  bool verify_bodies = false;  // always done for the last batch of the newest segment
  uint32_t known_end = 0;      // where the batches end if that is known, else 0
};
struct Scan {
  std::vector<RecordRef> records;  // in order
  uint32_t end = kBlock;           // where the batches end
  uint64_t last_sequence = 0;      // highest seen, torn batches included
  uint64_t last_event_sequence = 0;
  uint64_t emitted = 0;
  uint32_t batches = 0;
  uint32_t batches_cut = 0;
  uint32_t records_damaged = 0;
  bool damaged = false;            // something was left out that may once have been acknowledged
  std::string refused;             // a record of unknown kind that must not be skipped: its name
  std::vector<std::string> remarks;
};
// Walks the batches of a segment that is in memory from its first byte. `name` is for remarks.
Scan scan_segment(std::string_view image, const Uuid& uuid, uint32_t generation, const ScanOptions& options,
                  std::string_view name);
// Adds `record` (whole) to an index, without its event.
void append_index_entry(std::string& index, const char* record, uint32_t offset);
// The records of an index; false when it is damaged.
bool scan_index(std::string_view index, const Trailer& trailer, std::vector<RecordRef>& records,
                std::string& refused);

}  // namespace millrace::spool
