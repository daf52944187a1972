// A spool directory: opened and locked, recovered once, then shared out as one Spool a shard.
//
//   auto directory = co_await Directory::open(io, mailbox, config);   // on the log's shard
//   spools[n] = directory->shard(io_n, mailbox_n);                    // any thread, then on that shard
//   auto summary = co_await directory->recover(handler);              // messages, events, state
//   ...
//   co_await directory->close();                                      // on the log's shard
//
// `io` and `mailbox` are those of the shard on which the log is written; the directory is used on that
// shard only, but for shard(). A Spool may be destroyed once its shard has no request under way and no
// shard will run its mailbox any more; the directory goes last.
//
// Recovery reads headers, trailers and indexes of sealed segments, and the whole of the unsealed ones
// (as a rule the last), where bodies are verified. Nothing on disk depends on the number of shards.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "config/config.h"
#include "reactor/mailbox.h"
#include "reactor/task.h"
#include "spool/format.h"
#include "spool/spool.h"

namespace millrace::spool {

class Log;

class Directory {
 public:
  ~Directory();
  // Fails when another process holds the directory, when it cannot be read, or when something in it was
  // written by a newer version.
  static reactor::Task<Result<std::unique_ptr<Directory>>> open(reactor::Io& io, reactor::Mailbox& mailbox,
                                                                const config::Config& config);
  // Once. The handler is called on this shard, while it runs. What is asked of a Spool meanwhile is
  // answered afterwards, but for reads.
  reactor::Task<Result<RecoverySummary>> recover(RecoveryHandler& handler);
  std::unique_ptr<Spool> shard(reactor::Io& io, reactor::Mailbox& mailbox);
  // Writes what waits, seals the segments in use (a start after it verifies no bodies), closes files.
  // Later requests are answered with a failure.
  reactor::Task<Status> close();

  const Uuid& uuid() const { return uuid_; }

  // One file, as its first and last blocks tell.
  struct File {
    std::string name;
    uint64_t size = 0;
    uint32_t number = 0;       // from the name
    bool fresh = false;        // "*.new": made and never used
    HeaderVerdict verdict = HeaderVerdict::damaged;
    SegmentHeader header{};
    bool sealed = false;
    Trailer trailer{};
    Status status = success();
  };

 private:
  Directory(reactor::Io& io, reactor::Mailbox& mailbox, const config::Config& config);

  void make_log();

  reactor::Io& io_;
  reactor::Mailbox& mailbox_;
  const std::string path_;
  uint64_t segment_size_;
  uint64_t reserve_;
  uint32_t compact_below_percent_;
  bool durable_, events_kept_;
  Uuid uuid_{};
  std::vector<File> files_;
  uint64_t bytes_read_ = 0;
  std::unique_ptr<Log> log_;
};

}  // namespace millrace::spool
