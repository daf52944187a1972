#include "reactor/sim_net.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "reactor/sim_io.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kConnectTimeOut = 127 * kSecond;   // Linux: tcp_syn_retries 6
constexpr int64_t kSilenceTimeOut = 924 * kSecond;   // Linux: tcp_retries2 15
constexpr uint32_t kMostReceived = 65536;

bool is_any(const Address& address) {
  std::string_view octets = address.octets();
  return !octets.empty() && octets.find_first_not_of('\0') == std::string_view::npos;
}

bool is_loopback(const Address& address) {
  std::string_view octets = address.octets();
  if (address.is_ipv4()) return octets[0] == 127;
  if (!address.is_ipv6()) return false;
  return octets.back() == 1 && octets.substr(0, 15).find_first_not_of('\0') == std::string_view::npos;
}

Address with_port(Address address, uint16_t port) {
  address.set_port(port);
  return address;
}

}  // namespace

// ---- pipes

void SimNet::Pipe::push(const char* from, size_t count) {
  if (size + count > bytes.size()) {
    size_t wanted = std::max<size_t>(bytes.size() * 2, 4096);
    while (wanted < size + count) wanted *= 2;
    std::vector<char> grown(wanted);
    size_t head = std::min(size, bytes.size() - first);
    if (head > 0) std::memcpy(grown.data(), bytes.data() + first, head);
    if (size > head) std::memcpy(grown.data() + head, bytes.data(), size - head);
    bytes = std::move(grown);
    first = 0;
  }
  size_t at = (first + size) % bytes.size();
  size_t head = std::min(count, bytes.size() - at);
  std::memcpy(bytes.data() + at, from, head);
  std::memcpy(bytes.data(), from + head, count - head);
  size += count;
}

void SimNet::Pipe::pop(char* to, size_t count) {
  ASSERT(count <= arrived);
  size_t head = std::min(count, bytes.size() - first);
  std::memcpy(to, bytes.data() + first, head);
  std::memcpy(to + head, bytes.data(), count - head);
  arrived -= count;
  drop(count);
}

void SimNet::Pipe::drop(size_t count) {
  if (count == 0) return;
  ASSERT(count <= size);
  first = (first + count) % bytes.size();
  size -= count;
}

// ---- listeners

std::string SimNet::key_of(HostId host, const Address& address) {
  return std::to_string(host) + ' ' + address.to_string();
}

uint16_t SimNet::next_port() {
  last_port_ = last_port_ >= 60999 ? 32768 : static_cast<uint16_t>(last_port_ + 1);
  return last_port_;
}

Result<Handle> SimNet::listen(SimIo& io, const ListenOptions& options) {
  Address address = options.address;
  const auto& own = core_.hosts[io.host()].addresses;
  if (!address.is_unix() && !is_any(address) && !is_loopback(address) &&
      std::none_of(own.begin(), own.end(),
                   [&](const Address& a) { return a.octets() == address.octets(); })) {
    return fail("listen on " + address.to_string() + ": " + strerror(EADDRNOTAVAIL), EADDRNOTAVAIL);
  }
  if (!address.is_unix() && address.port() == 0) address.set_port(next_port());
  std::string key = key_of(io.host(), address);
  auto& same = listening_[key];
  if (!same.empty() && !(options.reuse_port && listeners_[same.front()]->reuse_port)) {
    return fail("listen on " + address.to_string() + ": " + strerror(EADDRINUSE), EADDRINUSE);
  }

  uint32_t index;
  if (free_listeners_.empty()) {
    index = static_cast<uint32_t>(listeners_.size());
    listeners_.emplace_back();
  } else {
    index = free_listeners_.back();
    free_listeners_.pop_back();
  }
  Handle handle = io.add_listener(index);
  if (handle == kNoHandle) {
    free_listeners_.push_back(index);
    return fail("listen on " + address.to_string() + ": " + strerror(EMFILE), EMFILE);
  }
  listeners_[index] = std::make_unique<Listener>(
      Listener{&io, address, io.host(), key, options.reuse_port,
               static_cast<size_t>(std::max(1, options.backlog)), {}, {}});
  same.push_back(index);
  return handle;
}

void SimNet::close_listener(uint32_t index) {
  Listener& closed = *listeners_[index];
  auto& same = listening_[closed.key];
  same.erase(std::find(same.begin(), same.end(), index));
  if (same.empty()) listening_.erase(closed.key);
  for (auto [waiting, generation] : closed.backlog) {
    Connection& c = connection(waiting);
    if (c.generation != generation || c.state != Connection::State::established) continue;
    if (c.silent) {
      c.sides[1].closed = true;
      free_if_done(waiting);
    } else {
      close_socket(waiting, 1, true);
    }
  }
  listeners_[index] = nullptr;
  free_listeners_.push_back(index);
}

bool SimNet::find_listener(HostId host, const Address& address, uint32_t* listener) {
  auto found = listening_.find(key_of(host, address));
  if (found == listening_.end() && !address.is_unix()) {
    static constexpr uint8_t kAny[16] = {};
    Address any = address.is_ipv4() ? Address::ipv4(0, address.port())
                                    : Address::ipv6(kAny, address.port());
    found = listening_.find(key_of(host, any));
  }
  if (found == listening_.end()) return false;
  *listener = found->second[core_.net_chance.below(found->second.size())];
  return true;
}

void SimNet::start_accept(OpRecord& record) {
  Listener& listener = *listeners_[record.target];
  ASSERT(!listener.accept);
  listener.accept = core_.ref_of(record);
  if (!listener.backlog.empty()) core_.make_ready(record);
}

void SimNet::gather_accept(OpRecord& record) {
  Listener& listener = *listeners_[record.target];
  const Faults& faults = core_.options.faults;
  SimIo& io = *record.io;
  bool data_first = !record.cancelled || core_.net_chance.chance(0.5);
  for (int most = 16; data_first && most > 0 && !listener.backlog.empty(); --most) {
    auto [index, generation] = listener.backlog.front();
    Connection& c = connection(index);
    if (c.generation != generation || c.sides[1].closed) {
      listener.backlog.pop_front();
      continue;
    }
    int32_t result;
    if (!c.unix_socket && core_.net_chance.chance(faults.accept_aborted)) {
      listener.backlog.pop_front();
      close_socket(index, 1, true);
      result = -ECONNABORTED;
    } else if (Handle handle = io.add_socket(index, 1); handle == kNoHandle) {
      result = -EMFILE;  // the connection stays in the backlog
    } else {
      listener.backlog.pop_front();
      c.sides[1].io = &io;
      result = handle;
    }
    bool more = result >= 0 && !core_.net_chance.chance(faults.multishot_end);
    if (!more) listener.accept = {};
    io.deliver(record, result, more);
    if (!more) return;
  }
  if (record.cancelled) {
    listener.accept = {};
    io.deliver(record, -ECANCELED, false);
  } else if (!listener.backlog.empty()) {
    core_.make_ready(record);
  }
}

// ---- connections

uint32_t SimNet::new_connection() {
  uint32_t index;
  if (free_connections_.empty()) {
    index = static_cast<uint32_t>(connections_.size());
    connections_.push_back(std::make_unique<Connection>());
  } else {
    index = free_connections_.back();
    free_connections_.pop_back();
  }
  uint32_t generation = connection(index).generation;
  connection(index) = Connection();
  Connection& c = connection(index);
  c.generation = generation + 1;
  c.state = Connection::State::fresh;
  for (Side& side : c.sides) {
    uint32_t spread = core_.options.socket_bytes_max - core_.options.socket_bytes_min + 1;
    side.out.capacity = core_.options.socket_bytes_min +
                        static_cast<uint32_t>(core_.net_chance.below(spread));
  }
  return index;
}

void SimNet::free_connection(uint32_t index) {
  Connection& c = connection(index);
  c.state = Connection::State::free;
  ++c.generation;  // what is scheduled for it is void
  for (Side& side : c.sides) side = Side();
  free_connections_.push_back(index);
}

void SimNet::free_if_done(uint32_t index) {
  Connection& c = connection(index);
  if (c.state == Connection::State::free) return;
  if (c.sides[0].closed && (c.sides[1].closed || c.state != Connection::State::established)) {
    free_connection(index);
  }
}

int64_t SimNet::latency(const Connection& c) {
  const Faults& faults = core_.options.faults;
  if (c.local) return 2'000 + static_cast<int64_t>(core_.net_chance.below(15'000));
  int64_t spread = std::max<int64_t>(1, faults.latency_max_ns - faults.latency_min_ns);
  return faults.latency_min_ns +
         static_cast<int64_t>(core_.net_chance.below(static_cast<uint64_t>(spread)));
}

bool SimNet::host_of(const Address& address, HostId from, HostId* host) const {
  if (address.is_unix() || is_loopback(address) || is_any(address)) {
    *host = from;
    return true;
  }
  for (HostId candidate = 0; candidate < core_.hosts.size(); ++candidate) {
    for (const Address& own : core_.hosts[candidate].addresses) {
      if (own.family() == address.family() && own.octets() == address.octets()) {
        *host = candidate;
        return true;
      }
    }
  }
  return false;
}

bool SimNet::link_up(HostId a, HostId b) const {
  return !links_down_.contains({std::min(a, b), std::max(a, b)});
}

void SimNet::set_link(HostId a, HostId b, bool up) {
  std::pair<HostId, HostId> link{std::min(a, b), std::max(a, b)};
  if (up) {
    links_down_.erase(link);
  } else {
    links_down_.insert(link);
  }
}

Result<Handle> SimNet::open_socket(SimIo& io, const Address& peer, const Address& source) {
  if (!source.empty()) {
    const auto& own = core_.hosts[io.host()].addresses;
    bool known = is_any(source) || is_loopback(source) ||
                 std::any_of(own.begin(), own.end(),
                             [&](const Address& a) { return a.octets() == source.octets(); });
    if (!known) {
      return fail("bind to " + source.to_string() + ": " + strerror(EADDRNOTAVAIL), EADDRNOTAVAIL);
    }
    if (source.family() != peer.family()) {
      return fail("bind to " + source.to_string() + ": " + strerror(EINVAL), EINVAL);
    }
  }
  uint32_t index = new_connection();
  Handle handle = io.add_socket(index, 0);
  if (handle == kNoHandle) {
    free_connection(index);
    return fail(std::string("socket: ") + strerror(EMFILE), EMFILE);
  }
  Connection& c = connection(index);
  c.unix_socket = peer.is_unix();
  c.sides[0].io = &io;
  c.sides[0].host = io.host();
  if (!source.empty() && !is_any(source)) c.sides[0].address = with_port(source, next_port());
  return handle;
}

Result<Address> SimNet::local_address(uint32_t index, uint8_t side) const {
  return connections_[index]->sides[side].address;
}

Result<Address> SimNet::peer_address(uint32_t index, uint8_t side) const {
  const Connection& c = *connections_[index];
  if (c.state != Connection::State::established) {
    return fail(std::string("getpeername: ") + strerror(ENOTCONN), ENOTCONN);
  }
  return c.sides[1 - side].address;
}

void SimNet::each_outbound(HostId host, const std::function<void(const Address&, const Address&)>& call) const {
  for (const auto& c : connections_) {
    if (c->state != Connection::State::connecting && c->state != Connection::State::established) continue;
    const Side& side = c->sides[0];
    if (side.host == host && side.io != nullptr && !side.closed) call(side.address, c->target);
  }
}

void SimNet::finish_connect(uint32_t index, int result, int64_t delay_ns) {
  Connection& c = connection(index);
  c.connect_result = result;
  core_.schedule(delay_ns, Event::Kind::connected, index, c.generation);
}

void SimNet::start_connect(OpRecord& record, const Address& peer) {
  uint32_t index = record.target;
  Connection& c = connection(index);
  ASSERT(record.side == 0 && c.state == Connection::State::fresh);
  c.state = Connection::State::connecting;
  c.connect = core_.ref_of(record);
  c.connect_started = core_.now;
  c.target = peer;
  Side& me = c.sides[0];
  if (core_.on_connect) core_.on_connect(me.host, me.address, peer);
  HostId host;
  bool known = host_of(peer, me.host, &host);
  c.local = known && host == me.host;
  if (!c.unix_socket && me.address.empty()) {
    if (is_any(peer)) {
      c.target = peer.is_ipv4() ? Address::ipv4(0x7f000001, peer.port()) : *Address::parse_host("::1", peer.port());
    }
    const auto& own = core_.hosts[me.host].addresses;
    auto first = std::find_if(own.begin(), own.end(),
                              [&](const Address& a) { return a.family() == peer.family(); });
    if (c.local) {
      me.address = with_port(c.target, next_port());
    } else if (first != own.end()) {
      me.address = with_port(*first, next_port());
    } else {
      finish_connect(index, -ENETUNREACH, 0);
      return;
    }
  }
  const Faults& faults = core_.options.faults;
  if (!c.unix_socket) {
    if (core_.net_chance.chance(faults.connect_refused)) {
      finish_connect(index, -ECONNREFUSED, 2 * latency(c));
      return;
    }
    if (core_.net_chance.chance(faults.connect_unreachable)) {
      finish_connect(index, -EHOSTUNREACH, 3 * kSecond);
      return;
    }
    if (!known || core_.net_chance.chance(faults.connect_silent)) {
      finish_connect(index, -ETIMEDOUT, kConnectTimeOut);
      return;
    }
  }
  core_.schedule(latency(c), Event::Kind::connect, index, c.generation);
}

void SimNet::on_connect(uint32_t index) {
  Connection& c = connection(index);
  if (!core_.find(c.connect)) return;  // cancelled
  HostId host;
  if (!host_of(c.target, c.sides[0].host, &host)) UNREACHABLE();
  uint32_t listener = 0;
  bool reachable = core_.hosts[host].powered && link_up(c.sides[0].host, host);
  if (reachable && !find_listener(host, c.target, &listener)) {
    finish_connect(index, c.unix_socket ? -ENOENT : -ECONNREFUSED, latency(c));
    return;
  }
  if (reachable && listeners_[listener]->backlog.size() < listeners_[listener]->backlog_max) {
    establish(index, listener, host);
    return;
  }
  int64_t waited = core_.now - c.connect_started;
  if (waited >= kConnectTimeOut) {
    finish_connect(index, -ETIMEDOUT, 0);
    return;
  }
  // The handshake is tried again after 1, 2, 4, ... seconds.
  core_.schedule(std::max(kSecond, waited), Event::Kind::connect, index, c.generation);
}

void SimNet::establish(uint32_t index, uint32_t listener_index, HostId host) {
  Connection& c = connection(index);
  Listener& listener = *listeners_[listener_index];
  c.state = Connection::State::established;
  Side& server = c.sides[1];
  server.host = host;
  server.address = c.target;
  listener.backlog.emplace_back(index, c.generation);
  if (OpRecord* accepting = core_.find(listener.accept)) core_.make_ready(*accepting);
  int64_t answer = latency(c);
  finish_connect(index, 0, answer);
  // The server's first bytes do not overtake the handshake.
  server.out.last_at = core_.now + answer;
}

void SimNet::notify(Side& side) {
  if (OpRecord* receiving = core_.find(side.receive)) core_.make_ready(*receiving);
}

// ---- bytes

void SimNet::start_receive(OpRecord& record) {
  Side& me = connection(record.target).sides[record.side];
  ASSERT(!core_.find(me.receive));
  me.receive = core_.ref_of(record);
  const Pipe& in = connection(record.target).sides[1 - record.side].out;
  if (in.arrived > 0 || me.end_arrived || me.broken) core_.make_ready(record);
}

bool SimNet::gather_receive(OpRecord& record) {
  uint32_t index = record.target;
  Connection& c = connection(index);
  Side& me = c.sides[record.side];
  uint8_t other = 1 - record.side;
  Pipe& in = c.sides[other].out;
  SimIo& io = *record.io;
  Prng& chance = core_.net_chance;
  bool data_first = !record.cancelled || chance.chance(0.5);
  for (uint64_t most = 1 + chance.below(4); data_first && in.arrived > 0 && most > 0; --most) {
    auto size = static_cast<uint32_t>(std::min<size_t>(in.arrived, kMostReceived));
    char* data = nullptr;
    BufferRef buffer = io.pool(record.group).reserve(&size, &data);
    if (!buffer) {
      if (record.cancelled) break;
      return false;
    }
    in.pop(data, size);
    on_room(index, other);
    bool more = !chance.chance(record.cancelled ? 0.3 : core_.options.faults.multishot_end);
    if (!more) me.receive = {};
    io.deliver(record, static_cast<int32_t>(size), more, data, std::move(buffer));
    if (!more) return true;
  }
  if (record.cancelled) {
    me.receive = {};
    io.deliver(record, -ECANCELED, false);
  } else if (in.arrived > 0) {
    core_.make_ready(record);
  } else if (me.broken || me.end_arrived) {
    me.receive = {};
    int error = std::exchange(me.error, 0);
    io.deliver(record, -error, false);
  }
  return true;
}

void SimNet::start_send(OpRecord& record) {
  Side& me = connection(record.target).sides[record.side];
  ASSERT(!core_.find(me.send));  // io.h rule 6
  me.send = core_.ref_of(record);
  core_.schedule(static_cast<int64_t>(core_.net_chance.below(10'000)), Event::Kind::progress,
                 me.send.index, me.send.generation);
}

void SimNet::on_progress(OpRecord& record) {
  if (record.done) return;
  uint32_t index = record.target;
  Connection& c = connection(index);
  Side& me = c.sides[record.side];
  Prng& chance = core_.net_chance;
  const Faults& faults = core_.options.faults;
  int32_t failure = 0;
  if (c.state != Connection::State::established) {
    failure = -ENOTCONN;
  } else if (me.broken) {
    int error = std::exchange(me.error, 0);
    failure = error != 0 ? -error : -EPIPE;
  } else if (me.end_sent) {
    failure = -EPIPE;
  }
  if (failure != 0) {
    me.send = {};
    core_.finish(record, failure);
    return;
  }
  size_t total = 0;
  for (const iovec& part : record.parts) total += part.iov_len;
  Pipe& out = me.out;
  size_t room = out.capacity > out.size ? out.capacity - out.size : 0;
  if (total > 0 && room == 0) {
    me.blocked = true;
    return;
  }
  size_t taken = std::min(total, room);
  if (taken > 1 && chance.chance(faults.short_send)) taken = 1 + chance.below(taken);
  size_t left = taken;
  for (const iovec& part : record.parts) {
    size_t n = std::min(left, part.iov_len);
    if (n > 0) {
      out.push(static_cast<const char*>(part.iov_base), n);
      if (core_.on_send && record.side == 0) {
        core_.on_send(me.host, uint64_t{c.generation} << 32 | index, me.address, c.target,
                      {static_cast<const char*>(part.iov_base), n});
      }
    }
    left -= n;
  }
  me.send = {};
  core_.finish(record, static_cast<int32_t>(taken));

  out.last_at = std::max(out.last_at, core_.now + latency(c));
  for (left = taken; left > 0;) {
    size_t piece = 1 + chance.below(chance.chance(faults.tiny_segment) ? 8 : faults.segment_max);
    piece = std::min(piece, left);
    push_segment(index, record.side, Segment::Kind::bytes, static_cast<uint32_t>(piece));
    left -= piece;
  }
  if (c.silent) watch_silence(index, record.side);
}

void SimNet::push_segment(uint32_t index, uint8_t side, Segment::Kind kind, uint32_t size) {
  Connection& c = connection(index);
  Pipe& out = c.sides[side].out;
  if (kind != Segment::Kind::bytes) out.last_at = std::max(out.last_at, core_.now + latency(c));
  out.last_at += static_cast<int64_t>(core_.net_chance.below(4'000));
  out.segments.push_back({out.last_at, size, kind});
  schedule_arrival(index, side);
}

void SimNet::schedule_arrival(uint32_t index, uint8_t side) {
  Connection& c = connection(index);
  Pipe& out = c.sides[side].out;
  if (out.scheduled || out.segments.empty() || c.silent) return;
  out.scheduled = true;
  core_.schedule(std::max<int64_t>(0, out.segments.front().at - core_.now), Event::Kind::arrival,
                 index, c.generation, side);
}

void SimNet::on_arrival(uint32_t index, uint8_t side) {
  Connection& c = connection(index);
  Side& sender = c.sides[side];
  Side& receiver = c.sides[1 - side];
  Pipe& pipe = sender.out;
  const Faults& faults = core_.options.faults;
  pipe.scheduled = false;
  if (c.silent) return;
  if (!c.local && !link_up(sender.host, receiver.host)) {
    // Sent again until the link is up.
    pipe.scheduled = true;
    core_.schedule(kSecond / 5 + static_cast<int64_t>(core_.net_chance.below(kSecond)),
                   Event::Kind::arrival, index, c.generation, side);
    return;
  }
  while (!pipe.segments.empty() && pipe.segments.front().at <= core_.now) {
    Segment segment = pipe.segments.front();
    pipe.segments.pop_front();
    if (!c.unix_socket && core_.net_chance.chance(faults.reset)) {
      break_side(index, 0, ECONNRESET);
      break_side(index, 1, ECONNRESET);
      break;
    }
    if (!c.unix_socket && core_.net_chance.chance(faults.silence)) {
      pipe.segments.push_front(segment);
      fall_silent(index);
      break;
    }
    switch (segment.kind) {
      case Segment::Kind::bytes:
        if (receiver.closed || receiver.broken) {
          pipe.drop(segment.size);
          if (!sender.closed) send_reset(index, 1 - side);
        } else {
          pipe.arrived += segment.size;
          notify(receiver);
        }
        break;
      case Segment::Kind::end:
        receiver.end_arrived = true;
        notify(receiver);
        break;
      case Segment::Kind::reset:
        break_side(index, 1 - side, ECONNRESET);
        break;
    }
  }
  schedule_arrival(index, side);
}

void SimNet::on_room(uint32_t index, uint8_t side) {
  Connection& c = connection(index);
  Side& sender = c.sides[side];
  if (!sender.blocked || sender.out.capacity - sender.out.size < sender.out.capacity / 4) return;
  sender.blocked = false;
  if (OpRecord* sending = core_.find(sender.send)) {
    RecordRef ref = core_.ref_of(*sending);
    core_.schedule(latency(c), Event::Kind::progress, ref.index, ref.generation);
  }
}

void SimNet::drop_under_way(Pipe& pipe) {
  pipe.segments.clear();
  pipe.size = pipe.arrived;
}

void SimNet::break_side(uint32_t index, uint8_t which, int error) {
  Connection& c = connection(index);
  Side& side = c.sides[which];
  if (side.closed || side.broken) return;
  side.broken = true;
  side.error = error;
  drop_under_way(side.out);
  // What had arrived and was not received may be lost with the connection.
  Pipe& in = c.sides[1 - which].out;
  if (in.arrived > 0 && core_.net_chance.chance(0.5)) {
    in.drop(in.arrived);
    in.arrived = 0;
  }
  notify(side);
  side.blocked = false;
  if (OpRecord* sending = core_.find(side.send)) {
    RecordRef ref = core_.ref_of(*sending);
    core_.schedule(0, Event::Kind::progress, ref.index, ref.generation);
  }
}

void SimNet::send_reset(uint32_t index, uint8_t from) {
  Connection& c = connection(index);
  Pipe& out = c.sides[from].out;
  for (const Segment& segment : out.segments) {
    if (segment.kind == Segment::Kind::reset) return;
  }
  if (core_.net_chance.chance(0.5)) drop_under_way(out);
  push_segment(index, from, Segment::Kind::reset, 0);
}

void SimNet::shutdown_send(uint32_t index, uint8_t which) {
  Connection& c = connection(index);
  Side& side = c.sides[which];
  if (c.state != Connection::State::established || side.end_sent || side.broken) return;
  side.end_sent = true;
  push_segment(index, which, Segment::Kind::end, 0);
}

void SimNet::close_socket(uint32_t index, uint8_t which, bool reset) {
  Connection& c = connection(index);
  Side& side = c.sides[which];
  Pipe& in = c.sides[1 - which].out;
  ASSERT(!side.closed);
  side.closed = true;
  side.io = nullptr;
  if (c.state == Connection::State::established && !side.broken && !c.silent) {
    if (reset || in.arrived > 0) {
      // Linux answers with a reset, too, when what has arrived was never read.
      send_reset(index, which);
    } else if (!side.end_sent) {
      side.end_sent = true;
      push_segment(index, which, Segment::Kind::end, 0);
    }
  }
  in.drop(in.arrived);
  in.arrived = 0;
  // The peer's blocked send goes on, and is answered with a reset.
  if (c.state == Connection::State::established) on_room(index, 1 - which);
  free_if_done(index);
}

void SimNet::on_cancel(OpRecord& record) {
  switch (record.kind) {
    case OpRecord::Kind::connect: {
      Connection& c = connection(record.target);
      c.connect = {};
      core_.finish(record, -ECANCELED);
      return;
    }
    case OpRecord::Kind::send: {
      Side& me = connection(record.target).sides[record.side];
      me.send = {};
      me.blocked = false;
      core_.finish(record, -ECANCELED);
      return;
    }
    case OpRecord::Kind::accept:
      core_.make_ready(record);
      return;
    case OpRecord::Kind::receive:
      record.parked = false;
      core_.make_ready(record);
      return;
    default:
      UNREACHABLE();
  }
}

// ---- silence

void SimNet::fall_silent(uint32_t index) {
  Connection& c = connection(index);
  c.silent = true;
  for (uint8_t which : {0, 1}) {
    const Pipe& out = c.sides[which].out;
    if (out.size > out.arrived) watch_silence(index, which);
  }
}

void SimNet::watch_silence(uint32_t index, uint8_t which) {
  Connection& c = connection(index);
  Side& side = c.sides[which];
  if (side.closed || side.unanswered_since >= 0) return;
  side.unanswered_since = core_.now;
  core_.schedule(kSecond, Event::Kind::time_out, index, c.generation, which);
}

void SimNet::on_time_out(uint32_t index, uint8_t which) {
  Connection& c = connection(index);
  Side& side = c.sides[which];
  const Side& other = c.sides[1 - which];
  if (side.closed || side.broken) return;
  int64_t waited = core_.now - side.unanswered_since;
  if (other.lost && core_.hosts[other.host].powered) {
    break_side(index, which, ECONNRESET);
  } else if (waited >= kSilenceTimeOut) {
    break_side(index, which, ETIMEDOUT);
  } else {
    int64_t next = std::min({std::max(kSecond, waited), 120 * kSecond, kSilenceTimeOut - waited});
    core_.schedule(next, Event::Kind::time_out, index, c.generation, which);
  }
}

void SimNet::fall_silent(SimIo& io) {
  auto lose = [&](uint32_t index, uint8_t which) {
    Connection& c = connection(index);
    Side& side = c.sides[which];
    side.lost = true;
    side.closed = true;
    side.io = nullptr;
    fall_silent(index);
    free_if_done(index);
  };
  for (uint32_t index = 0; index < connections_.size(); ++index) {
    for (uint8_t which : {0, 1}) {
      Connection& c = connection(index);
      if (c.state != Connection::State::free && c.sides[which].io == &io) lose(index, which);
    }
  }
  for (auto& listener : listeners_) {
    if (!listener || listener->io != &io) continue;
    for (auto [index, generation] : listener->backlog) {
      if (connection(index).generation == generation) lose(index, 1);
    }
    listener->backlog.clear();
  }
}

void SimNet::close_all(SimIo& io) {
  for (uint32_t index = 0; index < connections_.size(); ++index) {
    for (uint8_t which : {0, 1}) {
      Connection& c = connection(index);
      if (c.state == Connection::State::free || c.sides[which].io != &io) continue;
      c.sides[which].send = c.sides[which].receive = {};
      close_socket(index, which, core_.net_chance.chance(0.5));
    }
  }
  for (uint32_t index = 0; index < listeners_.size(); ++index) {
    if (listeners_[index] && listeners_[index]->io == &io) close_listener(index);
  }
}

void SimNet::on_event(const Event& event) {
  Connection& c = connection(event.index);
  if (c.generation != event.generation || c.state == Connection::State::free) return;
  switch (event.kind) {
    case Event::Kind::arrival:
      on_arrival(event.index, event.side);
      return;
    case Event::Kind::connect:
      on_connect(event.index);
      return;
    case Event::Kind::connected:
      if (OpRecord* connecting = core_.find(c.connect)) {
        c.connect = {};
        core_.finish(*connecting, c.connect_result);
      }
      return;
    case Event::Kind::time_out:
      on_time_out(event.index, event.side);
      return;
    case Event::Kind::call:
    case Event::Kind::progress:
      UNREACHABLE();
  }
}

}  // namespace millrace::reactor
