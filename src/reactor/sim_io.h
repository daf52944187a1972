// One simulated shard's Io: handles, buffers, and the turn that completes what the network and the disk
// have made ready. Internal to the simulator; tests use sim.h.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <vector>

#include "reactor/sim_core.h"

namespace millrace::reactor {

class SimIo final : public Io, private SimBufferPool::Listener {
 public:
  SimIo(SimCore& core, HostId host, uint64_t seed);
  ~SimIo() override;

  int64_t now() const override { return core_.now; }
  int64_t wall_ms() const override;
  uint64_t random() override { return chance_.next(); }
  void turn(int64_t longest_wait_ns) override;
  void wake() override { woken_.store(true, std::memory_order_release); }

  Result<Handle> listen(const ListenOptions& options) override;
  Result<Address> local_address(Handle handle) override;
  Result<Address> peer_address(Handle handle) override;
  Result<Handle> open_socket(const Address& peer, const Address& source) override;
  void accept(Op& op, Handle listener) override;
  void connect(Op& op, Handle socket, const Address& peer) override;
  void receive(Op& op, Handle socket, BufferGroup group) override;
  void send(Op& op, Handle socket, std::span<const iovec> parts) override;
  void shutdown_send(Handle socket) override;
  void close(Handle handle, bool reset) override;
  void cancel(Op& op) override;
  void poll(Op& op, int descriptor, short events) override;

  BufferPool& buffers(BufferGroup group) override { return pool(group); }

  Result<Handle> open_file(const std::string& path, const FileOptions& options) override;
  Alignment alignment(Handle file) override;
  Result<uint64_t> file_size(Handle file) override;
  Status allocate(Handle file, uint64_t size) override;
  void write(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset,
             bool durable) override;
  void read(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset) override;
  void sync(Op& op, Handle file) override;
  void sync_names(Op& op, Handle directory) override;
  Result<std::vector<std::string>> list_directory(const std::string& path) override;
  Status make_directory(const std::string& path) override;
  Status rename_file(const std::string& from, const std::string& to) override;
  Status remove_file(const std::string& path) override;
  Status sync_directory(const std::string& path) override;
  Status lock_file(const std::string& path) override;
  Result<uint64_t> free_space(const std::string& path) override;

  // ---- for the simulator
  HostId host() const { return host_; }
  bool dead() const { return dead_; }
  bool runnable() const;
  // When its next timer wants a turn.
  int64_t next_timer() const;
  void make_ready(OpRecord& record);
  // A number for a new connection, or kNoHandle: too many are open.
  Handle add_socket(uint32_t connection, uint8_t side);
  Handle add_listener(uint32_t listener);
  SimBufferPool& pool(BufferGroup group) { return *pools_[static_cast<size_t>(group)]; }
  void park(OpRecord& record);
  size_t open_handles() const { return open_handles_; }
  // A completion to be delivered in this turn. The record is released by the final one.
  void deliver(OpRecord& record, int32_t result, bool more, char* data = nullptr,
               BufferRef buffer = {});
  // The disk does its part of a file operation.
  void perform(OpRecord& record);
  // A crash catches a write under way.
  void catch_write(OpRecord& record, Crash kind);
  void die();

 private:
  struct HandleEntry {
    enum class Kind : uint8_t { free, socket, listener, file };
    Kind kind = Kind::free;
    uint8_t side = 0;
    bool direct = false;
    bool writable = false;
    uint16_t generation = 0;
    uint32_t pending = 0;  // operations whose final completion has not been delivered
    uint32_t target = 0;   // connection or listener
    SimDisk::FileId file = 0;
  };
  struct Delivery {
    Op* op;
    Handle handle;
    Completion completion;
  };

  Handle add_handle(HandleEntry entry);
  HandleEntry& entry(Handle handle, HandleEntry::Kind kind);
  HandleEntry* find(Handle handle);
  void free_handle(Handle handle);
  OpRecord& begin(Op& op, OpRecord::Kind kind, Handle handle, const HandleEntry& entry);
  void start_file_op(OpRecord& record);
  bool fails(OpRecord& record, Call call);
  void gather();
  void dispatch();
  void on_buffers_free(SimBufferPool& pool) override;
  bool may_allocate(SimBufferPool& pool) override;
  SimDisk& disk() { return core_.hosts[host_].disk; }

  SimCore& core_;
  const HostId host_;
  Prng chance_;
  std::atomic<bool> woken_{false};
  bool dead_ = false;
  bool in_turn_ = false;
  int64_t last_turn_ = -1;
  std::array<std::unique_ptr<SimBufferPool>, kBufferGroups> pools_;
  std::array<std::deque<RecordRef>, kBufferGroups> parked_;
  std::array<bool, kBufferGroups> unpark_{};  // buffers have come back since the last look
  std::vector<HandleEntry> handles_;
  std::vector<uint32_t> free_handles_;
  size_t open_handles_ = 0;
  std::vector<RecordRef> ready_;
  std::vector<RecordRef> gathering_;
  std::vector<Delivery> deliveries_;
};

}  // namespace millrace::reactor
