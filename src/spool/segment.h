// What the writer remembers of a segment: which messages lie in it, which of them still live, and how
// many records elsewhere depend on it. A segment may be used again only when nothing that is still
// needed lies in it; the conditions are Log::may_release's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "reactor/io.h"
#include "spool/format.h"
#include "spool/spool.h"

namespace millrace::spool {

inline constexpr uint16_t kHomeUnknown = 0xffff;

enum class EntryState : uint8_t { live, dead, moved };

// One message record that recovery could still see.
struct MessageEntry {
  uint32_t offset = 0;        // of its record
  uint32_t size = 0;          // of its record
  uint32_t bytes = 0;         // record and body: what a move would write
  uint32_t note_segment = 0;  // its latest note (0: none); when moved, where to
  uint32_t note_offset = 0;
  uint32_t recipients = 0;
  uint16_t home = kHomeUnknown;
  EntryState state = EntryState::live;
};

enum class SegmentPhase : uint8_t {
  active,     // batches are being added
  sealing,    // full, its index is being written
  sealed,
  abandoned,  // a write to it failed, or it was the last at a crash: read, never written again
  releasing,  // nothing in it is needed: the shards let go of it
  wiping,     // its header is being replaced, then the file is free
};
inline std::string_view to_string(SegmentPhase phase) {
  switch (phase) {
    case SegmentPhase::active: return "active";
    case SegmentPhase::sealing: return "sealing";
    case SegmentPhase::sealed: return "sealed";
    case SegmentPhase::abandoned: return "abandoned";
    case SegmentPhase::releasing: return "releasing";
    case SegmentPhase::wiping: return "wiping";
  }
  return "unknown";
}

struct Segment {
  uint32_t generation = 0;
  uint64_t size = 0;
  SegmentPhase phase = SegmentPhase::active;
  reactor::Handle handle = reactor::kNoHandle;  // open for writing while active or sealing
  uint32_t end = kBlock;                        // where its complete batches end
  uint64_t first_sequence = 0, last_sequence = 0, last_event_sequence = 0;
  int64_t closed_ns = 0;          // when it stopped being the active one
  bool damaged = false;           // set aside when nothing in it is needed, instead of used again
  bool failed = false;            // a write to it failed: removed instead of used again
  bool stuck = false;             // something live in it cannot be read: stays
  bool has_index = false;

  std::vector<MessageEntry> messages;  // by ascending offset
  uint32_t live = 0;
  uint64_t live_bytes = 0;
  uint32_t notes_needed = 0;  // messages, anywhere, whose latest note lies here
  uint32_t keys_needed = 0;   // state keys whose latest value lies here
  uint32_t moves_unacknowledged = 0;
  // What the header says of the end of the segment before it holds until that one is sealed or gone.
  uint32_t previous = 0;
  // Segments whose messages were moved here. They must be gone before this one may go: until then a
  // final note of such a message is still needed, and it is remembered here.
  std::vector<uint32_t> waits_for;

  MessageEntry* find(uint32_t offset) {
    auto it = std::lower_bound(messages.begin(), messages.end(), offset,
                               [](const MessageEntry& e, uint32_t value) { return e.offset < value; });
    return it != messages.end() && it->offset == offset ? &*it : nullptr;
  }
};

// A file that may be taken into use.
struct FreeFile {
  std::string path;
  bool filled = false;  // every block was written before: overwriting changes no metadata
};

// Aligned memory for direct I/O, kept and grown.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  AlignedBytes(AlignedBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}
  AlignedBytes& operator=(AlignedBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  ~AlignedBytes() { std::free(data_); }
  // Room for `size` bytes; what was there is lost when it grows.
  void reserve(size_t size) {
    if (size <= capacity_) return;
    std::free(data_);
    capacity_ = round_up(std::max(size, capacity_ * 2), kBlock);
    data_ = static_cast<char*>(std::aligned_alloc(kBlock, capacity_));
    ASSERT(data_ != nullptr);
  }
  char* data() const { return data_; }
  size_t capacity() const { return capacity_; }

 private:
  char* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace millrace::spool
