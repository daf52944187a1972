// Reads messages back, on the shard that asks: its own file handles, direct reads into buffers of the
// spool's group. What is read is checked: the record's checksum and id, and the body's checksum.
//
// Limits: extents of one message are read one range after the other (neighbours in one go); handles are
// kept open up to kHandles and closed in order of last use.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "spool/format.h"
#include "spool/spool.h"

namespace millrace::spool {

// Memory outside of every pool, for when the pool is at its limit and the message must be read anyway.
reactor::BufferRef allocate_on_heap(uint32_t size);

class Reader {
 public:
  Reader(reactor::Io& io, std::string directory, bool prefer_heap);
  ~Reader();

  void read(Read& read);
  // Closes the segment as soon as no read of it is pending, then calls `released(context)`; from now on
  // a read of it fails with ESTALE. Answers at once when nothing is pending.
  void release(uint32_t generation, void* context, void (*released)(void* context));
  size_t pending() const { return pending_; }
  void close_files();  // REQUIRES: pending() == 0

 private:
  static constexpr size_t kHandles = 128;

  struct File {
    reactor::Handle handle = reactor::kNoHandle;
    uint32_t align = kBlock;
    uint32_t pending = 0;
    uint64_t last_use = 0;
    void* context = nullptr;
    void (*released)(void*) = nullptr;
  };
  struct Range {
    uint32_t offset = 0, size = 0;
    char* to = nullptr;
  };
  struct Job {
    Reader* reader = nullptr;
    reactor::Op op;
    Read* request = nullptr;
    File* file = nullptr;
    bool in_body = false;
    std::vector<Range> ranges;
    size_t range = 0;
    uint32_t done = 0;  // bytes of the current range
    iovec part{};
    MessageView message{};
    void on_read(reactor::Completion& completion) { reader->on_read(*this, completion); }
  };

  Result<File*> file(uint32_t generation);
  void start_body(Job& job);
  void go_on(Job& job);
  void on_read(Job& job, reactor::Completion& completion);
  void check_body(Job& job);
  void finish(Job& job, Status status);
  void answer_refused();
  reactor::BufferRef allocate(uint32_t size);

  reactor::Io& io_;
  const std::string directory_;
  const bool prefer_heap_;
  std::unordered_map<uint32_t, std::unique_ptr<File>> files_;
  std::vector<std::unique_ptr<Job>> jobs_;  // all, idle ones in idle_
  std::vector<Job*> idle_;
  size_t pending_ = 0;
  uint64_t uses_ = 0;
  std::vector<Read*> refused_;  // answered at the end of the turn
  reactor::Deferred refuse_;
};

}  // namespace millrace::spool
