// A simulated disk: what the program sees (the cached content) beside what a power cut would leave (the
// durable content and the writes that have not been synced).
//
// Model, deliberately no kinder than POSIX:
//  - A write is durable when it was written so, or after a sync of its file. Until then a power cut
//    keeps all, none, a prefix or any subset of its 512-byte sectors, and a later write may survive
//    while an earlier one does not.
//  - A name (create, rename, remove, make_directory) is durable after sync_directory() of its
//    directory, not through a sync of the file. A power cut keeps a prefix of the unsynced name
//    operations of each directory.
//  - A new size (allocate, or a write past the end) is durable with the next sync of the file, or with
//    a durable write that lies beyond the old end.
//  - A failed sync may lose any of the writes it should have made durable, for good: a later sync that
//    succeeds says nothing of them, though they can still be read until the power cut.
//
// Paths are compared as text, without "." or "..", a trailing slash ignored; "", "." and "/" exist.
// The parent of what is created must exist. A SimDisk is a value: a copy is a snapshot (pages are shared
// until one side writes).
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/prng.h"
#include "base/result.h"

namespace millrace::reactor {

// Bytes with holes, which read as zeros. Copies share pages.
class SparseBytes {
 public:
  static constexpr size_t kPage = 4096;
  void write(uint64_t offset, std::string_view bytes);
  void read(uint64_t offset, char* to, size_t size) const;
  void truncate(uint64_t size);
  uint64_t digest() const;

 private:
  using Page = std::array<char, kPage>;
  Page& own_page(size_t index);
  std::vector<std::shared_ptr<Page>> pages_;
};

class SimDisk {
 public:
  using FileId = uint64_t;
  static constexpr size_t kSector = 512;

  // One change of the disk, in the order the disk saw them.
  struct Change {
    enum class Kind : uint8_t {
      create, make_directory, rename, remove, sync_directory, write, durable_write, resize, sync,
      failed_sync
    };
    Kind kind;
    FileId file = 0;
    uint64_t offset = 0;  // of a write; the size of a resize
    std::string path;     // names: what is created, removed, synced, or renamed from
    std::string to;       // rename
    std::string bytes;    // write
  };

  explicit SimDisk(uint64_t capacity_bytes = UINT64_MAX);

  // ---- what a program does
  // `create` fails with EEXIST, otherwise the file (or directory, to be synced) must exist. The id stays valid until release(), also
  // when the name is gone.
  Result<FileId> open(const std::string& path, bool create);
  void release(FileId file);
  uint64_t size(FileId file) const;
  // The bytes written, which are fewer than asked for when the disk fills up, or -ENOSPC.
  int64_t write(FileId file, uint64_t offset, std::string bytes, bool durable);
  // The bytes read: fewer at the end of the file.
  size_t read(FileId file, uint64_t offset, char* to, size_t size) const;
  // Grows the file, and reserves the space.
  Status resize(FileId file, uint64_t size);
  void sync(FileId file);
  // A sync that fails: which unsynced writes it loses depends on `chance`.
  void fail_sync(FileId file, Prng& chance);
  Result<std::vector<std::string>> list(const std::string& directory) const;  // sorted
  Status make_directory(const std::string& path);
  Status rename(const std::string& from, const std::string& to);
  Status remove(const std::string& path);
  Status sync_directory(const std::string& path);
  uint64_t free_space() const;

  // ---- what happens to it
  // The power goes: only what is durable, and by chance some of what is not, is left. Open files are
  // forgotten.
  void power_cut(Prng& chance);
  // The program ends without a power cut: nothing is lost, open files are forgotten.
  void process_end();
  bool exists(const std::string& path) const;
  // The whole file as the program would read it; REQUIRES: it exists.
  std::string content(const std::string& path) const;
  // Damages both the cached and the durable content. REQUIRES: the file exists and has that byte.
  void flip_bit(const std::string& path, uint64_t offset, unsigned bit);
  void set_capacity(uint64_t bytes) { capacity_ = bytes; }
  uint64_t unsynced_bytes() const;

  // ---- journal: replay of every moment at which the power could have gone
  // Records from here on.
  void start_journal();
  const std::vector<Change>& journal() const { return journal_; }
  // The disk that a power cut would leave after the first `changes` entries of the journal, while the
  // next one, if it is a write, was under way: it may be torn.
  SimDisk after_power_cut(size_t changes, uint64_t seed) const;
  class Replay;
  // A sum over the names and contents that a program finds: two disks of one sum hold the same.
  uint64_t digest() const;

 private:
  struct Unsynced {
    uint64_t offset;
    std::string bytes;
    bool durable;  // waits only because an older write of the same file is not
    bool lost;     // by a failed sync
  };
  struct File {
    SparseBytes cached;
    SparseBytes durable;
    uint64_t size = 0;
    uint64_t durable_size = 0;
    uint64_t reserved = 0;
    uint32_t open = 0;
    bool directory = false;
    std::vector<Unsynced> unsynced;
  };
  struct NameChange {
    std::string directory;  // whose sync makes it durable
    std::string from;       // name that goes, or empty
    std::string to;         // name that comes, or empty
    FileId file;
  };

  File& file_of(FileId file);
  const File& file_of(FileId file) const;
  FileId add_name(const std::string& path, bool directory);
  static void apply(std::map<std::string, FileId>& names, const NameChange& change);
  bool reserve(File& file, uint64_t end);
  void drop_unnamed();
  void apply(const Change& change, Prng& chance);
  void record(Change change) {
    if (recording_) journal_.push_back(std::move(change));
  }

  uint64_t capacity_;
  uint64_t used_ = 0;
  FileId next_file_ = 1;
  std::map<FileId, File> files_;
  std::map<std::string, FileId> names_;
  std::map<std::string, FileId> durable_names_;
  std::vector<NameChange> name_changes_;  // not durable yet
  bool recording_ = false;
  std::vector<Change> journal_;
  std::shared_ptr<const SimDisk> journal_base_;
};

// The journal of a disk change by change: what after_power_cut() gives at each, without starting over.
class SimDisk::Replay {
 public:
  // REQUIRES: `recorded` has a journal, and outlives this.
  explicit Replay(const SimDisk& recorded, uint64_t seed = 0);
  size_t at() const { return at_; }  // changes that have happened
  void next();                       // one more. REQUIRES: at() < the size of the journal
  // The power goes now, while the next change, if it is a write, is under way.
  SimDisk power_cut(uint64_t seed) const;
  // The process ends now: nothing is lost, and the write under way has been taken, or not.
  SimDisk kill(uint64_t seed) const;

 private:
  void begin_next(SimDisk& disk) const;

  const SimDisk& recorded_;
  SimDisk disk_;
  Prng chance_;  // what failed syncs lose
  size_t at_ = 0;
};

}  // namespace millrace::reactor
