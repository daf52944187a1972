// What the parts of the simulator share: the clock, the heap of events to come, the operations in
// flight, the hosts. Internal to the simulator; tests use sim.h.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/prng.h"
#include "reactor/sim.h"

namespace millrace::reactor {

class SimIo;
class SimNet;

// One operation in flight. Referred to by index and generation, so that an event for one that has
// ended meanwhile is recognised.
struct OpRecord {
  enum class Kind : uint8_t { accept, connect, receive, send, read, write, sync };
  Op* op = nullptr;  // null: free
  SimIo* io = nullptr;
  uint32_t generation = 0;
  Kind kind = Kind::accept;
  bool cancelled = false;
  bool ready = false;   // on its Io's list of what to complete in the next turn
  bool parked = false;  // a receive that waits for buffers
  bool done = false;    // `result` holds the final result
  bool durable = false;
  uint8_t side = 0;  // of the connection
  BufferGroup group = BufferGroup::ingress;
  Handle handle = kNoHandle;
  uint32_t target = 0;  // connection or listener
  int32_t result = 0;
  SimDisk::FileId file = 0;
  uint64_t offset = 0;
  std::span<const iovec> parts;
};

struct RecordRef {
  uint32_t index = UINT32_MAX;
  uint32_t generation = 0;
  explicit operator bool() const { return index != UINT32_MAX; }
};

struct SimHost {
  std::vector<Address> addresses;
  SimDisk disk;
  std::vector<SimIo*> ios;  // of the running process
  std::set<std::string> locks;
  bool powered = true;
};

struct Event {
  enum class Kind : uint8_t { call, progress, arrival, connect, connected, time_out };
  int64_t at;
  uint64_t sequence;
  Kind kind;
  uint8_t side;
  uint32_t index;  // of a record, connection or call
  uint32_t generation;
};

class SimCore {
 public:
  SimCore(uint64_t seed, const SimOptions& options);
  ~SimCore();

  // ---- time
  int64_t now = 0;
  int64_t wall_step_ms = 0;
  void schedule(int64_t delay_ns, Event::Kind kind, uint32_t index, uint32_t generation,
                uint8_t side = 0);
  void call_after(int64_t delay_ns, std::function<void()> call);
  void run_due_events();
  int64_t next_event() const { return events_.empty() ? INT64_MAX : events_.front().at; }
  // The next moment at which anything happens, timers included.
  int64_t next_moment() const;
  // Lets virtual time pass until `io` has something to do, at most to `until`.
  void wait_for(const SimIo& io, int64_t until);

  // ---- operations in flight
  RecordRef add(Op& op, SimIo& io, OpRecord::Kind kind);
  OpRecord& at(RecordRef ref);
  OpRecord* find(RecordRef ref);  // null: it has ended
  RecordRef ref_of(const OpRecord& record) const;
  void release(OpRecord& record);
  // The Io completes it, or looks what there is to complete, in its next turn.
  void make_ready(OpRecord& record);
  void finish(OpRecord& record, int32_t result);
  void catch_writes(SimIo& io, Crash kind);
  void abandon_all(SimIo& io);
  // The record that `op` points at, null when it has none (any more).
  OpRecord* record_of(Op& op);

  void mix(uint64_t value) { fingerprint = (fingerprint ^ value) * 0x9e3779b97f4a7c15 + 0x632be59b; }

  SimOptions options;
  Prng net_chance;
  Prng disk_chance;
  Prng order_chance;
  uint64_t fingerprint = 0;
  std::vector<SimHost> hosts;
  std::vector<SimIo*> ios;  // all that exist, of crashed processes too
  std::unique_ptr<SimNet> net;
  std::function<void(HostId, const Address&, const Address&)> on_connect;
  std::function<void(HostId, uint64_t, const Address&, const Address&, std::string_view)> on_send;
  std::optional<SingleFault> single_fault;
  uint64_t single_calls = 0, single_faults = 0;
  // The error with which this call of the host is to fail, or 0.
  int fails(HostId host, Call call);

 private:
  // Indices stay; a deque-like slab, because completions start operations while one is looked at.
  static constexpr size_t kChunk = 256;
  OpRecord& record(uint32_t index) { return chunks_[index / kChunk][index % kChunk]; }
  std::vector<std::unique_ptr<OpRecord[]>> chunks_;
  std::vector<uint32_t> free_records_;
  std::vector<Event> events_;  // binary heap, earliest first
  uint64_t sequence_ = 0;
  std::vector<std::function<void()>> calls_;
  std::vector<uint32_t> free_calls_;
};

}  // namespace millrace::reactor
