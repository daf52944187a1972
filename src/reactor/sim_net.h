// The simulated network: listeners, connections and the bytes under way on them. Internal to the
// simulator; what it imitates is told in docs/simulation.md.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "reactor/sim_core.h"

namespace millrace::reactor {

class SimNet {
 public:
  explicit SimNet(SimCore& core) : core_(core) {}

  // ---- what an Io asks for. Numbers are connections or listeners; a side is 0 (the one that
  // connects) or 1 (the one that accepts).
  Result<Handle> listen(SimIo& io, const ListenOptions& options);
  const Address& listener_address(uint32_t listener) const { return listeners_[listener]->address; }
  void close_listener(uint32_t listener);
  Result<Handle> open_socket(SimIo& io, const Address& peer, const Address& source);
  Result<Address> local_address(uint32_t connection, uint8_t side) const;
  Result<Address> peer_address(uint32_t connection, uint8_t side) const;
  void start_accept(OpRecord& record);
  void start_connect(OpRecord& record, const Address& peer);
  void start_receive(OpRecord& record);
  void start_send(OpRecord& record);
  void shutdown_send(uint32_t connection, uint8_t side);
  void close_socket(uint32_t connection, uint8_t side, bool reset);

  // ---- turns
  // Delivers what there is for a ready accept or receive.
  void gather_accept(OpRecord& record);
  // False: data waits, and there is no buffer for it.
  [[nodiscard]] bool gather_receive(OpRecord& record);
  void on_cancel(OpRecord& record);
  // The host lost its power: what it had falls silent.
  void fall_silent(SimIo& io);
  void close_all(SimIo& io);
  void set_link(HostId a, HostId b, bool up);
  void each_outbound(HostId host, const std::function<void(const Address&, const Address&)>& call) const;

  // ---- events
  void on_progress(OpRecord& record);  // of a send
  void on_event(const Event& event);

 private:
  struct Listener {
    SimIo* io;
    Address address;
    HostId host;
    std::string key;
    bool reuse_port;
    size_t backlog_max;
    RecordRef accept;
    std::deque<std::pair<uint32_t, uint32_t>> backlog;  // connection and its generation
  };
  struct Segment {
    enum class Kind : uint8_t { bytes, end, reset };
    int64_t at;
    uint32_t size;
    Kind kind;
  };
  // One direction. `bytes` holds what is under way and what has arrived and was not received yet.
  struct Pipe {
    std::vector<char> bytes;  // a ring, grown to at most `capacity`
    size_t first = 0;
    size_t size = 0;
    size_t arrived = 0;  // the first of them
    uint32_t capacity = 0;
    std::deque<Segment> segments;
    int64_t last_at = 0;
    bool scheduled = false;
    void push(const char* from, size_t count);
    void pop(char* to, size_t count);
    void drop(size_t count);
  };
  struct Side {
    SimIo* io = nullptr;  // null: the process is gone, or the handle is closed, or not accepted yet
    HostId host = 0;
    Address address;
    Pipe out;
    RecordRef receive;
    RecordRef send;
    int error = 0;         // to be told once
    bool broken = false;   // reset or timed out: nothing more goes in or out
    bool end_sent = false;
    bool end_arrived = false;
    bool closed = false;
    bool blocked = false;  // a send waits for room
    bool lost = false;     // its host lost its power: a reboot answers with a reset
    int64_t unanswered_since = -1;  // sent into silence
  };
  struct Connection {
    enum class State : uint8_t { free, fresh, connecting, established };
    State state = State::free;
    uint32_t generation = 0;
    bool silent = false;
    bool local = false;  // both ends on one host
    bool unix_socket = false;
    int64_t connect_started = 0;
    int connect_result = 0;
    Address target;
    RecordRef connect;
    Side sides[2];
  };

  Connection& connection(uint32_t index) { return *connections_[index]; }
  static std::string key_of(HostId host, const Address& address);
  uint32_t new_connection();
  void free_if_done(uint32_t index);
  void free_connection(uint32_t index);
  int64_t latency(const Connection& c);
  bool host_of(const Address& address, HostId from, HostId* host) const;
  bool link_up(HostId a, HostId b) const;
  bool find_listener(HostId host, const Address& address, uint32_t* listener);
  void on_connect(uint32_t index);
  void establish(uint32_t index, uint32_t listener, HostId host);
  void push_segment(uint32_t index, uint8_t side, Segment::Kind kind, uint32_t size);
  void schedule_arrival(uint32_t index, uint8_t side);
  void on_arrival(uint32_t index, uint8_t side);
  void on_room(uint32_t index, uint8_t side);
  void break_side(uint32_t index, uint8_t side, int error);
  void send_reset(uint32_t index, uint8_t from);
  void notify(Side& side);
  void drop_under_way(Pipe& pipe);
  void fall_silent(uint32_t index);
  void watch_silence(uint32_t index, uint8_t side);
  void on_time_out(uint32_t index, uint8_t side);
  void finish_connect(uint32_t index, int result, int64_t delay_ns);
  uint16_t next_port();

  SimCore& core_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::vector<uint32_t> free_listeners_;
  std::unordered_map<std::string, std::vector<uint32_t>> listening_;  // looked up, never walked
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<uint32_t> free_connections_;
  std::set<std::pair<HostId, HostId>> links_down_;
  uint16_t last_port_ = 32767;
};

}  // namespace millrace::reactor
