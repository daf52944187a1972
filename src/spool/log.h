// The writer of a spool directory. It lives on one shard; the others reach it by letters (front.h).
//
//   log.cc           group commit: what goes into a batch, what is answered, what a failure means
//   log_segments.cc  segments: prepared ahead, taken into use, sealed, released, wiped
//   log_reclaim.cc   making room: what is still needed of a segment moves to the stream of kept things
//
// Group commit: one batch of mail in flight; whatever arrives meanwhile joins the next, which starts at
// the end of the turn in which the former completed, or, when idle, of the turn in which something
// arrived. Compaction writes into a stream of its own, beside it.
//
// What happens when a write fails (it is never repeated on the same file): everything unanswered is
// written to a new segment; if that fails too, the messages among it are refused and a third segment
// gets their void records and the notes; if even that fails, the messages' connections are to be
// closed without a reply, intake stops, the notes wait in memory, and a new segment is tried each
// second until one can be written.
//
// Order of what is in memory and what is on disk: tables are changed when a batch is built. Segments
// are released only between batches of mail, when everything that was applied is durable; what the
// other stream has in flight holds its source by Segment::moves_unacknowledged or by being the one
// under compaction.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "reactor/task.h"
#include "spool/reader.h"
#include "spool/segment.h"
#include "spool/spool.h"
#include "spool/stream.h"

namespace millrace::spool {

struct LogSettings {
  std::string directory;
  Uuid uuid{};
  uint64_t segment_size = 64u << 20;
  uint64_t reserve = 256u << 20;      // config spool_reserve
  uint32_t compact_below_percent = 25;
  bool durable = true;                // durability=disk
  bool events_kept = true;            // keep segments until their events are emitted
};

// What a state key holds, and where its latest record is.
struct KeyEntry {
  std::string value;         // empty: removed; kept while an older record of the key may exist
  uint32_t segment = 0, offset = 0;
  uint32_t last_put = 0;     // highest generation with a value that the removal must outlive
};

// What recovery found, and what the log goes on with.
struct Contents {
  std::unordered_map<uint32_t, std::unique_ptr<Segment>> segments;
  std::unordered_map<std::string, KeyEntry> keys;
  std::deque<FreeFile> free;
  uint32_t next_generation = 1;
  uint32_t next_file = 1;            // number for the name of a new file
  uint64_t next_sequence = 1;
  uint64_t emitted = 0;
  uint64_t outcomes = 0;             // recipients of live messages
  struct Tail {
    uint32_t generation = 0;         // the newest segment of the stream; 0: none
    uint32_t end = 0;
    std::string index;               // its records, as index entries, if it may be sealed now
  } tails[kStreams];
};

struct StatePut : reactor::Letter {
  std::string key, value;
  std::function<void(Status)> done;
  Status status = success();
  Front* front = nullptr;
};
struct Hello : reactor::Letter {
  Front* front = nullptr;
};
struct Emitted : reactor::Letter {
  uint64_t sequence = 0;
  Front* front = nullptr;
};
// Log to shard and back.
struct Moved : reactor::Letter {
  mail::SpoolId id;
  Location from, to;
  size_t front = 0;
  bool every_front = false;  // the home is not known: ask them one after the other
};
struct Release : reactor::Letter {
  uint32_t generation = 0;
  size_t front = 0;
};
struct Writable : reactor::Letter {
  Front* front = nullptr;
  bool writable = true;
  std::string why;
  bool under_way = false;
};

enum class LogState : uint8_t { writable, unwritable, closed };
std::string_view to_string(LogState state);

class Log {
 public:
  // Requests may be made from now on; they wait for start().
  Log(reactor::Io& io, reactor::Mailbox& mailbox, LogSettings settings);
  ~Log();

  // Goes on with what recovery found: makes sure that a first segment is there and starts the work in
  // the background.
  reactor::Task<Status> start(Contents contents);
  // Waits for what is under way, answers what waits with a failure, and closes every file.
  reactor::Task<Status> close();

  reactor::Io& io() { return io_; }
  reactor::Mailbox& mailbox() { return mailbox_; }
  const std::string& directory() const { return settings_.directory; }
  const Stats& stats() const { return stats_; }
  LogState state() const { return state_; }
  // Any thread.
  bool accepting() const { return accepting_.load(std::memory_order_relaxed); }

  // Deliveries of letters, on the log's shard; a front there calls them directly.
  void on_append(reactor::Letter& letter);
  void on_note(reactor::Letter& letter);
  void on_state(reactor::Letter& letter);
  void on_emitted(reactor::Letter& letter);
  void on_hello(reactor::Letter& letter);
  void on_moved_back(reactor::Letter& letter);
  void on_released_back(reactor::Letter& letter);
  void on_writable_back(reactor::Letter& letter);

 private:
  // A background flow, owned so that it dies with the log.
  struct Job {
    reactor::Task<bool> task;
    std::coroutine_handle<> handle;
    explicit Job(reactor::Task<bool> t)
        : task(std::move(t)), handle(task.await_suspend(std::noop_coroutine())) {}
  };
  // One thing that compaction wants written to the stream of kept things.
  struct Kept {
    enum class Kind : uint8_t { message, note, tombstone, key } kind = Kind::message;
    mail::SpoolId id;
    Location from;                 // of the record it replaces
    Location message;              // note, tombstone: the message it is about
    uint32_t note_segment = 0;     // message: its latest note when `state` was read
    uint32_t note_offset = 0;
    std::string state;             // or the key's value
    std::string key;
    std::unique_ptr<Read> read;    // message: its record and body
    std::vector<Piece> pieces;
    MessageView view{};
    bool written = false;
    // Set while in flight.
    Location to;
  };
  // The batch of mail being built or in flight. On a failure the same is written again.
  struct Batch {
    std::vector<Append*> appends;
    std::vector<Append*> refused;  // void records stand in their place
    std::vector<Note*> notes;
    std::vector<StatePut*> states;
    size_t messages_before = 0;    // entries of the active segment before this batch
    int attempt = 0;
    bool probe = false;            // written to learn whether the log can be written again
    Status why_refused = success();
    bool empty() const { return appends.empty() && refused.empty() && notes.empty() && states.empty(); }
    void clear() {
      appends.clear();
      refused.clear();
      notes.clear();
      states.clear();
      attempt = 0;
      probe = false;
    }
  };

  // ---- log.cc
  void enter(LogState state, const std::string& why);
  void commit();
  void select();
  void build();
  void roll_back();
  void on_mail_batch(const Status& status);
  void on_mail_failed(const Error& error);
  void answer(Append& append);
  void answer(Note& note);
  void answer(StatePut& put);
  void refuse_pending_appends(const Error& error);
  void give_up();
  void on_retry_due();
  void on_mark_due();
  void tell_writable(Front& front);
  void update_room();
  bool pending() const {
    return !pending_appends_.empty() || !pending_notes_.empty() || !pending_states_.empty();
  }
  Segment* segment(uint32_t generation);
  MessageEntry* resolve(Location& location);  // follows moves; the location becomes the current one
  // `holder`: the segment in which the entry's message lies. A note there needs no counting: it goes
  // with the message.
  void set_note(MessageEntry& entry, uint32_t holder, uint32_t segment, uint32_t offset);
  void kill(MessageEntry& entry, uint32_t segment);
  void set_key(std::string_view key, std::string_view value, const Location& at, bool carried);

  // ---- log_segments.cc
  std::string path(const std::string& name) const { return settings_.directory + "/" + name; }
  void start_job(reactor::Task<bool> task);
  void reap_jobs();
  // Gives `stream` a new active segment. `intake`: for new mail, which may not use the reserve.
  Status activate(Stream& stream, bool intake);
  // Ends the use of the active segment: sealed if it went well, else left as it is.
  void retire(Stream& stream, bool seal);
  reactor::Task<bool> seal(Segment* segment, AlignedBytes footer, uint64_t offset, uint64_t size);
  bool make_footer(Segment& segment, std::string_view index, bool filter, AlignedBytes& out, uint64_t& offset,
                   uint64_t& size);
  void seal_tail(Contents::Tail& tail);
  void discard(uint32_t generation);  // a segment that holds nothing valid
  uint32_t reserve_segments() const;
  size_t target_free() const;
  reactor::Task<bool> prepare();
  reactor::Task<Status> prepare_file(std::string path);
  void want_prepared();
  bool may_release(const Segment& segment) const;
  void release_scan();
  void begin_release(Segment& segment);
  reactor::Task<bool> wipe(uint32_t generation);
  void forget(uint32_t generation);

  // ---- log_reclaim.cc
  void consider_reclaim();
  reactor::Task<bool> reclaim(uint32_t generation);
  std::unordered_map<uint32_t, Location> notes_elsewhere(uint32_t generation) const;
  reactor::Task<Result<std::string>> read_state(uint32_t generation, uint32_t offset);
  struct Image {
    AlignedBytes bytes;
    std::vector<RecordRef> records;
  };
  reactor::Task<Status> load_records(uint32_t generation, Image* image);
  void commit_kept();
  void on_kept_batch(const Status& status);
  bool add_kept(Kept& item);
  void undo_kept(Kept& item);
  struct StepWait {
    Log& log;
    bool await_ready() const noexcept { return log.kept_.empty() && log.kept_in_flight_.empty(); }
    void await_suspend(std::coroutine_handle<> waiter) noexcept { log.step_waiter_ = waiter; }
    void await_resume() const noexcept {}
  };
  void wake_step();
  void thaw();
  void send_moved(const Kept& item, uint16_t home);

  // ---- constant after construction
  reactor::Io& io_;
  reactor::Mailbox& mailbox_;
  const LogSettings settings_;

  // ---- owned by this shard
  LogState state_ = LogState::writable;
  bool started_ = false, stopping_ = false;
  std::vector<Front*> fronts_;
  std::vector<std::unique_ptr<Writable>> writable_letters_;  // by front
  std::string unwritable_why_;

  std::vector<Append*> pending_appends_;
  std::vector<Note*> pending_notes_;
  std::vector<StatePut*> pending_states_;
  Batch batch_;
  std::vector<Append*> answering_appends_;
  std::vector<Note*> answering_notes_;
  std::vector<StatePut*> answering_states_;
  reactor::Deferred commit_;
  reactor::Timer retry_, mark_;
  Stream mail_, kept_stream_;
  uint64_t next_sequence_ = 1;
  uint64_t emitted_ = 0, emitted_written_ = 0;
  uint64_t outcomes_ = 0;
  Stats stats_;
  int64_t started_ns_ = 0;

  std::unordered_map<uint32_t, std::unique_ptr<Segment>> segments_;
  Segment* last_found_ = nullptr;
  std::unordered_map<std::string, KeyEntry> keys_;
  std::deque<FreeFile> free_;
  uint32_t next_generation_ = 1, next_file_ = 1;
  Contents::Tail previous_[kStreams];  // what the next segment of each stream names as the one before
  std::vector<uint32_t> void_left_[kStreams];  // discarded but still on disk
  bool preparing_ = false;
  size_t unfilled_used_ = 0;  // a segment had to be taken into use unprepared: prepare more
  uint64_t free_disk_ = 0;
  int64_t free_disk_at_ns_ = -1;
  bool intake_open_ = true;   // there is room for what was accepted so far and for new mail
  bool mark_due_ = false;     // the emitted mark should be written although nothing else is to be
  bool release_due_ = false;
  size_t kept_messages_before_ = 0;
  bool releases_frozen_ = false;  // a kept batch failed: nothing may go until its void end is on disk
  std::vector<std::unique_ptr<Job>> jobs_;

  uint32_t reclaiming_ = 0;  // generation under compaction; 0: none
  int64_t reclaim_checked_ns_ = 0;
  int64_t reclaim_rests_until_ns_ = 0;  // there was no room for what compaction keeps
  Reader reader_;
  std::vector<Kept*> kept_, kept_in_flight_;
  std::coroutine_handle<> step_waiter_;
  reactor::Timer reclaim_timer_;
  reactor::Timer room_timer_;  // while new mail is refused for want of room: looks again

  // ---- published to the other shards
  alignas(64) std::atomic<bool> accepting_{true};
};

}  // namespace millrace::spool
