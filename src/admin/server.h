// The admin socket: a Unix socket that only the relay's user may open (mode 0600), served by the
// control shard. Requests and replies are those of protocol.h.
//
// Contract: one request of a connection is worked on at a time, in order. A client that vanishes
// costs nothing; the answer to its request is dropped. Limits: kMostSessions connections, a request
// of kLongestLine octets, kIdleNs between requests. Whoever can open the socket may command
// everything.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "admin/control.h"
#include "admin/protocol.h"
#include "net/listener.h"
#include "net/stream.h"
#include "reactor/io.h"

namespace millrace::admin {

class Server final : public net::ListenerOwner {
 public:
  static constexpr size_t kMostSessions = 16;
  static constexpr size_t kLongestLine = 64 * 1024;
  static constexpr int64_t kIdleNs = 300'000'000'000;

  // `io` is the control shard's; `control` outlives the server.
  Server(reactor::Io& io, Control& control, std::string hostname);
  // REQUIRES: never opened, or closed, or its Io has stopped for good.
  ~Server();

  Status open(const std::string& path);
  // Closes the socket and every connection; `closed` once all are gone. REQUIRES: open.
  void close(std::function<void()> closed);
  size_t sessions() const { return sessions_.size(); }

 private:
  class Session;

  void on_accepted(reactor::Handle handle) override;
  void on_accept_error(int error) override;
  void on_listener_closed() override;

  void handle(uint64_t session, Request request);
  void answer(uint64_t session, std::string line);
  void gone(uint64_t session);
  void finish_close();

  reactor::Io& io_;
  Control& control_;
  const std::string hostname_;
  const int64_t started_ms_;
  net::Listener listener_;
  std::map<uint64_t, std::unique_ptr<Session>> sessions_;
  uint64_t next_session_ = 1;
  // Answers that come after the server is gone find it false.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::function<void()> closed_;
};

}  // namespace millrace::admin
