// THE SEAM. All I/O, time, randomness and core-to-core wake-ups of the relay go through this interface.
// Production is io_uring (uring.h); tests run the same objects on a simulated clock, network and disk
// (sim.h). One conformance suite (tests/unit/reactor) runs over both.
//
// Rules that both back ends keep, and every user relies on:
//
//  1. An Io belongs to one shard. All of its functions are called on that shard's thread, except
//     wake(), which any shard calls to wake another.
//  2. No callback runs inside the call that started its operation. Completions, timers, mailboxes and
//     deferred calls run from turn(), never nested.
//  3. An Op lives inside its owner. From the starting call until its *final* completion (more == false)
//     the Op and every byte it points at stay valid and in place. The owner goes only when all of its
//     Ops are idle: cancel, wait for the final completions, close the handle, destroy.
//  4. cancel() never completes an Op by itself: the final completion still comes, as -ECANCELED or as
//     what happened first. A multishot Op may deliver data after the cancel, before its final
//     completion.
//  5. Single-shot Ops complete exactly once. Multishot Ops (accept, receive) deliver any number of
//     completions with more == true, then one with more == false (its result may still be data, an
//     error, or 0 for end of stream).
//  6. Completions of different Ops come in any order. A send and a receive of one socket are
//     independent; sends of one socket never overlap (the caller waits for one before the next).
//  7. `result` is a byte count, a handle, or a negative errno. Short sends, reads and writes happen and
//     are continued by the caller.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/intrusive_list.h"
#include "base/result.h"
#include "reactor/address.h"
#include "reactor/buffers.h"
#include "reactor/timer_wheel.h"

namespace millrace::reactor {

// A socket or a file: a descriptor in production, a number of the simulator's in tests.
using Handle = int;
inline constexpr Handle kNoHandle = -1;

// Separate buffers, so that intake can never starve the replies that would free it: received mail;
// replies of receivers; messages read back from the spool (private buffers only); DNS and admin.
enum class BufferGroup : uint8_t { ingress, delivery, spool, control };
inline constexpr int kBufferGroups = 4;

struct Completion {
  int32_t result = 0;
  bool more = false;
  // Receive only, when result > 0: the bytes, and one reference to the buffer they lie in, which the
  // receiver may keep (then no byte is copied) or let go.
  char* data = nullptr;
  BufferRef buffer;
};

// One operation in flight. Embedded in its owner; bound once, started many times.
class Op {
 public:
  Op() = default;
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;
  ~Op() { ASSERT(!pending()); }

  // op.bind<&Session::on_received>(this), with void Session::on_received(Completion&).
  template <auto method, typename Owner>
  void bind(Owner* owner) {
    owner_ = owner;
    call_ = [](void* self, Completion& completion) {
      (static_cast<Owner*>(self)->*method)(completion);
    };
  }
  bool pending() const { return pending_; }

  // For the back ends only: one completion arrived. Clears pending before the callback, so that the
  // callback may start the Op again, or destroy its owner.
  void complete(Completion& completion) {
    if (!completion.more) pending_ = false;
    call_(owner_, completion);
  }
  // For the back ends only.
  void begin() {
    ASSERT(!pending_ && call_ != nullptr);
    pending_ = true;
  }
  // For the simulator only: its host has crashed, and no completion will come.
  void abandon() {
    pending_ = false;
    parked.unlink();
  }
  // A back end's own note of the operation (storage for a message header, an event's number).
  // Valid from begin() to the final completion.
  struct Scratch {
    alignas(8) char bytes[152];
  } scratch;
  Link parked;  // on a back end's list while the Op waits for something there (buffers, ring space)

 private:
  void* owner_ = nullptr;
  void (*call_)(void*, Completion&) = nullptr;
  bool pending_ = false;
};

// A call to be made at the end of the current turn, after every completion of it: the place to batch
// (one send for many replies, one commit for many messages). Scheduling it twice is once.
class Deferred {
 public:
  template <auto method, typename Owner>
  void bind(Owner* owner) {
    owner_ = owner;
    call_ = [](void* self) { (static_cast<Owner*>(self)->*method)(); };
  }
  bool scheduled() const { return link.linked(); }
  void cancel() { link.unlink(); }
  void run() { call_(owner_); }
  Link link;

 private:
  void* owner_ = nullptr;
  void (*call_)(void*) = nullptr;
};

struct ListenOptions {
  Address address;          // IPv4, IPv6 or a Unix path
  int backlog = 4096;
  bool reuse_port = false;  // one listener a shard; the kernel spreads connections
  unsigned unix_mode = 0600;
};

struct FileOptions {
  bool create = false;       // O_CREAT | O_EXCL: fails with EEXIST
  bool write = false;        // otherwise read-only
  bool direct = false;       // O_DIRECT; falls back to buffered if refused: see Alignment.direct
};

// What O_DIRECT asks of memory addresses, offsets and lengths on this file (statx STATX_DIOALIGN, or
// 4096 where the kernel does not say); {1, 1, false} for a buffered file.
struct Alignment {
  uint32_t memory = 1;
  uint32_t offset = 1;
  bool direct = false;
};

class Io {
 public:
  virtual ~Io() = default;

  // ---- time and chance
  // Monotonic nanoseconds, read once a turn.
  virtual int64_t now() const = 0;
  // UTC milliseconds since 1970, read when called. May step in either direction.
  virtual int64_t wall_ms() const = 0;
  virtual uint64_t random() = 0;
  TimerWheel& timers() { return timers_; }

  // ---- running
  // One turn: waits for something to happen (not longer than `longest_wait_ns`, and not past the next
  // timer), then runs completions, due timers and, last, the deferred calls.
  virtual void turn(int64_t longest_wait_ns) = 0;
  // Any thread: makes the turn of this Io end its wait soon and call on_wake. Cheap when it is awake.
  virtual void wake() = 0;
  // Called in the turn that follows a wake: drains the shard's mailbox.
  std::function<void()> on_wake;
  void defer(Deferred& call) {
    if (!call.scheduled()) deferred_.push_back(call);
  }

  // ---- sockets. TCP sockets have TCP_NODELAY set and are close-on-exec and non-blocking.
  virtual Result<Handle> listen(const ListenOptions& options) = 0;
  // The address a listener or socket is bound to (a listener on port 0 learns its port).
  virtual Result<Address> local_address(Handle handle) = 0;
  virtual Result<Address> peer_address(Handle handle) = 0;
  // An unconnected stream socket for `peer`'s family, bound to `source` (port 0) when it is not empty.
  virtual Result<Handle> open_socket(const Address& peer, const Address& source) = 0;
  // Multishot: each result is a new connection's handle.
  virtual void accept(Op& op, Handle listener) = 0;
  // Result 0 or -errno. No time-out of its own: arm a timer and cancel.
  virtual void connect(Op& op, Handle socket, const Address& peer) = 0;
  // Multishot, into buffers of `group`. When the group has none free the Op is parked inside the back
  // end and goes on, in fair order, when buffers return: the caller sees only a silence. Result 0: the
  // peer closed its sending side.
  virtual void receive(Op& op, Handle socket, BufferGroup group) = 0;
  // Gathers `parts` (array and bytes valid until completion). Never raises SIGPIPE.
  virtual void send(Op& op, Handle socket, std::span<const iovec> parts) = 0;
  virtual void shutdown_send(Handle socket) = 0;
  // Gives the handle back at once; no Op may be pending on it. `reset`: abort with RST, no linger.
  virtual void close(Handle handle, bool reset = false) = 0;
  // Asks the Op to end soon (rule 4). Harmless when idle.
  virtual void cancel(Op& op) = 0;
  // Waits until a library's own descriptor is ready (poll(2) events); single-shot. Production only.
  virtual void poll(Op& op, int descriptor, short events) = 0;

  // ---- buffers
  virtual BufferPool& buffers(BufferGroup group) = 0;

  // ---- files. Everything that can take long is an Op; the rest answers at once.
  virtual Result<Handle> open_file(const std::string& path, const FileOptions& options) = 0;
  virtual Alignment alignment(Handle file) = 0;
  virtual Result<uint64_t> file_size(Handle file) = 0;
  // Reserves and extends to `size` bytes. Blocks: for start-up and control work only.
  virtual Status allocate(Handle file, uint64_t size) = 0;
  // `durable`: complete only once the bytes are on stable storage (RWF_DSYNC).
  virtual void write(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset,
                     bool durable) = 0;
  virtual void read(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset) = 0;
  virtual void sync(Op& op, Handle file) = 0;  // fdatasync
  // As sync_directory(), of a directory that open_file() has opened for reading (fsync).
  virtual void sync_names(Op& op, Handle directory) = 0;
  virtual Result<std::vector<std::string>> list_directory(const std::string& path) = 0;
  virtual Status make_directory(const std::string& path) = 0;  // one that exists is success
  virtual Status rename_file(const std::string& from, const std::string& to) = 0;
  virtual Status remove_file(const std::string& path) = 0;
  virtual Status sync_directory(const std::string& path) = 0;  // makes creations and renames durable
  // Locks `path` against every other process until this process ends; fails if it is locked.
  virtual Status lock_file(const std::string& path) = 0;
  virtual Result<uint64_t> free_space(const std::string& path) = 0;

 protected:
  // Runs the deferred calls scheduled so far and by each other.
  void run_deferred() {
    while (Deferred* call = deferred_.pop_front()) call->run();
  }
  IntrusiveList<Deferred, &Deferred::link> deferred_;
  TimerWheel timers_;
};

}  // namespace millrace::reactor
