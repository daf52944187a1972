// The receiving side of SMTP as a state machine without I/O: bytes in, replies and events out. The
// session (src/ingress) owns one, moves its bytes, and decides what a message becomes.
//
//   void Session::on_data(char* data, size_t size, BufferRef buffer) {
//     std::string_view piece(data, size);
//     while (!piece.empty()) {
//       ServerProtocol::Step step = protocol.advance(piece);
//       piece.remove_prefix(step.consumed);
//       if (step.begins) ...;              // in this order: begins, body, event
//       if (!step.body.empty()) ...;
//       switch (step.event) { ... }        // blocked: keep `piece`, pause receiving, leave the
//       loop
//     }
//     protocol.take_output(...), send; if (protocol.finished()) close after it
//   }
//
// Ownership. `piece` is the caller's and need not outlive the call, except that body bytes are
// reported as views into it (Step::body), which the caller keeps by holding the buffer. The
// protocol itself keeps copies only of a command line that straddles pieces and of the envelope.
// envelope() and facts() are the current message's; the caller may move them out at
// Event::message_end, and they are cleared by the next advance().
//
// Order. Every message_end is answered once by message_done(number, reply), at any later time.
// Until then the protocol parses on: replies to later commands are held behind the missing one and
// leave in command order. At most `max_pending_messages` are unanswered; then advance() returns
// `blocked` and consumes nothing until message_done().
//
// AUTH (RFC 4954). The protocol knows the frame: when it may come, base64, `*`, bounded lines; what is said in it is
// the policy's (auth/server_exchange.h). Lines that may hold a secret are reported (Step::secret), so that the caller
// overwrites them where they were received.
//
// Limits: all of ServerOptions; memory is a command line, the envelope and the held replies.
// Time-outs are the session's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mail/envelope.h"
#include "smtp/command.h"
#include "smtp/data_decoder.h"
#include "smtp/line_reader.h"
#include "smtp/reply.h"

namespace millrace::smtp {

constexpr uint64_t kLargestMessage = 1 << 30;
constexpr uint32_t kMostAuthFailures = 3;  // of a session, then 421

struct ServerOptions {   // constant while a session lasts
  std::string hostname;  // of greeting, EHLO reply and "postmaster@"
  std::string banner = "ESMTP Millrace";
  Extensions extensions;
  uint64_t max_message_size = 50 << 20;  // octets of canonical content; at most kLargestMessage
  uint32_t max_recipients = 1000;
  uint32_t max_errors = 20;          // replies 5xx to commands, then 421
  uint32_t max_idle_commands = 200;  // NOOP, RSET, VRFY, ... since the last message, then 421
  uint32_t max_messages = 0;         // per session; 0 is no limit
  uint32_t max_pending_messages = 8;
  bool starttls = false;      // offered, and taken (RFC 3207)
  bool require_tls = false;   // nothing but STARTTLS leads on in the clear
  bool keep_bad_lines = false;  // a message with line faults ends in message_end all the same
};

// What only the session knows. A Reply is asked for at three points; code 0 is "go on".
class ServerPolicy {
 public:
  // From check_mail only: the reply comes later, by answer_mail(), and no input is taken until
  // then.
  static constexpr Reply kLater{1, {}, {}};
  virtual Reply check_mail(const mail::Envelope&, uint64_t announced_size) { return {}; }
  virtual Reply check_recipient(const mail::Envelope&, const mail::Recipient&) { return {}; }
  // Before 354, or before the first chunk.
  virtual Reply check_data(const mail::Envelope&) { return {}; }
  // The transaction ended without a message_end: what was granted for its recipients is not used.
  virtual void transaction_dropped() {}

  // What EHLO announces behind AUTH on this connection as it is now; empty: AUTH is not offered.
  virtual std::string_view auth_mechanisms() { return {}; }
  // The reply to AUTH where it is not offered.
  virtual Reply auth_refusal() { return replies::kNotImplemented; }
  // One step of an exchange. `reply` of code 0: `challenge` is sent and auth_respond() follows, or auth_cancelled().
  // kLater: answer_auth() follows, and no input is taken until then. Else the exchange ends with it: 235 is success.
  struct AuthStep {
    Reply reply;
    std::string challenge;  // not yet base64
  };
  // `initial`: nullptr without an initial response. Both are decoded, and overwritten after the call.
  virtual AuthStep auth_begin(std::string_view mechanism, const std::string* initial) { return {replies::kNotImplemented, {}}; }
  virtual AuthStep auth_respond(std::string_view response) { return {replies::kNotImplemented, {}}; }
  virtual void auth_cancelled() {}

 protected:
  ~ServerPolicy() = default;
};

class ServerProtocol {
 public:
  enum class State : uint8_t {
    connected,  // greeting not sent
    greeted,    // waiting for EHLO or HELO
    ready,      // no transaction
    mail,       // MAIL accepted
    rcpt,       // at least one recipient accepted
    data,       // receiving after 354
    chunk,      // receiving octets of a BDAT chunk
    between_chunks,
    drain_chunk,  // a refused chunk's octets pass by
    authenticating,  // 334 is written: the next line is a response
    bdat_failed,  // a chunk was refused: only RSET, a new EHLO or QUIT lead on
    starting_tls, // 220 to STARTTLS is written: bytes that follow are not for us
    closing,      // the last reply is written, or waits behind pending messages
  };

  enum class Event : uint8_t {
    none,         // go on with the rest of the piece, if any
    message_end,  // all of it: facts(), envelope(), message_number(); message_done() must follow
    message_discarded,  // between its begin and its end: drop what was kept of it. envelope() and
                        // facts() still tell of it until the next advance().
    start_tls,          // take_output() holds the 220, which is the last that leaves in the clear; what
                        // follows the command is TLS, and secured() says when it stands. In the piece
                        // nothing followed.
    blocked,            // too many pending messages, or MAIL waits for its answer: call again after
                        // message_done() or answer_mail()
  };
  // What one call did, to be looked at in this order.
  struct Step {
    size_t consumed = 0;
    bool begins = false;    // a message begins: envelope() says whose
    std::string_view body;  // octets of the piece that belong to the message
    Event event = Event::none;
    bool secret = false;    // what was consumed may hold a password
  };

  // `options` and `policy` outlive the protocol.
  ServerProtocol(const ServerOptions& options, ServerPolicy& policy);

  // Writes 220, or the refusal (421, 554) and finishes. Bytes that come before are an early
  // talker's.
  void greet(const Reply* refusal = nullptr);
  // REQUIRES: !finished(), piece not empty. After State::closing input is consumed and ignored.
  Step advance(std::string_view piece);

  // At Event::message_end and until the next advance().
  mail::Envelope& envelope() { return envelope_; }
  IntakeFacts& facts() { return scanner_.facts(); }
  uint64_t message_number() const { return message_number_; }
  // The reply to the message of that number: 250, or its refusal. `reply` is copied.
  // REQUIRES: message_end was reported for it, and it has not been answered.
  void message_done(uint64_t number, const Reply& reply);
  // The connection is encrypted from here on: after Event::start_tls, or before greet(). All that was
  // said before is forgotten (RFC 3207 4.2).
  void secured();
  bool secure() const { return secure_; }
  // The answer to the MAIL whose check_mail() said kLater; code 0 accepts it. Nothing is said when
  // the session was shut down meanwhile. REQUIRES: that MAIL has not been answered.
  void answer_mail(const Reply& reply);
  // The end of the exchange for which the policy said kLater. Nothing is said when the session was shut down
  // meanwhile. REQUIRES: it has not been answered.
  void answer_auth(const Reply& reply);
  bool authenticated() const { return authenticated_; }
  // "bare LF in line 3, octet 17".
  static std::string describe_fault(const IntakeFacts& facts);

  // Ends the session with `reply` (421; its text static): at once, or after the message that is
  // being received.
  void shut_down(const Reply& reply);

  // Replies that may be sent now. Moves them to the end of `out`.
  void take_output(std::string& out);
  bool has_output() const { return !output_.empty(); }
  // Nothing more will be read or, after take_output(), written: send what there is, then close.
  bool finished() const { return state_ == State::closing && pending_count_ == 0; }

  State state() const { return state_; }
  bool receiving_message() const { return message_open_; }
  uint32_t pending_messages() const { return pending_count_; }
  const std::string& helo() const { return helo_; }
  bool esmtp() const { return esmtp_; }
  uint64_t messages() const { return message_number_; }  // begun in this session
  uint32_t errors() const { return errors_; }

 private:
  struct Pending {  // a message whose reply is missing, and the replies that wait behind it
    uint64_t number = 0;
    bool answered = false;
    std::string reply;
    std::string after;
  };

  void enter(State state);
  std::string& out();  // where the next reply goes
  void say(const Reply& reply);
  void refuse(const Reply& reply);  // says it and counts an error
  void close_with(const Reply& reply);
  Pending& pending_at(uint32_t index) {
    return pending_[(pending_first_ + index) % pending_.size()];
  }

  Step read_command(std::string_view piece);
  Step read_data(std::string_view piece);
  Step read_chunk(std::string_view piece);
  Step drain_chunk(std::string_view piece);
  void on_command(const Command& command, Step& step);
  bool is_legal_group(Verb verb, bool more_input) const;
  void on_hello(const Command& command);
  void on_mail(const Command& command);
  void finish_mail(const Reply& reply);
  void on_rcpt(const Command& command);
  void on_data_command(Step& step);
  void on_bdat(const Command& command, Step& step);
  void on_starttls(Step& step);
  void on_auth(const Command& command);
  Step read_response(std::string_view piece);
  void take_auth_step(ServerPolicy::AuthStep step);
  void end_auth(const Reply& reply);
  void refuse_chunk(const Command& command, const Reply& reply, State after);
  void end_chunk(Step& step);
  void end_message(Step& step);
  void end_transaction(State next);
  void begin_message(bool stuffed, Step& step);
  void stop_wanting(Step& step);  // the rest of the message is drained
  void say_capabilities();
  bool count_idle_command();  // false when the session was closed for it
  // Whether the message being received has been found unacceptable, and the reply that says so.
  bool is_bad_message() const;
  void refuse_bad_message();

  // Constant after construction.
  const ServerOptions& options_;
  ServerPolicy& policy_;

  State state_ = State::connected;
  State after_drain_ = State::ready;
  LineReader lines_;
  mail::Envelope envelope_;
  detail::ContentScanner scanner_;
  std::string helo_;
  Reply shutdown_;  // code 0: none asked for
  bool esmtp_ = false;
  bool secure_ = false;
  bool mail_waits_ = false;      // for answer_mail()
  bool auth_waits_ = false;      // for answer_auth()
  bool authenticated_ = false;
  uint32_t auth_failures_ = 0;
  bool message_open_ = false;    // between its begin and its end
  bool message_wanted_ = false;  // its bytes are still reported
  bool envelope_given_ = false;  // message_end was reported: clear at the next advance()
  bool discarded_now_ = false;   // by this advance(): its envelope stays until the next one
  bool clear_envelope_ = false;  // at the next advance()
  bool last_chunk_ = false;
  uint64_t chunk_left_ = 0;
  uint64_t drained_ = 0;
  uint32_t chunks_ = 0;
  uint32_t recipients_refused_ = 0;  // past max_recipients
  uint32_t errors_ = 0;
  uint32_t idle_commands_ = 0;
  uint64_t message_number_ = 0;

  std::string output_;
  std::vector<Pending> pending_;  // a ring of max_pending_messages, its strings reused
  uint32_t pending_first_ = 0;
  uint32_t pending_count_ = 0;
};
std::string_view to_string(ServerProtocol::State state);

}  // namespace millrace::smtp
