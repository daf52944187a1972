// The accounting log: events as JSON lines in a file, in the order in which they arrive, synced
// about once a second, never in delivery's way.
//
//   ShardEvents   one a shard: formats its shard's events, hands them over in batches (letters) at
//   the end
//                 of the turn, and knows how many of its bytes are not written yet
//   EventLog      one a process, on one shard: owns the file
//
// Contract:
//  - An event is added after the record that holds it is durable. When `on_emitted(sequence)` is
//  called,
//    every event of every record up to `sequence`, of every shard, is in the file and synced: the
//    spool need not replay it. This relies on the spool: it answers records in the order of their
//    sequence, and the shard emits the event from within that answer. (The log then asks every
//    shard once, by a letter that follows those answers in its mailbox, whether it has handed over
//    everything.)
//  - Nothing is dropped: when the disk stalls or is full, batches wait in memory, the write is
//  tried
//    again every second, and behind() tells the queue to hold new attempts.
//  - After a crash some events may stand in the file twice, with the same id, and one line may be
//  cut.
//  - A failed sync is never trusted to be repaired by another: the file is left, a new one begun,
//  the mark
//    no longer advances, and a restart writes again what may be missing.
//
// Rotation: past `max_size` the file is renamed to NAME.20261121T083000Z. reopen() is for programs
// that rename the file themselves. A file truncated from outside is noticed within a second.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/intrusive_list.h"
#include "events/event.h"
#include "events/sink.h"
#include "reactor/io.h"
#include "reactor/mailbox.h"

namespace millrace::events {

class ShardEvents;

// Lines on their way from a shard to the file and, empty, back.
struct EventBatch : reactor::Letter {
  std::string lines;
  uint64_t sequence = 0;  // the highest in it
  uint32_t count = 0;
  ShardEvents* shard = nullptr;
  Link link;
};

struct EventLogOptions {
  std::string path;
  std::string node;                            // the hostname
  uint64_t max_size = uint64_t{1} << 30;       // bytes, then rotated
  uint64_t most_waiting = uint64_t{16} << 20;  // bytes a shard may have unwritten before behind()
  int64_t sync_interval_ns = 1'000'000'000;
};

struct EventLogStats {
  uint64_t events = 0, bytes = 0, syncs = 0, rotations = 0, errors = 0;
};

class EventLog {
 public:
  EventLog(reactor::Io& io, EventLogOptions options);
  // REQUIRES: never opened, or closed, or its Io has stopped for good.
  ~EventLog();
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  // Set before open().
  std::function<void(uint64_t sequence)> on_emitted;

  // Opens the file for appending, creating it if need be. At start-up; may block.
  Status open();
  // Renames nothing: opens the path again, after what is under way. For SIGHUP.
  void reopen();
  // Takes everything that the shards have emitted so far, writes and syncs it, closes the file,
  // then calls `closed`. What is emitted later is dropped. When the disk refuses, it is given up:
  // what has a record is replayed at the next start. REQUIRES: open.
  void close(std::function<void()> closed);

  const EventLogOptions& options() const { return options_; }
  const EventLogStats& stats() const { return stats_; }
  const std::string& last_error() const { return last_error_; }  // empty: all is well

 private:
  friend class ShardEvents;

  enum class State : uint8_t {
    closed,
    idle,
    mending,  // reading the last octet of a file that was there: it may be a line cut by a crash
    writing,
    syncing,
    resting,  // after an error
  };
  static std::string_view to_string(State state);
  void enter(State state);

  // One question to one shard: has it handed over all that it knew of?
  struct Port : reactor::Letter {
    ShardEvents* shard = nullptr;
    reactor::Mailbox* mailbox = nullptr;
  };

  // On the log's shard.
  void attach(ShardEvents& shard, reactor::Mailbox& mailbox);
  void take(EventBatch& batch);
  void on_batch(reactor::Letter& letter);
  void on_answer(reactor::Letter& letter);

  Status open_path();
  void leave_file();
  void step();
  void start_write();
  void start_sync();
  void rotate();
  void start_round();
  void finish_round();
  void finish_close();
  bool mark_due() const { return complete_ > emitted_ && !mark_frozen_; }
  bool covered() const { return batches_written_ >= complete_at_; }
  void trouble(std::string what);
  void on_read(reactor::Completion& completion);
  void on_written(reactor::Completion& completion);
  void on_synced(reactor::Completion& completion);
  void on_tick();
  void on_rest_over();

  static constexpr size_t kMostParts = 64;
  static constexpr int64_t kRestNs = 1'000'000'000;

  reactor::Io& io_;
  const EventLogOptions options_;
  reactor::Op op_;
  reactor::Timer tick_, rest_;
  State state_ = State::closed;
  reactor::Handle file_ = reactor::kNoHandle;
  uint64_t size_ = 0;  // of the file: where the next byte goes
  char last_octet_ = '\n';
  bool mend_ = false;      // the file was there before: look at its last octet
  bool line_cut_ = false;  // a '\n' goes first
  IntrusiveList<EventBatch, &EventBatch::link> waiting_;
  size_t front_written_ = 0;  // bytes of the first waiting batch that are in the file
  iovec parts_[kMostParts + 1];
  bool unsynced_ = false;
  bool sync_due_ = false;
  bool reopen_due_ = false;
  bool mark_frozen_ = false;  // a sync has failed: what was written may be lost

  std::vector<std::unique_ptr<Port>> ports_;
  uint64_t highest_ = 0;        // sequence that has arrived
  uint64_t round_ = 0;          // sequence that the last round of questions is or was about
  size_t answers_missing_ = 0;  // of the round under way
  uint64_t complete_ = 0;       // up to this sequence every event has arrived here,
  uint64_t complete_at_ = 0;    // within this many batches
  uint64_t batches_taken_ = 0, batches_written_ = 0;
  uint64_t sync_covers_ = 0;  // the sequence that the sync under way will make safe
  uint64_t emitted_ = 0;      // the sequence reported by on_emitted
  enum class Closing : uint8_t { no, asked, last_round, flushing };
  Closing closing_ = Closing::no;
  std::function<void()> closed_;
  EventLogStats stats_;
  std::string last_error_;
};

class ShardEvents final : public Sink {
 public:
  // `mailbox` is this shard's, `log_mailbox` that of the log's shard. Made before any shard runs;
  // destroyed once the log is closed and the mailboxes are drained, or when the shards have
  // stopped.
  ShardEvents(reactor::Io& io, reactor::Mailbox& mailbox, EventLog& log,
              reactor::Mailbox& log_mailbox);
  ~ShardEvents();

  void emit(uint64_t sequence, const Event& event) override;
  bool behind() const override { return bytes_waiting_ > log_.options().most_waiting; }
  uint64_t bytes_waiting() const { return bytes_waiting_; }

 private:
  friend class EventLog;
  void flush();
  void give_back(EventBatch& batch);  // called on the log's shard
  void on_return(reactor::Letter& letter);
  void on_question(reactor::Letter& letter);

  reactor::Io& io_;
  reactor::Mailbox& mailbox_;
  EventLog& log_;
  reactor::Mailbox& log_mailbox_;
  const bool local_;
  reactor::Deferred flush_;
  EventBatch* current_ = nullptr;
  std::vector<std::unique_ptr<EventBatch>> batches_;  // all, also those under way
  std::vector<EventBatch*> free_;
  uint64_t bytes_waiting_ = 0;
};

}  // namespace millrace::events
