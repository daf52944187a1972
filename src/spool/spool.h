// The spool as the rest of the relay sees it: one Spool a shard, in front of the log writers (which live
// on one shard each and take letters from the others). Everything here answers by a callback on the
// shard that asked.
//
//   append   a finished message; durable when it answers
//   note     what became of a message: its queue state and an event, in one record; durable when it answers
//   read     a message's metadata and body
//   state    small durable key/value pairs: operator actions, budgets, marks
//
// Ownership: an Append, Note or Read and all bytes it points at stay valid and unchanged until its
// callback; receive buffers are written to the log as they are (O_DIRECT), so they must be read-only
// meanwhile. docs/spool-format.md and format.h are the contract of what lies on disk.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "config/config.h"
#include "mail/spool_id.h"
#include "reactor/io.h"
#include "reactor/mailbox.h"

namespace millrace::spool {

class Front;  // a shard's Spool, as the log's writer knows it (front.h)

// Where a message's record lies. Changes when its segment is compacted (see Spool::on_moved).
struct Location {
  uint32_t segment = 0;  // generation-unique number of the segment; 0: nowhere (durability=memory)
  uint32_t offset = 0;   // of the message record, bytes from the segment's start
  uint32_t size = 0;     // of the message record
  friend bool operator==(const Location&, const Location&) = default;
};

// A run of body bytes inside a receive buffer.
struct Piece {
  const char* data = nullptr;
  uint32_t size = 0;
  // Tells how far the aligned range may reach. Null: ordinary memory, which the writer copies.
  const reactor::Buffer* buffer = nullptr;
};

struct Append : reactor::Letter {
  mail::SpoolId id;
  std::string_view metadata;     // mail::encode_metadata; copied into the batch head
  std::vector<Piece> pieces;     // the raw body, in order
  uint32_t body_crc = 0;         // CRC32C over the pieces
  std::string_view event;        // events::encode of the `received` event, may be empty
  uint32_t recipients = 1;       // outcomes to keep room for until the final note
  // The answer. On failure the message is not accepted; it has been voided on disk where any byte of it
  // may have reached it, or, if even that failed, `close_silently` is set: send no reply, close.
  Location location;
  uint64_t sequence = 0;
  Status status = success();
  bool close_silently = false;
  void* owner = nullptr;
  void (*done)(void* owner, Append& append) = nullptr;
  Front* front = nullptr;        // the spool's own
};

struct Note : reactor::Letter {
  mail::SpoolId id;
  Location message;              // where the message lies (its segment's live count goes down when final)
  bool final = false;            // nothing of the message is queued any more: its space may go
  // The message's whole queue state after this (queue/state.h encodes it): the latest note wins at
  // recovery. Empty when final.
  std::string state;
  std::string event;             // events::encode; replayed at recovery if not known to be emitted
  uint64_t sequence = 0;
  // A failure is answered only when the note can never be written (it is too large, or the log was
  // closed): while the disk fails, notes wait for it unanswered, and Stats::oldest_unsynced_ns tells.
  Status status = success();
  void* owner = nullptr;
  void (*done)(void* owner, Note& note) = nullptr;
  Front* front = nullptr;        // the spool's own
};

struct Read {
  Location message;
  mail::SpoolId id;              // checked against the record
  bool body = true;              // false: metadata only
  // The answer: metadata and body lie in `buffers` (BufferGroup::spool, or `on_heap` when that is full).
  std::string_view metadata;
  std::vector<std::string_view> pieces;
  std::vector<reactor::BufferRef> buffers;
  // Damage is named: segment, offset, what did not match (number EBADMSG). ESTALE: the message has moved
  // since (only a shard that is not its home can see that): ask the home where it is now.
  Status status = success();
  void* owner = nullptr;
  void (*done)(void* owner, Read& read) = nullptr;
  const char* record = nullptr;  // the spool's own
};

// One live message found at start.
struct Recovered {
  mail::SpoolId id;
  Location location;
  std::string_view metadata;     // valid during the call
  std::string_view state;        // of the latest note; empty: none yet
  uint64_t body_size = 0;
};

struct RecoveryHandler {
  virtual ~RecoveryHandler() = default;
  // In no particular order. All messages come first, then the events, then the state.
  virtual void on_message(const Recovered& message) = 0;
  // Events whose records are newer than the emitted mark, in the order of their sequence.
  virtual void on_event(uint64_t sequence, std::string_view event) = 0;
  virtual void on_state(std::string_view key, std::string_view value) = 0;
};

struct RecoverySummary {
  uint64_t messages = 0, segments = 0, bytes_read = 0, batches_cut = 0, records_damaged = 0;
  int64_t milliseconds = 0;
  std::vector<std::string> remarks;  // what was set aside, and where
};

// A shard's own counts; what concerns the log as a whole is counted on the log's shard only, so the sum
// over the shards is the truth.
struct Stats {
  uint64_t messages = 0, batches = 0, syncs = 0;
  uint64_t bytes_body = 0;          // body bytes accepted
  uint64_t bytes_written = 0;       // everything written: heads, padding, noise, compaction
  uint64_t bytes_compacted = 0;
  uint64_t segments = 0, segments_free = 0, bytes_live = 0, bytes_on_disk = 0;
  uint64_t notes_unsynced = 0;      // this shard's, waiting for their batch
  int64_t oldest_unsynced_ns = 0;   // monotonic time of the oldest of them, 0: none
};

// The process's spool directory: opened, locked, recovered once; then split into one Spool a shard
// (directory.h).
class Directory;

class Spool {
 public:
  virtual ~Spool() = default;
  virtual void append(Append& append) = 0;
  virtual void note(Note& note) = 0;
  virtual void read(Read& read) = 0;
  // Is there room for one more message with `recipients` outcomes? False: the disk is too full to accept
  // (452 4.3.1). The room itself is taken by the append (Append::recipients) and given back by the final
  // note, so an answer that is not used costs nothing.
  virtual bool reserve(uint32_t recipients) = 0;
  // Durable pairs; `done` when durable. An empty value removes the key.
  virtual void put_state(std::string key, std::string value, std::function<void(Status)> done) = 0;
  // Every event up to `sequence`, of every shard, is in the events file, synced: it need not be replayed.
  // Segments with events beyond it are kept (unless no events file is configured).
  virtual void events_emitted(uint64_t sequence) = 0;
  // Called when compaction has moved a message of this shard. Set by the queue. For messages found at
  // start every shard is asked until they are first noted: an unknown id is to be ignored.
  std::function<void(const mail::SpoolId& id, Location from, Location to)> on_moved;
  // Called when intake must stop (nothing can be written) or may go on. Set by the relay.
  std::function<void(bool writable, const std::string& why)> on_writable;
  virtual const Stats& stats() const = 0;
};

}  // namespace millrace::spool
