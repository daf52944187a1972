// millrace-load: sends mail over SMTP as fast as it is taken, or at a given rate, and reports rate
// and latency. With --ledger it writes down every message the server answered with a 250, for
// millrace-sink to check what arrived.
//
// Contract: a message whose connection breaks before its reply is sent again, on a new connection,
// as the same bytes, and counted apart ("sent again"). With --pipelining on, MAIL, RCPT and DATA
// (or BDAT with the content) travel in one send, and QUIT follows the last content of a connection
// at once (RFC 2920 3.1); the content itself waits for the 354. What the server does not announce
// is not used.
//
// Limits: no AUTH; certificates are not checked. Latencies are taken with the clock of the event loop, which is read once
// a turn. With --threads the numbers of messages are shared out evenly beforehand.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/log.h"
#include "base/prng.h"
#include "common/digest.h"
#include "common/domains.h"
#include "common/histogram.h"
#include "common/ledger.h"
#include "common/message_text.h"
#include "common/process.h"
#include "net/stream.h"
#include "reactor/uring.h"

namespace millrace::tools {
namespace {

using reactor::Address;
using reactor::Completion;

enum class TlsMode : uint8_t { none, starttls, implicit };

struct Options {
  TlsMode tls = TlsMode::none;
  bool tls_resume = true;
  std::vector<Address> connect;
  unsigned connections = 100;
  uint64_t messages = 0;  // 0: without end
  int64_t duration = 0;   // nanoseconds; 0: without end
  double rate = 0;        // messages a second; 0: as fast as it goes
  unsigned recipients = 1;
  bool pipelining = true;
  bool bdat = false;
  uint64_t reuse = 0;  // messages a connection; 0: without end
  std::string from;
  std::string ehlo;
  bool retry_refused = false;
  int64_t give_up = 0;
};

constexpr int64_t kRefusedPause = 200'000'000;  // before a refused message is tried again
constexpr int64_t kFirstBackoff = 10'000'000;   // before a lost connection is made again; doubles
constexpr int64_t kLastBackoff = 1'000'000'000;
constexpr unsigned kConnectsAtOnce = 256;  // below any listen backlog
constexpr size_t kLongestReply = 64 * 1024;

// Written by one thread, read by the progress bar.
struct Counters {
  std::atomic<uint64_t> accepted{0};
  void add_accepted() {
    accepted.store(accepted.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
};

struct Results {
  uint64_t accepted = 0;
  uint64_t recipients_accepted = 0;
  uint64_t recipients_refused = 0;  // within messages that were accepted for others
  uint64_t bytes = 0;               // canonical content of accepted messages
  uint64_t refused = 0;             // messages given up after a reply
  uint64_t refused_attempts = 0;    // refusals that were retried (--retry-refused)
  uint64_t sent_again = 0;          // after a lost connection
  uint64_t unanswered = 0;          // given up without a reply
  uint64_t connections = 0;
  uint64_t connections_lost = 0;
  uint64_t sessions_refused = 0;  // greeting or EHLO not positive, or 421
  uint64_t connect_failures = 0;
  uint64_t tls_handshakes = 0;  // completed
  uint64_t tls_resumed = 0;
  bool gave_up = false;
  int64_t first = 0;  // monotonic nanoseconds: first message begun, last 250
  int64_t last = 0;
  Histogram latency;
  std::map<std::string, uint64_t> refusals;  // reply text, cut; at most kKindsOfRefusal

  static constexpr size_t kKindsOfRefusal = 20;
  void note_refusal(std::string_view line) {
    std::string key(line.substr(0, 100));
    if (refusals.size() < kKindsOfRefusal || refusals.contains(key)) ++refusals[key];
  }
  void merge(const Results& other) {
    accepted += other.accepted;
    recipients_accepted += other.recipients_accepted;
    recipients_refused += other.recipients_refused;
    bytes += other.bytes;
    refused += other.refused;
    refused_attempts += other.refused_attempts;
    sent_again += other.sent_again;
    unanswered += other.unanswered;
    connections += other.connections;
    connections_lost += other.connections_lost;
    sessions_refused += other.sessions_refused;
    connect_failures += other.connect_failures;
    tls_handshakes += other.tls_handshakes;
    tls_resumed += other.tls_resumed;
    gave_up |= other.gave_up;
    if (first == 0 || (other.first != 0 && other.first < first)) first = other.first;
    last = std::max(last, other.last);
    latency.merge(other.latency);
    for (const auto& [text, count] : other.refusals) refusals[text] += count;
  }
};

class LedgerFile {
 public:
  explicit LedgerFile(FILE* file) : file_(file) {}
  ~LedgerFile() { fclose(file_); }
  LedgerFile(const LedgerFile&) = delete;
  LedgerFile& operator=(const LedgerFile&) = delete;
  void add(const LedgerEntry& entry) {
    std::lock_guard lock(mutex_);
    line_.clear();
    append_line(entry, line_);
    broken_ |= fwrite(line_.data(), 1, line_.size(), file_) != line_.size();
  }
  bool finish() { return !broken_ && fflush(file_) == 0; }

 private:
  std::mutex mutex_;
  FILE* file_;
  std::string line_;
  bool broken_ = false;
};

struct Shared {
  const Options& options;
  const MessageText& text;
  const SizeLaw& sizes;
  const DomainLaw& domains;
  LedgerFile* ledger;  // null: none
  uint32_t run;
};

class Worker;

// One connection, made again and again until there is nothing left to send.
class Connection final : public net::StreamOwner {
 public:
  Connection(Worker& worker, reactor::Io& io, const Shared& shared, Address peer, uint64_t seed);
  void open();     // REQUIRES: state idle
  void permit();   // the pace allows one more message
  void abandon();  // stop now, whatever is under way
  bool over() const { return state_ == State::over; }

  // StreamOwner
  void on_data(char* data, size_t size, reactor::BufferRef buffer) override;
  void on_secure() override;
  void on_sent() override;
  void on_end(int error) override;
  void on_closed() override;

 private:
  enum class State : uint8_t {
    idle,  // waiting for its turn or its back-off
    connecting,
    greeting,     // waiting for the 220
    ehlo,         // waiting for the reply to EHLO
    starttls,     // waiting for the reply to STARTTLS, then for the handshake
    waiting,      // in session, without a message (pace)
    resting,      // in session, a refused message waits to be tried again
    transaction,  // see awaiting_
    quitting,     // QUIT is sent
    closing,
    over,
  };
  // What the next reply of a transaction answers.
  enum class Awaiting : uint8_t { reset, mail, recipient, data, end };
  // What to send once the send in progress has ended.
  enum class Next : uint8_t { nothing, hello, starttls, commands, content, lone_dot, quit };

  void on_connected(Completion& completion);
  void on_pause_over();
  void on_reply(int code, std::string_view line);
  void on_reply_line(std::string_view line);
  void start_tls();
  void in_session();
  bool take_message();
  void begin();
  void send_commands();
  void append_recipients();
  void on_transaction_reply(int code, std::string_view line);
  void after_recipients();
  void accepted(std::string_view line);
  void progressed();
  void refused();
  void session_refused(std::string_view line);
  void transmit(Next what);
  void send_content();
  void quit();
  void lose();
  void close();
  void retry_later();
  void finish();
  void note_unanswered();
  bool reuse_ends() const {
    return shared_.options.reuse != 0 && sent_on_connection_ >= shared_.options.reuse;
  }

  Worker& worker_;
  reactor::Io& io_;
  const Shared& shared_;
  const Address peer_;
  net::Stream stream_;
  reactor::Op connect_;
  reactor::Timer pause_;
  reactor::Handle socket_ = reactor::kNoHandle;  // while connecting
  Prng prng_;

  State state_ = State::idle;
  Awaiting awaiting_ = Awaiting::mail;
  Next next_ = Next::nothing;
  bool connecting_counted_ = false;
  bool abandoned_ = false;
  bool reconnect_ = false;    // after closing
  bool ended_well_ = false;   // it was closed after QUIT
  bool needs_reset_ = false;  // a refused transaction is still open at the server
  bool quit_sent_ = false;
  bool pipelining_ = false;  // announced and wanted
  bool chunking_ = false;
  bool size_ = false;
  int64_t backoff_ = kFirstBackoff;
  int64_t failing_since_ = 0;  // 0: not failing
  int connect_error_ = 0;      // of the last attempt to connect

  // The message in hand; kept over lost connections.
  bool has_message_ = false;
  uint64_t number_ = 0;
  uint32_t times_sent_ = 0;  // its end of data
  unsigned at_recipient_ = 0;
  unsigned recipients_ok_ = 0;
  int refusal_ = 0;  // the code that decides when no recipient is accepted
  std::vector<uint32_t> recipients_refused_;
  uint64_t domains_seed_ = 0;  // the same recipients when it is sent again
  int64_t content_sent_at_ = 0;
  uint64_t sent_on_connection_ = 0;
  Digest digest_;

  std::string command_;
  std::string header_;
  std::string partial_;  // a reply line cut by the network
};

class Worker {
 public:
  Worker(const Shared& shared, unsigned index, unsigned threads)
      : shared_(shared), threads_(threads) {
    next_number_ = index;
    rate_ = shared.options.rate / threads;
    pace_.bind<&Worker::on_pace>(this);
  }

  Status prepare();
  void run(unsigned index, const std::function<void()>& progress);

  // For the connections.
  bool take(uint64_t& number);  // false: not now; then wait() or, when exhausted(), the end
  bool exhausted() const { return exhausted_; }
  void wait(Connection* connection) { waiting_.push_back(connection); }
  void stop_waiting(Connection* connection) { std::erase(waiting_, connection); }
  bool may_connect() const { return connecting_ < kConnectsAtOnce; }
  void connecting(int change) { connecting_ += change; }
  void queue_connect(Connection* connection) { to_connect_.push_back(connection); }
  void connect_more() {
    while (!to_connect_.empty() && may_connect()) {
      Connection* next = to_connect_.front();
      to_connect_.pop_front();
      next->open();
    }
  }
  void connection_over() { ++over_; }
  void give_up() { results.gave_up = true; }

  Results results;
  Counters counters;
  std::shared_ptr<tls::ClientContext> tls;  // null: no TLS

 private:
  void on_pace();
  void abandon_all();

  const Shared& shared_;
  unsigned threads_;
  std::unique_ptr<reactor::Io> io_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::deque<Connection*> waiting_;
  std::deque<Connection*> to_connect_;
  unsigned connecting_ = 0;
  size_t over_ = 0;
  uint64_t next_number_ = 0;
  double rate_ = 0;
  uint64_t taken_ = 0;
  int64_t started_ = 0;
  bool exhausted_ = false;
  reactor::Timer pace_;
};

// ---- Worker

Status Worker::prepare() {
  auto io = reactor::make_uring({});
  if (!io) return fail(io.error());
  io_ = std::move(*io);
  const Options& options = shared_.options;
  if (options.tls != TlsMode::none) {
    auto context = tls::ClientContext::make({});
    if (!context) return fail(context.error());
    tls = std::move(*context);
  }
  unsigned mine =
      options.connections / threads_ + (next_number_ < options.connections % threads_ ? 1 : 0);
  for (unsigned i = 0; i < mine; ++i) {
    uint64_t serial = i * threads_ + next_number_;
    connections_.push_back(std::make_unique<Connection>(
        *this, *io_, shared_, options.connect[serial % options.connect.size()], serial));
    to_connect_.push_back(connections_.back().get());
  }
  return success();
}

bool Worker::take(uint64_t& number) {
  if (exhausted_) return false;
  const Options& options = shared_.options;
  if ((options.messages != 0 && next_number_ >= options.messages) ||
      (options.duration != 0 && io_->now() - started_ >= options.duration)) {
    exhausted_ = true;
    return false;
  }
  if (rate_ > 0) {
    double due = static_cast<double>(io_->now() - started_) * rate_ / 1e9;
    if (static_cast<double>(taken_) > due) return false;
  }
  if (results.first == 0) results.first = io_->now();
  number = next_number_;
  next_number_ += threads_;
  ++taken_;
  return true;
}

// Every millisecond while messages are paced, every tenth of a second otherwise: wakes the
// connections that wait, as far as the pace allows, and sees the end of --duration.
void Worker::on_pace() {
  while (!waiting_.empty()) {
    Connection* connection = waiting_.front();
    size_t before = waiting_.size();
    waiting_.pop_front();
    connection->permit();
    if (waiting_.size() == before) break;  // it waits again
  }
  io_->timers().arm(pace_, io_->now() + (rate_ > 0 ? 1'000'000 : 100'000'000));
}

void Worker::abandon_all() {
  exhausted_ = true;
  pace_.cancel();
  to_connect_.clear();
  waiting_.clear();
  for (auto& connection : connections_) connection->abandon();
}

void Worker::run(unsigned index, const std::function<void()>& progress) {
  io_->turn(0);
  started_ = io_->now();
  io_->timers().arm(pace_, started_ + 1'000'000);
  connect_more();
  bool abandoned = false;
  while (over_ < connections_.size()) {
    io_->turn(50'000'000);
    if (!abandoned && (stop_requested.load(std::memory_order_relaxed) || results.gave_up)) {
      abandoned = true;
      stop_requested.store(true, std::memory_order_relaxed);  // the other threads too
      abandon_all();
    }
    if (index == 0) progress();
  }
  pace_.cancel();
  connections_.clear();
  io_.reset();
}

// ---- Connection

Connection::Connection(Worker& worker, reactor::Io& io, const Shared& shared, Address peer,
                       uint64_t seed)
    : worker_(worker),
      io_(io),
      shared_(shared),
      peer_(peer),
      stream_(io, *this),
      prng_(shared.run + (seed << 32)) {
  connect_.bind<&Connection::on_connected>(this);
  pause_.bind<&Connection::on_pause_over>(this);
  header_.resize(shared.text.header_size());
}

void Connection::open() {
  ASSERT(state_ == State::idle);
  if (!has_message_ && worker_.exhausted()) return finish();
  auto socket = io_.open_socket(peer_, {});
  if (!socket) {
    log::error("cannot open a socket: {}", socket.error().text);
    worker_.give_up();
    return finish();
  }
  socket_ = *socket;
  state_ = State::connecting;
  worker_.connecting(1);
  connecting_counted_ = true;
  io_.connect(connect_, socket_, peer_);
}

void Connection::on_connected(Completion& completion) {
  if (completion.result < 0 || abandoned_) {
    io_.close(std::exchange(socket_, reactor::kNoHandle));
    if (!abandoned_) ++worker_.results.connect_failures;
    connect_error_ = -completion.result;
    return retry_later();
  }
  ++worker_.results.connections;
  connect_error_ = 0;
  state_ = State::greeting;
  partial_.clear();
  next_ = Next::nothing;
  needs_reset_ = quit_sent_ = pipelining_ = chunking_ = size_ = false;
  sent_on_connection_ = 0;
  stream_.start(std::exchange(socket_, reactor::kNoHandle), reactor::BufferGroup::ingress);
  if (shared_.options.tls == TlsMode::implicit) start_tls();
}

void Connection::start_tls() {
  tls::ClientOptions options;
  if (shared_.options.tls_resume) options.session_key = peer_.to_string();
  stream_.start_tls(tls::Engine::connect(worker_.tls, std::move(options)));
}

void Connection::on_secure() {
  if (state_ == State::closing) return;
  ++worker_.results.tls_handshakes;
  if (stream_.tls()->info().resumed) ++worker_.results.tls_resumed;
  if (shared_.options.tls == TlsMode::implicit) return;  // the greeting follows
  pipelining_ = chunking_ = size_ = false;
  state_ = State::ehlo;
  transmit(Next::hello);
}

// Leaves the wait for a connection; comes back through on_pause_over().
void Connection::retry_later() {
  if (std::exchange(connecting_counted_, false)) {
    worker_.connecting(-1);
    worker_.connect_more();
  }
  if (abandoned_ || (!has_message_ && worker_.exhausted())) return finish();
  state_ = State::idle;
  if (failing_since_ == 0) failing_since_ = io_.now();
  if (io_.now() - failing_since_ > shared_.options.give_up) {
    if (!worker_.results.gave_up) {
      log::error("{}: {}; given up after {} s (--give-up)", peer_.to_string(),
                 connect_error_ != 0 ? std::strerror(connect_error_) : "no message was taken or refused",
                 shared_.options.give_up / 1'000'000'000);
    }
    worker_.give_up();
  }
  io_.timers().arm(pause_, io_.now() + backoff_);
  backoff_ = std::min(backoff_ * 2, kLastBackoff);
}

void Connection::on_pause_over() {
  if (state_ == State::resting) {
    if (stream_.open()) begin();
    return;
  }
  worker_.queue_connect(this);
  worker_.connect_more();
}

void Connection::on_data(char* data, size_t size, reactor::BufferRef) {
  if (state_ == State::closing) return;
  std::string_view rest(data, size);
  while (!rest.empty()) {
    size_t end = rest.find('\n');
    if (end == std::string_view::npos) {
      partial_.append(rest);
      if (partial_.size() > kLongestReply) lose();
      return;
    }
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    if (partial_.empty()) {
      on_reply_line(line);
    } else {
      partial_.append(line);
      std::string whole = std::exchange(partial_, {});
      on_reply_line(whole);
    }
    if (state_ == State::closing) return;
  }
}

void Connection::on_reply_line(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  auto digit = [&](size_t i) { return line[i] >= '0' && line[i] <= '9'; };
  if (line.size() < 3 || !digit(0) || !digit(1) || !digit(2)) {
    log::warning("not a reply: {}", line.substr(0, 100));
    return lose();
  }
  int code = (line[0] - '0') * 100 + (line[1] - '0') * 10 + (line[2] - '0');
  std::string_view text = line.size() > 4 ? line.substr(4) : std::string_view();
  if (state_ == State::ehlo) {
    if (text == "PIPELINING") pipelining_ = shared_.options.pipelining;
    if (text == "CHUNKING") chunking_ = shared_.options.bdat;
    if (text == "SIZE" || text.starts_with("SIZE ")) size_ = true;
  }
  if (line.size() > 3 && line[3] == '-') return;  // more lines of this reply follow
  on_reply(code, line);
}

void Connection::on_reply(int code, std::string_view line) {
  switch (state_) {
    case State::greeting:
    case State::ehlo:
      if (code / 100 != 2) return session_refused(line);
      if (state_ == State::greeting) {
        state_ = State::ehlo;
        return transmit(Next::hello);
      }
      if (shared_.options.tls == TlsMode::starttls && !stream_.tls()) {
        state_ = State::starttls;
        return transmit(Next::starttls);
      }
      if (std::exchange(connecting_counted_, false)) {
        worker_.connecting(-1);
        worker_.connect_more();
      }
      return in_session();
    case State::starttls:
      if (code != 220 || stream_.tls()) return session_refused(line);
      return start_tls();
    case State::transaction:
      // After 421 the server ends the session; the message in hand has not been taken.
      if (code == 421) return session_refused(line);
      return on_transaction_reply(code, line);
    case State::quitting:
      reconnect_ = true;
      return close();
    case State::waiting:
    case State::resting:
      // Unasked: only a 421 makes sense.
      reconnect_ = true;
      worker_.stop_waiting(this);
      return close();
    case State::idle:
    case State::connecting:
    case State::closing:
    case State::over:
      return;
  }
}

// The session is open and no reply is due.
void Connection::in_session() {
  if (reuse_ends()) return quit();
  if (has_message_ || take_message()) return begin();
  if (worker_.exhausted()) return quit();
  state_ = State::waiting;
  worker_.wait(this);
}

void Connection::permit() {
  if (state_ == State::waiting) in_session();
}

bool Connection::take_message() {
  if (!worker_.take(number_)) return false;
  has_message_ = true;
  times_sent_ = 0;
  domains_seed_ = prng_.next();
  return true;
}

// REQUIRES: has_message_, in session, no reply due.
void Connection::begin() {
  state_ = State::transaction;
  at_recipient_ = 0;
  recipients_ok_ = 0;
  refusal_ = 0;
  recipients_refused_.clear();
  awaiting_ = std::exchange(needs_reset_, false) ? Awaiting::reset : Awaiting::mail;
  transmit(Next::commands);
}

// Sends what the state of the transaction asks for: everything up to DATA (or to the end of BDAT's
// content) when pipelining, else one command.
void Connection::send_commands() {
  command_.clear();
  switch (awaiting_) {
    case Awaiting::reset:
      command_ += "RSET\r\n";
      if (!pipelining_) break;
      [[fallthrough]];
    case Awaiting::mail:
      command_ += "MAIL FROM:<";
      command_ += shared_.options.from;
      command_ += '>';
      if (size_) {
        fmt::format_to(std::back_inserter(command_), " SIZE={}", shared_.sizes.size_of(number_));
      }
      command_ += "\r\n";
      if (!pipelining_) break;
      [[fallthrough]];
    case Awaiting::recipient:
      append_recipients();
      if (!pipelining_) break;
      [[fallthrough]];
    case Awaiting::data:
      if (chunking_) return send_content();
      command_ += "DATA\r\n";
      break;
    case Awaiting::end:
      UNREACHABLE();
  }
  iovec part{command_.data(), command_.size()};
  stream_.send({&part, 1});
}

// All of them when pipelining, else the one whose turn it is.
void Connection::append_recipients() {
  Prng prng(domains_seed_);
  unsigned last = pipelining_ ? shared_.options.recipients : at_recipient_ + 1;
  for (unsigned k = 0; k < last; ++k) {
    std::string_view domain = shared_.domains.pick(prng);
    if (k < at_recipient_) continue;
    fmt::format_to(std::back_inserter(command_), "RCPT TO:<{}-", k);
    size_t at = command_.size();
    command_.resize(at + kIdSize);
    write_id({shared_.run, number_}, command_.data() + at);
    command_ += '@';
    command_ += domain;
    command_ += ">\r\n";
  }
}

// Sends what is in command_, the content, and what ends it.
void Connection::send_content() {
  static char dot[] = ".\r\n";
  static char dot_quit[] = ".\r\nQUIT\r\n";
  static char quit_line[] = "QUIT\r\n";
  shared_.text.write_header(number_, header_.data());
  std::array<iovec, 3 + MessageText::kBodyParts> parts;
  iovec body[MessageText::kBodyParts];
  size_t body_size = shared_.text.body(number_, !chunking_, body);
  size_t count = 0;
  if (chunking_) {
    fmt::format_to(std::back_inserter(command_), "BDAT {} LAST\r\n", header_.size() + body_size);
    parts[count++] = {command_.data(), command_.size()};
  }
  parts[count++] = {header_.data(), header_.size()};
  for (const iovec& part : body) parts[count++] = part;
  ++sent_on_connection_;
  bool last = pipelining_ && (reuse_ends() || worker_.exhausted());
  if (!chunking_) {
    parts[count++] = last ? iovec{dot_quit, sizeof dot_quit - 1} : iovec{dot, sizeof dot - 1};
  } else if (last) {
    parts[count++] = {quit_line, sizeof quit_line - 1};
  }
  quit_sent_ |= last;
  ++times_sent_;
  content_sent_at_ = io_.now();
  stream_.send({parts.data(), count});
}

// Sends now, or as soon as the send in progress has ended: its completion may come after the reply.
void Connection::transmit(Next what) {
  if (stream_.sending()) {
    ASSERT(next_ == Next::nothing);
    next_ = what;
    return;
  }
  auto send_text = [this](std::string_view text) {
    iovec part{const_cast<char*>(text.data()), text.size()};
    stream_.send({&part, 1});
  };
  switch (what) {
    case Next::nothing:
      return;
    case Next::hello:
      command_ = fmt::format("EHLO {}\r\n", shared_.options.ehlo);
      return send_text(command_);
    case Next::starttls:
      return send_text("STARTTLS\r\n");
    case Next::commands:
      return send_commands();
    case Next::content:
      command_.clear();
      return send_content();
    case Next::lone_dot:
      return send_text(".\r\n");
    case Next::quit:
      return send_text("QUIT\r\n");
  }
}

void Connection::on_sent() {
  if (state_ != State::closing) transmit(std::exchange(next_, Next::nothing));
}

void Connection::on_transaction_reply(int code, std::string_view line) {
  bool positive = code / 100 == 2;
  switch (awaiting_) {
    case Awaiting::reset:
      awaiting_ = Awaiting::mail;
      if (!pipelining_) transmit(Next::commands);
      return;
    case Awaiting::mail:
      if (!positive) {
        refusal_ = code;
        worker_.results.note_refusal(line);
        if (!pipelining_) return refused();
      }
      awaiting_ = Awaiting::recipient;
      if (!pipelining_) return transmit(Next::commands);
      needs_reset_ =
          positive;  // until an end of data, or a refusal of MAIL, closes the transaction
      return;
    case Awaiting::recipient:
      if (positive) {
        ++recipients_ok_;
      } else {
        recipients_refused_.push_back(at_recipient_);
        if (refusal_ == 0) refusal_ = code;
        if (!pipelining_ || needs_reset_) worker_.results.note_refusal(line);
      }
      if (++at_recipient_ < shared_.options.recipients) {
        if (!pipelining_) transmit(Next::commands);
        return;
      }
      return after_recipients();
    case Awaiting::data:
      if (code == 354) {
        awaiting_ = Awaiting::end;
        // With every recipient refused there is nothing to send, but the 354 asks for an end.
        return transmit(recipients_ok_ > 0 ? Next::content : Next::lone_dot);
      }
      if (recipients_ok_ > 0) {
        refusal_ = code;
        worker_.results.note_refusal(line);
      }
      return refused();
    case Awaiting::end:
      needs_reset_ = !positive && chunking_;
      if (positive && recipients_ok_ > 0) return accepted(line);
      if (recipients_ok_ > 0) {
        refusal_ = code;
        worker_.results.note_refusal(line);
      }
      return refused();
  }
}

// Every RCPT has its reply.
void Connection::after_recipients() {
  awaiting_ = chunking_ ? Awaiting::end : Awaiting::data;
  if (pipelining_) return;
  if (recipients_ok_ == 0) {
    needs_reset_ = true;
    return refused();
  }
  if (chunking_) return transmit(Next::content);
  transmit(Next::commands);
}

void Connection::progressed() {
  backoff_ = kFirstBackoff;
  failing_since_ = 0;
}

void Connection::accepted(std::string_view line) {
  progressed();
  Results& results = worker_.results;
  int64_t now = io_.now();
  results.latency.add(now - content_sent_at_);
  results.last = now;
  ++results.accepted;
  results.recipients_accepted += recipients_ok_;
  results.recipients_refused += recipients_refused_.size();
  results.bytes += shared_.sizes.size_of(number_);
  worker_.counters.add_accepted();
  if (shared_.ledger) {
    LedgerEntry entry;
    entry.id = {shared_.run, number_};
    entry.digest = shared_.text.digest(number_, digest_);
    entry.recipients = shared_.options.recipients;
    entry.refused = recipients_refused_;
    entry.times_sent = times_sent_;
    static constexpr std::string_view kQueuedAs = "queued as ";
    if (auto at = line.find(kQueuedAs); at != std::string_view::npos) {
      entry.relay_id = line.substr(at + kQueuedAs.size());
      entry.relay_id.resize(std::min(entry.relay_id.find(' '), entry.relay_id.size()));
    }
    shared_.ledger->add(entry);
  }
  has_message_ = false;
  if (quit_sent_) {
    state_ = State::quitting;
    return;
  }
  in_session();
}

// REQUIRES: refusal_ is set.
void Connection::refused() {
  progressed();
  Results& results = worker_.results;
  bool again = shared_.options.retry_refused && refusal_ / 100 == 4;
  if (again) {
    ++results.refused_attempts;
  } else {
    ++results.refused;
    has_message_ = false;
  }
  if (quit_sent_) {
    state_ = State::quitting;
    return;
  }
  if (again) {
    state_ = State::resting;
    io_.timers().arm(pause_, io_.now() + kRefusedPause);
    return;
  }
  in_session();
}

void Connection::quit() {
  state_ = State::quitting;
  quit_sent_ = true;
  transmit(Next::quit);
}

void Connection::session_refused(std::string_view line) {
  ++worker_.results.sessions_refused;
  worker_.results.note_refusal(line);
  reconnect_ = true;
  close();
}

// The connection broke, or the server broke the protocol.
void Connection::lose() {
  if (state_ == State::closing) return;
  if (state_ != State::quitting) {
    ++worker_.results.connections_lost;
    if (has_message_ && state_ == State::transaction) ++worker_.results.sent_again;
  }
  worker_.stop_waiting(this);
  reconnect_ = true;
  close();
}

void Connection::on_end(int) { lose(); }

void Connection::close() {
  ASSERT(stream_.open());
  ended_well_ = state_ == State::quitting;
  state_ = State::closing;
  pause_.cancel();
  stream_.close(/*reset=*/abandoned_);
}

void Connection::on_closed() {
  if (abandoned_ || !reconnect_ || (!has_message_ && worker_.exhausted())) {
    if (std::exchange(connecting_counted_, false)) worker_.connecting(-1);
    worker_.connect_more();
    return finish();
  }
  reconnect_ = false;
  if (ended_well_) {  // the next one at once
    state_ = State::idle;
    worker_.queue_connect(this);
    return worker_.connect_more();
  }
  retry_later();
}

void Connection::abandon() {
  abandoned_ = true;
  switch (state_) {
    case State::idle:
      pause_.cancel();
      return finish();
    case State::connecting:
      return io_.cancel(connect_);
    case State::closing:
    case State::over:
      return;
    case State::greeting:
    case State::ehlo:
    case State::starttls:
    case State::waiting:
    case State::resting:
    case State::transaction:
    case State::quitting:
      return close();
  }
}

void Connection::finish() {
  if (state_ == State::over) return;
  state_ = State::over;
  note_unanswered();
  worker_.connection_over();
}

void Connection::note_unanswered() {
  if (!has_message_) return;
  ++worker_.results.unanswered;
  has_message_ = false;
  if (!shared_.ledger || times_sent_ == 0) return;
  LedgerEntry entry;
  entry.id = {shared_.run, number_};
  entry.digest = shared_.text.digest(number_, digest_);
  entry.recipients = shared_.options.recipients;
  entry.times_sent = times_sent_;
  entry.relay_id = kUnanswered;
  shared_.ledger->add(entry);
}

// ---- reports

class ProgressBar {
 public:
  ProgressBar(const Options& options, const std::vector<std::unique_ptr<Worker>>& workers,
              bool shown)
      : options_(options), workers_(workers), shown_(shown) {}
  void update() {
    if (!shown_) return;
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
    if (begun_ == 0) begun_ = last_ = seconds;
    if (seconds - last_ < 0.2) return;
    uint64_t accepted = 0;
    for (const auto& worker : workers_) {
      accepted += worker->counters.accepted.load(std::memory_order_relaxed);
    }
    double rate = static_cast<double>(accepted - accepted_) / (seconds - last_);
    smooth_ = smooth_ == 0 ? rate : smooth_ * 0.7 + rate * 0.3;
    last_ = seconds;
    accepted_ = accepted;
    double done = options_.messages != 0
                      ? static_cast<double>(accepted) / static_cast<double>(options_.messages)
                      : (seconds - begun_) * 1e9 / static_cast<double>(options_.duration);
    done = std::min(done, 1.0);
    static constexpr int kWidth = 40;
    std::string bar(static_cast<size_t>(done * kWidth), '#');
    bar.resize(kWidth, '.');
    fmt::print(stderr, "\r[{}] {:3.0f} %  {} messages  {:.0f}/s  ", bar, done * 100, accepted,
               smooth_);
    fflush(stderr);
  }
  void finish() {
    if (shown_) fmt::print(stderr, "\r{:80}\r", "");
  }

 private:
  const Options& options_;
  const std::vector<std::unique_ptr<Worker>>& workers_;
  const bool shown_;
  double begun_ = 0;
  double last_ = 0;
  double smooth_ = 0;
  uint64_t accepted_ = 0;
};

void print_text(const Results& r, double seconds, double cpu_us) {
  double rate = seconds > 0 ? static_cast<double>(r.accepted) / seconds : 0;
  fmt::print("Accepted {} messages in {:.2f} s: {:.0f} messages/s, {:.1f} MB/s\n", r.accepted,
             seconds, rate, seconds > 0 ? static_cast<double>(r.bytes) / seconds / 1e6 : 0);
  fmt::print(
      "From content sent to its 250: p50 {:.2f} ms, p90 {:.2f} ms, p99 {:.2f} ms, max {:.2f} ms\n",
      r.latency.percentile_ms(50), r.latency.percentile_ms(90), r.latency.percentile_ms(99),
      r.latency.max_ms());
  fmt::print("Connections: {} opened, {} lost, {} failed to connect, {} sessions refused\n",
             r.connections, r.connections_lost, r.connect_failures, r.sessions_refused);
  fmt::print(
      "Messages: {} sent again, {} refused, {} refused and tried again, {} unanswered; "
      "{} recipients refused\n",
      r.sent_again, r.refused, r.refused_attempts, r.unanswered, r.recipients_refused);
  if (r.tls_handshakes > 0) fmt::print("TLS: {} handshakes, {} of them resumed\n", r.tls_handshakes, r.tls_resumed);
  for (const auto& [text, count] : r.refusals) fmt::print("  {} x {}\n", count, text);
  fmt::print("Generator: {:.1f} us CPU a message\n", cpu_us);
}

void print_json(const Results& r, double seconds, double cpu_us) {
  nlohmann::ordered_json json = {
      {"accepted", r.accepted},
      {"seconds", seconds},
      {"first_monotonic", static_cast<double>(r.first) / 1e9},
      {"last_monotonic", static_cast<double>(r.last) / 1e9},
      {"messages_per_second", seconds > 0 ? static_cast<double>(r.accepted) / seconds : 0},
      {"bytes", r.bytes},
      {"recipients_accepted", r.recipients_accepted},
      {"recipients_refused", r.recipients_refused},
      {"sent_again", r.sent_again},
      {"refused", r.refused},
      {"refused_and_retried", r.refused_attempts},
      {"unanswered", r.unanswered},
      {"connections", r.connections},
      {"connections_lost", r.connections_lost},
      {"connect_failures", r.connect_failures},
      {"sessions_refused", r.sessions_refused},
      {"tls_handshakes", r.tls_handshakes},
      {"tls_resumed", r.tls_resumed},
      {"latency_ms",
       {{"p50", r.latency.percentile_ms(50)},
        {"p90", r.latency.percentile_ms(90)},
        {"p99", r.latency.percentile_ms(99)},
        {"max", r.latency.max_ms()}}},
      {"cpu_us_per_message", cpu_us},
      {"refusals", r.refusals}};
  // A peer's text need not be UTF-8.
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

int run(int argc, char** argv) {
  CLI::App app{"Sends mail over SMTP and measures how it is taken."};
  app.option_defaults()->always_capture_default();
  Options options;
  std::vector<std::string> connect{"127.0.0.1:25"};
  std::string size = "20KiB", domains = "load.invalid", ledger, duration, give_up = "10s";
  std::string pipelining = "on";
  double leading_dots = 0.01;
  unsigned threads = 1;
  uint32_t run_number = 0;
  bool json = false, allow_refused = false, quiet = false;
  options.from = "sender@load.invalid";
  options.ehlo = "load.invalid";
  app.add_option("--connect", connect, "server (repeat: shared out over the connections)")
      ->type_name("HOST:PORT");
  std::string tls_mode = "none", tls_resume = "on";
  app.add_option("--tls", tls_mode, "encrypt; the server's certificate is not checked")
      ->check(CLI::IsMember({"none", "starttls", "implicit"}));
  app.add_option("--tls-resume", tls_resume, "resume sessions")->check(CLI::IsMember({"on", "off"}));
  app.add_option("--connections", options.connections, "connections open at a time")
      ->check(CLI::PositiveNumber);
  app.add_option("--messages", options.messages,
                 "messages in all (default 100000, or no limit with --duration)");
  app.add_option("--duration", duration, "begin no message after this time")->type_name("30s");
  app.add_option("--rate", options.rate, "messages a second; 0: as fast as they are taken");
  app.add_option("--size", size, "bytes of content: N, uniform:A-B, lognormal[:MEDIAN,SIGMA]");
  app.add_option("--recipients", options.recipients, "recipients a message")
      ->check(CLI::Range(1, 100'000));
  app.add_option("--domains", domains,
                 "recipient domains: NAME:WEIGHT,..., FILE (with a slash), zipf:N[:SUFFIX], "
                 "uniform:N[:SUFFIX]");
  app.add_option("--pipelining", pipelining, "use PIPELINING where announced")
      ->check(CLI::IsMember({"on", "off"}));
  app.add_flag("--bdat", options.bdat, "use BDAT where CHUNKING is announced");
  app.add_option("--reuse", options.reuse,
                 "messages a connection; 0: no limit, 1: a new one for each");
  app.add_option("--leading-dots", leading_dots, "share of lines that begin with a dot")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--from", options.from, "reverse path; empty for <>");
  app.add_option("--ehlo", options.ehlo, "EHLO name");
  app.add_option("--ledger", ledger, "write every accepted message's id and SHA-256 to this file");
  app.add_option("--run", run_number, "first half of the message ids; 0: at random");
  app.add_flag("--allow-refused", allow_refused, "refused messages are no failure");
  app.add_flag("--retry-refused", options.retry_refused,
               "try messages refused with 4xx again, until they are taken");
  app.add_option("--give-up", give_up, "end when no connection can be made for this long");
  app.add_option("--threads", threads, "threads")->check(CLI::Range(1, 64));
  app.add_flag("--json", json, "print the result as JSON");
  app.add_flag("--quiet", quiet, "no progress bar");
  CLI11_PARSE(app, argc, argv);

  auto usage = [](const std::string& text) {
    fmt::print(stderr, "millrace-load: {}\n", text);
    return 2;
  };
  for (const auto& text : connect) {
    auto address = Address::parse(text);
    if (!address) return usage("--connect: " + address.error().text);
    options.connect.push_back(*address);
  }
  auto sizes = SizeLaw::parse(size);
  if (!sizes) return usage("--size: " + sizes.error().text);
  auto law = DomainLaw::parse(domains);
  if (!law) return usage("--domains: " + law.error().text);
  if (!duration.empty()) {
    auto value = parse_duration(duration);
    if (!value) return usage("--duration: " + value.error().text);
    options.duration = *value;
  }
  auto patience = parse_duration(give_up);
  if (!patience) return usage("--give-up: " + patience.error().text);
  options.give_up = *patience;
  options.pipelining = pipelining == "on";
  options.tls = tls_mode == "none" ? TlsMode::none : tls_mode == "starttls" ? TlsMode::starttls : TlsMode::implicit;
  options.tls_resume = tls_resume == "on";
  if (options.messages == 0 && options.duration == 0) options.messages = 100'000;
  if (threads > options.connections) threads = options.connections;
  if (run_number == 0) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    Prng prng(static_cast<uint64_t>(now.tv_sec * 1'000'000'000 + now.tv_nsec) ^
              (static_cast<uint64_t>(getpid()) << 40));
    run_number = static_cast<uint32_t>(prng.next());
  }
  std::unique_ptr<LedgerFile> ledger_file;
  if (!ledger.empty()) {
    FILE* file = fopen(ledger.c_str(), "w");
    if (!file) return usage(fmt::format("{}: {}", ledger, strerror(errno)));
    ledger_file = std::make_unique<LedgerFile>(file);
  }

  stop_on_signals();
  raise_descriptor_limit();
  MessageText text(run_number, *sizes, leading_dots,
                   options.from.empty() ? "sender@load.invalid" : options.from);
  Shared shared{options, text, *sizes, *law, ledger_file.get(), run_number};
  std::vector<std::unique_ptr<Worker>> workers;
  for (unsigned i = 0; i < threads; ++i)
    workers.push_back(std::make_unique<Worker>(shared, i, threads));

  ProgressBar bar(options, workers, !quiet && isatty(STDERR_FILENO) == 1);
  double cpu_before = cpu_seconds();
  std::vector<std::thread> others;
  std::atomic<bool> failed = false;
  auto work = [&](unsigned i) {  // a ring belongs to the thread that makes it
    if (auto ready = workers[i]->prepare(); !ready) {
      log::error("{}", ready.error().text);
      failed = true;
      stop_requested = true;
      return;
    }
    workers[i]->run(i, [&] { bar.update(); });
  };
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (auto& thread : others) thread.join();
  bar.finish();
  if (failed) return 1;

  Results results;
  for (const auto& worker : workers) results.merge(worker->results);
  double seconds = static_cast<double>(results.last - results.first) / 1e9;
  double cpu_us = results.accepted == 0
                      ? 0
                      : (cpu_seconds() - cpu_before) * 1e6 / static_cast<double>(results.accepted);
  if (json) {
    print_json(results, seconds, cpu_us);
  } else {
    print_text(results, seconds, cpu_us);
  }
  if (ledger_file && !ledger_file->finish()) {
    log::error("{}: cannot be written", ledger);
    return 1;
  }
  if (results.gave_up || results.unanswered > 0) return 1;
  return (results.refused > 0 || results.recipients_refused > 0) && !allow_refused ? 1 : 0;
}

}  // namespace
}  // namespace millrace::tools

int main(int argc, char** argv) { return millrace::tools::run(argc, argv); }
