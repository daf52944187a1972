// What a spool directory holds, put together from its segments: which messages live, what was last
// said of each, which events may not have been emitted, which keys hold what. Reads; the only things
// it changes are files that hold nothing (removed) and names that do not match headers.
//
// Order. The stream of kept things is read first for its notes and for where it has the newest copy of
// a message; then the stream of mail from its newest segment to its oldest, so that all that was said
// of a message is known when the message is reached; then the messages among the kept things.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "reactor/task.h"
#include "spool/directory.h"
#include "spool/log.h"

namespace millrace::spool {

class Recovery {
 public:
  Recovery(reactor::Io& io, std::string directory, const Uuid& uuid, uint64_t segment_size,
           bool events_kept, RecoveryHandler& handler);
  reactor::Task<Status> run(std::vector<Directory::File>* files);
  Contents contents;
  RecoverySummary summary;

 private:
  struct Source {
    Directory::File* file = nullptr;
    Segment* segment = nullptr;
    bool newest = false;      // of its stream
    uint32_t known_end = 0;
  };
  struct Loaded {
    AlignedBytes bytes;
    std::vector<RecordRef> records;
    Status status = success();
  };
  struct NoteRef {
    uint64_t sequence = 0;
    uint32_t segment = 0, offset = 0;
    bool final = false;
    std::string state;
  };
  struct Copy {
    uint64_t sequence = 0;
    Location location;
  };
  struct KeyRef {
    uint64_t sequence = 0;
    KeyEntry entry;
  };

  void remark(std::string text);
  Status classify(std::vector<Directory::File>& files);
  reactor::Task<bool> salvage(Directory::File* file);
  bool wants_image(const Source& source) const;
  reactor::Task<bool> load(Source* source, Loaded* loaded, bool again);
  reactor::Task<Status> read_range(reactor::Handle handle, char* to, uint64_t size, uint64_t offset);
  void gather(Source& source, const std::vector<RecordRef>& records, bool events);
  void deliver(Source& source, const std::vector<RecordRef>& records);
  void finish();

  reactor::Io& io_;
  const std::string directory_;
  const Uuid uuid_;
  const uint64_t segment_size_;
  const bool events_kept_;  // else nobody wants the events, and sealed segments are read by their indexes alone
  RecoveryHandler& handler_;
  std::vector<Source> streams_[kStreams];  // newest first
  std::unordered_map<mail::SpoolId, NoteRef, mail::SpoolIdHash> notes_;
  std::unordered_map<mail::SpoolId, Copy, mail::SpoolIdHash> copies_;
  std::unordered_map<std::string, KeyRef> keys_;
  std::map<uint64_t, std::string> events_;
};

// Runs `make(i)` for every i below `count`, at most `width` at a time.
class Latch {
 public:
  Latch(reactor::Io& io, size_t left) : io_(io), left_(left) { call_.bind<&Latch::go_on>(this); }
  ~Latch() { call_.cancel(); }
  // The waiter goes on at the end of the turn: then the last of those counted has come to its end, too.
  void count_down() {
    if (--left_ == 0) io_.defer(call_);
  }
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) noexcept { waiter_ = waiter; }
  void await_resume() const noexcept {}

 private:
  void go_on() { waiter_.resume(); }
  reactor::Io& io_;
  size_t left_;
  reactor::Deferred call_;
  std::coroutine_handle<> waiter_;
};

template <typename Make>
reactor::Task<bool> parallel_worker(size_t* next, size_t count, Make* make, Latch* latch) {
  while (*next < count) {
    size_t mine = (*next)++;
    co_await (*make)(mine);
  }
  latch->count_down();
  co_return true;
}

template <typename Make>
reactor::Task<bool> in_parallel(reactor::Io& io, size_t count, size_t width, Make make) {
  width = std::min(width, count);
  if (width == 0) co_return true;
  Latch latch(io, width);
  size_t next = 0;
  std::vector<reactor::Task<bool>> workers;
  for (size_t i = 0; i < width; ++i) workers.push_back(parallel_worker(&next, count, &make, &latch));
  for (auto& worker : workers) worker.await_suspend(std::noop_coroutine()).resume();
  co_await latch;
  co_return true;
}

}  // namespace millrace::spool
