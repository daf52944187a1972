// The SMTP listeners of one shard and the sessions they start.
//
//   SmtpListener listener(context, acceptance);
//   listener.open(config.listen)      accepts from now on
//   listener.set_shedding(true, why)  new connections get 421; running ones go on. `why` is for the log:
//                                     strangers are not told of our disks
//   listener.drain()                  shutdown: stops accepting, 421 to whoever has no transaction;
//                                     on_drained once the last session has gone and the spool has
//                                     answered for every message
//   listener.stop()                   the drain has lasted long enough
//
// Limits are those of the configuration, exact over all shards (connection_limits.h). A connection past
// them is told so with 421, as long as not too many are being told at once.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ingress/acceptance.h"
#include "ingress/session.h"
#include "net/listener.h"

namespace millrace::ingress {

class SmtpListener {
 public:
  SmtpListener(Context& context, Acceptance& acceptance);
  // REQUIRES: never opened, or drained.
  ~SmtpListener();
  SmtpListener(const SmtpListener&) = delete;
  SmtpListener& operator=(const SmtpListener&) = delete;

  // Fails, with the address named, when one cannot be bound; those before it stay open.
  // Whether its ports are this listener's alone, or shared with the other shards'. The first of those
  // makes sure that nobody else listens there: the kernel lets any two programs of a user share a port
  // in this way, and would give each a part of the connections.
  enum class Sharing : uint8_t { alone, first, further };
  Status open(const std::vector<config::Listen>& listen, Sharing sharing);
  // Where the n-th listens: the real port when 0 was asked for.
  const reactor::Address& address(size_t n) const { return ports_[n]->listener.address(); }

  void set_shedding(bool shedding, std::string_view why);
  void drain();
  void stop();
  bool drained() const;
  // Called once after drain(), never inline. May destroy nothing of ingress.
  void (*on_drained)(void*) = nullptr;
  void* drained_owner = nullptr;

  // ---- for sessions
  // Enters the client in the limits. Code 0: served; the session leaves them when it closes.
  smtp::Reply enter(const reactor::Address& client);
  void on_session_closed(Session& session, bool refused);
  // Whether one more connection may be told why it is not served; on_session_closed gives it back.
  bool may_refuse();
  // Whether one more stalled message may be given up this second.
  bool may_abort_stalled();
  // A line in the log for one client's fault: so many a second, whatever comes.
  bool may_log_refusal();
  // 452 4.3.1; its text lives until the next call.
  smtp::Reply admission_refusal(std::string_view why);

  static constexpr size_t kMostRefusals = 256;      // connections being told 421
  static constexpr size_t kMostFreeSessions = 1024;
  static constexpr uint32_t kLoggedPerSecond = 10;
  static constexpr uint32_t kStalledPerSecond = 64;

 private:
  struct Port final : net::ListenerOwner {
    Port(SmtpListener& owner, reactor::Io& io, Opening how)
        : smtp(owner), listener(io, *this), opening(how) {}
    void on_accepted(reactor::Handle handle) override { smtp.on_accepted(handle, opening); }
    void on_accept_error(int error) override { smtp.on_accept_error(error); }
    void on_listener_closed() override { smtp.check_drained(); }
    SmtpListener& smtp;
    net::Listener listener;
    Opening opening;
  };

  void on_accepted(reactor::Handle handle, Opening opening);
  void on_accept_error(int error);
  Session& take_session();
  void check_drained();
  void announce_drained();

  Context& context_;
  Acceptance& acceptance_;
  std::vector<std::unique_ptr<Port>> ports_;
  IntrusiveList<Session, &Session::link> running_;
  std::vector<std::unique_ptr<Session>> free_;
  reactor::Deferred announce_;
  std::string refusal_text_;
  bool shedding_ = false;
  bool draining_ = false;
  bool announced_ = false;
  size_t refusals_ = 0;
  uint64_t next_session_ = 1;
  int64_t logged_second_ = 0;
  uint32_t logged_in_second_ = 0;
  int64_t stalled_second_ = 0;
  uint32_t stalled_in_second_ = 0;
  int64_t last_error_logged_ = 0;
};

}  // namespace millrace::ingress
