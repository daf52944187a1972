// One SMTP conversation with a receiver, as a state machine without I/O: reply bytes and times in,
// groups of commands and content out.
//
// Two cursors run over the same transactions. The send cursor (pump) writes whatever may be written
// now as one group: the content of one message and the envelope of the next (RFC 2920 3.1: content
// may be the first of a group, DATA the last; RFC 3030: BDAT, its content and what follows). The
// receive cursor (receive) takes the replies in the order of the commands, from the list of what is
// expected. Without PIPELINING every group is one command.
//
//   DATA   MAIL RCPT DATA | content . MAIL RCPT DATA | content . MAIL RCPT DATA | ...
//   BDAT   MAIL RCPT BDAT content MAIL RCPT | BDAT content MAIL RCPT | ...
//
// so in steady state a message costs one send and one receive. At most `uncertain` messages have an
// unanswered end of data; the next one's envelope may be under way already.
//
// Contract:
//  - Every attempt taken from the owner is given back to it by finished(), in the end by settle().
//  - Owner functions may be called from inside of greet(), receive(), on_sent(), wake(),
//  on_timeout()
//    and settle(). They may call wake() and retire() only.
//  - After over(), only settle() is called.
//  - The bytes of a group stay valid until on_sent() or settle().
//
// TLS. Where the options want it, STARTTLS follows the first EHLO: start_tls() is asked of the owner, and
// secured() or tls_failed() must follow. Everything learnt before is forgotten, and EHLO comes again
// (RFC 3207 4.2). Octets between the 220 and the handshake end the conversation (CVE-2021-38371).
//
// AUTH. Where the options want it, it follows the EHLO behind TLS, by the exchange that the owner chooses; nothing is
// ever said in the clear. A refusal ends the conversation, and is about no message.
//
// LMTP (RFC 2033), where the options want it: LHLO, no BDAT, and behind the end of data a reply for each recipient that was
// accepted, in their order, each the outcome of that recipient. Who gets no reply before the connection ends may have been
// delivered (Action::uncertain). The next message's commands wait for all of them: a server that answers too few times must
// not have the reply to MAIL counted as somebody's delivery.
//
// Limits: a recipient domain's mail is one transaction; the queue sees to
// that.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "auth/client_exchange.h"
#include "delivery/judge.h"
#include "queue/agent.h"
#include "smtp/capabilities.h"
#include "smtp/client_protocol.h"
#include "smtp/reply_parser.h"

namespace millrace::delivery {

struct SessionOptions {
  std::string_view ehlo_name;
  bool pipelining = true;
  bool chunking = true;
  bool lmtp = false;           // RFC 2033: LHLO, DATA only, and a reply for each recipient behind the end of data
  uint32_t uncertain = 1;      // messages with an unanswered end of data, at least 1
  uint32_t messages_most = 0;  // then QUIT; 0: no limit
  enum class Tls : uint8_t {
    off,           // not even where it is offered
    offered,       // where it is offered; the owner hears of refusals and failures
    required,      // nothing in the clear
    from_connect,  // the handshake comes before the greeting
  } tls = Tls::off;
  bool authenticate = false;  // behind TLS, or not at all
  bool requiretls = false;    // only where REQUIRETLS is offered behind TLS
  int64_t greeting_timeout_ns = 0;
  int64_t mail_timeout_ns = 0;  // EHLO and RSET too
  int64_t rcpt_timeout_ns = 0;
  int64_t data_initiation_timeout_ns = 0;
  int64_t data_block_timeout_ns = 0;
  int64_t data_done_timeout_ns = 0;
  int64_t idle_timeout_ns = 0;
  // The operator's lines about replies; outlives the session. nullptr: none.
  const config::Shaping* shaping = nullptr;
  const config::Provider* provider = nullptr;
};

// Named for the operator's log.
enum class SessionState : uint8_t {
  securing,  // TLS handshake: before the greeting, or after STARTTLS
  greeting,  // waiting for the greeting
  ehlo,      // EHLO sent
  starttls,  // STARTTLS sent
  helo,      // HELO sent
  authenticating,  // AUTH sent
  open,      // transactions, or waiting for one
  quitting,  // QUIT is being sent
  over,      // to be closed
};
std::string_view to_string(SessionState state);

// Why the conversation is over.
enum class Ending : uint8_t {
  none,
  done,          // by us: nothing to do, or enough messages
  peer_closed,   // by the peer, between transactions and without an error
  refused,       // greeting, EHLO, STARTTLS or AUTH with 4xx or 5xx, or no TLS with it: try another host
  told_to_slow,  // 421, or a code about our rate or reputation
  lost,          // closed, reset or silent in the middle of something
  protocol,      // what came was no SMTP
};
std::string_view to_string(Ending ending);

class SessionOwner {
 public:
  // The next transaction, or nullptr.
  virtual queue::Attempt* take() = 0;
  // `results` are complete; the session has forgotten the attempt.
  virtual void finished(queue::Attempt& attempt) = 0;
  // EHLO or HELO is answered.
  virtual void ready() = 0;
  // The peer waits for our handshake. Session::secured() or tls_failed() follows, never inline.
  virtual void start_tls() = 0;
  // How to authenticate to a server with these capabilities; nullptr: not at all, and `why`. Called behind TLS only.
  virtual std::unique_ptr<auth::ClientExchange> authenticate(const smtp::Capabilities& capabilities, std::string& why) {
    why = "no credentials";
    return nullptr;
  }
  // Starts to send; on_sent() follows. Never called again before that.
  virtual void send(std::span<const iovec> parts) = 0;
  // Octets of the current send that have not left yet.
  virtual uint64_t unsent() const = 0;
  // Close the connection, then settle(). See ending(), stage(), reply().
  virtual void over() = 0;

 protected:
  ~SessionOwner() = default;
};

class Session {
 public:
  // The owner outlives the session.
  Session(SessionOwner& owner, const SessionOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // The connection is up: waits for the greeting. `mx` is the host's name.
  void greet(int64_t now, std::string_view mx);
  void receive(std::string_view bytes, int64_t now);
  // The answer to SessionOwner::start_tls(), or to a connection begun with Tls::from_connect.
  void secured(int64_t now);
  void tls_failed(std::string_view why, int64_t now);
  void on_sent(int64_t now);
  // The peer closed (error 0) or the connection failed.
  void on_end(int error, int64_t now);
  // The deadline has come. May find that there was progress.
  void on_timeout(int64_t now);
  // At the end of a turn in which late_reply() is set: a positive reply came before the end of the
  // data had left, and it has not left yet, so it was not about the data.
  void on_turn_end(int64_t now);
  bool late_reply() const {
    return holding_reply_ && state_ == SessionState::open && held_reply_.reply_class() == 2;
  }
  // There may be work.
  void wake(int64_t now);
  // Start nothing new, finish what is out, then end.
  void retire(int64_t now);
  // Once the connection is closed: gives back every attempt that is still out. `unsent`: octets of
  // the last send that never left.
  void settle(uint64_t unsent, int64_t now);

  // When on_timeout() is due; monotonic.
  int64_t deadline() const { return deadline_; }
  SessionState state() const { return state_; }
  Ending ending() const { return ending_; }
  // Nothing was out when it ended.
  bool ended_idle() const { return ended_idle_; }
  // Of the ending: where, the reply that caused it (or our own words), and what it means.
  events::Stage stage() const { return end_stage_; }
  uint16_t code() const { return end_code_; }
  const std::string& enhanced() const { return end_enhanced_; }
  const std::string& reply() const { return end_reply_; }
  const Verdict& verdict() const { return end_verdict_; }
  // The end was the peer's closing or resetting, not silence or our own doing.
  bool closed_by_peer() const { return closed_by_peer_; }
  // Messages whose end of data was answered.
  uint32_t messages() const { return messages_; }
  uint32_t started() const { return started_; }
  const smtp::Capabilities& capabilities() const { return capabilities_; }
  bool secure() const { return secure_; }
  // STARTTLS was not offered, or was answered with 4xx or 5xx (421 is no answer to it).
  bool tls_refused() const { return tls_refused_; }
  // It was to offer REQUIRETLS, and does not.
  bool lacks_requiretls() const { return lacks_requiretls_; }
  bool idle() const {
    return state_ == SessionState::open && transactions_.empty() && expected_empty() && !sending_;
  }

 private:
  enum class Command : uint8_t {
    greeting,
    ehlo,
    helo,
    starttls,
    auth,
    mail,
    rcpt,
    data,
    content,
    lone_dot,
    chunk,
    rset
  };
  enum class Answer : uint8_t { none, accepted, refused, enough, done };  // done: LMTP, by a reply to the end of data

  struct Transaction {
    queue::Attempt* attempt = nullptr;
    std::vector<Answer> answers;  // by recipient asked for
    uint32_t recipients = 0;      // asked for: the first so many of the attempt's
    uint32_t rcpt_sent = 0, rcpt_answered = 0, accepted = 0;
    mail::WireForm form = mail::WireForm::data;
    bool mail_sent = false, mail_answered = false, mail_ok = false;
    bool data_sent = false, go_ahead = false;  // DATA, 354
    bool content_sent = false;                 // the end of data is in a group
    bool behind_failure = false;               // its MAIL was on the way when one before it failed
    bool again = false;                        // to be started anew once its replies are in
    bool started_again = false;
    bool enough = false;      // the receiver takes no more recipients
    uint64_t group = 0;       // that its MAIL is in
    uint64_t end_offset = 0;  // of its end of data in all that was sent
    uint32_t number = 0;
    int64_t started_ns = 0;
    int64_t content_ns = 0;  // when its content was begun
  };
  struct Expected {
    Command command;
    Transaction* transaction;
    uint32_t recipient;
  };

  void enter(SessionState state);
  const mail::Envelope& envelope(const Transaction& transaction) const;
  const mail::Content& content(const Transaction& transaction) const;

  // ---- send cursor
  void pump(int64_t now);
  bool may_start() const;
  bool pump_pipelined(int64_t now);  // one step; false: nothing more may be written now
  bool pump_lockstep(int64_t now);
  Transaction* start_next(int64_t now);
  bool fits(queue::Attempt& attempt);
  void write_reset();
  void write_mail(Transaction& transaction);
  void write_rcpt(Transaction& transaction);
  void write_data(Transaction& transaction);
  void write_content(Transaction& transaction, int64_t now);
  void write_lone_dot(Transaction& transaction);
  void expect(Command command, Transaction* transaction = nullptr, uint32_t recipient = 0);
  void begin_group();
  void flush(int64_t now);
  void add_commands_part();
  void quit(int64_t now);

  // ---- receive cursor
  bool expected_empty() const { return expected_head_ == expected_.size(); }
  void on_reply(smtp::PeerReply& reply, int64_t now);
  void on_mail(Transaction& transaction, const smtp::PeerReply& reply, int64_t now);
  void on_rcpt(Transaction& transaction, uint32_t recipient, const smtp::PeerReply& reply);
  void on_data(Transaction& transaction, const smtp::PeerReply& reply, int64_t now);
  void on_end_of_data(Transaction& transaction, Command command, const smtp::PeerReply& reply,
                      int64_t now);
  void on_end_for(Transaction& transaction, uint32_t recipient, const smtp::PeerReply& reply, int64_t now);
  void append_hello();
  void on_greeting(const smtp::PeerReply& reply, int64_t now);
  void on_hello(Command command, const smtp::PeerReply& reply, int64_t now);
  void on_starttls(const smtp::PeerReply& reply, int64_t now);
  void begin_auth(int64_t now);
  void on_auth(const smtp::PeerReply& reply, int64_t now);
  void refuse_auth(std::string why, int64_t now);
  void begin_greeting(int64_t now);
  void open(int64_t now);
  void on_unexpected(const smtp::PeerReply& reply, int64_t now);
  void parse(std::string_view bytes, int64_t now);
  void begin_securing(std::string_view rest, int64_t now);
  uint64_t left() const;  // octets that have left so far

  Verdict judged(const smtp::PeerReply& reply, events::Stage stage, bool recipient_accepted = false) const;
  void refuse_all(Transaction& transaction, const smtp::PeerReply& reply, events::Stage stage);
  void finish(Transaction& transaction, int64_t now);
  void finish_or_restart(Transaction& transaction, int64_t now);
  void abandon(Transaction& transaction, bool end_left, int64_t now);
  // `at`: which command the reply answers; none: the one that is waited for.
  void fail_protocol(std::string_view why, int64_t now, events::Stage at = events::Stage::none);
  void end(Ending ending, int64_t now);
  void set_end_reply(const smtp::PeerReply& reply, events::Stage stage, const Verdict& verdict);
  void note_slow(const smtp::PeerReply& reply, events::Stage stage, const Verdict& verdict);
  void update_deadline(int64_t now);
  events::Stage current_stage() const;

  SessionOwner& owner_;
  const SessionOptions options_;
  std::string mx_;
  SessionState state_ = SessionState::greeting;
  smtp::Capabilities capabilities_;
  smtp::ReplyParser parser_{1000};

  std::vector<Transaction*> transactions_;  // out, oldest first
  std::vector<std::unique_ptr<Transaction>> pool_;
  std::vector<Transaction*> free_;
  std::vector<Transaction*> again_;  // to be started anew
  std::vector<Expected> expected_;   // from expected_head_ on
  size_t expected_head_ = 0;
  int64_t front_since_ = 0;  // when the first of them became the first

  // The group being written or sent.
  std::string commands_;
  size_t commands_used_ = 0;  // octets of commands_ that are in parts_
  std::vector<iovec> parts_;
  struct CommandPart {
    size_t part, offset;
  };
  std::vector<CommandPart> command_parts_;
  uint64_t written_ = 0;  // octets of all groups so far, this one included
  bool sending_ = false;
  uint64_t group_ = 0;        // number of the group
  uint64_t last_unsent_ = 0;  // at block_since_
  int64_t block_since_ = 0;

  std::string held_bytes_;  // arrived behind a held reply
  bool holding_reply_ = false;
  smtp::PeerReply held_reply_;

  uint32_t unanswered_ends_ = 0;
  uint32_t started_ = 0, messages_ = 0, mails_ = 0;
  bool need_reset_ = false;
  bool secure_ = false;
  std::unique_ptr<auth::ClientExchange> exchange_;
  std::string initial_response_;
  bool initial_due_ = false;  // the first response was too long for the command
  bool tls_refused_ = false;
  bool lacks_requiretls_ = false;
  bool retiring_ = false;
  bool slow_ = false;         // told to slow down: nothing new
  bool closing_421_ = false;  // what comes behind a 421 was not looked at
  bool busy_ = false;         // inside of a function that pumps at its end
  bool exhausted_ = false;    // the owner had nothing; until wake()
  bool resting_ = false;      // from misfits; until on_timeout()
  bool closed_by_peer_ = false;
  bool front_is_new_ = false;  // the first expected reply is to this group

  int64_t deadline_ = INT64_MAX;
  int64_t idle_since_ = 0;

  Ending ending_ = Ending::none;
  bool ended_idle_ = false;
  events::Stage end_stage_ = events::Stage::none;
  uint16_t end_code_ = 0;
  std::string end_enhanced_, end_reply_;
  Verdict end_verdict_;
};

}  // namespace millrace::delivery
