// Hostile and broken receivers: every stage of a delivery, every way to misbehave there, in each form that a
// message is sent in. Each cell is a relay, the receiver that misbehaves, an honest one beside it, and a judge:
//
//  - what becomes of the mail is what docs/replies.md and docs/queue.md say: delivered only after all of the content
//    was taken and answered with 2xx; bounced only for a 5xx about the message; deferred or held otherwise
//  - the relay is rid of the connection within the time that the stage has in all, whatever drips in
//  - what it keeps of the receiver's octets is bounded, and so is what it takes
//  - mail for the honest receiver is delivered meanwhile
//  - once the receiver behaves, everything drains, and the relay stops in order
//
//   hostile_receivers [--jobs N] [--only TEXT] [--verbose]    in simulation, with the default time-outs
//   hostile_receivers --relay PROGRAM ...                     against the program, pipelined, with time-outs of a second
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <list>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/log.h"
#include "net/listener.h"
#include "peer.h"
#include "pool.h"
#include "stage.h"

namespace millrace::hostile {
namespace {

using transcripts::Peer;
using transcripts::Stage;

constexpr int64_t kMillisecond = 1'000'000, kSecond = 1'000 * kMillisecond;
constexpr size_t kLargeBody = 900'000;
constexpr unsigned kHostile = 1, kHonest = 2;

enum class At : uint8_t { connect, greeting, ehlo, mail, rcpt, data, body, dot, rset, quit };
constexpr At kStages[] = {At::connect, At::greeting, At::ehlo, At::mail, At::rcpt,
                          At::data,    At::body,     At::dot,  At::rset, At::quit};
const char* to_string(At at) {
  switch (at) {
    case At::connect: return "connect";
    case At::greeting: return "greeting";
    case At::ehlo: return "EHLO";
    case At::mail: return "MAIL";
    case At::rcpt: return "RCPT";
    case At::data: return "DATA";
    case At::body: return "body";
    case At::dot: return "final dot";
    case At::rset: return "RSET";
    case At::quit: return "QUIT";
  }
  return "?";
}

enum class How : uint8_t {
  mute,         // says nothing any more
  drip,         // a line without an end, an octet at a time
  slow,         // the right reply, an octet at a time
  endless,      // lines without an end, as fast as they are taken
  oversized,    // a reply of 100 KB
  early,        // the reply comes with the one before it
  wrong_code,   // a positive reply of the wrong kind
  mixed_codes,  // lines of one reply with different codes
  bare_lf,      // lines end in LF
  nul,          // a NUL in the text
  code_421,
  code_4xx,
  code_5xx,
  reset,
  close,
  delayed_ack,  // reads and answers only now and then
  zero_window,  // stops reading
};
constexpr How kWays[] = {How::mute,     How::drip,     How::slow,     How::endless,  How::oversized,  How::early,
                         How::wrong_code, How::mixed_codes, How::bare_lf, How::nul,   How::code_421,   How::code_4xx,
                         How::code_5xx, How::reset,    How::close,    How::delayed_ack, How::zero_window};
const char* to_string(How how) {
  switch (how) {
    case How::mute: return "mute";
    case How::drip: return "drip";
    case How::slow: return "slow";
    case How::endless: return "endless";
    case How::oversized: return "oversized";
    case How::early: return "early";
    case How::wrong_code: return "wrong code";
    case How::mixed_codes: return "mixed codes";
    case How::bare_lf: return "bare LF";
    case How::nul: return "NUL";
    case How::code_421: return "421";
    case How::code_4xx: return "4xx";
    case How::code_5xx: return "5xx";
    case How::reset: return "reset";
    case How::close: return "close";
    case How::delayed_ack: return "delayed ACK";
    case How::zero_window: return "zero window";
  }
  return "?";
}

enum class Form : uint8_t { lockstep, pipelined, chunked };
const char* to_string(Form form) {
  return form == Form::lockstep ? "lockstep" : form == Form::pipelined ? "pipelined" : "chunked";
}

struct Cell {
  At at;
  How how;
  Form form;
  std::string name() const { return fmt::format("{} at {}, {}", to_string(how), to_string(at), to_string(form)); }
};

// Whether there is such a thing.
bool possible(const Cell& cell) {
  switch (cell.at) {
    case At::connect:  // nothing is said yet: silence, refusal, and a connection that is closed at once
      return (cell.how == How::mute || cell.how == How::reset || cell.how == How::close) && cell.form == Form::pipelined;
    case At::greeting:
    case At::ehlo:
      return cell.form == Form::pipelined;  // the form is not agreed upon yet
    case At::data:
      return cell.form != Form::chunked;
    case At::body:
      return cell.how != How::slow;  // that is a reply's way
    case At::quit:
      return cell.form == Form::pipelined && cell.how != How::early;
    default:
      return true;
  }
}

// What must become of the mail before the receiver is healed.
enum class Fate : uint8_t {
  delivered,
  deferred,         // an attempt that counts
  bounced,
  held,             // an event of the queue, nothing counted
  deferred_or_held, // by what of the group was answered when it came
  delivered_later,  // the message goes again, on another connection or after a rest; whatever events there are
};
const char* to_string(Fate fate) {
  switch (fate) {
    case Fate::delivered: return "delivered";
    case Fate::deferred: return "deferred";
    case Fate::bounced: return "bounced";
    case Fate::held: return "held";
    case Fate::deferred_or_held: return "deferred or held";
    case Fate::delivered_later: return "delivered later";
  }
  return "?";
}

Fate fate_of(const Cell& cell) {
  const How how = cell.how;
  const bool harmless = how == How::slow || how == How::bare_lf || how == How::nul || how == How::delayed_ack;
  switch (cell.at) {
    case At::connect:
    case At::greeting:
    case At::ehlo:
      return harmless ? Fate::delivered : how == How::early ? Fate::deferred_or_held : Fate::held;
    case At::mail:
      if (harmless) return Fate::delivered;
      // MAIL is answered; what comes after it is not.
      if (how == How::code_4xx || how == How::zero_window) return Fate::deferred;
      if (how == How::code_5xx) return Fate::bounced;
      if (how == How::early) return Fate::deferred_or_held;
      // With a chunk the content has gone along: silence may mean that it was taken.
      if (cell.form == Form::chunked && how != How::reset && how != How::close) return Fate::deferred_or_held;
      return Fate::held;
    case At::rcpt:
    case At::data:
      if (harmless) return Fate::delivered;
      if (how == How::code_5xx) return Fate::bounced;
      if (how == How::code_421 || (how == How::wrong_code && cell.at == At::rcpt)) return Fate::held;
      // A reset may take the replies before it along, that to MAIL too.
      if (how == How::reset && cell.form != Form::lockstep) return Fate::deferred_or_held;
      return how == How::early ? Fate::deferred_or_held : Fate::deferred;
    case At::body:
      if (how == How::delayed_ack) return Fate::delivered;
      if (how == How::code_5xx) return Fate::bounced;
      // Closed with unread octets, a connection is reset, and the 421 may go with it.
      if (how == How::code_421 || (how == How::reset && cell.form == Form::chunked)) return Fate::deferred_or_held;
      return Fate::deferred;
    case At::dot:
      if (harmless || how == How::zero_window) return Fate::delivered;
      if (how == How::code_5xx) return Fate::bounced;
      if (how == How::code_421) return Fate::held;
      if (how == How::reset && cell.form == Form::chunked) return Fate::deferred_or_held;
      return how == How::early ? Fate::deferred_or_held : Fate::deferred;
    case At::rset:
      return Fate::delivered_later;
    case At::quit:
      return Fate::delivered;
  }
  return Fate::delivered;
}

// The longest that a connection may last once the receiver misbehaves; 0: it lasts as long as it likes.
int64_t most_seconds(const Cell& cell, bool simulated) {
  if (fate_of(cell) == Fate::delivered && cell.at != At::quit) return 0;
  if (!simulated) return 12;
  const bool content_comes = cell.at == At::data || (cell.form == Form::chunked && (cell.at == At::mail || cell.at == At::rcpt));
  if (cell.how == How::zero_window && content_comes) return 600;
  switch (cell.at) {
    case At::connect: return 30;
    // A stage's own time, and for a receiver that reads no more that of the next stage.
    case At::greeting:
    case At::ehlo:
    case At::mail:
    case At::rcpt:
    case At::rset: return 300;
    case At::data: return 300;
    // Looked at every three minutes, and at four kilobytes a second at least.
    case At::body: return 180 * 2 + static_cast<int64_t>(kLargeBody / 4096);
    case At::dot: return 600;
    case At::quit: return 5;
  }
  return 0;
}

struct Objection {
  std::string text;
};

// The receiver that misbehaves, as long as it is not healed; the honest one is the same thing, healed from the start.
class Receiver final : public net::ListenerOwner {
 public:
  Receiver(Stage& stage, unsigned host, const Cell& cell, bool healed)
      : stage_(stage), host_(host), cell_(cell), healed_(healed), listener_(stage.host_io(host), *this) {
    timer_.bind<&Receiver::on_timer>(this);
  }

  void listen() {
    if (cell_.at == At::connect && !healed_) {
      if (cell_.how == How::reset) return;  // refused
      if (cell_.how == How::mute && stage_.simulated()) stage_.set_silent(host_, true);
    }
    open();
    arm();
  }
  void heal() {
    healed_ = true;
    if (stage_.simulated() && cell_.at == At::connect && cell_.how == How::mute) stage_.set_silent(host_, false);
    if (!listener_.is_open()) open();
    for (auto& session : sessions_) session->peer.reset();
  }
  void close() {
    if (listener_.is_open()) listener_.close();
    for (auto& session : sessions_) session->peer.reset();
  }

  struct Taken {
    std::string recipient;
    size_t octets;
  };
  std::vector<Taken> taken;       // with 2xx after all of the content
  int64_t misbehaved_at_ns = 0;   // first
  unsigned connections = 0;
  bool has_misbehaved() const { return misbehaved_at_ns != 0; }
  uint64_t octets_taken_of_us() const { return misbehaving_ ? misbehaving_->peer.octets_sent() : 0; }

 private:
  struct Session {
    explicit Session(reactor::Io& io) : peer(io) {}
    Peer peer;
    bool misbehaves = false, stuck = false;
    bool in_content = false;
    uint64_t chunk = 0;
    bool chunk_open = false;
    std::string recipient;
    size_t content = 0;   // octets so far
    std::string tail;     // the last of them
    std::string dripped;  // what is still to be dripped, when slow
    bool drips_for_ever = false;
    bool reading = true;
    bool early_sent = false, body_done = false;
    bool refused_first = false;
    At answers = At::connect;
  };

  void open() {
    reactor::ListenOptions options;
    options.address = *reactor::Address::parse(fmt::format("{}:{}", stage_.host_address(host_), transcripts::kReceiverPort));
    Status status = listener_.open(options);
    if (!status.ok()) throw Objection{status.error().text};
  }

  bool bad(const Session& session, At at) const { return !healed_ && cell_.at == at && !session.stuck; }

  void on_accepted(reactor::Handle handle) override {
    ++connections;
    auto& session = *sessions_.emplace_back(std::make_unique<Session>(stage_.host_io(host_)));
    session.peer.adopt(handle, host_);
    if (bad(session, At::connect)) {
      misbehave(session);
      if (cell_.how == How::close) session.peer.close();
      return;  // mute, where a network cannot be cut: it never greets
    }
    session.peer.on_input = [this, &session] { on_input(session); };
    answer(session, At::greeting);
  }
  void on_accept_error(int) override {}
  void on_listener_closed() override {}

  void misbehave(Session& session) {
    if (misbehaved_at_ns == 0) {
      misbehaved_at_ns = stage_.io().now();
      misbehaving_ = &session;
    }
    session.misbehaves = true;
  }

  std::string right_reply(Session& session, At at) const {
    switch (at) {
      case At::greeting: return "220 mx.example ESMTP\r\n";
      case At::ehlo:
        return fmt::format("250-mx.example\r\n{}{}250 8BITMIME\r\n", cell_.form != Form::lockstep ? "250-PIPELINING\r\n" : "",
                           cell_.form == Form::chunked ? "250-CHUNKING\r\n" : "");
      case At::mail: return "250 2.1.0 sender ok\r\n";
      case At::rcpt: return "250 2.1.5 recipient ok\r\n";
      case At::data: return "354 go ahead\r\n";
      case At::dot: return "250 2.0.0 taken\r\n";
      case At::rset: return "250 2.0.0 reset\r\n";
      case At::quit: return "221 2.0.0 bye\r\n";
      case At::connect:
      case At::body: break;
    }
    return {};
  }

  // The stage whose reply comes next, for those who are ahead of their time.
  static At next_of(At at, Form form) {
    switch (at) {
      case At::greeting: return At::ehlo;
      case At::ehlo: return At::mail;
      case At::mail: return At::rcpt;
      case At::rcpt: return form == Form::chunked ? At::dot : At::data;
      case At::data: return At::dot;
      default: return At::quit;
    }
  }

  void answer(Session& session, At at) {
    if (session.stuck) return;
    std::string reply = right_reply(session, at);
    bool positive = true;
    if (bad(session, at)) {
      misbehave(session);
      const std::string code = reply.substr(0, 3);
      switch (cell_.how) {
        case How::mute: return stick(session);
        case How::drip:
          session.dripped = code + "-";
          session.drips_for_ever = true;
          session.stuck = true;
          return;
        case How::slow:
          session.dripped += reply;
          if (at == At::dot) take(session);
          return;
        case How::endless:
          session.stuck = true;
          return session.peer.send_endlessly(code + "-x\r\n");
        case How::oversized:
          session.stuck = true;
          for (int i = 0; i < 2500; ++i) session.peer.send(code + "-a line of forty octets, or nearly so..\r\n");
          return session.peer.send(reply);
        case How::early:
          // At QUIT there is nothing to come; elsewhere what comes next comes now.
          if (!session.early_sent) reply += right_reply(session, next_of(at, cell_.form));
          session.early_sent = true;
          break;
        case How::wrong_code:
          reply = at == At::greeting || at == At::data || at == At::quit ? "250 2.0.0 ok\r\n" : "354 go on\r\n";
          positive = false;
          break;
        case How::mixed_codes:
          reply = code + "-maybe\r\n550 or not\r\n";
          positive = false;
          break;
        case How::bare_lf: std::erase(reply, '\r'); break;
        case How::nul: reply.insert(5, 1, '\0'); break;
        case How::code_421:
          reply = "421 4.3.2 closing\r\n";
          positive = false;
          session.peer.send(reply);
          session.stuck = true;
          return session.peer.close();
        case How::code_4xx:
          reply = "451 4.3.0 not now\r\n";
          positive = false;
          break;
        case How::code_5xx:
          reply = "554 5.6.0 never\r\n";
          positive = false;
          break;
        case How::reset:
          session.stuck = true;
          return session.peer.reset();
        case How::close:
          session.stuck = true;
          return session.peer.close();
        case How::delayed_ack: break;  // by the timer
        case How::zero_window:
          session.peer.send(reply);
          if (at == At::dot) take(session);
          session.stuck = true;
          return session.peer.stop_reading();
      }
    }
    if (at == At::dot && positive) take(session);
    if (!session.dripped.empty()) {
      session.dripped += reply;  // in its turn
      return;
    }
    session.peer.send(reply);
    if (at == At::quit) session.peer.close();
  }

  void stick(Session& session) { session.stuck = true; }

  void take(Session& session) {
    taken.push_back({session.recipient, session.content});
    session.content = 0;
  }

  // In the middle of the content, once some of it has come.
  void in_body(Session& session) {
    if (!bad(session, At::body) || session.body_done || session.content < 1000) return;
    session.body_done = true;
    misbehave(session);
    switch (cell_.how) {
      case How::mute:
      case How::zero_window:
        session.stuck = true;
        return session.peer.stop_reading();
      case How::drip:  // reads a little now and then
        session.reading = false;
        return session.peer.stop_reading();
      case How::endless:
        session.stuck = true;
        return session.peer.send_endlessly("250-x\r\n");
      case How::oversized:
        session.stuck = true;
        for (int i = 0; i < 2500; ++i) session.peer.send("250-a line of forty octets, or nearly so..\r\n");
        return session.peer.send("250 2.0.0 taken\r\n");
      case How::early:
      case How::slow: session.peer.send("250 2.0.0 taken\r\n"); break;
      case How::wrong_code: session.peer.send("354 go on\r\n"); break;
      case How::mixed_codes: session.peer.send("250-maybe\r\n550 or not\r\n"); break;
      case How::bare_lf: session.peer.send("250 2.0.0 taken\n"); break;
      case How::nul: session.peer.send(std::string("250 2.0.0 ta\0ken\r\n", 18)); break;
      case How::code_421:
        session.peer.send("421 4.3.2 closing\r\n");
        session.stuck = true;
        return session.peer.close();
      case How::code_4xx: session.peer.send("451 4.3.0 not now\r\n"); break;
      case How::code_5xx: session.peer.send("554 5.6.0 never\r\n"); break;
      case How::reset:
        session.stuck = true;
        return session.peer.reset();
      case How::close:
        session.stuck = true;
        return session.peer.close();
      case How::delayed_ack: return;
    }
    // It has had its say. Most take the rest all the same: who says yes too early is not believed even so.
    if (cell_.how == How::wrong_code || cell_.how == How::mixed_codes) {
      session.stuck = true;
      session.peer.stop_reading();
    }
  }

  void on_input(Session& session) {
    while (step(session)) {
    }
  }

  bool step(Session& session) {
    if (session.stuck) {
      session.peer.in.clear();
      return false;
    }
    Peer& peer = session.peer;
    if (session.chunk_open) {
      size_t n = std::min<uint64_t>(session.chunk, peer.in.size());
      session.content += n;
      session.chunk -= n;
      peer.in.erase(0, n);
      in_body(session);
      if (session.stuck || session.chunk > 0) return false;
      session.chunk_open = false;
      end_of_content(session);
      return true;
    }
    if (session.in_content) {
      std::string text = session.tail + peer.in;
      size_t end = text.starts_with(".\r\n") && session.content == 0 ? 0 : text.find("\r\n.\r\n");
      if (end == std::string::npos) {
        session.content += peer.in.size();
        peer.in.clear();
        session.tail = text.substr(text.size() > 4 ? text.size() - 4 : 0);
        in_body(session);
        return false;
      }
      size_t used = end + (end == 0 ? 3 : 5) - session.tail.size();
      session.content += used;
      peer.in.erase(0, used);
      session.tail.clear();
      session.in_content = false;
      end_of_content(session);
      return true;
    }
    size_t end = peer.in.find("\r\n");
    if (end == std::string::npos) return false;
    std::string line = peer.in.substr(0, end);
    peer.in.erase(0, end + 2);
    if (line.starts_with("EHLO ")) {
      answer(session, At::ehlo);
    } else if (line.starts_with("HELO ")) {
      peer.send("250 mx.example\r\n");
    } else if (line.starts_with("MAIL FROM:")) {
      session.recipient.clear();
      answer(session, At::mail);
    } else if (line.starts_with("RCPT TO:<")) {
      std::string recipient = line.substr(9, line.find('>') - 9);
      if (recipient.starts_with("nobody@")) {
        peer.send("550 5.1.1 no such user\r\n");
        return true;
      }
      session.recipient = recipient;
      answer(session, At::rcpt);
    } else if (line == "DATA") {
      if (session.recipient.empty()) {
        peer.send("554 5.5.1 no valid recipients\r\n");
        return true;
      }
      answer(session, At::data);
      const bool refused = bad(session, At::data) && (cell_.how == How::code_4xx || cell_.how == How::code_5xx ||
                                                      cell_.how == How::wrong_code || cell_.how == How::mixed_codes);
      session.in_content = !session.stuck && !refused;
      session.content = 0;
      session.tail.clear();
    } else if (line.starts_with("BDAT ")) {
      session.chunk = std::strtoull(line.c_str() + 5, nullptr, 10);
      session.chunk_open = true;
      session.content = 0;
    } else if (line == "RSET") {
      answer(session, At::rset);
    } else if (line == "QUIT") {
      answer(session, At::quit);
    } else {
      peer.send("500 5.5.1 what\r\n");
    }
    return true;
  }

  void end_of_content(Session& session) {
    if (session.recipient.empty()) {
      session.peer.send("503 5.5.1 no recipients\r\n");
      return;
    }
    if (session.body_done && !healed_ && cell_.how != How::delayed_ack) return;  // its reply came long ago
    answer(session, At::dot);
  }

  void arm() { stage_.host_io(host_).timers().arm(timer_, stage_.host_io(host_).now() + interval()); }
  int64_t interval() const {
    if (!stage_.simulated()) return 20 * kMillisecond;
    return cell_.how == How::delayed_ack ? 200 * kMillisecond : kSecond;
  }

  void on_timer() {
    for (auto& each : sessions_) {
      Session& session = *each;
      if (!session.dripped.empty() && !session.peer.ended()) {
        session.peer.send(session.dripped.substr(0, 1));
        session.dripped.erase(0, 1);
        if (session.drips_for_ever) session.dripped += "x";
      }
      const bool reads_little = session.misbehaves && !healed_ && !session.stuck &&
                                (cell_.how == How::delayed_ack || (cell_.how == How::drip && cell_.at == At::body));
      if (!reads_little) continue;
      if (cell_.how == How::delayed_ack || session.reading) {
        session.reading ? session.peer.stop_reading() : session.peer.read_on();
        session.reading = !session.reading;
      } else {
        // A kilobyte or so: what one receive brings.
        session.peer.read_on();
        session.reading = true;
      }
    }
    arm();
  }

  Stage& stage_;
  const unsigned host_;
  const Cell cell_;
  bool healed_;
  net::Listener listener_;
  reactor::Timer timer_;
  std::list<std::unique_ptr<Session>> sessions_;
  Session* misbehaving_ = nullptr;
};

// ---- a cell, played and judged

class Trial {
 public:
  Trial(Stage& stage, const Cell& cell, unsigned pace, bool verbose)
      : stage_(stage), cell_(cell), pace_(pace), verbose_(verbose), hostile_(stage, kHostile, cell, false), honest_(stage, kHonest, cell, true) {}

  void run() {
    for (unsigned host : {kHostile, kHonest}) {
      std::string domain = host == kHostile ? "hostile.example" : "honest.example";
      stage_.add_mx(domain, 10, "mx." + domain);
      stage_.add_address("mx." + domain, stage_.host_address(host));
    }
    hostile_.listen();
    honest_.listen();
    std::vector<std::string> flags = {"--reports", "none", "--destination-connections", "1", "--initial-connections", "1",
                                      "--nxdomain-confirm", "10m"};
    if (!stage_.simulated()) {
      for (const char* flag : {"--greeting-timeout", "--mail-timeout", "--rcpt-timeout", "--data-initiation-timeout",
                               "--data-block-timeout", "--data-done-timeout", "--connect-timeout", "--hold", "--retry",
                               "--retry-uncertain", "--idle-timeout"}) {
        flags.emplace_back(flag);
        flags.push_back(fmt::format("{}s", pace_));
      }
    }
    Status status = stage_.start_relay(flags);
    if (!status.ok()) throw Objection{"the relay does not start: " + status.error().text};

    if (cell_.at == At::rset) submit("nobody@hostile.example", false);
    if (cell_.at == At::rset) expect_event("bounced", "nobody@hostile.example");
    submit("victim@hostile.example", cell_.at == At::body);
    submit("friend@honest.example", false);
    expect_event("delivered", "friend@honest.example", 10 * kSecond);
    judge_fate();
    judge_time();
    // Others go on while the trouble lasts.
    submit("another@honest.example", false);
    expect_event("delivered", "another@honest.example", 10 * kSecond);
    judge_octets();

    hostile_.heal();
    submit("late@hostile.example", false);
    if (fate_of(cell_) != Fate::bounced) expect_event("delivered", "victim@hostile.example", kDrain);
    expect_event("delivered", "late@hostile.example", kDrain);
    look();
    if (!delivered_honestly()) throw Objection{"delivered, and the receiver has not taken it"};
    status = stage_.stop_relay();
    if (!status.ok()) throw Objection{status.error().text};
    hostile_.close();
    honest_.close();
  }

 private:
  static constexpr int64_t kDrain = 3 * 3600 * kSecond;

  bool wait(const std::function<bool()>& done, int64_t for_ns) {
    if (!stage_.simulated()) for_ns = std::min(for_ns, pace_ * 30 * kSecond);
    return stage_.run_until(
        [&] {
          watch();
          return done();
        },
        for_ns);
  }

  // When the relay has got rid of the connection.
  void watch() {
    if (connection_ended_ || !hostile_.has_misbehaved()) return;
    if (!stage_.simulated()) {  // looking costs something there
      if (stage_.io().now() < next_watch_ns_) return;
      next_watch_ns_ = stage_.io().now() + 50 * kMillisecond;
    }
    connection_ended_ = !stage_.relay_is_connected_to(kHostile);
  }

  // A client that does what it should.
  void submit(const std::string& recipient, bool large) {
    Peer& peer = *clients_.emplace_back(std::make_unique<Peer>(stage_.io()));
    peer.connect(*reactor::Address::parse(fmt::format("{}:{}", stage_.relay_address(), transcripts::kRelayPort)),
                 *reactor::Address::parse_host(stage_.client_address(1), 0));
    std::string body = fmt::format("Subject: for {}\r\n\r\n", recipient);
    while (body.size() < (large ? kLargeBody : 500)) body += "seventy octets or so of a text that nobody will ever read to its end\r\n";
    std::string lines[] = {"", "EHLO client.example\r\n", "MAIL FROM:<sender@honest.example>\r\n",
                           fmt::format("RCPT TO:<{}>\r\n", recipient), "DATA\r\n", body + ".\r\n", "QUIT\r\n"};
    for (const std::string& line : lines) {
      if (!line.empty()) peer.send(line);
      auto whole = [&] {
        size_t at = 0;
        while (true) {
          size_t end = peer.in.find('\n', at);
          if (end == std::string::npos) return false;
          if (peer.in[at + 3] == ' ') return true;
          at = end + 1;
        }
      };
      if (!wait([&] { return whole() || peer.ended(); }, 30 * kSecond) || peer.in.empty() || peer.in[0] > '3') {
        throw Objection{fmt::format("a client is told: {}", peer.in)};
      }
      peer.in.clear();
    }
    peer.close();
  }

  void look() {
    const std::vector<std::string>& lines = stage_.events();
    for (; seen_ < lines.size(); ++seen_) {
      if (verbose_) fmt::print("{:.3f} {}\n", static_cast<double>(stage_.io().now()) / 1e9, lines[seen_]);
      nlohmann::json event = nlohmann::json::parse(lines[seen_], nullptr, false);
      if (event.is_discarded()) throw Objection{"no JSON: " + lines[seen_]};
      std::string type = event.value("type", ""), recipient = event.value("recipient", "");
      ++counts_[type + " " + recipient];
      if (type == "queue" && event.value("site", "") == "mx.hostile.example") ++held_;
      if (type == "queue" && event.value("site", "") == "mx.honest.example") throw Objection{"the honest site is held: " + lines[seen_]};
      bool final = type == "delivered" || type == "bounced" || type == "expired";
      if (final && ++ended_[recipient] > 1) throw Objection{"ended twice: " + lines[seen_]};
      if (type == "expired") throw Objection{"expired: " + lines[seen_]};
      if (type == "bounced" && recipient == "victim@hostile.example" && fate_of(cell_) != Fate::bounced) {
        throw Objection{"bounced: " + lines[seen_]};
      }
    }
  }
  unsigned count(const std::string& type, const std::string& recipient) {
    look();
    return counts_[type + " " + recipient];
  }
  void expect_event(const std::string& type, const std::string& recipient, int64_t for_ns = 60 * kSecond) {
    if (!wait([&] { return count(type, recipient) > 0; }, for_ns)) throw Objection{fmt::format("{} is not {}", recipient, type)};
  }

  bool delivered_honestly() const {
    return std::any_of(hostile_.taken.begin(), hostile_.taken.end(), [&](const Receiver::Taken& one) {
      return one.recipient == "victim@hostile.example" && one.octets > (cell_.at == At::body ? kLargeBody : 500);
    }) || fate_of(cell_) == Fate::bounced;
  }

  void judge_fate() {
    const std::string victim = "victim@hostile.example";
    const Fate fate = fate_of(cell_);
    int64_t most = (most_seconds(cell_, true) + 120) * kSecond;
    auto met = [&] {
      unsigned deferred = count("deferred", victim), delivered = count("delivered", victim), bounced = count("bounced", victim);
      switch (fate) {
        case Fate::delivered: return delivered > 0;
        case Fate::deferred: return deferred > 0;
        case Fate::bounced: return bounced > 0;
        case Fate::held: return held_ > 0;
        case Fate::deferred_or_held: return deferred > 0 || held_ > 0;
        case Fate::delivered_later: return hostile_.has_misbehaved() && (delivered > 0 || held_ > 0 || connection_ended_);
      }
      return false;
    };
    if (!wait(met, most)) {
      throw Objection{fmt::format("not {}: {} deferred, {} delivered, {} bounced, {} held; {} connections", to_string(fate),
                                  count("deferred", victim), count("delivered", victim), count("bounced", victim), held_,
                                  hostile_.connections)};
    }
    if (count("delivered", victim) > 0 && !delivered_honestly()) throw Objection{"delivered, and the receiver has not taken it"};
    if (fate == Fate::held && count("deferred", victim) > 0) throw Objection{"what says nothing about the message counts as an attempt"};
  }

  void judge_time() {
    int64_t most = pace_ * most_seconds(cell_, stage_.simulated());
    if (most == 0 || !hostile_.has_misbehaved()) return;
    int64_t deadline = hostile_.misbehaved_at_ns + most * kSecond + most * kSecond / 20 + 15 * kSecond;
    if (!wait([&] { return connection_ended_; }, std::max<int64_t>(deadline - stage_.io().now(), 1))) {
      throw Objection{fmt::format("the connection lasts longer than {} s", most)};
    }
  }

  void judge_octets() {
    uint64_t most = (cell_.at == At::body ? 12 : 6) << 20;
    if (uint64_t used = stage_.memory_used(); stage_.simulated() && used > most) {
      throw Objection{fmt::format("{} octets are kept", used)};
    }
    // 64 KB of a reply are read; the rest is what a socket holds.
    if (stage_.simulated() && hostile_.octets_taken_of_us() > (2u << 20)) {
      throw Objection{fmt::format("{} octets of replies are taken", hostile_.octets_taken_of_us())};
    }
  }

  Stage& stage_;
  const Cell cell_;
  const int64_t pace_;
  const bool verbose_;
  Receiver hostile_, honest_;
  std::list<std::unique_ptr<Peer>> clients_;
  size_t seen_ = 0;
  std::map<std::string, unsigned> counts_, ended_;
  unsigned held_ = 0;
  bool connection_ended_ = false;
  int64_t next_watch_ns_ = 0;
};

struct Options {
  std::string relay, only;
  unsigned jobs = 2;
  bool verbose = false;
};

int run(const Options& options) {
  std::vector<Cell> cells;
  for (At at : kStages) {
    for (How how : kWays) {
      for (Form form : {Form::lockstep, Form::pipelined, Form::chunked}) {
        Cell cell{at, how, form};
        if (!possible(cell) || cell.name().find(options.only) == std::string::npos) continue;
        if (!options.relay.empty()) {
          if (form != Form::pipelined) continue;
          // Sockets take a whole message at once, and nobody can be silent on a loopback; a slow reply is cut by
          // time-outs of a second.
          if (at == At::body || (at == At::connect && how == How::mute) || how == How::slow) continue;
        }
        cells.push_back(cell);
      }
    }
  }
  auto began = std::chrono::steady_clock::now();
  auto results = transcripts::run_cases(
      cells.size(), {.jobs = options.jobs, .slower = options.relay.empty() ? 0u : 4u, .verbose = options.verbose},
      [&](const transcripts::Case& one) {
        log::set_level(options.relay.empty() ? log::Level::debug : log::Level::warning);
        // Never destroyed: a trial that has failed stops wherever it is.
        Stage* stage = options.relay.empty() ? transcripts::make_sim_stage(1).release()
                                             : transcripts::make_real_stage(options.relay, one.folder.string(), one.slot).release();
        auto* trial = new Trial(*stage, cells[one.number], one.pace, options.verbose);
        try {
          trial->run();
          std::string fault = transcripts::fault_of_log(transcripts::text_of(one.folder / "log"));
          if (!fault.empty()) throw Objection{fault};
          return 0;
        } catch (const Objection& objection) {
          fmt::print("{}\n", objection.text);
          if (stage->relay_runs()) stage->kill_relay(false);
          return 1;
        }
      });
  size_t failed = 0;
  std::string report;
  for (size_t i = 0; i < cells.size(); ++i) {
    report += fmt::format("<testcase classname=\"hostile_receivers\" name=\"{}\" status=\"run\">{}</testcase>\n", cells[i].name(),
                          results[i].passed ? "" : "<failure/>");
    if (results[i].passed) continue;
    ++failed;
    fmt::print("FAILED {} ({} expected)\n  {}", cells[i].name(), to_string(fate_of(cells[i])), results[i].said);
  }
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  fmt::print("{} cells {}: {} failed, {:.1f} s\n", cells.size(), options.relay.empty() ? "in simulation" : "against the program",
             failed, seconds);
  // As GoogleTest would, so that each cell counts as a test.
  if (const char* where = std::getenv("GTEST_OUTPUT"); where && std::strncmp(where, "xml:", 4) == 0) {
    std::ofstream(where + 4) << "<testsuites><testsuite name=\"hostile_receivers\">\n" << report << "</testsuite></testsuites>\n";
  }
  return failed > 0 || cells.empty() ? 1 : 0;
}

}  // namespace
}  // namespace millrace::hostile

int main(int argc, char** argv) {
  millrace::hostile::Options options;
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    bool more = i + 1 < argc;
    if (word == "--relay" && more) {
      options.relay = argv[++i];
    } else if (word == "--jobs" && more) {
      options.jobs = static_cast<unsigned>(std::clamp(std::atoi(argv[++i]), 1, 100));
    } else if (word == "--only" && more) {
      options.only = argv[++i];
    } else if (word == "--verbose") {
      options.verbose = true;
    } else {
      fmt::print(stderr, "usage: hostile_receivers [--relay PROGRAM] [--jobs N] [--only TEXT] [--verbose]\n");
      return 2;
    }
  }
  return millrace::hostile::run(options);
}
