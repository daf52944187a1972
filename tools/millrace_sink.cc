// millrace-sink: a receiver of mail that behaves as receiving domains do (delays, limits,
// deferrals, refusals, closed connections), counts what it gets, and checks it against the load
// generator's ledger: what is missing, there twice, or altered. With limits (with --profile
// those of a known provider) it tells how often they were exceeded.
//
// Contract: it answers as RFC 5321 asks, keeps no message, and copies no content. What a client
// does wrong (pipelining unannounced or past DATA, bare LF, commands out of order) is counted, not
// forgiven in silence. It prints "listening on ADDR:PORT" on standard output for every listener,
// then, when it ends (SIGTERM, SIGINT, --expect, --idle), the result.
//
// Exit code: 0; 1 when messages of the ledger are missing or altered, or there twice without a
// broken connection or withheld reply that explains it.
//
// TLS: with a certificate it offers STARTTLS, or begins with TLS (--tls implicit); --tls-fault names ways in
// which receivers break it. An expired certificate, or one for another name, is a matter of the files given.
//
// Limits: no AUTH, no DNS. With --threads each connection is served by one of several
// rings, and the greatest number of messages in a second is per thread.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <unordered_map>

#include "base/log.h"
#include "base/prng.h"
#include "common/digest.h"
#include "common/end_of_data.h"
#include "common/ledger.h"
#include "common/message_text.h"
#include "common/process.h"
#include "net/listener.h"
#include "net/stream.h"
#include "reactor/uring.h"

namespace millrace::tools {
namespace {

using reactor::Address;

// The limits of the field's providers for one client address, over all addresses that listen, and their words for
// them. Published by comcast, orange and yahoo (messages a connection); senders' practice for the others. None says how
// many messages a second it takes: --rate-limit.
struct Profile {
  std::string_view name;
  std::string_view too_many_connections;
  std::string_view too_fast;
  uint64_t connections = 0;
  uint64_t messages = 0;  // on a connection
  uint64_t recipients = 0;
  bool closes_silently = false;
};
constexpr Profile kProfiles[] = {
    {"plain", "421 4.7.0 Too many connections from your address", "450 4.7.1 Rate limit exceeded"},
    {"gmail",
     "421 4.7.0 Our system has detected an unusual rate of mail originating from your address",
     "421 4.7.28 Our system has detected an unusual rate of mail originating from your address", 5, 50, 100},
    {"yahoo", "421 4.7.0 [TSS04] Messages temporarily deferred due to unexpected volume",
     "421 4.7.0 [TSS04] Messages temporarily deferred due to unexpected volume", 0, 20, 0, true},
    {"outlook",
     "451 4.7.652 The mail server has exceeded the maximum number of connections (S3115)",
     "421 RP-001 Unfortunately, some messages from your address were deferred: rate limit", 5, 50},
    {"microsoft365", "451 4.7.500 Server busy, please try again later",
     "451 4.7.500 Server busy, please try again later", 5, 50},
    {"comcast", "421 4.1.0 RL000001 Too many sessions opened", "421 4.1.0 RL000002 Throttled", 25, 1000, 100},
    {"apple", "421 4.7.1 Too many connections, try again later",
     "421 4.7.1 Message deferred due to volume", 10, 5},
    {"orange", "421 4.7.0 OFR004_104 Too many connections, slow down",
     "421 4.7.0 OFR004_104 Too many messages, slow down", 2, 100, 100},
    {"mimecast", "451 4.7.0 Too many concurrent connections", "451 4.7.0 Too many messages, try again later", 10, 100},
};

// A reply that some attempts to some domain get in place of the 250.
struct Odds {
  std::string pattern;                                  // a domain, or "*"
  std::vector<std::pair<double, std::string>> replies;  // probability up to here, text
};

enum class DropKind : uint8_t { none, after_dot, stall, reset };
struct Drop {
  DropKind kind;
  double up_to;  // running sum of the probabilities
};

enum class TlsMode : uint8_t { none, starttls, implicit };
enum class TlsFault : uint8_t {
  none,
  refuse,  // offered, and then 454
  stall,   // 220, and then nothing
  inject,  // a reply in the clear behind the 220
  reset,   // 220, and then a reset
  text,    // text in place of the handshake
};

struct Options {
  TlsMode tls = TlsMode::none;
  TlsFault tls_fault = TlsFault::none;
  tls::ServerSettings tls_settings;
  int64_t latency = 0;  // nanoseconds before every reply
  std::vector<Odds> odds;
  bool odds_at_data = false;
  uint64_t messages_per_connection = 0;
  bool close_with_421 = false;
  uint64_t max_recipients = 0;   // of a message
  uint64_t max_connections = 0;  // a (listening, client) address pair
  double rate_limit = 0;         // messages a second, the same pair
  bool listeners_together = false;  // all that listen are one receiver, whose limits these are
  bool chunking = true;
  bool pipelining = true;
  bool requiretls = false;  // behind TLS
  uint64_t size = 0;
  std::vector<Drop> drops;
  const Profile* profile = &kProfiles[0];
  std::string hostname = "sink.invalid";
  bool verify = false;
  uint64_t expect = 0;  // recipients accepted
  int64_t idle = 0;
};

// What a listening address sees of one client address. Shared by the threads.
struct Pair {
  uint64_t connections = 0;
  uint64_t most_connections = 0;
  double tokens = 0;
  int64_t tokens_at = 0;
};
class Pairs {
 public:
  // False: over the limit.
  bool open(const std::string& key, uint64_t limit) {
    std::lock_guard lock(mutex_);
    Pair& pair = pairs_[key];
    if (limit != 0 && pair.connections >= limit) return false;
    pair.most_connections = std::max(pair.most_connections, ++pair.connections);
    return true;
  }
  void close(const std::string& key) {
    std::lock_guard lock(mutex_);
    --pairs_[key].connections;
  }
  bool take_message(const std::string& key, double rate, int64_t now) {
    std::lock_guard lock(mutex_);
    Pair& pair = pairs_[key];
    double burst = std::max(1.0, rate);
    pair.tokens =
        pair.tokens_at == 0
            ? burst
            : std::min(burst, pair.tokens + static_cast<double>(now - pair.tokens_at) / 1e9 * rate);
    pair.tokens_at = now;
    if (pair.tokens < 1) return false;
    pair.tokens -= 1;
    return true;
  }
  uint64_t most_connections() const {
    uint64_t most = 0;
    for (const auto& [key, pair] : pairs_) most = std::max(most, pair.most_connections);
    return most;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, Pair> pairs_;
};

// What became of one recipient of one message of the ledger.
struct Fate {
  uint32_t delivered = 0;  // a 250 was sent
  uint32_t unsure = 0;     // copies whose 250 was withheld, or after which the connection broke
  uint32_t bounced = 0;    // 5xx
};
struct Seen {
  Sha256 digest{};
  bool arrived = false;
  Fate first;  // of recipient 0
  std::map<uint32_t, Fate> others;
  Fate& of(uint32_t k) { return k == 0 ? first : others[k]; }
};
struct Store {
  std::map<uint32_t, std::vector<Seen>> runs;
  uint64_t altered = 0;     // two copies that differ, or a message under another's envelope
  uint64_t without_id = 0;  // content or recipient that is not the generator's
  Seen& at(LoadId id) {
    auto& run = runs[id.run];
    if (run.size() <= id.number) run.resize(id.number + 1 + id.number / 2);
    return run[id.number];
  }
  void merge(Store& other);
};

void Store::merge(Store& other) {
  altered += other.altered;
  without_id += other.without_id;
  for (auto& [run, seen] : other.runs) {
    for (size_t i = 0; i < seen.size(); ++i) {
      Seen& theirs = seen[i];
      auto add = [](Fate& mine, const Fate& fate) {
        mine.delivered += fate.delivered;
        mine.unsure += fate.unsure;
        mine.bounced += fate.bounced;
      };
      if (!theirs.arrived && theirs.first.bounced == 0 && theirs.others.empty()) continue;
      Seen& mine = at({run, i});
      if (theirs.arrived) {
        if (mine.arrived && mine.digest != theirs.digest) ++altered;
        mine.digest = theirs.digest;
        mine.arrived = true;
      }
      add(mine.first, theirs.first);
      for (auto& [k, fate] : theirs.others) add(mine.others[k], fate);
    }
  }
}

struct Results {
  uint64_t messages = 0;  // answered with 250
  uint64_t recipients = 0;
  uint64_t octets = 0;  // received in all
  uint64_t connections = 0;
  uint64_t refused_connections = 0;
  uint64_t most_open = 0;
  uint64_t most_messages_on_a_connection = 0;
  uint64_t limited = 0;  // MAIL refused by --rate-limit
  uint64_t deferred = 0;
  uint64_t bounced = 0;
  uint64_t dropped = 0;
  uint64_t tls_handshakes = 0;  // completed
  uint64_t tls_resumed = 0;
  uint64_t tls_failed = 0;
  uint64_t reports = 0;  // messages from <>
  uint64_t requiretls = 0;  // MAIL commands with REQUIRETLS
  uint64_t by_bdat = 0;
  std::map<std::string, uint64_t> mistakes, violations;
  std::vector<uint32_t> per_second;
  int64_t first = 0;
  int64_t last = 0;
  Store store;
};

class Server;

struct Served final : net::ListenerOwner {
  Served(Server& at, reactor::Io& io) : server(at), listener(io, *this) {}
  void on_accepted(reactor::Handle handle) override;
  void on_accept_error(int error) override { log::warning("accept: {}", strerror(error)); }
  void on_listener_closed() override;
  Server& server;
  net::Listener listener;
  std::string name;  // of the address, for limits
};

class Session final : public net::StreamOwner {
 public:
  Session(Server& server, Served& served, uint64_t seed);
  void start(reactor::Handle handle);
  void on_data(char* data, size_t size, reactor::BufferRef buffer) override;
  void on_secure() override;
  void on_sent() override;
  void on_end(int error) override;
  void on_closed() override;
  void abandon() {
    if (!stream_.closing()) stream_.close(true);
  }
  Link link;

 private:
  enum class State : uint8_t {
    refused,  // over a limit: the reply is on its way, then it closes
    command,
    data,     // up to CRLF . CRLF
    chunk,    // BDAT content
    stalled,  // nothing is answered any more
    ending,   // closes once the replies are sent
  };
  struct Recipient {
    uint32_t k;
    LoadId id;
    bool known;          // k and id are the generator's
    std::string domain;  // for odds at data only
  };
  struct Delayed {
    int64_t due;
    std::string text;
  };

  void greet();
  void starttls();
  void command(std::string_view line);
  void ehlo(bool extended);
  void mail(std::string_view argument);
  void rcpt(std::string_view argument);
  void bdat(std::string_view argument);
  void content(const char* data, size_t size);
  void begin_content();
  void end_of_message();
  void reset();
  void reply(std::string_view text) {
    out_ += text;
    out_ += "\r\n";
  }
  void mistake(const char* what);
  const std::string* drawn(std::string_view domain);
  void flush();
  void on_delay_over();
  void send_ready();
  void leave() {
    state_ = State::ending;
    count_out();
  }
  void count_out();
  void settle_last(bool broken);

  Server& server_;
  Served& served_;
  net::Stream stream_;
  reactor::Timer delay_;
  Prng prng_;
  State state_ = State::command;
  DropKind drop_ = DropKind::none;  // of the message being received
  bool counted_ = false;            // in the limits of connections
  bool greeting_sent_ = false;
  bool greeted_ = false;  // EHLO or HELO
  bool have_mail_ = false;
  bool chunk_refused_ = false;  // since the last RSET
  bool mail_refused_ = false;   // so what was pipelined behind it is no mistake
  bool null_path_ = false;
  bool last_chunk_ = false;
  bool discard_chunk_ = false;  // BDAT out of order: its octets are read and dropped
  bool any_chunk_ = false;
  bool quit_ = false;
  bool tls_wanted_ = false;  // the 220 to STARTTLS is on its way
  bool text_for_tls_ = false;
  bool id_found_ = false;
  uint64_t chunk_left_ = 0;
  uint64_t messages_ = 0;
  size_t recipients_ = 0;
  uint64_t message_octets_ = 0;
  EndOfData end_of_data_;
  std::string pair_;
  std::string partial_;  // a command cut by the network
  std::string out_;      // replies of this piece
  std::string ready_;    // replies to send next
  std::string wire_;     // replies being sent
  std::deque<Delayed> delayed_;
  // --verify
  std::vector<Recipient> named_;
  std::vector<Recipient>
      last_named_;    // of the last message answered with 250: lost with the connection?
  std::string head_;  // content up to the id
  LoadId content_id_;
  Digest digest_;
};

class Server {
 public:
  Server(const Options& how, Pairs& limits, uint64_t seed)
      : options(how), pairs(limits), prng(seed) {
    tick_.bind<&Server::on_tick>(this);
  }
  Status prepare(const std::vector<Address>& addresses, bool shared_port, bool announce);
  void run();
  void accepted(Served& served, reactor::Handle handle);
  void closed(Session& session);
  void delivered(size_t recipients, uint64_t octets);

  const Options& options;
  Pairs& pairs;
  Prng prng;
  std::unique_ptr<reactor::Io> io;
  std::shared_ptr<tls::ServerContext> tls;  // null: no TLS
  Results results;
  // Written here, read by the first server.
  std::atomic<uint64_t> recipients_so_far{0};
  std::atomic<uint64_t> bounced_so_far{0};
  std::atomic<int64_t> last_seen{0};
  void bounced() { bounced_so_far.store(++results.bounced, std::memory_order_relaxed); }
  void deferred() { ++results.deferred; }
  std::function<bool()> finished;  // the first server asks whether all are done
  size_t listeners_closed = 0;

 private:
  void on_tick();

  reactor::Timer tick_;
  std::vector<std::unique_ptr<Served>> served_;
  IntrusiveList<Session, &Session::link> sessions_;
  size_t open_ = 0;
  bool stopping_ = false;
};

// ---- Server

void Served::on_accepted(reactor::Handle handle) { server.accepted(*this, handle); }
void Served::on_listener_closed() { ++server.listeners_closed; }

Status Server::prepare(const std::vector<Address>& addresses, bool shared_port, bool announce) {
  auto made = reactor::make_uring({});
  if (!made) return fail(made.error());
  io = std::move(*made);
  for (const Address& address : addresses) {
    served_.push_back(std::make_unique<Served>(*this, *io));
    reactor::ListenOptions listen;
    listen.address = address;
    listen.reuse_port = shared_port;
    Served& served = *served_.back();
    if (auto opened = served.listener.open(listen); !opened) {
      served_.pop_back();
      return opened;
    }
    served.name = served.listener.address().to_string();
    if (announce) fmt::print("listening on {}\n", served.name);
  }
  if (announce) fflush(stdout);
  return success();
}

void Server::accepted(Served& served, reactor::Handle handle) {
  if (stopping_) return io->close(handle, true);
  auto* session = new Session(*this, served, prng.next());
  sessions_.push_back(*session);
  results.most_open = std::max<uint64_t>(results.most_open, ++open_);
  session->start(handle);
}

void Server::closed(Session& session) {
  session.link.unlink();
  --open_;
  delete &session;
}

void Server::delivered(size_t recipients, uint64_t octets) {
  int64_t now = io->now();
  if (results.first == 0) results.first = now;
  results.last = now;
  ++results.messages;
  results.recipients += recipients;
  results.octets += octets;
  size_t second = static_cast<size_t>((now - results.first) / 1'000'000'000);
  if (results.per_second.size() <= second) results.per_second.resize(second + 1);
  ++results.per_second[second];
  recipients_so_far.store(results.recipients, std::memory_order_relaxed);
  last_seen.store(now, std::memory_order_relaxed);
}

void Server::on_tick() {
  if (finished && finished()) stop_requested.store(true, std::memory_order_relaxed);
  io->timers().arm(tick_, io->now() + 20'000'000);
}

void Server::run() {
  io->turn(0);
  on_tick();
  while (!stop_requested.load(std::memory_order_relaxed)) io->turn(50'000'000);
  stopping_ = true;
  tick_.cancel();
  for (auto& served : served_) served->listener.close();
  // Each comes back through closed(), in a later turn.
  for (size_t i = open_; i > 0; --i) {
    Session* session = sessions_.pop_front();
    sessions_.push_back(*session);
    session->abandon();
  }
  while (open_ > 0 || listeners_closed < served_.size()) io->turn(50'000'000);
  served_.clear();
  io.reset();
}

// ---- Session

Session::Session(Server& server, Served& served, uint64_t seed)
    : server_(server), served_(served), stream_(*server.io, *this), prng_(seed) {
  delay_.bind<&Session::on_delay_over>(this);
}

void Session::start(reactor::Handle handle) {
  ++server_.results.connections;
  const Options& options = server_.options;
  stream_.start(handle, reactor::BufferGroup::ingress);
  if (!options.listeners_together) pair_ = served_.name;
  if (options.max_connections != 0 || options.rate_limit != 0) {
    if (auto peer = server_.io->peer_address(handle); peer) pair_ += '<' + peer->host_string();
  }
  counted_ = server_.pairs.open(pair_, options.max_connections);
  if (options.tls == TlsMode::implicit) {
    stream_.start_tls(tls::Engine::accept(server_.tls));
  } else {
    greet();
  }
}

void Session::on_secure() {
  const tls::Engine::Info& info = stream_.tls()->info();
  ++server_.results.tls_handshakes;
  if (info.resumed) ++server_.results.tls_resumed;
  if (server_.options.tls == TlsMode::implicit) return greet();
  greeted_ = false;
  reset();
}

void Session::greet() {
  const Options& options = server_.options;
  if (counted_) {
    reply(fmt::format("220 {} ESMTP", options.hostname));
  } else {
    ++server_.results.refused_connections;
    ++server_.results.violations["connections"];
    reply(options.profile->too_many_connections);
    state_ = State::refused;
  }
  flush();
}

void Session::mistake(const char* what) { ++server_.results.mistakes[what]; }

void Session::on_data(char* data, size_t size, reactor::BufferRef) {
  if (text_for_tls_) {
    reply("250 2.0.0 text in place of TLS");
    return flush();
  }
  if (tls_wanted_) {
    mistake("talks between STARTTLS and its reply");
    return stream_.close(true);
  }
  if (!greeting_sent_ && state_ == State::command) mistake("talks before the greeting");
  size_t at = 0;
  while (at < size && !stream_.closing()) {
    switch (state_) {
      case State::refused:
      case State::stalled:
      case State::ending:
        at = size;
        break;
      case State::command: {
        const void* found = memchr(data + at, '\n', size - at);
        if (!found) {
          partial_.append(data + at, size - at);
          if (partial_.size() > 12'288) {
            mistake("command line over 12288 octets");
            partial_.clear();
          }
          at = size;
          break;
        }
        size_t end = static_cast<size_t>(static_cast<const char*>(found) - data);
        std::string_view line(data + at, end - at);
        at = end + 1;
        if (!partial_.empty()) {
          partial_.append(line);
          line = partial_;
        }
        if (line.ends_with('\r')) {
          line.remove_suffix(1);
        } else {
          mistake("command without CR");
        }
        bool groups = server_.options.pipelining;
        command(line);
        partial_.clear();
        // RFC 2920 3.1: EHLO, DATA, and QUIT end a group; nothing is grouped unless announced.
        if (at < size && !groups && state_ != State::chunk)
          mistake("pipelining that was not announced");
        else if (at < size && state_ == State::data)
          mistake("content before the reply to DATA");
        break;
      }
      case State::data: {
        const char* piece = data + at;
        uint64_t bare = end_of_data_.bare_line_feeds();
        size_t used = server_.options.verify
                          ? end_of_data_.find(piece, size - at,
                                              [this](const char* p, size_t n) { content(p, n); })
                          : end_of_data_.find(piece, size - at);
        if (end_of_data_.bare_line_feeds() != bare) mistake("bare LF in content");
        size_t taken = used == EndOfData::kNotYet ? size - at : used;
        message_octets_ += taken;
        at += taken;
        if (drop_ == DropKind::reset && message_octets_ > 100) {
          ++server_.results.dropped;
          settle_last(true);
          return stream_.close(true);
        }
        if (used != EndOfData::kNotYet) end_of_message();
        break;
      }
      case State::chunk: {
        size_t taken = std::min<uint64_t>(size - at, chunk_left_);
        if (!discard_chunk_) {
          if (server_.options.verify) content(data + at, taken);
          message_octets_ += taken;
        }
        at += taken;
        chunk_left_ -= taken;
        if (chunk_left_ > 0) break;
        state_ = State::command;
        if (discard_chunk_) {
          chunk_refused_ = true;
          reply("503 5.5.1 BDAT out of order");
        } else if (last_chunk_) {
          end_of_message();
        } else {
          reply("250 2.0.0 Chunk taken");
        }
        break;
      }
    }
  }
  flush();
}

void Session::command(std::string_view line) {
  auto is = [&line](std::string_view verb) {
    return line.size() >= verb.size() && strncasecmp(line.data(), verb.data(), verb.size()) == 0 &&
           (line.size() == verb.size() || line[verb.size()] == ' ');
  };
  auto starts = [&line](std::string_view verb) {
    return line.size() >= verb.size() && strncasecmp(line.data(), verb.data(), verb.size()) == 0;
  };
  settle_last(false);  // a command after it: the client has seen, or will see, the 250
  if (starts("MAIL FROM:")) return mail(line.substr(10));
  if (starts("RCPT TO:")) return rcpt(line.substr(8));
  if (is("DATA")) {
    if (any_chunk_ || recipients_ == 0) {
      if (any_chunk_ || (!have_mail_ && !mail_refused_)) mistake("DATA out of order");
      return reply(have_mail_ && !any_chunk_ ? "554 5.5.1 No valid recipients"
                                             : "503 5.5.1 DATA out of order");
    }
    reply("354 End data with <CR><LF>.<CR><LF>");
    state_ = State::data;
    end_of_data_ = EndOfData();
    return begin_content();
  }
  if (is("BDAT")) return bdat(line.substr(4));
  if (is("EHLO")) return ehlo(true);
  if (is("HELO")) return ehlo(false);
  if (is("STARTTLS") && server_.options.tls == TlsMode::starttls && !stream_.tls()) return starttls();
  if (is("RSET")) {
    reset();
    return reply("250 2.0.0 Ok");
  }
  if (is("NOOP")) return reply("250 2.0.0 Ok");
  if (is("QUIT")) {
    quit_ = true;
    reply("221 2.0.0 Bye");
    return leave();
  }
  mistake("unknown command");
  reply("500 5.5.2 Unknown command");
}

void Session::starttls() {
  switch (server_.options.tls_fault) {
    case TlsFault::refuse:
      return reply("454 4.7.0 TLS not available");
    case TlsFault::inject:
      reply("220 2.0.0 Ready to start TLS");
      return reply("250 2.0.0 injected");
    case TlsFault::stall:
      reply("220 2.0.0 Ready to start TLS");
      state_ = State::stalled;
      return;
    case TlsFault::reset:
      return stream_.close(true);
    case TlsFault::text:
      reply("220 2.0.0 Ready to start TLS");
      text_for_tls_ = true;
      return;
    case TlsFault::none:
      reply("220 2.0.0 Ready to start TLS");
      tls_wanted_ = true;
      return;
  }
}

void Session::ehlo(bool extended) {
  const Options& options = server_.options;
  greeted_ = true;
  reset();
  if (!extended) return reply("250 " + options.hostname);
  reply("250-" + options.hostname);
  if (options.pipelining) reply("250-PIPELINING");
  if (options.chunking) reply("250-CHUNKING");
  if (options.tls == TlsMode::starttls && !stream_.tls()) reply("250-STARTTLS");
  if (options.size != 0) reply(fmt::format("250-SIZE {}", options.size));
  if (options.requiretls && stream_.tls()) reply("250-REQUIRETLS");
  reply("250-8BITMIME");
  reply("250-ENHANCEDSTATUSCODES");
  reply("250 SMTPUTF8");
}

void Session::reset() {
  chunk_refused_ = mail_refused_ = false;
  have_mail_ = null_path_ = any_chunk_ = false;
  recipients_ = 0;
  named_.clear();
}

void Session::mail(std::string_view argument) {
  const Options& options = server_.options;
  if (have_mail_ || !greeted_) {
    // Behind a BDAT that failed, which leaves its transaction open, this MAIL may have been under
    // way.
    if (!chunk_refused_) mistake("MAIL out of order");
    mail_refused_ = true;
    return reply("503 5.5.1 MAIL out of order");
  }
  mail_refused_ = true;
  if (options.messages_per_connection != 0 && messages_ >= options.messages_per_connection) {
    if (options.close_with_421) {
      ++server_.results.violations["messages of a connection"];
      reply("421 4.4.2 Too many messages on this connection");
    }
    return leave();
  }
  if (options.rate_limit > 0 &&
      !server_.pairs.take_message(pair_, options.rate_limit, server_.io->now())) {
    ++server_.results.limited;
    ++server_.results.violations["rate of messages"];
    reply(options.profile->too_fast);
    if (options.profile->too_fast.starts_with("421")) leave();
    return;
  }
  if (options.size != 0) {
    auto at = argument.find(" SIZE=");
    uint64_t size = 0;
    if (at != std::string_view::npos) {
      std::from_chars(argument.data() + at + 6, argument.data() + argument.size(), size);
    }
    if (size > options.size) return reply("552 5.3.4 Message too large");
  }
  if (argument.find(" REQUIRETLS ") != std::string_view::npos || argument.ends_with(" REQUIRETLS")) {
    if (!options.requiretls || !stream_.tls()) mistake("REQUIRETLS that was not announced");
    ++server_.results.requiretls;
  }
  have_mail_ = true;
  mail_refused_ = false;
  null_path_ = argument.starts_with("<>");
  reply("250 2.1.0 Ok");
}

const std::string* Session::drawn(std::string_view domain) {
  for (const Odds& odds : server_.options.odds) {
    if (odds.pattern != "*" && odds.pattern != domain) continue;
    double point = prng_.unit();
    for (const auto& [up_to, text] : odds.replies) {
      if (point < up_to) return &text;
    }
    return nullptr;
  }
  return nullptr;
}

void Session::rcpt(std::string_view argument) {
  const Options& options = server_.options;
  if (!have_mail_ || any_chunk_) {
    if (any_chunk_) mistake("RCPT out of order");
    return reply("503 5.5.1 RCPT out of order");
  }
  if (options.max_recipients != 0 && recipients_ >= options.max_recipients) {
    ++server_.results.violations["recipients of a message"];
    return reply("452 4.5.3 Too many recipients");
  }
  Recipient recipient{0, {}, false, {}};
  std::string_view path = argument.substr(0, argument.find('>'));
  size_t at = path.rfind('@');
  std::string_view domain = at == std::string_view::npos ? "" : path.substr(at + 1);
  if (options.verify) {
    // <k-rrrrrrrr-nnnnnnnnnn@domain>
    const char* begin = path.data() + 1;
    auto [end, error] = std::from_chars(begin, path.data() + path.size(), recipient.k);
    recipient.known =
        path.starts_with('<') && error == std::errc() && *end == '-' &&
        parse_id(path.substr(static_cast<size_t>(end + 1 - path.data())), recipient.id);
    // Behind a refused MAIL this is the old transaction's, which the client is about to reset.
    if (mail_refused_) recipient.known = false;
    if (!recipient.known && !null_path_ && !mail_refused_) ++server_.results.store.without_id;
  }
  if (!options.odds.empty() && !options.odds_at_data) {
    if (const std::string* refusal = drawn(domain)) {
      bool final = refusal->starts_with('5');
      if (!mail_refused_) final ? server_.bounced() : server_.deferred();
      if (final && recipient.known)
        ++server_.results.store.at(recipient.id).of(recipient.k).bounced;
      return reply(*refusal);
    }
  }
  ++recipients_;
  if (options.odds_at_data) recipient.domain = domain;
  if (options.verify || options.odds_at_data) named_.push_back(std::move(recipient));
  reply("250 2.1.5 Ok");
}

void Session::bdat(std::string_view argument) {
  auto bad = [this] {
    mistake("BDAT syntax");
    reply("501 5.5.4 BDAT needs a size");
    leave();  // how much content follows is unknown
  };
  if (!argument.starts_with(' ')) return bad();
  argument.remove_prefix(1);
  uint64_t size = 0;
  const char* end = argument.data() + argument.size();
  auto [next, error] = std::from_chars(argument.data(), end, size);
  if (error != std::errc()) return bad();
  std::string_view rest(next, static_cast<size_t>(end - next));
  last_chunk_ = rest.size() == 5 && strncasecmp(rest.data(), " LAST", 5) == 0;
  if (!last_chunk_ && !rest.empty()) return bad();
  if (!server_.options.chunking) mistake("BDAT that was not announced");
  discard_chunk_ = recipients_ == 0 || !server_.options.chunking;
  if (!have_mail_ && !mail_refused_) mistake("BDAT out of order");
  if (!discard_chunk_ && !any_chunk_) begin_content();
  any_chunk_ = !discard_chunk_;
  chunk_left_ = size;
  if (size > 0) {
    state_ = State::chunk;
  } else if (discard_chunk_) {
    chunk_refused_ = true;
    reply("503 5.5.1 BDAT out of order");
  } else if (last_chunk_) {
    end_of_message();
  } else {
    reply("250 2.0.0 Chunk taken");
  }
}

void Session::begin_content() {
  if (mail_refused_) mistake("content behind a refused MAIL");
  message_octets_ = 0;
  id_found_ = false;
  head_.clear();
  drop_ = DropKind::none;
  if (!server_.options.drops.empty()) {
    double point = prng_.unit();
    for (const Drop& drop : server_.options.drops) {
      if (point < drop.up_to) {
        drop_ = drop.kind;
        break;
      }
    }
  }
}

// Canonical content, in order: found and hashed from the generator's first line on.
void Session::content(const char* data, size_t size) {
  if (id_found_) return digest_.add(data, size);
  static constexpr size_t kLongestHead = 64 * 1024;
  if (head_.size() > kLongestHead) return;
  head_.append(data, size);
  size_t at = 0;
  while ((at = head_.find(kIdHeader, at)) != std::string::npos && at != 0 && head_[at - 1] != '\n')
    ++at;
  if (at == std::string::npos || head_.size() < at + kIdHeader.size() + kIdSize) return;
  if (!parse_id(std::string_view(head_).substr(at + kIdHeader.size()), content_id_)) return;
  id_found_ = true;
  digest_.start();
  digest_.add(head_.data() + at, head_.size() - at);
}

void Session::end_of_message() {
  const Options& options = server_.options;
  Results& results = server_.results;
  state_ = State::command;
  if (any_chunk_) ++results.by_bdat;
  const std::string* refusal = nullptr;
  if (options.odds_at_data && !named_.empty()) refusal = drawn(named_.front().domain);
  bool withheld = drop_ == DropKind::after_dot || drop_ == DropKind::stall;
  if (options.verify && !refusal && !null_path_) {
    if (!id_found_) {
      ++results.store.without_id;
    } else {
      Sha256 digest = digest_.finish();
      Seen& seen = results.store.at(content_id_);
      if (seen.arrived && seen.digest != digest) ++results.store.altered;
      seen.arrived = true;
      seen.digest = digest;
      for (const Recipient& recipient : named_) {
        if (!recipient.known) continue;
        if (recipient.id.run != content_id_.run || recipient.id.number != content_id_.number) {
          ++results.store.altered;
          continue;
        }
        ++(withheld ? seen.of(recipient.k).unsure : seen.of(recipient.k).delivered);
      }
    }
  }
  if (refusal) {
    bool final = refusal->starts_with('5');
    final ? server_.bounced() : server_.deferred();
    if (final) {
      for (const Recipient& recipient : named_) {
        if (recipient.known) ++results.store.at(recipient.id).of(recipient.k).bounced;
      }
    }
    reply(*refusal);
    return reset();
  }
  if (withheld) {
    ++results.dropped;
    bool stall = drop_ == DropKind::stall;
    reset();
    if (stall) {
      state_ = State::stalled;
      return;
    }
    return leave();  // replies to what came before still go out
  }
  ++messages_;
  results.most_messages_on_a_connection =
      std::max(results.most_messages_on_a_connection, messages_);
  if (null_path_) ++results.reports;
  server_.delivered(recipients_, message_octets_);
  if (options.verify) last_named_ = std::move(named_);
  reset();
  // 26 characters, as the relay's own.
  out_ += "250 2.0.0 Ok: queued as ";
  char id[27];
  fmt::format_to_n(id, 26, "{:026}", results.messages);
  out_.append(id, 26);
  out_ += "\r\n";
  if (options.messages_per_connection != 0 && messages_ >= options.messages_per_connection &&
      !options.close_with_421) {
    leave();  // as some receivers do: a close without a word
  }
}

// The connection has gone on after the last 250 (`broken` false), or ended without QUIT.
void Session::settle_last(bool broken) {
  if (broken) {
    for (const Recipient& recipient : last_named_) {
      if (recipient.known) ++server_.results.store.at(recipient.id).of(recipient.k).unsure;
    }
  }
  last_named_.clear();
}

// Sends the replies made so far, or files them for later.
void Session::flush() {
  if (server_.options.latency == 0) {
    ready_ += out_;
    out_.clear();
    return send_ready();
  }
  if (!out_.empty()) {
    delayed_.push_back({server_.io->now() + server_.options.latency, std::move(out_)});
    out_.clear();
    if (!delay_.armed()) server_.io->timers().arm(delay_, delayed_.front().due);
  }
  send_ready();
}

void Session::on_delay_over() {
  while (!delayed_.empty() && delayed_.front().due <= server_.io->now()) {
    ready_ += delayed_.front().text;
    delayed_.pop_front();
  }
  if (!delayed_.empty()) server_.io->timers().arm(delay_, delayed_.front().due);
  send_ready();
}

void Session::send_ready() {
  if (stream_.closing() || stream_.sending()) return;
  if (ready_.empty()) {
    if (delayed_.empty() && (state_ == State::ending || state_ == State::refused)) stream_.close();
    return;
  }
  greeting_sent_ = true;
  wire_.swap(ready_);
  ready_.clear();
  iovec part{wire_.data(), wire_.size()};
  stream_.send({&part, 1});
  if (tls_wanted_ && out_.empty() && delayed_.empty()) {
    tls_wanted_ = false;
    stream_.start_tls(tls::Engine::accept(server_.tls));
  }
}

void Session::on_sent() { send_ready(); }

void Session::on_end(int) {
  count_out();
  if (stream_.closing()) return;
  if (stream_.tls() && stream_.tls()->state() != tls::Engine::State::open &&
      stream_.tls()->state() != tls::Engine::State::closed) {
    ++server_.results.tls_failed;
  }
  // Without QUIT, or before the replies were out, the last 250 may not have been read.
  settle_last(!quit_);
  stream_.close();
}

// It counts until the last reply is on its way, or the client has closed: then it may come again at once.
void Session::count_out() {
  if (std::exchange(counted_, false)) server_.pairs.close(pair_);
}

void Session::on_closed() {
  settle_last(!quit_ && state_ != State::ending);
  delay_.cancel();
  count_out();
  server_.closed(*this);  // deletes *this
}

// ---- the ledger and the reports

struct Verdict {
  bool checked = false;
  uint64_t accepted = 0;    // messages in the ledger
  uint64_t recipients = 0;  // theirs, without those refused
  uint64_t delivered = 0;
  uint64_t bounced = 0;
  uint64_t missing = 0;
  uint64_t duplicates = 0;  // copies too many that nothing here explains
  uint64_t explained = 0;   // copies too many after a lost reply, here or at the relay's listener
  uint64_t altered = 0;
  uint64_t unknown = 0;  // arrived, but never accepted or even sent to the end
  std::vector<std::string> samples;
  bool good() const { return missing == 0 && duplicates == 0 && altered == 0 && unknown == 0; }
};

Result<Verdict> check_ledgers(const std::vector<std::string>& paths, Store& store) {
  Verdict verdict;
  verdict.checked = true;
  verdict.altered = store.altered;
  auto sample = [&verdict](const char* what, LoadId id, uint32_t k) {
    if (verdict.samples.size() < 20) {
      verdict.samples.push_back(fmt::format("{} {}-{:08x}-{:010}", what, k, id.run, id.number));
    }
  };
  std::map<uint32_t, std::vector<bool>> known;
  for (const std::string& path : paths) {
    std::ifstream file(path);
    if (!file) return fail(fmt::format("{}: cannot be read", path));
    std::string line;
    for (size_t number = 1; std::getline(file, line); ++number) {
      LedgerEntry entry;
      if (!parse_line(line, entry))
        return fail(fmt::format("{}:{}: not a line of a ledger", path, number));
      bool answered = entry.relay_id != kUnanswered;
      auto& listed = known[entry.id.run];
      if (listed.size() <= entry.id.number)
        listed.resize(entry.id.number + 1 + entry.id.number / 2);
      listed[entry.id.number] = true;
      Seen& seen = store.at(entry.id);
      if (answered) ++verdict.accepted;
      if (seen.arrived && seen.digest != entry.digest) {
        ++verdict.altered;
        sample("altered", entry.id, 0);
      }
      for (uint32_t k = 0; k < entry.recipients; ++k) {
        if (std::find(entry.refused.begin(), entry.refused.end(), k) != entry.refused.end())
          continue;
        const Fate& fate = seen.of(k);
        uint32_t copies = fate.delivered + fate.bounced;
        if (answered) ++verdict.recipients;
        if (fate.delivered > 0) {
          ++verdict.delivered;
        } else if (fate.bounced > 0) {
          ++verdict.bounced;
        } else if (answered) {
          ++verdict.missing;
          sample(fate.unsure > 0 ? "only without reply" : "missing", entry.id, k);
        }
        // Each lost reply explains one more copy.
        uint32_t excess = copies > 1 ? copies - 1 : 0;
        uint32_t explained = std::min(excess, fate.unsure + entry.times_sent - 1);
        verdict.explained += explained;
        verdict.duplicates += excess - explained;
        if (excess > explained) sample("duplicate", entry.id, k);
      }
    }
  }
  for (auto& [run, seen] : store.runs) {
    const auto& listed = known[run];
    for (size_t i = 0; i < seen.size(); ++i) {
      if (!seen[i].arrived || (i < listed.size() && listed[i])) continue;
      ++verdict.unknown;
      sample("not in the ledger", {run, i}, 0);
    }
  }
  return verdict;
}

nlohmann::ordered_json to_json(const Results& r, const Verdict& verdict, uint64_t most_connections,
                               double cpu_us) {
  double seconds = static_cast<double>(r.last - r.first) / 1e9;
  nlohmann::ordered_json json = {
      {"messages", r.messages},
      {"recipients", r.recipients},
      {"seconds", seconds},
      {"first_monotonic", static_cast<double>(r.first) / 1e9},
      {"last_monotonic", static_cast<double>(r.last) / 1e9},
      {"messages_per_second", seconds > 0 ? static_cast<double>(r.messages) / seconds : 0},
      {"octets", r.octets},
      {"by_bdat", r.by_bdat},
      {"reports", r.reports},
      {"requiretls", r.requiretls},
      {"connections", r.connections},
      {"refused_connections", r.refused_connections},
      {"most_open", r.most_open},
      {"most_connections_of_a_client", most_connections},
      {"most_messages_on_a_connection", r.most_messages_on_a_connection},
      {"rate_limited", r.limited},
      {"deferred", r.deferred},
      {"bounced", r.bounced},
      {"dropped", r.dropped},
      {"tls_handshakes", r.tls_handshakes},
      {"tls_resumed", r.tls_resumed},
      {"tls_failed", r.tls_failed},
      {"mistakes", r.mistakes},
      {"violations", r.violations},
      {"per_second", r.per_second},
      {"cpu_us_per_message", cpu_us}};
  if (verdict.checked) {
    json["ledger"] = {{"accepted", verdict.accepted},
                      {"recipients", verdict.recipients},
                      {"delivered", verdict.delivered},
                      {"bounced", verdict.bounced},
                      {"missing", verdict.missing},
                      {"duplicates", verdict.duplicates},
                      {"explained_duplicates", verdict.explained},
                      {"altered", verdict.altered},
                      {"unknown", verdict.unknown},
                      {"without_id", r.store.without_id},
                      {"samples", verdict.samples}};
  }
  return json;
}

void print_text(const Results& r, const Verdict& verdict, uint64_t most_connections,
                double cpu_us) {
  double seconds = static_cast<double>(r.last - r.first) / 1e9;
  fmt::print("Received {} messages for {} recipients in {:.2f} s: {:.0f} messages/s, {:.1f} MB/s\n",
             r.messages, r.recipients, seconds,
             seconds > 0 ? static_cast<double>(r.messages) / seconds : 0,
             seconds > 0 ? static_cast<double>(r.octets) / seconds / 1e6 : 0);
  fmt::print(
      "Connections: {} in all, at most {} open, at most {} of one client; {} refused; at most {} "
      "messages on one\n",
      r.connections, r.most_open, most_connections, r.refused_connections,
      r.most_messages_on_a_connection);
  fmt::print(
      "Messages: {} by BDAT, {} reports; {} deferred, {} bounced, {} rate limited, {} dropped\n",
      r.by_bdat, r.reports, r.deferred, r.bounced, r.limited, r.dropped);
  if (r.tls_handshakes + r.tls_failed > 0) {
    fmt::print("TLS: {} handshakes, {} of them resumed; {} failed\n", r.tls_handshakes, r.tls_resumed, r.tls_failed);
  }
  for (const auto& [what, count] : r.mistakes)
    fmt::print("  client's mistake: {} x {}\n", count, what);
  for (const auto& [what, count] : r.violations) fmt::print("  over the limit: {} x {}\n", count, what);
  if (verdict.checked) {
    fmt::print(
        "Ledger: {} messages accepted for {} recipients: {} delivered, {} bounced, {} missing, "
        "{} duplicates ({} more explained by lost replies), {} altered, {} unknown, {} without "
        "id\n",
        verdict.accepted, verdict.recipients, verdict.delivered, verdict.bounced, verdict.missing,
        verdict.duplicates, verdict.explained, verdict.altered, verdict.unknown,
        r.store.without_id);
    for (const auto& text : verdict.samples) fmt::print("  {}\n", text);
  }
  fmt::print("Simulator: {:.1f} us CPU a message\n", cpu_us);
}

// "127.0.0.1:2525", "127.0.1.1-127.0.1.50:2525", "[::1]:2525"
Result<std::vector<Address>> parse_listen(const std::string& text) {
  std::vector<Address> addresses;
  size_t dash = text.find('-');
  if (dash == std::string::npos) {
    auto address = Address::parse(text, 0);
    // A port of 0 is allowed: the kernel chooses, and "listening on" says which.
    if (!address && text.ends_with(":0")) {
      address = Address::parse_host(text.substr(0, text.size() - 2), 0);
    }
    if (!address) return fail(address.error());
    addresses.push_back(*address);
    return addresses;
  }
  size_t colon = text.rfind(':');
  in_addr first{}, last{};
  uint16_t port = 0;
  const char* end = text.data() + text.size();
  if (colon == std::string::npos || colon < dash ||
      inet_pton(AF_INET, text.substr(0, dash).c_str(), &first) != 1 ||
      inet_pton(AF_INET, text.substr(dash + 1, colon - dash - 1).c_str(), &last) != 1 ||
      std::from_chars(text.data() + colon + 1, end, port).ptr != end || port == 0) {
    return fail(fmt::format("\"{}\" is not FIRST-LAST:PORT", text));
  }
  uint32_t from = ntohl(first.s_addr), to = ntohl(last.s_addr);
  if (to < from || to - from >= 65536) return fail(fmt::format("\"{}\": not a range", text));
  for (uint32_t at = from; at <= to; ++at) addresses.push_back(Address::ipv4(at, port));
  return addresses;
}

// "domain=4xx:0.1,5xx:0.03", or with replies in full: "*=452 4.2.2 Mailbox full:0.1"
Result<Odds> parse_odds(const std::string& text) {
  Odds odds;
  size_t equals = text.find('=');
  if (equals == std::string::npos)
    return fail(fmt::format("\"{}\" is not DOMAIN=REPLY:P,...", text));
  odds.pattern = text.substr(0, equals);
  double sum = 0;
  for (size_t at = equals + 1; at <= text.size();) {
    size_t comma = std::min(text.find(',', at), text.size());
    std::string item = text.substr(at, comma - at);
    at = comma + 1;
    size_t colon = item.rfind(':');
    double probability = -1;
    if (colon != std::string::npos) {
      const char* end = item.data() + item.size();
      auto [parsed, error] = std::from_chars(item.data() + colon + 1, end, probability);
      if (error != std::errc() || parsed != end) probability = -1;
    }
    std::string reply = item.substr(0, colon);
    if (reply == "4xx") reply = "451 4.3.0 Try again later";
    if (reply == "5xx") reply = "550 5.1.1 No such user here";
    if (probability < 0 || probability > 1 || reply.size() < 3 ||
        (reply[0] != '4' && reply[0] != '5')) {
      return fail(fmt::format("\"{}\" is not 4xx:P, 5xx:P or REPLY:P", item));
    }
    sum += probability;
    odds.replies.emplace_back(sum, reply);
  }
  if (sum > 1 + 1e-9) return fail(fmt::format("\"{}\": more than 1 in sum", text));
  return odds;
}

// "after-dot:0.01"
Result<Drop> parse_drop(const std::string& text) {
  size_t colon = text.find(':');
  std::string kind = text.substr(0, colon);
  Drop drop{DropKind::none, 1};
  drop.kind = kind == "after-dot" ? DropKind::after_dot
              : kind == "stall"   ? DropKind::stall
              : kind == "reset"   ? DropKind::reset
                                  : DropKind::none;
  if (drop.kind == DropKind::none)
    return fail(fmt::format("\"{}\" is not after-dot, stall or reset", kind));
  if (colon != std::string::npos) {
    const char* end = text.data() + text.size();
    auto [parsed, error] = std::from_chars(text.data() + colon + 1, end, drop.up_to);
    if (error != std::errc() || parsed != end || drop.up_to < 0 || drop.up_to > 1) {
      return fail(fmt::format("\"{}\" is not KIND:PROBABILITY", text));
    }
  }
  return drop;
}

int run(int argc, char** argv) {
  CLI::App app{"Receives mail as receiving domains do, counts it, and checks it against a ledger."};
  app.option_defaults()->always_capture_default();
  Options options;
  std::vector<std::string> listen{"127.0.0.1:2525"}, odds, drops, ledgers;
  std::string latency = "0ms", idle = "0s", size = "0", profile = "plain", chunking = "on",
              pipelining = "on", odds_at = "rcpt", closes = "silent";
  std::vector<std::string> profile_names;
  for (const Profile& known : kProfiles) profile_names.emplace_back(known.name);
  unsigned threads = 1;
  uint64_t seed = 1;
  bool json = false, progress = false;
  app.add_option("--listen", listen, "ADDR:PORT or FIRST-LAST:PORT (repeat); port 0: any");
  app.add_option("--latency", latency, "wait this long before every reply");
  app.add_option("--odds", odds, "DOMAIN=4xx:P,5xx:P,REPLY:P (repeat; * for any other domain)");
  app.add_option("--odds-at", odds_at, "where they are drawn")
      ->check(CLI::IsMember({"rcpt", "data"}));
  app.add_option("--messages-per-connection", options.messages_per_connection,
                 "then it closes; 0: never");
  app.add_option("--close", closes, "how: without a word, or with 421 at the next MAIL")
      ->check(CLI::IsMember({"silent", "421"}));
  app.add_option("--max-connections", options.max_connections,
                 "from one client address to one listening address; 0: no limit");
  app.add_option("--rate-limit", options.rate_limit, "messages a second, likewise; 0: no limit");
  app.add_option("--max-recipients", options.max_recipients, "of a message; 0: no limit");
  app.add_option("--profile", profile,
                 "a provider's limits, where none of the options above is given, and its words for them; all that listen "
                 "are one receiver then")
      ->check(CLI::IsMember(profile_names));
  app.add_option("--chunking", chunking, "announce CHUNKING")->check(CLI::IsMember({"on", "off"}));
  app.add_option("--pipelining", pipelining, "announce PIPELINING")
      ->check(CLI::IsMember({"on", "off"}));
  app.add_option("--size", size, "announce and enforce SIZE; 0: no");
  app.add_option("--drop", drops,
                 "after-dot:P (close without the reply), stall:P (never reply), reset:P (repeat)");
  std::string tls_mode = "none", tls_fault = "none";
  tls::CertificateFiles certificate;
  app.add_option("--tls", tls_mode, "offer STARTTLS, or begin with TLS")
      ->check(CLI::IsMember({"none", "starttls", "implicit"}));
  app.add_option("--tls-certificate", certificate.chain, "PEM file");
  app.add_option("--tls-key", certificate.key, "PEM file");
  app.add_option("--tls-fault", tls_fault,
                 "at STARTTLS: 454; 220 and silence; a reply behind the 220; reset; text for a handshake")
      ->check(CLI::IsMember({"none", "refuse", "stall", "inject", "reset", "text"}));
  app.add_flag("--requiretls", options.requiretls, "behind TLS announce REQUIRETLS (RFC 8689)");
  app.add_option("--hostname", options.hostname, "name in greetings");
  app.add_flag("--verify", options.verify, "hash what arrives");
  app.add_option("--ledger", ledgers, "check what arrived against this file at the end (repeat)");
  app.add_option("--expect", options.expect, "end after this many recipients were accepted");
  app.add_option("--idle", idle,
                 "end when no message came for this long, after the first; 0: never");
  app.add_option("--threads", threads, "threads")->check(CLI::Range(1, 64));
  app.add_option("--seed", seed, "of the odds");
  app.add_flag("--json", json, "print the result as JSON");
  app.add_flag("--progress", progress, "a line a second on standard error");
  CLI11_PARSE(app, argc, argv);

  auto usage = [](const std::string& text) {
    fmt::print(stderr, "millrace-sink: {}\n", text);
    return 2;
  };
  std::vector<Address> addresses;
  for (const auto& text : listen) {
    auto parsed = parse_listen(text);
    if (!parsed) return usage("--listen: " + parsed.error().text);
    addresses.insert(addresses.end(), parsed->begin(), parsed->end());
  }
  for (const auto& text : odds) {
    auto parsed = parse_odds(text);
    if (!parsed) return usage("--odds: " + parsed.error().text);
    options.odds.push_back(*parsed);
  }
  for (const auto& text : drops) {
    auto parsed = parse_drop(text);
    if (!parsed) return usage("--drop: " + parsed.error().text);
    if (!options.drops.empty()) parsed->up_to += options.drops.back().up_to;
    options.drops.push_back(*parsed);
  }
  auto wait = parse_duration(latency);
  if (!wait) return usage("--latency: " + wait.error().text);
  options.latency = *wait;
  auto pause = parse_duration(idle);
  if (!pause) return usage("--idle: " + pause.error().text);
  options.idle = *pause;
  auto most = parse_size(size);
  if (!most) return usage("--size: " + most.error().text);
  options.size = *most;
  for (const Profile& known : kProfiles) {
    if (known.name == profile) options.profile = &known;
  }
  options.close_with_421 = closes == "421";
  if (options.profile != &kProfiles[0]) {
    const Profile& like = *options.profile;
    auto unless_given = [&app](const char* name, auto& value, auto from) {
      if (app.count(name) == 0) value = from;
    };
    unless_given("--max-connections", options.max_connections, like.connections);
    unless_given("--messages-per-connection", options.messages_per_connection, like.messages);
    unless_given("--max-recipients", options.max_recipients, like.recipients);
    unless_given("--close", options.close_with_421, !like.closes_silently);
    options.listeners_together = true;
  }
  options.chunking = chunking == "on";
  options.pipelining = pipelining == "on";
  options.odds_at_data = odds_at == "data";
  options.verify |= !ledgers.empty();

  if (tls_mode != "none") {
    options.tls = tls_mode == "starttls" ? TlsMode::starttls : TlsMode::implicit;
    auto read = tls::read_certificate(certificate);
    if (!read) return usage("--tls-certificate, --tls-key: " + read.error().text);
    options.tls_settings.certificates.push_back(std::move(*read));
  }
  constexpr std::pair<std::string_view, TlsFault> kFaults[] = {
      {"none", TlsFault::none},   {"refuse", TlsFault::refuse}, {"stall", TlsFault::stall},
      {"inject", TlsFault::inject}, {"reset", TlsFault::reset},   {"text", TlsFault::text}};
  for (const auto& [word, fault] : kFaults) {
    if (tls_fault == word) options.tls_fault = fault;
  }

  stop_on_signals();
  raise_descriptor_limit();
  Pairs pairs;
  std::vector<std::unique_ptr<Server>> servers;
  for (unsigned i = 0; i < threads; ++i) {
    servers.push_back(std::make_unique<Server>(options, pairs, seed + i));
    if (options.tls == TlsMode::none) continue;
    auto context = tls::ServerContext::make(options.tls_settings);
    if (!context) return usage(context.error().text);
    servers.back()->tls = std::move(*context);
  }
  int64_t reported_at = 0;
  uint64_t reported = 0;
  int64_t complete_at = 0;
  servers[0]->finished = [&] {
    int64_t now = servers[0]->io->now();
    uint64_t recipients = 0;
    uint64_t bounced = 0;
    int64_t last = 0;
    for (const auto& server : servers) {
      recipients += server->recipients_so_far.load(std::memory_order_relaxed);
      bounced += server->bounced_so_far.load(std::memory_order_relaxed);
      last = std::max(last, server->last_seen.load(std::memory_order_relaxed));
    }
    if (progress && now - reported_at >= 1'000'000'000) {
      fmt::print(stderr, "{} recipients, {:.0f}/s\n", recipients,
                 reported_at == 0 ? 0
                                  : static_cast<double>(recipients - reported) * 1e9 /
                                        static_cast<double>(now - reported_at));
      reported_at = now;
      reported = recipients;
    }
    if (status_requested.exchange(false)) {
      fmt::print("status {{\"recipients\": {}, \"bounced\": {}, \"last_monotonic\": {:.6f}}}\n",
                 recipients, bounced, static_cast<double>(last) / 1e9);
      fflush(stdout);
    }
    if (options.expect != 0 && recipients >= options.expect) {
      // The last replies still have to go out, and the clients' QUITs to come in.
      if (complete_at == 0) complete_at = now;
      return now - complete_at > 100'000'000 + options.latency;
    }
    return options.idle != 0 && last != 0 && now - last > options.idle;
  };

  std::atomic<bool> failed = false;
  std::mutex preparing;
  auto work = [&](unsigned i) {  // a ring belongs to the thread that makes it
    {
      std::lock_guard lock(preparing);
      if (auto ready = servers[i]->prepare(addresses, threads > 1, i == threads - 1); !ready) {
        fmt::print(stderr, "millrace-sink: {}\n", ready.error().text);
        failed = true;
        stop_requested = true;
      }
    }
    if (servers[i]->io) servers[i]->run();
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (auto& thread : others) thread.join();
  if (failed) return 1;

  Results& all = servers[0]->results;
  for (unsigned i = 1; i < threads; ++i) {
    Results& r = servers[i]->results;
    all.messages += r.messages;
    all.recipients += r.recipients;
    all.octets += r.octets;
    all.connections += r.connections;
    all.refused_connections += r.refused_connections;
    all.tls_handshakes += r.tls_handshakes;
    all.tls_resumed += r.tls_resumed;
    all.tls_failed += r.tls_failed;
    all.most_open += r.most_open;
    all.most_messages_on_a_connection =
        std::max(all.most_messages_on_a_connection, r.most_messages_on_a_connection);
    all.limited += r.limited;
    all.deferred += r.deferred;
    all.bounced += r.bounced;
    all.dropped += r.dropped;
    all.reports += r.reports;
    all.requiretls += r.requiretls;
    all.by_bdat += r.by_bdat;
    for (const auto& [what, count] : r.mistakes) all.mistakes[what] += count;
    for (const auto& [what, count] : r.violations) all.violations[what] += count;
    if (all.per_second.size() < r.per_second.size()) all.per_second.resize(r.per_second.size());
    for (size_t s = 0; s < r.per_second.size(); ++s) all.per_second[s] += r.per_second[s];
    if (all.first == 0 || (r.first != 0 && r.first < all.first)) all.first = r.first;
    all.last = std::max(all.last, r.last);
    all.store.merge(r.store);
  }
  Verdict verdict;
  if (!ledgers.empty()) {
    auto checked = check_ledgers(ledgers, all.store);
    if (!checked) {
      fmt::print(stderr, "millrace-sink: {}\n", checked.error().text);
      return 1;
    }
    verdict = std::move(*checked);
  }
  double cpu_us = all.messages == 0 ? 0 : cpu_seconds() * 1e6 / static_cast<double>(all.messages);
  if (json) {
    fmt::print("{}\n", to_json(all, verdict, pairs.most_connections(), cpu_us)
                           .dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    print_text(all, verdict, pairs.most_connections(), cpu_us);
  }
  return verdict.checked && !verdict.good() ? 1 : 0;
}

}  // namespace
}  // namespace millrace::tools

int main(int argc, char** argv) { return millrace::tools::run(argc, argv); }
