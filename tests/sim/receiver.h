// A scripted receiving mail server on a simulated host: speaks SMTP as it is told to, misbehaves at the
// rates it is given, and keeps what it got. Its own parser, deliberately simple and apart from src/smtp, so
// that a mistake there does not cancel out.
//
// Limits: no AUTH; a command line over 4 KiB ends the session.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/prng.h"
#include "ledger.h"
#include "net/listener.h"
#include "net/stream.h"

namespace millrace::sim {

struct ReceiverBehaviour {
  bool pipelining = true;
  bool chunking = true;
  bool dsn = false;
  uint64_t size = 52'428'800;
  int64_t reply_delay_min_ns = 0;
  int64_t reply_delay_max_ns = 2'000'000;
  // Chances.
  double refuse_greeting = 0;   // 421 and close
  double reject_greeting = 0;   // 554 and close
  double defer_recipient = 0;   // 451 to RCPT
  double reject_recipient = 0;  // 550 to RCPT
  double defer_data = 0;        // 451 to the end of data
  double reject_data = 0;       // 554 to the end of data
  double drop_unreplied = 0;    // takes the message and goes without a reply
  double drop_replied = 0;      // replies 250 and resets at once: the reply may be lost
  double drop_anywhere = 0;     // per command: closes
  std::shared_ptr<tls::ServerContext> tls;  // offered when there is one
  double refuse_tls = 0;        // 454 to STARTTLS
  double break_tls = 0;         // 220 to STARTTLS, and then it closes
  unsigned recipients_most = 0;  // of a transaction: 452 past it; 0: no limit
  unsigned messages_most = 0;   // closes without a word after so many; 0: never
  int64_t patience_ns = 60'000'000'000;  // without a word from the relay, then it closes
  // Overrides the reply to RCPT when it returns one: "550 5.1.1 no such user".
  std::function<std::string(std::string_view recipient)> on_recipient;
};

struct ReceivedMessage {
  std::string reverse_path;
  std::vector<std::string> recipients;
  std::string content;  // as it stands before dot-stuffing
  bool chunked = false;
  bool secure = false;  // came encrypted
  Copy copy = Copy::unreplied;
  int64_t at_ns = 0;
  uint64_t connection = 0;  // of this receiver, from 1
  reactor::Address peer;    // its other end
  size_t mail = 0;          // which MAIL of the connection began it, from 1
};

class Receiver final : private net::ListenerOwner {
 public:
  Receiver(reactor::Io& io, uint64_t seed, ReceiverBehaviour behaviour = {});
  // Destroy it after close() has been waited for, or after a crash of its host.
  ~Receiver();
  Status listen(const reactor::Address& address);
  // Stops listening and resets every session; closed() when all of it is done.
  void close();
  bool closed() const { return sessions_.empty() && !listening_; }

  ReceiverBehaviour behaviour;
  // Called when the fate of a copy is known: after its connection has ended, for one that was replied to.
  std::function<void(const ReceivedMessage&)> on_message;
  // Called at the first RCPT of each transaction.
  std::function<void(const std::string& recipient)> on_transaction;
  // The other ends of connections whose transaction is surely under way: begun, not every recipient refused, no reply
  // to its content said.
  std::vector<reactor::Address> in_transaction() const;
  // Called when a recipient is refused for good: 5xx to RCPT, or to the end of data.
  std::function<void(const std::string& recipient)> on_refused;
  // What it saw.
  size_t connections_now() const { return sessions_.size(); }
  size_t connections_most = 0;
  size_t connections_total = 0;
  size_t messages_total = 0;
  size_t handshakes_total = 0;
  size_t messages_on_connection_most = 0;  // transactions that came to the end of data

 private:
  class Session;
  void on_accepted(reactor::Handle handle) override;
  void on_accept_error(int) override {}
  void on_listener_closed() override { listening_ = false; }

  reactor::Io& io_;
  Prng chance_;
  net::Listener listener_;
  bool listening_ = false;
  std::list<std::unique_ptr<Session>> sessions_;
};

}  // namespace millrace::sim
