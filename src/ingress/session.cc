#include "ingress/session.h"

#include <string.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "ingress/listener.h"
#include "smtp/proxy_header.h"

namespace millrace::ingress {
namespace {

constexpr int64_t kNsPerMs = 1'000'000;
constexpr int64_t kNever = INT64_MAX;
constexpr size_t kKeptCapacity = 4096;        // of a reply buffer between connections
constexpr size_t kInputBeforePause = 64 * 1024;
constexpr size_t kHeldInputBeforePause = 4 * 1024;

constexpr smtp::Reply kCommandTimeout{421, {4, 4, 2}, "Timeout waiting for a command"};
constexpr smtp::Reply kDataTimeout{421, {4, 4, 2}, "Timeout while receiving a message"};
constexpr smtp::Reply kNoMemory{421, {4, 3, 1}, "Insufficient memory, try again later"};
constexpr smtp::Reply kRelayDenied{550, {5, 7, 1}, "Relaying denied"};
constexpr smtp::Reply kAuthRequired{530, {5, 7, 0}, "Authentication required"};

reactor::Address address_of(const smtp::ProxyHeader& header) {
  const auto& octets = header.source.address;
  if (header.ipv6) {
    uint8_t bytes[16];
    std::copy(octets.begin(), octets.end(), bytes);
    return reactor::Address::ipv6(bytes, header.source.port);
  }
  uint32_t host_order = uint32_t{octets[0]} << 24 | uint32_t{octets[1]} << 16 |
                        uint32_t{octets[2]} << 8 | octets[3];
  return reactor::Address::ipv4(host_order, header.source.port);
}

// The address back from its text; empty for a Unix socket.
reactor::Address parse_client(std::string_view text) {
  Result<reactor::Address> address = reactor::Address::parse_host(text, 0);
  return address ? *address : reactor::Address();
}

// Whether the last reply says goodbye because the client did.
bool ends_with_bye(std::string_view replies) {
  if (!replies.ends_with("\r\n")) return false;
  replies.remove_suffix(2);
  size_t start = replies.rfind('\n');
  return replies.substr(start == std::string_view::npos ? 0 : start + 1).starts_with("221");
}

}  // namespace

std::string_view to_string(Session::State state) {
  switch (state) {
    case Session::State::idle: return "idle";
    case Session::State::proxy: return "waiting for the PROXY header";
    case Session::State::securing: return "TLS handshake";
    case Session::State::greeting: return "about to greet";
    case Session::State::talking: return "talking";
    case Session::State::closing: return "sending the last reply";
    case Session::State::ending: return "closing the socket";
  }
  UNREACHABLE();
}

Session::Session(SmtpListener& listener, Acceptance& acceptance)
    : listener_(listener),
      acceptance_(acceptance),
      context_(acceptance.context()),
      stream_(context_.io, *this) {
  timer_.bind<&Session::on_timer>(this);
  settle_.bind<&Session::settle>(this);
}

Session::~Session() { ASSERT(state_ == State::idle); }

void Session::enter(State state) {
  log::debug("session {}: {}", number_, to_string(state));
  state_ = state;
  state_since_ = now();
}

int64_t Session::now() const { return context_.io.now(); }

void Session::start(reactor::Handle handle, const reactor::Address& peer, uint64_t number,
                    Opening opening) {
  ASSERT(state_ == State::idle);
  opening_ = opening;
  number_ = number;
  ++context_.stats.connections_open;
  session_settings_ = acceptance_.settings();
  stream_.start(handle, reactor::BufferGroup::ingress);
  idle_since_ = last_data_ = now();
  if (!opening.proxy) {
    on_client_known(peer);
  } else if (session_settings_->may_proxy(peer)) {
    enter(State::proxy);
    rearm();
  } else {
    ++context_.stats.refused_proxy;
    end(true);
  }
}

void Session::start_refused(reactor::Handle handle, const smtp::Reply& refusal, Opening opening) {
  ASSERT(state_ == State::idle);
  opening_ = opening;
  ++context_.stats.connections_open;
  session_settings_ = acceptance_.settings();
  stream_.start(handle, reactor::BufferGroup::ingress);
  idle_since_ = last_data_ = now();
  refuse(refusal);
}

void Session::refuse(const smtp::Reply& refusal) {
  // Where TLS comes first, a reply would cost a handshake.
  refused_ = !opening_.tls && listener_.may_refuse();
  if (refused_) {
    begin_talking(&refusal);
  } else {
    end(true);
  }
}

void Session::on_client_known(const reactor::Address& client) {
  client_ = client.is_unix() ? std::string("unix") : client.host_string();
  smtp::Reply refusal = listener_.enter(client);
  if (refusal.code != 0) return refuse(refusal);
  counted_ = true;
  if (opening_.tls) return start_tls();
  enter(State::greeting);
  rearm();
}

void Session::start_tls() {
  starting_tls_ = false;
  enter(State::securing);
  stream_.start_tls(tls::Engine::accept(session_settings_->tls));
  rearm();
}

void Session::on_secure() {
  if (state_ != State::securing) return;
  Stats& stats = context_.stats;
  ++stats.tls_handshakes;
  const tls::Engine& engine = *stream_.tls();
  if (engine.info().resumed) ++stats.tls_resumed;
  certified_ = session_settings_->tls->asks_for_certificate() && engine.info().verified == tls::Verified::ok;
  idle_since_ = last_data_ = now();
  if (!protocol_) {
    enter(State::greeting);
  } else {
    protocol_->secured();
    forget_auth();
    settings_.reset();  // certified_ may have changed what adopt() decides
    adopt(session_settings_);
    enter(State::talking);
    if (draining_) schedule_settle();
  }
  rearm();
}

void Session::count_failed_handshake() {
  Stats& stats = context_.stats;
  switch (stream_.tls()->failure()) {
    case tls::Failure::not_tls:
      ++stats.tls_failed_plaintext;
      break;
    case tls::Failure::no_common:
      ++stats.tls_failed_no_common;
      break;
    case tls::Failure::peer_alert:
      ++stats.tls_failed_alert;
      break;
    case tls::Failure::certificate:
    case tls::Failure::protocol:
      ++stats.tls_failed_protocol;
      break;
    case tls::Failure::none:
      ++stats.tls_failed_ended;
      break;
  }
  log::debug("session {}: TLS handshake with {}: {}", number_, client_, stream_.tls()->error());
}

void Session::adopt(const SettingsRef& settings) {
  if (settings_ == settings) return;
  settings_ = settings;
  may_relay_ = certified_ || settings_->may_relay(parse_client(client_));
}

void Session::begin_talking(const smtp::Reply* refusal) {
  protocol_.emplace(session_settings_->server, static_cast<smtp::ServerPolicy&>(*this));
  adopt(session_settings_);
  if (stream_.tls()) protocol_->secured();
  protocol_->greet(refusal);
  if (!refusal) ++context_.stats.connections_accepted;
  enter(State::talking);
  schedule_settle();
}

// ---- bytes in

void Session::on_data(char* data, size_t size, reactor::BufferRef buffer) {
  last_data_ = now();
  if (state_ == State::proxy) {
    size_t used = advance_proxy({data, size});
    data += used;
    size -= used;
    if (size == 0) return;
  }
  if (state_ == State::greeting) {
    // Whoever speaks now has not read the greeting: the protocol says so and closes.
    ++context_.stats.early_talkers;
    protocol_.emplace(session_settings_->server, static_cast<smtp::ServerPolicy&>(*this));
    if (stream_.tls()) protocol_->secured();
    adopt(session_settings_);
    enter(State::talking);
  }
  if (state_ != State::talking) return;
  // Behind STARTTLS and ahead of our 220: not from a client that keeps to the protocol (CVE-2011-0411).
  if (starting_tls_) return end(true);
  if (!input_.empty() || held()) {
    keep_input(data, size, std::move(buffer));
  } else {
    size_t used = advance({data, size}, buffer);
    if (used < size && state_ == State::talking) {
      keep_input(data + used, size - used, std::move(buffer));
    }
  }
  schedule_settle();
}

void Session::keep_input(char* data, size_t size, reactor::BufferRef buffer) {
  if (!input_.empty()) {
    Input& last = input_.back();
    if (last.buffer.get() == buffer.get() && last.data + last.size == data) {
      last.size += size;
      return;
    }
  }
  input_.push_back({data, size, std::move(buffer)});
}

size_t Session::advance_proxy(std::string_view piece) {
  size_t before = proxy_bytes_.size();
  std::string_view bytes = piece;
  if (before > 0) {
    // More than the longest header is never looked at.
    proxy_bytes_ += piece.substr(0, smtp::kLongestProxyHeader);
    bytes = proxy_bytes_;
  }
  smtp::ProxyHeader header = smtp::parse_proxy_header(bytes);
  using Outcome = smtp::ProxyHeader::Outcome;
  if (header.outcome == Outcome::incomplete && bytes.size() < smtp::kLongestProxyHeader) {
    if (before == 0) proxy_bytes_ = piece;
    return piece.size();
  }
  if (header.outcome == Outcome::invalid || header.outcome == Outcome::incomplete) {
    ++context_.stats.refused_proxy;
    end(true);
    return piece.size();
  }
  ASSERT(header.consumed >= before);
  size_t used = header.consumed - before;
  proxy_bytes_ = {};
  if (header.outcome == Outcome::client) {
    on_client_known(address_of(header));
    return used;
  }
  Result<reactor::Address> peer = context_.io.peer_address(stream_.handle());
  if (peer) {
    on_client_known(*peer);
  } else {
    end(true);  // gone already
  }
  return used;
}

bool Session::held() const {
  if (waiting_admission_ || waiting_auth_ || input_blocked_) return true;
  // A client that does not read its replies gets no new ones made.
  return stream_.sending() && protocol_ && protocol_->has_output();
}

size_t Session::advance(std::string_view piece, const reactor::BufferRef& buffer) {
  using Event = smtp::ServerProtocol::Event;
  size_t used = 0;
  while (used < piece.size() && state_ == State::talking && !held()) {
    if (protocol_->state() == smtp::ServerProtocol::State::closing) return piece.size();
    smtp::ServerProtocol::Step step = protocol_->advance(piece.substr(used));
    // Buffers go to the log as they are, and what is not a message's is noise there: no password may be.
    if (step.secret) explicit_bzero(const_cast<char*>(piece.data()) + used, step.consumed);
    used += step.consumed;
    if (step.begins) {
      receiving_ = &acceptance_.begin();
      message_began_ = now();
      slow_check_at_ = message_began_ + kSlowCheckNs;
      slow_check_bytes_ = 0;
    }
    if (!step.body.empty()) receiving_->append(step.body, buffer);
    switch (step.event) {
      case Event::none:
        break;
      case Event::message_end:
        on_message_end();
        break;
      case Event::message_discarded:
        if (protocol_->facts().too_large) {
          ++context_.stats.rejected_size;
          acceptance_.report_rejected(protocol_->envelope(), client_, smtp::replies::kMessageTooLarge,
                                      "size", number_, events::Stage::body);
        }
        drop_message();
        break;
      case Event::start_tls:
        // The protocol has seen that nothing follows in this piece; more pieces are looked at by the caller.
        ASSERT(used == piece.size());
        starting_tls_ = true;
        return used;
      case Event::blocked:
        input_blocked_ = true;
        return used;
    }
  }
  return used;
}

void Session::on_message_end() {
  Submission& submission = *std::exchange(receiving_, nullptr);
  mail::Envelope& envelope = submission.message->envelope;
  std::swap(envelope, protocol_->envelope());
  envelope.client = client_;
  if (const config::Account* account = account_name().empty() ? nullptr : find_account(*settings_, account_name())) {
    envelope.tenant = account->tenant;
  }
  if (auth_) {
    submission.charged = std::exchange(auth_->charged, 0);
    submission.charged_at = auth_->charged_at;
  }
  uint64_t number = protocol_->message_number();
  submission.number = number;
  submission.owner = this;
  submission.done = &Session::on_answer;
  pending_.push_back(submission);

  Origin origin;
  origin.helo = protocol_->helo();
  origin.esmtp = protocol_->esmtp();
  if (const tls::Engine* engine = stream_.tls()) {
    origin.tls_version = engine->info().version;
    origin.tls_suite = engine->info().suite;
    if (session_settings_->tls->asks_for_certificate()) origin.tls_verified = tls::to_string(engine->info().verified);
  }
  origin.session = number_;
  origin.session_message = static_cast<uint32_t>(number);
  origin.transaction_ms = static_cast<uint32_t>((now() - message_began_) / kNsPerMs);
  smtp::Reply refusal = acceptance_.submit(submission, *settings_, protocol_->facts(), origin);
  if (refusal.code != 0) protocol_->message_done(number, refusal);
}

void Session::on_answer(void* self, Submission& submission, const Answer& answer) {
  auto& session = *static_cast<Session*>(self);
  if (answer.close_silently) return session.end(true);
  session.protocol_->message_done(submission.number, answer.reply);
  // The silence was ours, if there was one.
  if (std::exchange(session.input_blocked_, false)) session.last_data_ = session.now();
  session.schedule_settle();
}

void Session::drop_message() {
  if (receiving_) acceptance_.discard(*std::exchange(receiving_, nullptr));
}

// ---- what the protocol asks

smtp::Reply Session::check_mail(const mail::Envelope& envelope, uint64_t) {
  adopt(acceptance_.settings());
  if (!may_relay_ && account_name().empty()) {
    ++context_.stats.rejected_relay;
    const smtp::Reply& denied = may_authenticate() ? kAuthRequired : kRelayDenied;
    acceptance_.report_rejected(envelope, client_, denied, "client not in --relay-from",
                                number_, events::Stage::mail);
    return denied;
  }
  if (!account_name().empty()) {
    if (smtp::Reply refusal = check_account(envelope); refusal.code != 0) return refusal;
  }
  std::string why;
  since = now();
  switch (context_.intake.admit(*this, why)) {
    case queue::Admission::now:
      return {};
    case queue::Admission::later:
      ++context_.stats.admission_waits;
      waiting_admission_ = true;
      return smtp::ServerPolicy::kLater;
    case queue::Admission::refused:
      break;
  }
  ++context_.stats.rejected_admission;
  smtp::Reply reply = listener_.admission_refusal(why);
  acceptance_.report_rejected(envelope, client_, reply, "admission", number_, events::Stage::mail);
  return reply;
}

void Session::on_admitted(bool refused, std::string_view why) {
  AdmissionWaiter::link.unlink();
  ASSERT(waiting_admission_);
  waiting_admission_ = false;
  last_data_ = idle_since_ = now();  // the silence was ours
  if (refused) {
    ++context_.stats.rejected_admission;
    smtp::Reply reply = listener_.admission_refusal(why);
    acceptance_.report_rejected(protocol_->envelope(), client_, reply, "admission", number_,
                                events::Stage::mail);
    protocol_->answer_mail(reply);
  } else {
    protocol_->answer_mail({});
  }
  schedule_settle();
}

// ---- bytes out, and the end of a turn

void Session::schedule_settle() { context_.io.defer(settle_); }

void Session::work_off_input() {
  size_t done = 0;
  while (done < input_.size() && !held()) {
    reactor::BufferRef buffer = input_[done].buffer;
    size_t used = advance({input_[done].data, input_[done].size}, buffer);
    if (state_ != State::talking) return;  // end() has dropped the input
    if (starting_tls_ && done + 1 < input_.size()) return end(true);
    input_[done].data += used;
    input_[done].size -= used;
    if (input_[done].size > 0) break;
    ++done;
  }
  input_.erase(input_.begin(), input_.begin() + static_cast<ptrdiff_t>(done));
}

bool Session::send_replies() {
  if (stream_.sending() || !protocol_->has_output()) return false;
  outgoing_.clear();
  protocol_->take_output(outgoing_);
  iovec part{outgoing_.data(), outgoing_.size()};
  stream_.send({&part, 1});
  idle_since_ = now();
  return true;
}

bool Session::between_transactions() const {
  using Protocol = smtp::ServerProtocol::State;
  Protocol at = protocol_->state();
  return at == Protocol::connected || at == Protocol::greeted || at == Protocol::ready ||
         at == Protocol::bdat_failed || at == Protocol::authenticating;
}

void Session::settle() {
  if (state_ == State::talking) {
    do {
      work_off_input();
      if (state_ != State::talking) return;
      if (draining_ && !waiting_admission_ && between_transactions()) {
        protocol_->shut_down(smtp::replies::kShuttingDown);
      }
    } while (send_replies() && !input_.empty());
    if (starting_tls_ && stream_.sending() && !protocol_->has_output()) return start_tls();

    if (peer_done_ && input_.empty()) drop_message();
    bool quiet = !protocol_->has_output() && protocol_->pending_messages() == 0;
    if (quiet && (protocol_->finished() || (peer_done_ && input_.empty() && !waiting_admission_))) {
      enter(State::closing);
    }
  }
  if (state_ == State::closing && !stream_.sending()) {
    // Closing with unread bytes would reset the connection and could take the reply with it; who did
    // not ask for the end may still be sending.
    if (peer_done_ || ends_with_bye(outgoing_)) return end(false);
    stream_.shutdown_send();
  }
  if (state_ == State::talking) pause_or_resume();
  rearm();
}

void Session::pause_or_resume() {
  size_t waiting = 0;
  for (const Input& input : input_) waiting += input.size;
  // Who is held back mostly waits for our reply and sends nothing: stopping the receive (and starting it
  // again) costs more than keeping the few commands that were sent ahead.
  size_t most = waiting_admission_ || waiting_auth_ || input_blocked_ ? kHeldInputBeforePause : kInputBeforePause;
  bool pause = waiting > most;
  if (pause == paused_counted_) return;
  paused_counted_ = pause;
  if (pause) {
    ++context_.stats.sessions_paused;
    stream_.pause();
  } else {
    --context_.stats.sessions_paused;
    last_data_ = now();  // the silence was ours
    stream_.resume();
  }
}

void Session::on_sent() { schedule_settle(); }

void Session::on_end(int error) {
  if (state_ == State::ending) return;
  peer_done_ = true;
  if (state_ == State::securing) count_failed_handshake();
  if (error != 0 || state_ == State::proxy || state_ == State::securing || state_ == State::greeting) {
    return end(false);
  }
  schedule_settle();
}

void Session::fail_with(const smtp::Reply& reply) {
  if (state_ == State::closing || state_ == State::ending) return;
  if (state_ != State::talking) return end(true);
  if (!protocol_->receiving_message()) {
    AdmissionWaiter::link.unlink();
    waiting_admission_ = false;
    protocol_->shut_down(reply);
    schedule_settle();
    return;
  }
  // In the middle of a message: the reply can be given when no other is due before it.
  drop_message();
  if (stream_.sending() || protocol_->pending_messages() > 0) return end(false);
  outgoing_.clear();
  protocol_->take_output(outgoing_);
  smtp::append_reply(outgoing_, reply);
  iovec part{outgoing_.data(), outgoing_.size()};
  stream_.send({&part, 1});
  input_.clear();
  enter(State::closing);
  if (std::exchange(paused_counted_, false)) {
    --context_.stats.sessions_paused;
    stream_.resume();  // what still comes is thrown away
  }
  rearm();
}

void Session::drain() {
  draining_ = true;
  if (state_ == State::proxy || (state_ == State::securing && !protocol_)) return end(false);
  if (state_ == State::greeting) begin_talking(&smtp::replies::kShuttingDown);
  if (state_ == State::talking) schedule_settle();
}

void Session::stop() {
  drain();
  if (std::exchange(stopping_, true)) return;
  state_since_ = now();
  if (state_ == State::securing) return end(true);
  if (state_ == State::talking) fail_with(smtp::replies::kShuttingDown);
  if (state_ == State::closing) rearm();
}

void Session::end(bool reset) {
  if (state_ == State::ending) return;
  drop_message();
  // Whatever is with the spool goes on without us.
  while (Submission* submission = pending_.pop_front()) submission->owner = nullptr;
  AdmissionWaiter::link.unlink();
  waiting_admission_ = false;
  refund();
  if (std::exchange(paused_counted_, false)) --context_.stats.sessions_paused;
  input_.clear();
  timer_.cancel();
  settle_.cancel();
  enter(State::ending);
  stream_.close(reset);
}

void Session::on_closed() {
  ASSERT(state_ == State::ending);
  Stats& stats = context_.stats;
  if (protocol_) stats.command_errors += protocol_->errors();
  --stats.connections_open;
  if (std::exchange(counted_, false)) context_.limits.leave(parse_client(client_));
  timer_.cancel();
  settle_.cancel();
  forget_auth();
  protocol_.reset();
  session_settings_.reset();
  settings_.reset();
  proxy_bytes_ = {};
  if (outgoing_.capacity() > kKeptCapacity) outgoing_ = {};
  outgoing_.clear();
  input_ = {};
  may_relay_ = input_blocked_ = peer_done_ = draining_ = stopping_ = starting_tls_ = certified_ = false;
  bool refused = std::exchange(refused_, false);
  state_ = State::idle;
  listener_.on_session_closed(*this, refused);
}

// ---- time

int64_t Session::deadline() const {
  switch (state_) {
    case State::idle:
    case State::ending:
      return kNever;
    case State::proxy:
      return state_since_ + kProxyTimeoutNs;
    case State::securing:
      return state_since_ + kHandshakeNs;
    case State::greeting:
      return state_since_ + kGreetingDelayNs;
    case State::closing:
      return state_since_ + (stopping_ ? kStopNs : kLastReplyNs);
    case State::talking:
      break;
  }
  if (stopping_) return state_since_ + kStopNs;
  const config::Config& config = *settings_->config;
  // While we hold the client back, the silence is not its fault.
  bool ours = waiting_admission_ || waiting_auth_ || input_blocked_;
  if (auth_refusal_at_ != 0) return auth_refusal_at_;
  if (receiving_ || protocol_->receiving_message()) {
    int64_t due = receiving_ ? slow_check_at_ : kNever;
    if (ours) return due;
    due = std::min(due, last_data_ + config.data_timeout_ms * kNsPerMs);
    return std::min(due, message_began_ + config.message_timeout_ms * kNsPerMs);
  }
  if (!stream_.sending() && (ours || protocol_->pending_messages() > 0)) return kNever;
  return idle_since_ + config.command_timeout_ms * kNsPerMs;
}

// Most deadlines move on before they come: the timer is left where it is and looks again when it fires.
void Session::rearm() {
  int64_t due = deadline();
  if (due == kNever || (timer_.armed() && timer_.deadline <= due)) return;
  context_.io.timers().arm(timer_, due);
}

void Session::on_timer() {
  if (receiving_ && state_ == State::talking && now() >= slow_check_at_) look_at_partial_message();
  if (now() < deadline()) return rearm();
  switch (state_) {
    case State::idle:
    case State::ending:
      return;
    case State::proxy:
      ++context_.stats.refused_proxy;
      return end(true);
    case State::securing:
      ++context_.stats.timeouts;
      ++context_.stats.tls_failed_ended;
      return end(true);
    case State::greeting:
      return begin_talking(nullptr);
    case State::closing:
      return end(true);
    case State::talking:
      break;
  }
  if (stopping_) return end(true);
  if (auth_refusal_at_ != 0) return answer_auth(smtp::replies::kAuthFailed);
  ++context_.stats.timeouts;
  if (stream_.sending()) return end(true);  // it does not even read
  fail_with(protocol_->receiving_message() ? kDataTimeout : kCommandTimeout);
}

// A message that grows slowly pins large buffers that other connections' bytes share. When memory is
// scarce its bytes move to small ones; when there is none left at all and the message stands still,
// perhaps because every buffer is held by such messages, some have to go.
void Session::look_at_partial_message() {
  const reactor::BufferPool& pool = acceptance_.buffers();
  uint64_t used = pool.bytes_in_use();
  uint64_t limit = pool.bytes_limit();
  uint64_t grown = receiving_->bytes() - slow_check_bytes_;
  slow_check_bytes_ = receiving_->bytes();
  slow_check_at_ = now() + kSlowCheckNs;
  if (used > limit / 2 && grown < kSlowBytes) receiving_->compact();
  if (used > limit - limit / 16 && grown == 0 && listener_.may_abort_stalled()) {
    ++context_.stats.stalled_aborted;
    fail_with(kNoMemory);
  }
}

}  // namespace millrace::ingress
