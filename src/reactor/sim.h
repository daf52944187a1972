// The simulator: whole relays, their peers, clock, network and disks in one thread and from one seed.
//
//   SimWorld world(seed);
//   HostId relay = world.add_host({"192.0.2.1"});
//   auto io = world.make_io(relay);           // one a shard; an Io like any other (io.h rules 1 to 7)
//   ... build objects on *io ...
//   bool done = world.run_until([&] { return finished; }, seconds(30));
//
// One seed is one run: nothing depends on addresses, hash order or real time, and fingerprint() of two
// runs of a seed is the same. What is simulated, and how a fault looks, is told in docs/simulation.md.
//
// Limits: wake() from another thread is safe but makes a run depend on real time. poll() is not
// available: libraries with sockets of their own are replaced by a model in simulation.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>

#include "base/prng.h"
#include "reactor/io.h"
#include "reactor/sim_buffers.h"
#include "reactor/sim_disk.h"

namespace millrace::reactor {

using HostId = uint32_t;

// How often what goes wrong: chances from 0 to 1. A test may change them at any time.
struct Faults {
  // ---- network
  int64_t latency_min_ns = 20'000;  // one way; loopback and Unix sockets have a few microseconds
  int64_t latency_max_ns = 400'000;
  uint32_t segment_max = 16384;    // bytes that arrive at once
  double tiny_segment = 0.05;      // a segment of 1 to 8 bytes
  double short_send = 0.05;        // a send that takes less than there is room for
  double multishot_end = 0.01;     // a multishot operation that ends without being asked to
  double connect_refused = 0;
  double connect_silent = 0;       // no answer: ETIMEDOUT after two minutes
  double connect_unreachable = 0;  // EHOSTUNREACH
  double reset = 0;                // per segment: both sides are reset
  double silence = 0;              // per segment: nothing arrives any more, in either direction
  double accept_aborted = 0;       // ECONNABORTED in place of a connection
  uint32_t handles_max = 1 << 16;  // per Io: EMFILE past it

  // ---- disk
  int64_t disk_latency_min_ns = 20'000;
  int64_t disk_latency_max_ns = 300'000;
  double disk_stall = 0;           // an operation that takes up to disk_stall_max_ns
  int64_t disk_stall_max_ns = 5'000'000'000;
  double short_read = 0.02;
  double short_write = 0.02;
  double read_error = 0;           // EIO
  double write_error = 0;          // EIO, after any part of the bytes
  double sync_error = 0;           // EIO, and what was not synced may never be
};

struct SimOptions {
  Faults faults;
  std::optional<BufferLayout> buffer_layout;  // by seed if not said
  uint32_t block_bytes = 65536;               // of incremental buffers
  uint32_t small_block_bytes = 4096;
  std::array<uint64_t, kBufferGroups> buffer_limits = {64 << 20, 64 << 20, 64 << 20, 16 << 20};  // by BufferGroup
  uint32_t socket_bytes_min = 16384;  // what a connection holds one way before the sender must wait
  uint32_t socket_bytes_max = 262144;
  uint64_t disk_bytes = uint64_t{1} << 40;
  bool direct_io = true;              // otherwise FileOptions.direct falls back to buffered
  uint32_t direct_alignment = 4096;   // of memory, offset and length
  int64_t wall_start_ms = 1'767'225'600'000;  // 2026-01-01
};

// What an Io is asked for, to let one of them fail.
enum class Call : uint8_t {
  listen, local_address, peer_address, open_socket, accept, connect, receive, send, allocate_buffer,
  open_file, file_size, allocate, read, write, sync, list_directory, make_directory, rename_file, remove_file,
  sync_directory, lock_file, free_space,
};
inline constexpr int kCalls = 22;
const char* to_string(Call call);

// The nth call of its kind by the host, counted from 1 since the fault was set, fails with `error`; with
// `from_then_on` every later one, too. A file operation fails without having done anything, a socket's before it
// has moved a byte. A failing allocate_buffer gives nothing: the pool is full.
struct SingleFault {
  HostId host = 0;
  Call call = Call::write;
  uint64_t nth = 1;
  int error = 0;
  bool from_then_on = false;
};

enum class Crash : uint8_t {
  process,  // killed: peers see resets, the disk loses nothing
  power,    // peers see silence, the disk keeps what was durable and some of the rest
};

class SimCore;
class SimNet;
class SimIo;

class SimWorld {
 public:
  explicit SimWorld(uint64_t seed, const SimOptions& options = {});
  // REQUIRES: every Io is gone.
  ~SimWorld();
  SimWorld(const SimWorld&) = delete;
  SimWorld& operator=(const SimWorld&) = delete;

  // A machine with IP addresses (the first of a family is its default source) and a disk. Loopback
  // addresses are every host's own.
  HostId add_host(std::initializer_list<std::string_view> addresses);
  // A shard of that host's process; the world outlives it. After a crash it starts a new process.
  std::unique_ptr<Io> make_io(HostId host);

  // Runs until `done` says so (true) or the virtual time is `deadline_ns` (false).
  bool run_until(const std::function<bool()>& done, int64_t deadline_ns);
  void run_for(int64_t ns);
  int64_t now() const;
  // Calls `call` at that time from now, between turns: for the script of a test.
  void after(int64_t ns, std::function<void()> call);
  // Chance for the test's own choices, apart from that of the network, the disks and the order of turns.
  Prng& chance() { return chance_; }
  uint64_t seed() const { return seed_; }
  // Sum over everything that has happened so far: equal for two runs of one seed.
  uint64_t fingerprint() const;

  Faults& faults();
  // Nothing: no fault any more.
  void set_single_fault(const std::optional<SingleFault>& fault);
  // How often the single fault has struck since it was set.
  uint64_t single_faults() const;
  // UTC as every host sees it, from now on.
  void step_wall(int64_t ms);
  // Between two hosts: while it is down nothing arrives, connects time out, and what is under way
  // arrives after it is up again.
  void set_link(HostId a, HostId b, bool up);
  // Every Io of the host's process stops for good: it completes nothing more, accepts no new work, and
  // its Ops are idle, so the objects built on it may be destroyed in any order, then the Io. A host
  // without power answers nothing until the next make_io. Not to be called from within a turn of one
  // of its own Ios: use after().
  void crash(HostId host, Crash kind);
  SimDisk& disk(HostId host);
  // Sockets, listeners and files that the host's process has open, to find leaks.
  size_t open_handles(HostId host) const;
  // Both ends of each connection that the host's process has begun and not closed, to check limits with.
  void each_outbound(HostId host, const std::function<void(const Address& local, const Address& peer)>& call) const;
  // Called when a process of a host begins a connection, to check rates with. `local` is empty unless it chose one.
  void on_connect(std::function<void(HostId host, const Address& local, const Address& peer)> call);
  // Called with what the network takes of a send, on a connection that the host has begun. `number` tells connections
  // apart.
  void on_send(std::function<void(HostId host, uint64_t number, const Address& local, const Address& peer,
                                  std::string_view octets)> call);

 private:
  bool step(int64_t deadline_ns);

  const uint64_t seed_;
  Prng chance_;
  std::unique_ptr<SimCore> core_;
};

}  // namespace millrace::reactor
