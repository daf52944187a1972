#include "reactor/sim_core.h"

#include <algorithm>
#include <cstring>

#include "reactor/sim_io.h"
#include "reactor/sim_net.h"

namespace millrace::reactor {
namespace {

// For the standard heap functions, which keep the greatest first.
bool later(const Event& a, const Event& b) {
  return a.at != b.at ? a.at > b.at : a.sequence > b.sequence;
}

}  // namespace

SimCore::SimCore(uint64_t seed, const SimOptions& given)
    : options(given),
      net_chance(seed * 4 + 1),
      disk_chance(seed * 4 + 2),
      order_chance(seed * 4 + 3),
      net(std::make_unique<SimNet>(*this)) {}

SimCore::~SimCore() { ASSERT(ios.empty()); }

void SimCore::schedule(int64_t delay_ns, Event::Kind kind, uint32_t index, uint32_t generation,
                       uint8_t side) {
  events_.push_back({now + delay_ns, sequence_++, kind, side, index, generation});
  std::push_heap(events_.begin(), events_.end(), later);
}

void SimCore::call_after(int64_t delay_ns, std::function<void()> call) {
  uint32_t index;
  if (free_calls_.empty()) {
    index = static_cast<uint32_t>(calls_.size());
    calls_.push_back(std::move(call));
  } else {
    index = free_calls_.back();
    free_calls_.pop_back();
    calls_[index] = std::move(call);
  }
  schedule(delay_ns, Event::Kind::call, index, 0);
}

void SimCore::run_due_events() {
  while (!events_.empty() && events_.front().at <= now) {
    std::pop_heap(events_.begin(), events_.end(), later);
    Event event = events_.back();
    events_.pop_back();
    switch (event.kind) {
      case Event::Kind::call: {
        std::function<void()> call = std::move(calls_[event.index]);
        calls_[event.index] = nullptr;
        free_calls_.push_back(event.index);
        call();
        break;
      }
      case Event::Kind::progress:
        if (OpRecord* moved = find({event.index, event.generation})) {
          if (moved->kind == OpRecord::Kind::send) {
            net->on_progress(*moved);
          } else {
            moved->io->perform(*moved);
          }
        }
        break;
      case Event::Kind::arrival:
      case Event::Kind::connect:
      case Event::Kind::connected:
      case Event::Kind::time_out:
        net->on_event(event);
        break;
    }
  }
}

int64_t SimCore::next_moment() const {
  int64_t next = next_event();
  for (const SimIo* io : ios) next = std::min(next, io->next_timer());
  return next;
}

void SimCore::wait_for(const SimIo& io, int64_t until) {
  run_due_events();
  while (!io.runnable() && now < until) {
    now = std::max(now, std::min({until, next_event(), io.next_timer()}));
    run_due_events();
  }
}

RecordRef SimCore::add(Op& op, SimIo& io, OpRecord::Kind kind) {
  if (free_records_.empty()) {
    auto first = static_cast<uint32_t>(chunks_.size() * kChunk);
    chunks_.push_back(std::make_unique<OpRecord[]>(kChunk));
    for (uint32_t i = kChunk; i-- > 0;) free_records_.push_back(first + i);
  }
  uint32_t index = free_records_.back();
  free_records_.pop_back();
  OpRecord& added = record(index);
  uint32_t generation = added.generation + 1;
  added = OpRecord();
  added.op = &op;
  added.io = &io;
  added.generation = generation;
  added.kind = kind;
  RecordRef ref{index, generation};
  static_assert(sizeof ref <= sizeof op.scratch.bytes);
  std::memcpy(op.scratch.bytes, &ref, sizeof ref);
  return ref;
}

OpRecord* SimCore::find(RecordRef ref) {
  if (ref.index >= chunks_.size() * kChunk) return nullptr;
  OpRecord& found = record(ref.index);
  return found.op != nullptr && found.generation == ref.generation ? &found : nullptr;
}

OpRecord& SimCore::at(RecordRef ref) {
  OpRecord* found = find(ref);
  ASSERT(found != nullptr);
  return *found;
}

OpRecord* SimCore::record_of(Op& op) {
  RecordRef ref;
  std::memcpy(&ref, op.scratch.bytes, sizeof ref);
  OpRecord* found = find(ref);
  return found && found->op == &op ? found : nullptr;
}

RecordRef SimCore::ref_of(const OpRecord& given) const {
  RecordRef ref;
  std::memcpy(&ref, given.op->scratch.bytes, sizeof ref);
  return ref;
}

void SimCore::release(OpRecord& released) {
  RecordRef ref = ref_of(released);
  released.op = nullptr;
  free_records_.push_back(ref.index);
}

void SimCore::make_ready(OpRecord& record) {
  if (record.ready || record.parked) return;
  record.ready = true;
  record.io->make_ready(record);
}

void SimCore::finish(OpRecord& record, int32_t result) {
  ASSERT(!record.done);
  record.done = true;
  record.result = result;
  make_ready(record);
}

void SimCore::catch_writes(SimIo& io, Crash kind) {
  for (uint32_t index = 0; index < chunks_.size() * kChunk; ++index) {
    OpRecord& caught = record(index);
    if (caught.op == nullptr || caught.io != &io || caught.done) continue;
    if (caught.kind == OpRecord::Kind::write) io.catch_write(caught, kind);
  }
}

void SimCore::abandon_all(SimIo& io) {
  for (uint32_t index = 0; index < chunks_.size() * kChunk; ++index) {
    OpRecord& abandoned = record(index);
    if (abandoned.op == nullptr || abandoned.io != &io) continue;
    abandoned.op->abandon();
    release(abandoned);
  }
}

// ---- the world

SimWorld::SimWorld(uint64_t seed, const SimOptions& options)
    : seed_(seed), chance_(seed), core_(std::make_unique<SimCore>(seed, options)) {}

SimWorld::~SimWorld() = default;

HostId SimWorld::add_host(std::initializer_list<std::string_view> addresses) {
  SimHost host{.addresses = {}, .disk = SimDisk(core_->options.disk_bytes), .ios = {}, .locks = {}};
  for (std::string_view text : addresses) {
    auto address = Address::parse_host(text, 0);
    ASSERT(address.ok());
    host.addresses.push_back(*address);
  }
  core_->hosts.push_back(std::move(host));
  return static_cast<HostId>(core_->hosts.size() - 1);
}

std::unique_ptr<Io> SimWorld::make_io(HostId host) {
  ASSERT(host < core_->hosts.size());
  core_->hosts[host].powered = true;
  return std::make_unique<SimIo>(*core_, host, core_->order_chance.next());
}

bool SimWorld::step(int64_t deadline_ns) {
  core_->run_due_events();
  return core_->now < deadline_ns;
}

bool SimWorld::run_until(const std::function<bool()>& done, int64_t deadline_ns) {
  std::vector<SimIo*> runnable;
  if (done()) return true;
  for (;;) {
    if (!step(deadline_ns)) return done();
    if (done()) return true;  // a call of the test's script may have done it
    runnable.clear();
    for (SimIo* io : core_->ios) {
      if (io->runnable()) runnable.push_back(io);
    }
    if (runnable.empty()) {
      core_->now = std::max(core_->now, std::min(core_->next_moment(), deadline_ns));
      continue;
    }
    for (size_t left = runnable.size(); left > 0; --left) {
      size_t pick = core_->order_chance.below(left);
      SimIo* io = runnable[pick];
      runnable[pick] = runnable[left - 1];
      // An earlier turn of this round may have destroyed it.
      if (std::find(core_->ios.begin(), core_->ios.end(), io) == core_->ios.end()) continue;
      io->turn(0);
      if (done()) return true;
    }
  }
}

void SimWorld::run_for(int64_t ns) {
  run_until([] { return false; }, core_->now + ns);
}

int64_t SimWorld::now() const { return core_->now; }

void SimWorld::after(int64_t ns, std::function<void()> call) {
  core_->call_after(ns, std::move(call));
}

uint64_t SimWorld::fingerprint() const { return core_->fingerprint; }
Faults& SimWorld::faults() { return core_->options.faults; }
void SimWorld::step_wall(int64_t ms) { core_->wall_step_ms += ms; }
void SimWorld::set_link(HostId a, HostId b, bool up) { core_->net->set_link(a, b, up); }
SimDisk& SimWorld::disk(HostId host) { return core_->hosts[host].disk; }

size_t SimWorld::open_handles(HostId host) const {
  size_t total = 0;
  for (const SimIo* io : core_->hosts[host].ios) total += io->open_handles();
  return total;
}

void SimWorld::each_outbound(HostId host, const std::function<void(const Address&, const Address&)>& call) const {
  core_->net->each_outbound(host, call);
}

int SimCore::fails(HostId host, Call call) {
  if (!single_fault || single_fault->call != call || single_fault->host != host) return 0;
  ++single_calls;
  if (single_calls != single_fault->nth && !(single_fault->from_then_on && single_calls > single_fault->nth)) return 0;
  ++single_faults;
  return single_fault->error;
}

const char* to_string(Call call) {
  static constexpr const char* kNames[] = {
      "listen", "local_address", "peer_address", "open_socket", "accept", "connect", "receive", "send", "allocate_buffer", "open_file", "file_size",
      "allocate", "read", "write", "sync", "list_directory", "make_directory", "rename_file", "remove_file",
      "sync_directory", "lock_file", "free_space"};
  static_assert(std::size(kNames) == kCalls);
  return kNames[static_cast<size_t>(call)];
}

void SimWorld::set_single_fault(const std::optional<SingleFault>& fault) {
  core_->single_fault = fault;
  core_->single_calls = core_->single_faults = 0;
}
uint64_t SimWorld::single_faults() const { return core_->single_faults; }

void SimWorld::on_connect(std::function<void(HostId, const Address&, const Address&)> call) {
  core_->on_connect = std::move(call);
}

void SimWorld::on_send(
    std::function<void(HostId, uint64_t, const Address&, const Address&, std::string_view)> call) {
  core_->on_send = std::move(call);
}

void SimWorld::crash(HostId host, Crash kind) {
  SimHost& crashed = core_->hosts[host];
  std::vector<SimIo*> ios = std::move(crashed.ios);
  crashed.ios.clear();
  if (kind == Crash::power) {
    crashed.powered = false;
    for (SimIo* io : ios) core_->net->fall_silent(*io);
  }
  // First the writes that were under way in every shard, then the cut.
  for (SimIo* io : ios) core_->catch_writes(*io, kind);
  for (SimIo* io : ios) io->die();
  crashed.locks.clear();
  if (kind == Crash::power) {
    crashed.disk.power_cut(core_->disk_chance);
  } else {
    crashed.disk.process_end();
  }
}

}  // namespace millrace::reactor
