#include "reactor/sim_io.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "reactor/sim_net.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kTimerTick = 1'000'000;
constexpr unsigned kSlotBits = 17;  // of a handle; the rest tells a reused slot from a stale handle

uint64_t bytes_of(std::span<const iovec> parts) {
  uint64_t total = 0;
  for (const iovec& part : parts) total += part.iov_len;
  return total;
}

std::string gathered(std::span<const iovec> parts, uint64_t most) {
  std::string bytes;
  bytes.reserve(most);
  for (const iovec& part : parts) {
    size_t n = std::min<uint64_t>(part.iov_len, most - bytes.size());
    bytes.append(static_cast<const char*>(part.iov_base), n);
  }
  return bytes;
}

Failure<Error> failed(std::string what, int error) { return fail(what + ": " + strerror(error), error); }

}  // namespace

SimIo::SimIo(SimCore& core, HostId host, uint64_t seed) : core_(core), host_(host), chance_(seed) {
  const SimOptions& options = core.options;
  BufferLayout layout = options.buffer_layout.value_or(
      chance_.chance(0.5) ? BufferLayout::incremental : BufferLayout::small);
  uint32_t block =
      layout == BufferLayout::incremental ? options.block_bytes : options.small_block_bytes;
  for (size_t group = 0; group < pools_.size(); ++group) {
    pools_[group] =
        std::make_unique<SimBufferPool>(static_cast<SimBufferPool::Listener&>(*this), layout, block,
                                        options.buffer_limits[group]);
  }
  timers_.start(core.now);
  core.ios.push_back(this);
  core.hosts[host].ios.push_back(this);
}

SimIo::~SimIo() {
  if (!dead_) {
    auto& ios = core_.hosts[host_].ios;
    die();
    ios.erase(std::find(ios.begin(), ios.end(), this));
    if (ios.empty()) core_.hosts[host_].locks.clear();  // the process has ended
  }
  core_.ios.erase(std::find(core_.ios.begin(), core_.ios.end(), this));
  while (deferred_.pop_front()) {
  }
}

void SimIo::die() {
  ASSERT(!in_turn_);
  dead_ = true;
  core_.abandon_all(*this);
  core_.net->close_all(*this);
  for (HandleEntry& handle : handles_) {
    if (handle.kind == HandleEntry::Kind::file) disk().release(handle.file);
    handle.kind = HandleEntry::Kind::free;
  }
  open_handles_ = 0;
  ready_.clear();
  for (auto& parked : parked_) parked.clear();
  while (deferred_.pop_front()) {
  }
}

int64_t SimIo::wall_ms() const {
  return core_.options.wall_start_ms + core_.now / 1'000'000 + core_.wall_step_ms;
}

// ---- the turn

bool SimIo::runnable() const {
  if (dead_) return false;
  if (!ready_.empty() || !deferred_.empty()) return true;
  for (size_t group = 0; group < parked_.size(); ++group) {
    if (unpark_[group] && !parked_[group].empty()) return true;
  }
  return woken_.load(std::memory_order_acquire) || next_timer() <= core_.now;
}

int64_t SimIo::next_timer() const {
  if (dead_) return INT64_MAX;
  int64_t next = timers_.next();
  // The wheel may name a time that is early by less than a tick; when it has been asked to fire what is
  // due then already, the next tick is soon enough.
  if (next <= last_turn_) next = (last_turn_ / kTimerTick + 1) * kTimerTick;
  return next;
}

void SimIo::turn(int64_t longest_wait_ns) {
  ASSERT(!in_turn_);
  if (dead_) return;
  int64_t until = longest_wait_ns > INT64_MAX - core_.now ? INT64_MAX : core_.now + longest_wait_ns;
  core_.wait_for(*this, until);
  in_turn_ = true;
  bool woken = woken_.exchange(false, std::memory_order_acq_rel);
  bool wake_first = core_.order_chance.chance(0.5);
  if (woken && wake_first && on_wake) on_wake();
  gather();
  dispatch();
  if (woken && !wake_first && on_wake) on_wake();
  timers_.advance(core_.now);
  run_deferred();
  last_turn_ = core_.now;
  in_turn_ = false;
  // A turn takes time, so that a loop that keeps itself busy still reaches every deadline.
  core_.now += 500 + static_cast<int64_t>(core_.order_chance.below(1000));
}

void SimIo::make_ready(OpRecord& record) { ready_.push_back(core_.ref_of(record)); }

void SimIo::gather() {
  // Receives that wait for buffers go on in the order in which they came to wait.
  for (size_t group = 0; group < parked_.size(); ++group) {
    if (!unpark_[group]) continue;
    unpark_[group] = false;
    auto& parked = parked_[group];
    while (!parked.empty()) {
      RecordRef first = parked.front();
      parked.pop_front();
      OpRecord* record = core_.find(first);
      if (!record || !record->parked) continue;  // cancelled meanwhile
      record->parked = false;
      if (core_.net->gather_receive(*record)) continue;
      record->parked = true;
      parked.push_front(first);
      break;
    }
  }

  gathering_.swap(ready_);
  for (size_t left = gathering_.size(); left > 1; --left) {
    std::swap(gathering_[left - 1], gathering_[core_.order_chance.below(left)]);
  }
  for (RecordRef ref : gathering_) {
    OpRecord* record = core_.find(ref);
    if (!record) continue;
    record->ready = false;
    if (record->done) {
      deliver(*record, record->result, false);
    } else if (record->kind == OpRecord::Kind::accept) {
      core_.net->gather_accept(*record);
    } else if (record->kind == OpRecord::Kind::receive) {
      // Whoever waits already comes first.
      if (!parked_[static_cast<size_t>(record->group)].empty() && !record->cancelled) {
        park(*record);
      } else if (!core_.net->gather_receive(*record)) {
        park(*record);
      }
    }
  }
  gathering_.clear();
}

void SimIo::deliver(OpRecord& record, int32_t result, bool more, char* data, BufferRef buffer) {
  Delivery& delivery = deliveries_.emplace_back();
  delivery.op = record.op;
  delivery.handle = record.handle;
  delivery.completion.result = result;
  delivery.completion.more = more;
  delivery.completion.data = data;
  delivery.completion.buffer = std::move(buffer);
  core_.mix(static_cast<uint64_t>(core_.now) * 31 + static_cast<uint64_t>(record.kind) * 8 + more);
  core_.mix(static_cast<uint64_t>(host_) << 32 | static_cast<uint32_t>(result));
  if (!more) core_.release(record);
}

void SimIo::dispatch() {
  for (size_t i = 0; i < deliveries_.size(); ++i) {
    Op* op = deliveries_[i].op;
    Completion completion = std::move(deliveries_[i].completion);
    if (!completion.more) {
      HandleEntry* handle = find(deliveries_[i].handle);
      ASSERT(handle != nullptr && handle->pending > 0);
      --handle->pending;
    }
    op->complete(completion);
  }
  deliveries_.clear();
}

void SimIo::park(OpRecord& record) {
  record.parked = true;
  parked_[static_cast<size_t>(record.group)].push_back(core_.ref_of(record));
}

bool SimIo::may_allocate(SimBufferPool&) { return core_.fails(host_, Call::allocate_buffer) == 0; }

void SimIo::on_buffers_free(SimBufferPool& pool) {
  for (size_t group = 0; group < pools_.size(); ++group) {
    if (pools_[group].get() == &pool) unpark_[group] = true;
  }
}

// ---- handles

Handle SimIo::add_handle(HandleEntry entry) {
  if (open_handles_ >= core_.options.faults.handles_max) return kNoHandle;
  uint32_t slot;
  if (free_handles_.empty()) {
    slot = static_cast<uint32_t>(handles_.size());
    ASSERT(slot < 1u << kSlotBits);
    handles_.emplace_back();
  } else {
    slot = free_handles_.back();
    free_handles_.pop_back();
  }
  entry.generation = handles_[slot].generation;
  handles_[slot] = entry;
  ++open_handles_;
  return static_cast<Handle>(slot | static_cast<uint32_t>(entry.generation) << kSlotBits);
}

SimIo::HandleEntry* SimIo::find(Handle handle) {
  if (handle < 0) return nullptr;
  auto number = static_cast<uint32_t>(handle);
  uint32_t slot = number & ((1u << kSlotBits) - 1);
  if (slot >= handles_.size()) return nullptr;
  HandleEntry& found = handles_[slot];
  if (found.kind == HandleEntry::Kind::free || found.generation != number >> kSlotBits) {
    return nullptr;
  }
  return &found;
}

SimIo::HandleEntry& SimIo::entry(Handle handle, HandleEntry::Kind kind) {
  HandleEntry* found = find(handle);
  ASSERT(found != nullptr);  // used after it was closed, or never opened
  ASSERT(found->kind == kind);
  return *found;
}

void SimIo::free_handle(Handle handle) {
  HandleEntry* freed = find(handle);
  freed->kind = HandleEntry::Kind::free;
  freed->generation = (freed->generation + 1) & ((1u << (31 - kSlotBits)) - 1);
  free_handles_.push_back(static_cast<uint32_t>(handle) & ((1u << kSlotBits) - 1));
  --open_handles_;
}

Handle SimIo::add_socket(uint32_t connection, uint8_t side) {
  HandleEntry added;
  added.kind = HandleEntry::Kind::socket;
  added.target = connection;
  added.side = side;
  return add_handle(added);
}

Handle SimIo::add_listener(uint32_t listener) {
  HandleEntry added;
  added.kind = HandleEntry::Kind::listener;
  added.target = listener;
  return add_handle(added);
}

OpRecord& SimIo::begin(Op& op, OpRecord::Kind kind, Handle handle, const HandleEntry& entry) {
  op.begin();
  OpRecord& record = core_.at(core_.add(op, *this, kind));
  record.handle = handle;
  record.target = entry.target;
  record.side = entry.side;
  record.file = entry.file;
  ++find(handle)->pending;
  return record;
}

// Ends the operation at once, if it is the one that is to fail.
bool SimIo::fails(OpRecord& record, Call call) {
  int error = core_.fails(host_, call);
  if (error != 0) core_.finish(record, -error);
  return error != 0;
}

// ---- sockets

Result<Handle> SimIo::listen(const ListenOptions& options) {
  if (dead_) return fail("listen: the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::listen)) return failed("listen", error);
  return core_.net->listen(*this, options);
}

Result<Handle> SimIo::open_socket(const Address& peer, const Address& source) {
  if (dead_) return fail("socket: the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::open_socket)) return failed("socket", error);
  return core_.net->open_socket(*this, peer, source);
}

Result<Address> SimIo::local_address(Handle handle) {
  if (int error = core_.fails(host_, Call::local_address)) return failed("getsockname", error);
  if (dead_) return fail("getsockname: the host has crashed", EIO);
  HandleEntry* found = find(handle);
  ASSERT(found != nullptr);
  if (found->kind == HandleEntry::Kind::listener) {
    return core_.net->listener_address(found->target);
  }
  return core_.net->local_address(entry(handle, HandleEntry::Kind::socket).target, found->side);
}

Result<Address> SimIo::peer_address(Handle handle) {
  if (int error = core_.fails(host_, Call::peer_address)) return failed("getpeername", error);
  if (dead_) return fail("getpeername: the host has crashed", EIO);
  HandleEntry& socket = entry(handle, HandleEntry::Kind::socket);
  return core_.net->peer_address(socket.target, socket.side);
}

void SimIo::accept(Op& op, Handle listener) {
  if (dead_) return;
  HandleEntry& from = entry(listener, HandleEntry::Kind::listener);
  OpRecord& record = begin(op, OpRecord::Kind::accept, listener, from);
  if (!fails(record, Call::accept)) core_.net->start_accept(record);
}

void SimIo::connect(Op& op, Handle socket, const Address& peer) {
  if (dead_) return;
  HandleEntry& from = entry(socket, HandleEntry::Kind::socket);
  OpRecord& record = begin(op, OpRecord::Kind::connect, socket, from);
  if (!fails(record, Call::connect)) core_.net->start_connect(record, peer);
}

void SimIo::receive(Op& op, Handle socket, BufferGroup group) {
  if (dead_) return;
  HandleEntry& from = entry(socket, HandleEntry::Kind::socket);
  OpRecord& record = begin(op, OpRecord::Kind::receive, socket, from);
  record.group = group;
  if (!fails(record, Call::receive)) core_.net->start_receive(record);
}

void SimIo::send(Op& op, Handle socket, std::span<const iovec> parts) {
  if (dead_) return;
  HandleEntry& to = entry(socket, HandleEntry::Kind::socket);
  OpRecord& record = begin(op, OpRecord::Kind::send, socket, to);
  record.parts = parts;
  if (!fails(record, Call::send)) core_.net->start_send(record);
}

void SimIo::shutdown_send(Handle socket) {
  if (dead_) return;
  HandleEntry& to = entry(socket, HandleEntry::Kind::socket);
  core_.net->shutdown_send(to.target, to.side);
}

void SimIo::close(Handle handle, bool reset) {
  if (dead_) return;
  HandleEntry* closed = find(handle);
  ASSERT(closed != nullptr);       // closed twice
  ASSERT(closed->pending == 0);    // io.h rule 3
  switch (closed->kind) {
    case HandleEntry::Kind::socket:
      core_.net->close_socket(closed->target, closed->side, reset);
      break;
    case HandleEntry::Kind::listener:
      core_.net->close_listener(closed->target);
      break;
    case HandleEntry::Kind::file:
      disk().release(closed->file);
      break;
    case HandleEntry::Kind::free:
      UNREACHABLE();
  }
  free_handle(handle);
}

void SimIo::cancel(Op& op) {
  if (dead_ || !op.pending()) return;
  OpRecord* record = core_.record_of(op);
  if (!record || record->cancelled || record->done) return;  // its final completion is under way
  record->cancelled = true;
  switch (record->kind) {
    case OpRecord::Kind::accept:
    case OpRecord::Kind::connect:
    case OpRecord::Kind::receive:
    case OpRecord::Kind::send:
      core_.net->on_cancel(*record);
      return;
    case OpRecord::Kind::read:
    case OpRecord::Kind::write:
    case OpRecord::Kind::sync:
      // The kernel seldom manages to take a file operation back.
      if (core_.disk_chance.chance(0.25)) core_.finish(*record, -ECANCELED);
      return;
  }
}

void SimIo::poll(Op&, int, short) { UNREACHABLE(); }

// ---- files

Result<Handle> SimIo::open_file(const std::string& path, const FileOptions& options) {
  if (dead_) return fail("open " + path + ": the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::open_file)) return failed("open " + path, error);
  if (open_handles_ >= core_.options.faults.handles_max) {
    return fail("open " + path + ": too many open files", EMFILE);
  }
  auto file = disk().open(path, options.create);
  if (!file) return fail(file.error());
  HandleEntry added;
  added.kind = HandleEntry::Kind::file;
  added.file = *file;
  added.writable = options.write;
  added.direct = options.direct && core_.options.direct_io;
  return add_handle(added);
}

Alignment SimIo::alignment(Handle file) {
  if (dead_ || !entry(file, HandleEntry::Kind::file).direct) return {};
  return {core_.options.direct_alignment, core_.options.direct_alignment, true};
}

Result<uint64_t> SimIo::file_size(Handle file) {
  if (dead_) return fail("stat: the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::file_size)) return failed("stat", error);
  return disk().size(entry(file, HandleEntry::Kind::file).file);
}

Status SimIo::allocate(Handle file, uint64_t size) {
  if (dead_) return fail("allocate: the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::allocate)) return failed("allocate", error);
  HandleEntry& grown = entry(file, HandleEntry::Kind::file);
  ASSERT(grown.writable);
  return disk().resize(grown.file, size);
}

void SimIo::start_file_op(OpRecord& record) {
  const Faults& faults = core_.options.faults;
  Prng& chance = core_.disk_chance;
  int64_t spread = std::max<int64_t>(1, faults.disk_latency_max_ns - faults.disk_latency_min_ns);
  int64_t delay = faults.disk_latency_min_ns +
                  static_cast<int64_t>(chance.below(static_cast<uint64_t>(spread)));
  if (faults.disk_stall > 0 && chance.chance(faults.disk_stall)) {
    delay += static_cast<int64_t>(chance.below(static_cast<uint64_t>(faults.disk_stall_max_ns)));
  }
  RecordRef ref = core_.ref_of(record);
  core_.schedule(delay, Event::Kind::progress, ref.index, ref.generation);
}

void SimIo::write(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset,
                  bool durable) {
  if (dead_) return;
  HandleEntry& to = entry(file, HandleEntry::Kind::file);
  ASSERT(to.writable);
  OpRecord& record = begin(op, OpRecord::Kind::write, file, to);
  record.parts = parts;
  record.offset = offset;
  record.durable = durable;
  if (!fails(record, Call::write)) start_file_op(record);
}

void SimIo::read(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset) {
  if (dead_) return;
  HandleEntry& from = entry(file, HandleEntry::Kind::file);
  OpRecord& record = begin(op, OpRecord::Kind::read, file, from);
  record.parts = parts;
  record.offset = offset;
  if (!fails(record, Call::read)) start_file_op(record);
}

void SimIo::sync(Op& op, Handle file) {
  if (dead_) return;
  OpRecord& record = begin(op, OpRecord::Kind::sync, file, entry(file, HandleEntry::Kind::file));
  if (!fails(record, Call::sync)) start_file_op(record);
}

void SimIo::sync_names(Op& op, Handle directory) { sync(op, directory); }

void SimIo::perform(OpRecord& record) {
  if (record.done) return;  // cancelled
  const Faults& faults = core_.options.faults;
  Prng& chance = core_.disk_chance;
  if (record.kind == OpRecord::Kind::sync) {
    if (chance.chance(faults.sync_error)) {
      disk().fail_sync(record.file, chance);
      core_.finish(record, -EIO);
    } else {
      disk().sync(record.file);
      core_.finish(record, 0);
    }
    return;
  }

  bool writing = record.kind == OpRecord::Kind::write;
  uint64_t total = bytes_of(record.parts);
  uint64_t unit = 1;
  if (HandleEntry* file = find(record.handle); file->direct) {
    unit = core_.options.direct_alignment;
    ASSERT(record.offset % unit == 0);
    for (const iovec& part : record.parts) {
      ASSERT(reinterpret_cast<uintptr_t>(part.iov_base) % unit == 0 && part.iov_len % unit == 0);
    }
  }
  uint64_t wanted = total;
  bool failed = chance.chance(writing ? faults.write_error : faults.read_error);
  if (failed && writing) {
    wanted = chance.below(total / unit + 1) * unit;  // what reached the disk before it failed
  } else if (failed) {
    core_.finish(record, -EIO);
    return;
  } else if (total > unit && chance.chance(writing ? faults.short_write : faults.short_read)) {
    wanted = (1 + chance.below(total / unit)) * unit;
  }

  int64_t moved = 0;
  if (writing) {
    // One write of the whole: its parts are not apart on the disk.
    std::string bytes = gathered(record.parts, wanted);
    if (!bytes.empty()) {
      moved = disk().write(record.file, record.offset, std::move(bytes), record.durable && !failed);
    }
    if (failed) moved = -EIO;
  } else {
    for (const iovec& part : record.parts) {
      size_t n = std::min<uint64_t>(part.iov_len, wanted - static_cast<uint64_t>(moved));
      size_t got = disk().read(record.file, record.offset + static_cast<uint64_t>(moved),
                               static_cast<char*>(part.iov_base), n);
      moved += static_cast<int64_t>(got);
      if (got < part.iov_len) break;
    }
  }
  core_.finish(record, static_cast<int32_t>(moved));
}

void SimIo::catch_write(OpRecord& record, Crash kind) {
  // The power cut tears what has not been synced, this with the rest. A killed process's write has
  // gone to the disk, or has not.
  if (kind == Crash::process && core_.disk_chance.chance(0.5)) return;
  std::string bytes = gathered(record.parts, bytes_of(record.parts));
  if (!bytes.empty()) disk().write(record.file, record.offset, std::move(bytes), false);
}

Result<std::vector<std::string>> SimIo::list_directory(const std::string& path) {
  if (dead_) return fail("list " + path + ": the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::list_directory)) return failed("list " + path, error);
  return disk().list(path);
}

Status SimIo::make_directory(const std::string& path) {
  if (dead_) return fail("mkdir " + path + ": the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::make_directory)) return failed("mkdir " + path, error);
  return disk().make_directory(path);
}

Status SimIo::rename_file(const std::string& from, const std::string& to) {
  if (dead_) return fail("rename " + from + ": the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::rename_file)) return failed("rename " + from, error);
  return disk().rename(from, to);
}

Status SimIo::remove_file(const std::string& path) {
  if (dead_) return fail("remove " + path + ": the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::remove_file)) return failed("remove " + path, error);
  return disk().remove(path);
}

Status SimIo::sync_directory(const std::string& path) {
  if (dead_) return fail("sync " + path + ": the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::sync_directory)) return failed("sync " + path, error);
  if (core_.disk_chance.chance(core_.options.faults.sync_error)) {
    return fail("sync " + path + ": " + strerror(EIO), EIO);
  }
  return disk().sync_directory(path);
}

Status SimIo::lock_file(const std::string& path) {
  if (dead_) return fail("lock " + path + ": the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::lock_file)) return failed("lock " + path, error);
  if (!disk().exists(path)) {
    auto file = disk().open(path, true);
    if (!file) return fail(file.error());
    disk().release(*file);
  }
  if (!core_.hosts[host_].locks.insert(path).second) {
    return fail("lock " + path + ": another process holds it", EWOULDBLOCK);
  }
  return success();
}

Result<uint64_t> SimIo::free_space(const std::string&) {
  if (dead_) return fail("statfs: the host has crashed", EIO);
  if (int error = core_.fails(host_, Call::free_space)) return failed("statfs", error);
  return disk().free_space();
}

}  // namespace millrace::reactor
