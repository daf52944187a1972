#include "smtp/server_protocol.h"

#include <algorithm>

#include <string.h>

#include "base/assert.h"
#include "base/base64.h"

namespace millrace::smtp {
namespace {

// Refused octets are read and thrown away so that the peer gets to see the reply; not without end.
constexpr uint64_t kMostDrained = 1 << 30;
// RFC 3030 sets no smallest chunk; a message cut finer than this costs more than it carries.
constexpr uint32_t kFreeChunks = 1000;
constexpr uint32_t kSmallestChunk = 1024;  // octets on average beyond kFreeChunks
constexpr uint64_t kLongestSkip = 1 << 20;
constexpr uint32_t kMostRefusedRecipients = 1000;  // past max_recipients

void append_number(std::string& out, uint64_t number) {
  char digits[20];
  size_t at = sizeof digits;
  do {
    digits[--at] = static_cast<char>('0' + number % 10);
    number /= 10;
  } while (number > 0);
  out.append(digits + at, sizeof digits - at);
}

Reply line_reply(LineReader::Outcome outcome) {
  switch (outcome) {
    case LineReader::Outcome::too_long:
      return replies::kLineTooLong;
    case LineReader::Outcome::bare_lf:
      return replies::kBareLf;
    case LineReader::Outcome::bare_cr:
      return replies::kBareCr;
    case LineReader::Outcome::nul:
      return replies::kNul;
    case LineReader::Outcome::incomplete:
    case LineReader::Outcome::line:
      break;
  }
  UNREACHABLE();
}

}  // namespace

std::string_view to_string(ServerProtocol::State state) {
  switch (state) {
    case ServerProtocol::State::connected:
      return "connected, greeting not sent";
    case ServerProtocol::State::greeted:
      return "waiting for EHLO";
    case ServerProtocol::State::ready:
      return "waiting for MAIL";
    case ServerProtocol::State::mail:
      return "waiting for RCPT";
    case ServerProtocol::State::rcpt:
      return "waiting for RCPT or data";
    case ServerProtocol::State::data:
      return "receiving data";
    case ServerProtocol::State::chunk:
      return "receiving a chunk";
    case ServerProtocol::State::between_chunks:
      return "waiting for the next chunk";
    case ServerProtocol::State::drain_chunk:
      return "throwing away a refused chunk";
    case ServerProtocol::State::authenticating:
      return "waiting for a response of AUTH";
    case ServerProtocol::State::bdat_failed:
      return "waiting for RSET after a refused chunk";
    case ServerProtocol::State::starting_tls:
      return "starting TLS";
    case ServerProtocol::State::closing:
      return "closing";
  }
  UNREACHABLE();
}

ServerProtocol::ServerProtocol(const ServerOptions& options, ServerPolicy& policy)
    : options_(options), policy_(policy), scanner_(true, 0) {
  ASSERT(options.max_message_size <= kLargestMessage);
  ASSERT(options.max_pending_messages > 0 && options.max_recipients > 0);
}

void ServerProtocol::enter(State state) { state_ = state; }

std::string& ServerProtocol::out() {
  return pending_count_ == 0 ? output_ : pending_at(pending_count_ - 1).after;
}

void ServerProtocol::say(const Reply& reply) { append_reply(out(), reply); }

void ServerProtocol::refuse(const Reply& reply) {
  say(reply);
  if (reply.code >= 500 && ++errors_ > options_.max_errors) close_with(replies::kTooManyErrors);
}

void ServerProtocol::close_with(const Reply& reply) {
  if (state_ == State::closing) return;
  say(reply);
  enter(State::closing);
}

void ServerProtocol::greet(const Reply* refusal) {
  ASSERT(state_ == State::connected);
  if (refusal) return close_with(*refusal);
  std::string& line = out();
  line.append("220 ").append(options_.hostname).append(" ").append(options_.banner).append("\r\n");
  enter(State::greeted);
}

void ServerProtocol::take_output(std::string& into) {
  if (into.empty()) {
    into.swap(output_);
  } else {
    into.append(output_);
    output_.clear();
  }
}

ServerProtocol::Step ServerProtocol::advance(std::string_view piece) {
  ASSERT(!piece.empty());
  if (envelope_given_) {
    envelope_given_ = false;
    envelope_.clear();
    scanner_ = detail::ContentScanner(true, 0);
  }
  discarded_now_ = false;
  if (clear_envelope_) {
    clear_envelope_ = false;
    envelope_.clear();
  }
  Step step;
  switch (state_) {
    case State::connected:
      close_with(replies::kEarlyTalker);
      step.consumed = piece.size();
      break;
    case State::starting_tls:
    case State::closing:
      step.consumed = piece.size();
      break;
    case State::data:
      step = read_data(piece);
      break;
    case State::chunk:
      step = read_chunk(piece);
      break;
    case State::drain_chunk:
      step = drain_chunk(piece);
      break;
    case State::greeted:
    case State::ready:
    case State::mail:
    case State::rcpt:
    case State::between_chunks:
    case State::bdat_failed:
      if (mail_waits_ || auth_waits_ || pending_count_ == options_.max_pending_messages) {
        step.event = Event::blocked;
        return step;
      }
      step = read_command(piece);
      break;
    case State::authenticating:
      step = read_response(piece);
      break;
  }
  if (shutdown_.code != 0 && !message_open_) close_with(shutdown_);
  if (state_ == State::closing && message_open_) {
    stop_wanting(step);
    message_open_ = false;
  }
  return step;
}

ServerProtocol::Step ServerProtocol::read_command(std::string_view piece) {
  Step step;
  LineReader::Line line = lines_.next(piece);
  step.consumed = line.consumed;
  if (line.outcome == LineReader::Outcome::incomplete) {
    if (lines_.skipped() > kLongestSkip) close_with(replies::kEndlessLine);
    step.secret = lines_.may_be_auth();
    return step;
  }
  if (line.outcome != LineReader::Outcome::line) {
    step.secret = true;  // whatever it was
    refuse(line_reply(line.outcome));
    return step;
  }
  step.secret = LineReader::is_auth(line.text);
  // A long line is for AUTH only.
  if (line.text.size() + 2 > kExtendedLineLimit && !step.secret) {
    refuse(replies::kLineTooLong);
    return step;
  }
  const bool more_input = piece.size() > line.consumed;
  auto command = parse_command(line.text, options_.extensions, envelope_.smtputf8);
  if (!command) {
    if (command.error().close) {
      close_with(command.error().reply);
    } else {
      refuse(command.error().reply);
    }
    return step;
  }
  if (!is_legal_group(command->verb, more_input)) {
    close_with(replies::kBadPipelining);
    return step;
  }
  on_command(*command, step);
  return step;
}

// RFC 2920 3.1: EHLO and DATA change what the next octets mean, so they end a group; before EHLO
// has announced PIPELINING there are no groups. NOOP, VRFY and EXPN, which should end one too, do
// no harm within it, and neither does anything after QUIT, which is not read.
bool ServerProtocol::is_legal_group(Verb verb, bool more_input) const {
  if (!more_input) return true;
  switch (verb) {
    case Verb::quit:
      return true;
    case Verb::helo:
    case Verb::ehlo:
    case Verb::data:
    case Verb::starttls:
    case Verb::auth:
      return false;
    case Verb::bdat:
      return true;  // its octets follow at once (RFC 3030 2)
    default:
      return esmtp_ && options_.extensions.pipelining;
  }
}

void ServerProtocol::on_command(const Command& command, Step& step) {
  if (options_.require_tls && !secure_) {
    switch (command.verb) {  // RFC 3207 4: what may still be said
      case Verb::ehlo:
      case Verb::helo:
      case Verb::noop:
      case Verb::starttls:
      case Verb::quit:
        break;
      case Verb::bdat:
        return refuse_chunk(command, replies::kTlsFirst, state_);
      default:
        return refuse(replies::kTlsFirst);
    }
  }
  switch (command.verb) {
    case Verb::helo:
    case Verb::ehlo:
      if (!count_idle_command()) return;
      stop_wanting(step);
      on_hello(command);
      break;
    case Verb::mail:
      on_mail(command);
      break;
    case Verb::rcpt:
      on_rcpt(command);
      break;
    case Verb::data:
      on_data_command(step);
      break;
    case Verb::bdat:
      on_bdat(command, step);
      break;
    case Verb::rset:
      if (!count_idle_command()) return;
      stop_wanting(step);
      end_transaction(state_ == State::greeted ? State::greeted : State::ready);
      say(replies::kOk);
      break;
    case Verb::noop:
      if (count_idle_command()) say(replies::kOk);
      break;
    case Verb::help:
      if (count_idle_command()) say(replies::kHelp);
      break;
    case Verb::vrfy:
      if (count_idle_command()) say(replies::kCannotVerify);
      break;
    case Verb::quit:
      close_with(replies::kBye);
      break;
    case Verb::starttls:
      on_starttls(step);
      break;
    case Verb::auth:
      on_auth(command);
      break;
    case Verb::expn:
      refuse(replies::kNotImplemented);
      break;
  }
}

// RFC 4954 4
void ServerProtocol::on_auth(const Command& command) {
  if (policy_.auth_mechanisms().empty()) return refuse(policy_.auth_refusal());
  if (state_ == State::greeted || !esmtp_) return refuse(replies::kHelloFirst);
  if (authenticated_) return refuse(replies::kAuthenticated);
  if (state_ != State::ready) return refuse(replies::kNotInTransaction);
  std::string_view rest = command.argument;
  const size_t blank = rest.find(' ');
  const std::string_view mechanism = rest.substr(0, blank);
  rest.remove_prefix(blank == rest.npos ? rest.size() : blank);
  while (rest.starts_with(' ')) rest.remove_prefix(1);
  if (rest.empty()) return take_auth_step(policy_.auth_begin(mechanism, nullptr));
  if (rest.find(' ') != rest.npos) return refuse(replies::kAuthSyntax);
  // "=": there is one, and it is empty.
  auto initial = from_base64(rest == "=" ? std::string_view() : rest);
  if (!initial) return refuse(replies::kAuthBadBase64);
  take_auth_step(policy_.auth_begin(mechanism, &*initial));
  explicit_bzero(initial->data(), initial->size());
}

ServerProtocol::Step ServerProtocol::read_response(std::string_view piece) {
  Step step;
  step.secret = true;
  if (auth_waits_ || pending_count_ == options_.max_pending_messages) {
    step.secret = false;
    step.event = Event::blocked;
    return step;
  }
  LineReader::Line line = lines_.next(piece);
  step.consumed = line.consumed;
  if (line.outcome == LineReader::Outcome::incomplete) {
    if (lines_.skipped() > kLongestSkip) close_with(replies::kEndlessLine);
    return step;
  }
  if (line.outcome != LineReader::Outcome::line) {
    policy_.auth_cancelled();
    end_auth(line.outcome == LineReader::Outcome::too_long ? replies::kAuthLineTooLong : line_reply(line.outcome));
    return step;
  }
  if (piece.size() > line.consumed) {  // nothing can follow a response before its reply
    policy_.auth_cancelled();
    close_with(replies::kBadPipelining);
    return step;
  }
  if (line.text == "*") {
    policy_.auth_cancelled();
    end_auth(replies::kAuthCancelled);
    return step;
  }
  auto response = from_base64(line.text);
  if (!response) {
    policy_.auth_cancelled();
    end_auth(replies::kAuthBadBase64);
    return step;
  }
  take_auth_step(policy_.auth_respond(*response));
  explicit_bzero(response->data(), response->size());
  return step;
}

void ServerProtocol::take_auth_step(ServerPolicy::AuthStep step) {
  if (step.reply.code == 0) {
    enter(State::authenticating);
    std::string& text = out();
    text.append("334 ");
    append_base64(text, step.challenge);
    text.append("\r\n");
    return;
  }
  if (step.reply.code == ServerPolicy::kLater.code) {
    enter(State::authenticating);
    auth_waits_ = true;
    return;
  }
  end_auth(step.reply);
}

void ServerProtocol::end_auth(const Reply& reply) {
  if (state_ == State::authenticating) enter(State::ready);
  lines_.wipe();
  if (reply.code == 235) {
    authenticated_ = true;
    return say(reply);
  }
  refuse(reply);
  if (reply.code == 535 && ++auth_failures_ >= kMostAuthFailures) close_with(replies::kTooManyAuthFailures);
}

void ServerProtocol::answer_auth(const Reply& reply) {
  ASSERT(auth_waits_);
  auth_waits_ = false;
  if (state_ != State::closing) end_auth(reply);
}

void ServerProtocol::on_starttls(Step& step) {
  if (secure_) return refuse(replies::kTlsActive);
  if (!options_.starttls) return refuse(replies::kNotImplemented);
  if (state_ == State::greeted) return refuse(replies::kHelloFirst);
  // With a message under way its reply would have to leave in the clear behind the 220.
  if (state_ != State::ready || pending_count_ > 0) return refuse(replies::kNotInTransaction);
  say(replies::kStartTls);
  enter(State::starting_tls);
  step.event = Event::start_tls;
}

void ServerProtocol::secured() {
  ASSERT(!secure_ && (state_ == State::starting_tls || state_ == State::connected));
  secure_ = true;
  if (state_ == State::connected) return;
  envelope_.clear();
  helo_.clear();
  esmtp_ = false;
  authenticated_ = false;
  lines_.reset();
  lines_.set_limit(kCommandLineLimit);
  enter(State::greeted);
}

bool ServerProtocol::count_idle_command() {
  if (++idle_commands_ <= options_.max_idle_commands) return true;
  close_with(replies::kTooMuchJunk);
  return false;
}

void ServerProtocol::on_hello(const Command& command) {
  end_transaction(State::ready);
  helo_ = command.argument;
  esmtp_ = command.verb == Verb::ehlo;
  lines_.set_limit(!esmtp_                               ? kCommandLineLimit
                   : policy_.auth_mechanisms().empty() ? kExtendedLineLimit
                                                       : kAuthLineLimit);
  if (esmtp_) {
    say_capabilities();
  } else {
    out().append("250 ").append(options_.hostname).append("\r\n");
  }
}

void ServerProtocol::say_capabilities() {
  const Extensions& offered = options_.extensions;
  std::string& text = out();
  size_t last = text.size();
  text.append("250-").append(options_.hostname).append("\r\n");
  auto line = [&](bool offer, std::string_view keyword) {
    if (!offer) return;
    last = text.size();
    text.append("250-").append(keyword).append("\r\n");
  };
  auto number_line = [&](bool offer, std::string_view keyword, uint64_t number) {
    if (!offer) return;
    last = text.size();
    text.append("250-").append(keyword);
    append_number(text, number);
    text.append("\r\n");
  };
  number_line(offered.size, "SIZE ", options_.max_message_size);
  line(offered.pipelining, "PIPELINING");
  line(offered.eight_bit_mime, "8BITMIME");
  line(offered.smtputf8, "SMTPUTF8");
  line(offered.enhanced_status, "ENHANCEDSTATUSCODES");
  line(offered.chunking, "CHUNKING");
  line(offered.dsn, "DSN");
  line(options_.starttls && !secure_, "STARTTLS");
  line(offered.requiretls && secure_, "REQUIRETLS");
  if (std::string_view mechanisms = policy_.auth_mechanisms(); !mechanisms.empty()) {
    line(true, "AUTH " + std::string(mechanisms));
  }
  number_line(offered.limits, "LIMITS RCPTMAX=", options_.max_recipients);
  text[last + 3] = ' ';
}

void ServerProtocol::on_mail(const Command& command) {
  switch (state_) {
    case State::ready:
      break;
    case State::greeted:
      return refuse(replies::kHelloFirst);
    case State::between_chunks:
      return refuse(replies::kNotDuringBdat);
    case State::bdat_failed:
      return refuse(replies::kBdatFailed);
    default:
      return refuse(replies::kNestedMail);
  }
  if (options_.max_messages > 0 && message_number_ >= options_.max_messages) {
    return close_with(replies::kTooManyMessages);
  }
  if (command.size > options_.max_message_size) return refuse(replies::kMessageTooLarge);
  // An ASCII domain has been checked by the parser.
  if (command.path.utf8 && !mail::to_routing_domain(command.path.domain)) {
    return refuse(replies::kBadSender);
  }
  if (command.requiretls && !secure_) return refuse(replies::kRequireTlsNeedsTls);
  envelope_.reverse_path = command.path.mailbox;
  envelope_.envid = command.envid;
  envelope_.ret = command.ret;
  envelope_.body = command.body;
  envelope_.smtputf8 = command.smtputf8;
  if (command.requiretls) {
    envelope_.tls = mail::TlsWish::required;
    // RFC 8689 5: a whole message is not sent back.
    if (envelope_.ret == mail::Ret::full) envelope_.ret = mail::Ret::headers;
  }
  Reply reply = policy_.check_mail(envelope_, command.size);
  if (reply.code == ServerPolicy::kLater.code) {
    mail_waits_ = true;
  } else {
    finish_mail(reply);
  }
}

void ServerProtocol::answer_mail(const Reply& reply) {
  ASSERT(mail_waits_);
  mail_waits_ = false;
  if (state_ != State::closing) finish_mail(reply);
}

void ServerProtocol::finish_mail(const Reply& reply) {
  if (reply.code != 0) {
    envelope_.clear();
    return refuse(reply);
  }
  enter(State::mail);
  say(replies::kSenderOk);
}

void ServerProtocol::on_rcpt(const Command& command) {
  switch (state_) {
    case State::mail:
    case State::rcpt:
      break;
    case State::greeted:
      return refuse(replies::kHelloFirst);
    case State::between_chunks:
      return refuse(replies::kNotDuringBdat);
    case State::bdat_failed:
      return refuse(replies::kBdatFailed);
    default:
      return refuse(replies::kMailFirst);
  }
  if (envelope_.recipients.size() >= options_.max_recipients) {
    if (++recipients_refused_ > kMostRefusedRecipients) return close_with(replies::kTooManyErrors);
    return say(replies::kTooManyRecipients);
  }
  mail::Recipient recipient;
  recipient.address = command.path.mailbox;
  std::string_view domain = command.path.domain;
  if (command.path.postmaster()) {
    recipient.address.append("@").append(options_.hostname);
    domain = options_.hostname;
  }
  auto routing_domain = mail::to_routing_domain(domain);
  if (!routing_domain) return refuse(replies::kBadRecipient);
  recipient.domain = std::move(*routing_domain);
  recipient.orcpt = command.orcpt;
  recipient.notify = command.notify;
  if (Reply reply = policy_.check_recipient(envelope_, recipient); reply.code != 0) {
    return refuse(reply);
  }
  envelope_.recipients.push_back(std::move(recipient));
  enter(State::rcpt);
  say(replies::kRecipientOk);
}

void ServerProtocol::on_data_command(Step& step) {
  switch (state_) {
    case State::rcpt:
      break;
    case State::greeted:
      return refuse(replies::kHelloFirst);
    case State::mail:
      return refuse(replies::kNoRecipients);
    case State::between_chunks:
      return refuse(replies::kNotDuringBdat);
    case State::bdat_failed:
      return refuse(replies::kBdatFailed);
    default:
      return refuse(replies::kMailFirst);
  }
  if (Reply reply = policy_.check_data(envelope_); reply.code != 0) {
    refuse(reply);
    if (state_ != State::closing) end_transaction(State::ready);
    return;
  }
  say(replies::kStartData);
  begin_message(true, step);
  enter(State::data);
}

void ServerProtocol::begin_message(bool stuffed, Step& step) {
  ++message_number_;
  idle_commands_ = 0;
  scanner_ = detail::ContentScanner(stuffed, options_.max_message_size);
  message_open_ = true;
  message_wanted_ = true;
  drained_ = 0;
  chunks_ = 0;
  step.begins = true;
}

// Tells the session, once, that what it holds of this message is of no more use.
void ServerProtocol::stop_wanting(Step& step) {
  if (!message_wanted_) return;
  message_wanted_ = false;
  step.body = {};
  step.event = Event::message_discarded;
  discarded_now_ = true;
}

bool ServerProtocol::is_bad_message() const {
  const IntakeFacts& facts = scanner_.facts();
  return facts.too_large || (facts.fault != LineFault::none && !options_.keep_bad_lines);
}

void ServerProtocol::refuse_bad_message() {
  const IntakeFacts& facts = scanner_.facts();
  if (facts.too_large) return refuse(replies::kMessageTooLarge);
  refuse({554, {5, 6, 0}, describe_fault(facts)});
}

std::string ServerProtocol::describe_fault(const IntakeFacts& facts) {
  std::string text(to_string(facts.fault));
  text.append(" in line ");
  append_number(text, facts.fault_line);
  text.append(", octet ");
  append_number(text, facts.fault_octet);
  return text;
}

void ServerProtocol::end_transaction(State next) {
  policy_.transaction_dropped();
  message_open_ = false;
  if (discarded_now_) {
    clear_envelope_ = true;
  } else {
    envelope_.clear();
  }
  recipients_refused_ = 0;
  enter(next);
}

ServerProtocol::Step ServerProtocol::read_data(std::string_view piece) {
  Step step;
  if (pending_count_ > 0) {
    // The 354 waits behind the reply to an earlier message: nobody can have seen it.
    step.consumed = piece.size();
    close_with(replies::kBadPipelining);
    return step;
  }
  const uint64_t before = scanner_.octets();
  bool found_end = false;
  step.consumed = scanner_.scan(piece.data(), piece.size(), found_end);
  const uint64_t raw_size = scanner_.facts().raw_size;
  const size_t body = !found_end          ? step.consumed
                      : raw_size > before ? static_cast<size_t>(raw_size - before)
                                          : 0;
  if (is_bad_message()) stop_wanting(step);
  if (message_wanted_) {
    step.body = piece.substr(0, body);
  } else if ((drained_ += step.consumed) > kMostDrained && !found_end) {
    close_with(replies::kEndlessMessage);
    return step;
  }
  if (found_end) end_message(step);
  return step;
}

void ServerProtocol::end_message(Step& step) {
  if (!message_wanted_) {
    refuse_bad_message();
    if (state_ != State::closing) end_transaction(State::ready);
    message_open_ = false;
    return;
  }
  message_open_ = false;
  message_wanted_ = false;
  ASSERT(pending_count_ < options_.max_pending_messages);
  if (pending_.empty()) pending_.resize(options_.max_pending_messages);
  Pending& pending = pending_at(pending_count_++);
  pending.number = message_number_;
  pending.answered = false;
  step.event = Event::message_end;
  envelope_given_ = true;
  recipients_refused_ = 0;
  enter(State::ready);
}

void ServerProtocol::on_bdat(const Command& command, Step& step) {
  if (command.chunk_size > kMostDrained) return close_with(replies::kChunkTooLarge);
  switch (state_) {
    case State::rcpt:
      if (Reply reply = policy_.check_data(envelope_); reply.code != 0) {
        refuse_chunk(command, reply, State::bdat_failed);
        return;
      }
      break;
    case State::between_chunks:
      break;
    case State::greeted:
      return refuse_chunk(command, replies::kHelloFirst, state_);
    case State::mail:
      return refuse_chunk(command, replies::kNoRecipients, state_);
    case State::bdat_failed:
      return refuse_chunk(command, replies::kBdatFailed, state_);
    default:
      return refuse_chunk(command, replies::kMailFirst, state_);
  }
  if (state_ == State::rcpt) begin_message(false, step);
  ++chunks_;
  const uint64_t size = scanner_.octets() + command.chunk_size;
  const Reply* wrong = size > options_.max_message_size ? &replies::kMessageTooLarge
                       : chunks_ > kFreeChunks && size / kSmallestChunk < chunks_ - kFreeChunks
                           ? &replies::kTooManyChunks
                           : nullptr;
  if (wrong) {
    if (wrong == &replies::kMessageTooLarge) scanner_.facts().too_large = true;
    stop_wanting(step);
    return refuse_chunk(command, *wrong, State::bdat_failed);
  }
  chunk_left_ = command.chunk_size;
  last_chunk_ = command.last;
  enter(State::chunk);
  if (chunk_left_ == 0) end_chunk(step);
}

// Refuses a BDAT and has its octets pass by. A refused last chunk ends the transaction; after
// another one, RSET (or EHLO) does.
void ServerProtocol::refuse_chunk(const Command& command, const Reply& reply, State after) {
  refuse(reply);
  if (state_ == State::closing) return;
  message_open_ = false;
  if (after == State::bdat_failed) {
    end_transaction(command.last ? State::ready : State::bdat_failed);
    after = state_;
  }
  chunk_left_ = command.chunk_size;
  if (chunk_left_ == 0) return;
  after_drain_ = after;
  enter(State::drain_chunk);
}

ServerProtocol::Step ServerProtocol::drain_chunk(std::string_view piece) {
  Step step;
  step.consumed = static_cast<size_t>(std::min<uint64_t>(chunk_left_, piece.size()));
  chunk_left_ -= step.consumed;
  if (chunk_left_ == 0) enter(after_drain_);
  return step;
}

ServerProtocol::Step ServerProtocol::read_chunk(std::string_view piece) {
  Step step;
  step.consumed = static_cast<size_t>(std::min<uint64_t>(chunk_left_, piece.size()));
  bool found_end = false;
  scanner_.scan(piece.data(), step.consumed, found_end);
  chunk_left_ -= step.consumed;
  if (is_bad_message()) stop_wanting(step);
  if (message_wanted_) step.body = piece.substr(0, step.consumed);
  if (chunk_left_ == 0) end_chunk(step);
  return step;
}

void ServerProtocol::end_chunk(Step& step) {
  if (last_chunk_) {
    scanner_.finish();
    if (is_bad_message()) stop_wanting(step);
    return end_message(step);
  }
  if (!message_wanted_) {
    refuse_bad_message();
    if (state_ != State::closing) end_transaction(State::bdat_failed);
    message_open_ = false;
    return;
  }
  say(replies::kChunkOk);
  enter(State::between_chunks);
}

void ServerProtocol::message_done(uint64_t number, const Reply& reply) {
  uint32_t index = 0;
  while (index < pending_count_ && pending_at(index).number != number) ++index;
  ASSERT(index < pending_count_);
  Pending& pending = pending_at(index);
  ASSERT(!pending.answered);
  append_reply(pending.reply, reply);
  pending.answered = true;
  if (reply.positive()) errors_ = 0;
  while (pending_count_ > 0 && pending_at(0).answered) {
    Pending& first = pending_at(0);
    output_.append(first.reply).append(first.after);
    first.reply.clear();
    first.after.clear();
    pending_first_ = (pending_first_ + 1) % options_.max_pending_messages;
    --pending_count_;
  }
}

void ServerProtocol::shut_down(const Reply& reply) {
  if (message_open_) {
    shutdown_ = reply;
  } else {
    close_with(reply);
  }
}

}  // namespace millrace::smtp
