// One client's connection, from its first byte to its last reply. The protocol (smtp/server_protocol.h)
// knows what the bytes mean; the session moves them, keeps those of the body where they were received,
// watches the clock, and hands complete messages to the Acceptance.
//
//   proxy       waiting for the PROXY header (listeners that expect one)
//   securing    TLS handshake: before the greeting (--listen-tls) or after STARTTLS
//   greeting    waiting one tick, to catch clients that speak first
//   talking     the dialogue; what has come in is worked off as far as commits, admission and the
//               client's own reading allow
//   closing     the last reply is on its way
//   ending      the socket is being closed
//
// Replies of one turn leave in one send, made at the end of the turn. Input that cannot be worked off
// yet stays in `input_`, and nothing more is received meanwhile.
//
// Sessions are reused: their listener keeps a bounded number of idle objects.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "auth/server_exchange.h"
#include "ingress/acceptance.h"
#include "net/stream.h"
#include "queue/intake.h"
#include "smtp/server_protocol.h"

namespace millrace::ingress {

class SmtpListener;

// What a listener's connections begin with.
struct Opening {
  bool proxy = false;  // a PROXY header
  bool tls = false;    // TLS, behind it
};

class Session final : private net::StreamOwner,
                      private smtp::ServerPolicy,
                      private queue::AdmissionWaiter {
 public:
  enum class State : uint8_t { idle, proxy, securing, greeting, talking, closing, ending };

  Session(SmtpListener& listener, Acceptance& acceptance);
  // REQUIRES: idle
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Takes over a connection.
  void start(reactor::Handle handle, const reactor::Address& peer, uint64_t number, Opening opening);
  // The same for a connection that is only told why it is not served.
  void start_refused(reactor::Handle handle, const smtp::Reply& refusal, Opening opening);

  // Ends with 421 when no transaction is under way.
  void drain();
  // Ends with 421 now, whatever is under way; with RST if the client does not take it.
  void stop();

  State state() const { return state_; }
  Link link;  // on the listener's list of running sessions

  static constexpr int64_t kGreetingDelayNs = 1'000'000;     // with the tick of the timers: 1 to 2 ms
  static constexpr int64_t kProxyTimeoutNs = 10'000'000'000;
  static constexpr int64_t kHandshakeNs = 60'000'000'000;
  static constexpr int64_t kLastReplyNs = 10'000'000'000;    // for the client to take it
  static constexpr int64_t kStopNs = 1'000'000'000;          // the same, when told to stop
  static constexpr int64_t kSlowCheckNs = 2'000'000'000;     // between looks at a partial message
  static constexpr uint64_t kSlowBytes = 64 * 1024;          // fewer than this in between: slow

 private:
  struct Input {
    char* data;
    size_t size;
    reactor::BufferRef buffer;
  };

  void enter(State state);

  // net::StreamOwner
  void on_data(char* data, size_t size, reactor::BufferRef buffer) override;
  void on_secure() override;
  void on_sent() override;
  void on_end(int error) override;
  void on_closed() override;
  // smtp::ServerPolicy
  smtp::Reply check_mail(const mail::Envelope& envelope, uint64_t announced_size) override;
  smtp::Reply check_recipient(const mail::Envelope& envelope, const mail::Recipient& recipient) override;
  void transaction_dropped() override;
  std::string_view auth_mechanisms() override;
  smtp::Reply auth_refusal() override;
  AuthStep auth_begin(std::string_view mechanism, const std::string* initial) override;
  AuthStep auth_respond(std::string_view response) override;
  void auth_cancelled() override;
  // queue::AdmissionWaiter
  void on_admitted(bool refused, std::string_view why) override;

  void begin_talking(const smtp::Reply* refusal);
  // Work off `piece`; returns how much of it was used.
  size_t advance(std::string_view piece, const reactor::BufferRef& buffer);
  // The same for the PROXY header; what it does not use is the client's.
  size_t advance_proxy(std::string_view piece);
  void on_client_known(const reactor::Address& client);
  void refuse(const smtp::Reply& refusal);
  void start_tls();
  void count_failed_handshake();
  void adopt(const SettingsRef& settings);
  void on_message_end();
  static void on_answer(void* self, Submission& submission, const Answer& answer);
  void drop_message();

  // ---- authentication (session_auth.cc)
  class Verifiers;
  bool may_authenticate() const;   // on this connection as it is now
  const config::Credentials* credentials();
  AuthStep auth_step(auth::ServerExchange::Step step);
  AuthStep check_password();
  static void on_password_checked(void* self, PasswordJob& job);
  smtp::Reply conclude_auth(bool right, std::string_view reason);
  void answer_auth(const smtp::Reply& reply);
  smtp::Reply check_account(const mail::Envelope& envelope);
  void refund();
  // Empty: nobody.
  const std::string& account_name() const;
  void forget_auth();

  bool held() const;       // input must wait
  void keep_input(char* data, size_t size, reactor::BufferRef buffer);
  void work_off_input();
  bool send_replies();
  bool between_transactions() const;
  void settle();           // at the end of a turn: input, replies, close
  void schedule_settle();
  void pause_or_resume();
  void fail_with(const smtp::Reply& reply);  // a last reply in the middle of anything
  void end(bool reset);

  int64_t now() const;
  void on_timer();
  void rearm();
  int64_t deadline() const;
  void look_at_partial_message();

  // ---- constant after construction
  SmtpListener& listener_;
  Acceptance& acceptance_;
  Context& context_;

  // ---- of the connection
  net::Stream stream_;
  reactor::Timer timer_;
  reactor::Deferred settle_;
  SettingsRef session_settings_;  // whose ServerOptions the protocol refers to
  SettingsRef settings_;          // of the current transaction
  std::optional<smtp::ServerProtocol> protocol_;
  std::string client_;            // address, for relay permission, envelope and events
  std::string outgoing_;          // of the send in progress
  std::vector<Input> input_;      // not worked off yet
  std::string proxy_bytes_;       // of an incomplete PROXY header
  uint64_t number_ = 0;
  int64_t idle_since_ = 0;        // the last reply, or the start
  int64_t last_data_ = 0;
  int64_t message_began_ = 0;
  int64_t state_since_ = 0;
  int64_t slow_check_at_ = 0;
  uint64_t slow_check_bytes_ = 0;
  State state_ = State::idle;
  bool refused_ = false;
  Opening opening_;
  bool starting_tls_ = false;     // STARTTLS was taken, its 220 has not been sent
  bool certified_ = false;        // showed a certificate of --client-ca
  bool counted_ = false;          // entered in ConnectionLimits
  bool may_relay_ = false;
  bool waiting_admission_ = false;
  bool input_blocked_ = false;    // the protocol waits for an answer to a message
  // ---- authentication
  struct Auth {
    std::optional<auth::ServerExchange> exchange;
    std::string account;              // who authenticated; empty: nobody
    std::string offer;                // what EHLO announces
    std::string password_digest;      // of the password being checked
    std::string refusal_text;         // of the reply given last
    uint64_t charged = 0;             // recipients of this transaction in the account's budgets
    int64_t charged_at = 0;
  };
  std::unique_ptr<Auth> auth_;      // made when AUTH is first offered: most sessions have none
  PasswordJob* password_job_ = nullptr;
  int64_t auth_refusal_at_ = 0;     // when the 535 is due; 0: none is
  bool waiting_auth_ = false;       // the protocol waits for answer_auth()

  bool peer_done_ = false;        // nothing more will come in
  bool draining_ = false;
  bool stopping_ = false;
  bool paused_counted_ = false;

  // ---- of the messages
  Submission* receiving_ = nullptr;
  IntrusiveList<Submission, &Submission::link> pending_;
};
std::string_view to_string(Session::State state);

}  // namespace millrace::ingress
