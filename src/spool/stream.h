// One stream of batches into one segment after another: builds a batch in memory, writes it, says how
// it went. What goes into a batch, and what a failure means, is the Log's business.
//
//   begin(records_size)  add_*() ...  submit()  ->  on_batch(status), later, from the turn
//
// One batch at a time. Everything handed to add_message stays valid and unchanged until on_batch.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "spool/format.h"
#include "spool/segment.h"
#include "spool/spool.h"

namespace millrace::spool {

struct MessageInput {
  mail::SpoolId id;
  std::span<const Piece> pieces;
  uint64_t body_size = 0;
  uint32_t body_crc = 0;
  std::string_view metadata, state, event;
  uint32_t recipients = 1;
  uint16_t flags = 0;
};

// What an item adds to a batch.
struct Footprint {
  uint64_t records = 0;  // bytes of records
  uint64_t index = 0;    // bytes in the segment's index
  uint64_t payload = 0;  // at most
  uint32_t parts = 0;    // of the gathering write, at most
  Footprint& operator+=(const Footprint& other) {
    records += other.records;
    index += other.index;
    payload += other.payload;
    parts += other.parts;
    return *this;
  }
};

class Stream {
 public:
  Stream(reactor::Io& io, const Uuid& uuid, StreamNumber number);
  ~Stream();
  StreamNumber number() const { return number_; }

  // `file`: open for writing, of `segment`. The first batch carries the segment's header, which names
  // the segment before it. The stream owns the handle until close_file().
  void open(Segment& segment, uint32_t previous_generation, uint32_t previous_end, int64_t wall_ms);
  // The active segment stays readable; nothing more is added. The handle is the caller's.
  void leave() { active_ = nullptr; }
  Segment* active() const { return active_; }

  Footprint measure(const MessageInput& message) const;
  static Footprint measure_note(size_t state_size, size_t event_size);
  static Footprint measure_state(size_t key_size, size_t value_size);
  // Would a batch with `batch` fit into what is left of the active segment, its index included?
  bool fits(const Footprint& batch) const;
  // A segment of `segment_size` bytes could not hold it even when empty.
  static bool too_large(const Footprint& item, uint64_t segment_size);

  void begin(uint64_t records_size, uint64_t first_sequence, uint64_t emitted, int64_t wall_ms);
  // Each returns the record's place in the active segment; `sequence` is assigned in order.
  Location add_message(const MessageInput& message);
  Location add_note(RecordKind kind, uint16_t flags, mail::SpoolId id, const Location& message,
                    std::string_view state, std::string_view event);
  Location add_state(std::string_view key, std::string_view value);
  uint64_t next_sequence() const { return sequence_; }

  // Writes the batch; `durable`: complete only when it is on stable storage.
  void submit(bool durable);
  bool in_flight() const { return in_flight_; }
  std::function<void(const Status&)> on_batch;

  // The index of the active segment as it stands: every record of its completed batches. Until open().
  std::string_view index() const { return index_; }

  uint64_t bytes_written = 0;
  uint64_t bytes_copied = 0;  // body bytes that lay where they could not be written from

 private:
  struct PieceRef {
    const char* data;
    const char* begin;     // aligned range around it
    const char* end;
    uint32_t size;
    uint32_t offset;       // in the segment, once placed
  };
  struct MessageRef {
    uint32_t head_offset;  // of the record in the head
    uint32_t first_piece, pieces;
  };
  struct Shape {           // how a message's pieces will lie
    uint32_t extents = 0;
    uint64_t payload = 0;
    bool copy = false;
  };

  Shape shape(std::span<const Piece> pieces) const;
  char* begin_record(RecordKind kind, uint16_t flags, uint64_t prefix_size, uint64_t event_size);
  void finish_record(char* record);
  void place_payload();
  void write_more();
  void on_written(reactor::Completion& completion);
  void finish(const Status& status);
  void extend_index();

  reactor::Io& io_;
  const Uuid uuid_;
  const StreamNumber number_;

  Segment* active_ = nullptr;
  uint32_t align_ = kBlock;   // of ranges in memory and file
  bool header_due_ = false;   // the next batch is the segment's first
  AlignedBytes header_block_, zeros_;
  std::string index_;

  // ---- the batch being built or written
  AlignedBytes head_;
  uint32_t batch_offset_ = 0, head_used_ = 0, records_ = 0, payload_size_ = 0;
  uint64_t first_sequence_ = 0, sequence_ = 0, last_event_sequence_ = 0, emitted_ = 0;
  int64_t wall_ms_ = 0;
  std::vector<PieceRef> pieces_;
  std::vector<uint32_t> order_, leads_;
  std::vector<MessageRef> messages_;
  std::vector<AlignedBytes> copies_;
  std::vector<iovec> parts_;
  size_t part_ = 0;           // first one not written whole
  uint64_t file_offset_ = 0;
  bool in_flight_ = false, durable_ = true;
  reactor::Op write_;
};

}  // namespace millrace::spool
