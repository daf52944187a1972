#include "delivery/session.h"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "base/base64.h"
#include "dsn/classify.h"
#include "smtp/line_reader.h"

namespace millrace::delivery {

using events::Stage;
using queue::Action;
using smtp::PeerReply;

std::string_view to_string(SessionState state) {
  switch (state) {
    case SessionState::securing:
      return "TLS handshake";
    case SessionState::greeting:
      return "waiting for the greeting";
    case SessionState::starttls:
      return "sending STARTTLS";
    case SessionState::ehlo:
      return "sending EHLO";
    case SessionState::helo:
      return "sending HELO";
    case SessionState::authenticating:
      return "authenticating";
    case SessionState::open:
      return "open";
    case SessionState::quitting:
      return "sending QUIT";
    case SessionState::over:
      return "over";
  }
  UNREACHABLE();
}

std::string_view to_string(Ending ending) {
  switch (ending) {
    case Ending::none:
      return "none";
    case Ending::done:
      return "done";
    case Ending::peer_closed:
      return "closed by the peer";
    case Ending::refused:
      return "refused";
    case Ending::told_to_slow:
      return "told to slow down";
    case Ending::lost:
      return "lost";
    case Ending::protocol:
      return "protocol error";
  }
  UNREACHABLE();
}

namespace {

constexpr int64_t kSecond = 1'000'000'000;
// A receiver that takes content more slowly than this on the whole is as good as dead.
constexpr uint64_t kSlowestOctetsPerSecond = 4096;
constexpr int64_t kQuitTimeoutNs = 5 * kSecond;
constexpr int64_t kHandshakeTimeoutNs = 60 * kSecond;
// Messages that do not fit this receiver, bounced in a row before others get their turn.
constexpr int kMostMisfits = 100;

// What the operator reads: "while <doing>".
std::string_view doing(Stage stage) {
  switch (stage) {
    case Stage::greeting:
      return "waiting for the greeting";
    case Stage::ehlo:
      return "waiting for the reply to EHLO";
    case Stage::starttls:
      return "starting TLS";
    case Stage::mail:
      return "waiting for the reply to MAIL";
    case Stage::rcpt:
      return "waiting for the reply to RCPT";
    case Stage::data:
      return "waiting for the reply to DATA";
    case Stage::body:
      return "sending the message";
    case Stage::end_of_data:
      return "waiting for the reply to the end of data";
    case Stage::auth:
      return "authenticating";
    case Stage::none:
    case Stage::dns:
    case Stage::connect:
    case Stage::quit:
      return "idle";
  }
  UNREACHABLE();
}

}  // namespace

Session::Session(SessionOwner& owner, const SessionOptions& options)
    : owner_(owner), options_(options) {
  ASSERT(options_.uncertain >= 1);
}

Session::~Session() = default;

void Session::enter(SessionState state) { state_ = state; }

const mail::Envelope& Session::envelope(const Transaction& transaction) const {
  return transaction.attempt->message->envelope;
}
const mail::Content& Session::content(const Transaction& transaction) const {
  return transaction.attempt->message->content;
}

// ---- events

void Session::greet(int64_t now, std::string_view mx) {
  mx_ = mx;
  if (options_.tls != SessionOptions::Tls::from_connect) return begin_greeting(now);
  enter(SessionState::securing);
  front_since_ = now;
  update_deadline(now);
}

void Session::begin_greeting(int64_t now) {
  enter(SessionState::greeting);
  expect(Command::greeting);
  front_since_ = now;
  update_deadline(now);
}

void Session::secured(int64_t now) {
  if (state_ != SessionState::securing) return;
  secure_ = true;
  if (options_.tls == SessionOptions::Tls::from_connect) return begin_greeting(now);
  capabilities_ = {};
  enter(SessionState::ehlo);
  begin_group();
  append_hello();
  expect(Command::ehlo);
  flush(now);
  update_deadline(now);
}

void Session::tls_failed(std::string_view why, int64_t now) {
  if (state_ == SessionState::over) return;
  if (state_ != SessionState::securing) return on_end(EPROTO, now);
  end_stage_ = Stage::starttls;
  end_enhanced_ = "4.7.5";
  end_reply_ = fmt::format("TLS: {}", why);
  end(Ending::refused, now);
}

void Session::receive(std::string_view bytes, int64_t now) {
  if (state_ == SessionState::over) return;
  if (state_ == SessionState::quitting) return;  // nobody waits for the reply to QUIT
  if (holding_reply_) {
    held_bytes_.append(bytes);
    if (held_bytes_.size() > smtp::ReplyParser::kLongestReply) {
      fail_protocol("endless replies", now);
    }
    return;
  }
  busy_ = true;
  parse(bytes, now);
  busy_ = false;
  pump(now);
}

void Session::parse(std::string_view bytes, int64_t now) {
  while (!bytes.empty() && state_ != SessionState::over) {
    const auto outcome = parser_.next(bytes);
    if (outcome == smtp::ReplyParser::Outcome::incomplete) return;
    if (outcome != smtp::ReplyParser::Outcome::reply) {
      return fail_protocol(to_string(outcome), now);
    }
    PeerReply& reply = parser_.reply();
    if (!expected_empty() && reply.code != 421) {
      const Expected& front = expected_[expected_head_];
      const bool ends = front.command == Command::content || front.command == Command::chunk;
      if (ends && front.transaction->end_offset > left()) {
        // The attempt cannot be given back while its bytes are being sent. A positive reply is
        // worse: either the completion of our send comes behind it in this very turn, or it is no
        // reply to the data (on_turn_end).
        holding_reply_ = true;
        held_reply_ = std::move(reply);
        held_bytes_.assign(bytes);
        return;
      }
    }
    if (sending_ && state_ != SessionState::open && reply.code != 421) {
      // Before the transactions each command waits for the reply to the one before, and a reply that came
      // early may not start the next one while the last is still being sent.
      holding_reply_ = true;
      held_reply_ = std::move(reply);
      held_bytes_.assign(bytes);
      return;
    }
    on_reply(reply, now);
    if (state_ == SessionState::securing) return begin_securing(bytes, now);
  }
}

// STARTTLS is answered with 220; `rest` came behind it.
void Session::begin_securing(std::string_view rest, int64_t now) {
  if (!rest.empty()) return fail_protocol("more than the reply to STARTTLS came in the clear", now);
  owner_.start_tls();
}

uint64_t Session::left() const { return sending_ ? written_ - owner_.unsent() : written_; }

void Session::on_sent(int64_t now) {
  ASSERT(sending_);
  sending_ = false;
  if (state_ == SessionState::authenticating) explicit_bzero(commands_.data(), commands_.size());
  if (state_ == SessionState::over) return;
  if (state_ == SessionState::quitting) return end(Ending::done, now);
  if (!expected_empty() && current_stage() == Stage::end_of_data) front_since_ = now;
  if (holding_reply_) {
    holding_reply_ = false;
    busy_ = true;
    PeerReply reply = std::move(held_reply_);
    const std::string bytes = std::move(held_bytes_);
    held_bytes_.clear();
    on_reply(reply, now);
    if (state_ == SessionState::securing) {
      begin_securing(bytes, now);
    } else {
      parse(bytes, now);
    }
    busy_ = false;
  }
  pump(now);
}

void Session::on_turn_end(int64_t now) {
  if (late_reply() && sending_ && state_ != SessionState::over) {
    fail_protocol("a reply to the end of data came before it was sent", now);
  }
}

void Session::wake(int64_t now) {
  exhausted_ = false;
  if (!busy_) pump(now);
}

void Session::retire(int64_t now) {
  retiring_ = true;
  if (state_ == SessionState::securing || state_ == SessionState::greeting || state_ == SessionState::ehlo ||
      state_ == SessionState::helo || state_ == SessionState::starttls || state_ == SessionState::authenticating) {
    return end(Ending::done, now);
  }
  if (!busy_) pump(now);
}

void Session::on_end(int error, int64_t now) {
  if (state_ == SessionState::over) return;
  if (state_ == SessionState::quitting) return end(Ending::done, now);
  end_stage_ = current_stage();
  end_reply_ =
      fmt::format("connection {} while {}",
                  error == 0 ? "closed by the peer" : std::strerror(error), doing(end_stage_));
  end_enhanced_ = "4.4.2";
  if (state_ != SessionState::open) return end(Ending::lost, now);
  if (holding_reply_ && held_reply_.reply_class() > 3) {
    // The message was refused before all of it had come.
    const Expected& front = expected_[expected_head_];
    if (options_.lmtp && front.command == Command::content) {
      set_result(front.transaction->attempt->results[front.recipient], held_reply_, Stage::end_of_data,
                 judged(held_reply_, Stage::end_of_data));
      front.transaction->answers[front.recipient] = Answer::done;
    } else {
      refuse_all(*front.transaction, held_reply_, Stage::end_of_data);
    }
  }
  if (slow_) return end(Ending::told_to_slow, now);
  // Close or reset before the reply to MAIL is no attempt, though content went along with it: who
  // has not answered MAIL has not taken a message. Our own abort says nothing of the kind.
  closed_by_peer_ = error == 0 || error == ECONNRESET || error == EPIPE;
  const bool between = closed_by_peer_ && std::none_of(transactions_.begin(), transactions_.end(),
                                                       [](const Transaction* transaction) {
                                                         return transaction->mail_answered;
                                                       });
  if (idle()) {
    ended_idle_ = true;
    return end(Ending::peer_closed, now);
  }
  end(between && messages_ > 0 ? Ending::peer_closed : Ending::lost, now);
}

void Session::on_timeout(int64_t now) {
  if (state_ == SessionState::over || now < deadline_) return;
  if (state_ == SessionState::quitting) return end(Ending::done, now);
  if (resting_) {
    resting_ = false;
    return pump(now);
  }
  if (idle()) return quit(now);
  end_stage_ = current_stage();
  if (end_stage_ == Stage::body) {
    const Transaction& transaction = *expected_[expected_head_].transaction;
    const uint64_t unsent = owner_.unsent();
    const uint64_t octets = content(transaction).wire_size(transaction.form);
    const int64_t longest = options_.data_block_timeout_ns +
                            static_cast<int64_t>(octets / kSlowestOctetsPerSecond) * kSecond;
    if (unsent < last_unsent_ && now - transaction.content_ns < longest) {
      last_unsent_ = unsent;
      block_since_ = now;
      return update_deadline(now);
    }
  }
  end_reply_ = fmt::format("time-out while {}", doing(end_stage_));
  end_enhanced_ = "4.4.2";
  end(slow_ ? Ending::told_to_slow : Ending::lost, now);
}

void Session::settle(uint64_t unsent, int64_t now) {
  ASSERT(state_ == SessionState::over);
  const uint64_t left_at_last = written_ - std::min(unsent, written_);
  busy_ = true;  // nothing is written any more, whoever calls back
  while (!transactions_.empty()) {
    Transaction& transaction = *transactions_.front();
    abandon(transaction, transaction.content_sent && transaction.end_offset <= left_at_last, now);
    finish(transaction, now);
  }
  while (!again_.empty()) {
    transactions_.push_back(again_.back());
    again_.pop_back();
    finish(*transactions_.back(), now);
  }
  expected_.clear();
  expected_head_ = 0;
}

// ---- send cursor

void Session::pump(int64_t now) {
  if (state_ == SessionState::over) return;
  if (state_ == SessionState::open && !sending_) {
    busy_ = true;
    begin_group();
    if (!slow_) {
      if (capabilities_.pipelining) {
        while (pump_pipelined(now)) {
        }
      } else {
        while (pump_lockstep(now)) {
        }
      }
    }
    busy_ = false;
    if (!commands_.empty() || !parts_.empty()) {
      flush(now);
    } else if (expected_empty()) {
      if (slow_) return end(Ending::told_to_slow, now);
      if (transactions_.empty()) {
        if (!may_start() && again_.empty()) return quit(now);
      }
    }
  }
  update_deadline(now);
}

bool Session::may_start() const {
  return !retiring_ && (options_.messages_most == 0 || started_ < options_.messages_most) &&
         (capabilities_.mail_max == 0 || mails_ < capabilities_.mail_max);
}

bool Session::pump_pipelined(int64_t now) {
  Transaction* last = transactions_.empty() ? nullptr : transactions_.back();
  // LMTP: who answers fewer times than there are recipients would have the reply to the next MAIL taken for one of them.
  if (options_.lmtp && last != nullptr && last->content_sent) return false;
  if (last == nullptr || last->content_sent) {
    Transaction* next = start_next(now);
    if (next == nullptr) return false;
    if (need_reset_) write_reset();
    write_mail(*next);
    while (next->rcpt_sent < next->recipients) write_rcpt(*next);
    if (next->form == mail::WireForm::data) write_data(*next);
    return true;
  }
  if (last->form == mail::WireForm::data) {
    if (!last->go_ahead) return false;
    if (last->accepted > 0 && !last->again) {
      write_content(*last, now);
    } else {
      write_lone_dot(*last);
    }
    return true;
  }
  if (last->group != group_) {
    // Its envelope has gone ahead: its content follows only where somebody takes it.
    if (last->rcpt_answered < last->recipients) return false;
    if (last->accepted == 0 || last->again) {
      need_reset_ = need_reset_ || last->mail_ok;
      finish_or_restart(*last, now);
      return true;
    }
  }
  if (unanswered_ends_ >= options_.uncertain) return false;
  write_content(*last, now);
  return true;
}

bool Session::pump_lockstep(int64_t now) {
  if (!expected_empty() || !commands_.empty()) return false;
  // Before the next is taken: from then on its MAIL is to leave at once, since a rate may have counted it.
  if (transactions_.empty() && need_reset_ && (may_start() || !again_.empty())) {
    write_reset();
    return false;
  }
  Transaction* current = transactions_.empty() ? start_next(now) : transactions_.back();
  if (current == nullptr) return false;
  if (!current->mail_sent) {
    write_mail(*current);
    return false;
  }
  if (!current->mail_ok) {
    finish_or_restart(*current, now);
    return true;
  }
  if (current->rcpt_sent < current->recipients && !current->enough) {
    write_rcpt(*current);
    return false;
  }
  if (current->accepted == 0) {
    need_reset_ = true;
    finish(*current, now);
    return true;
  }
  if (current->form == mail::WireForm::data && !current->data_sent) {
    write_data(*current);
  } else {
    write_content(*current, now);
  }
  return false;
}

Session::Transaction* Session::start_next(int64_t now) {
  if (!again_.empty()) {
    Transaction* transaction = again_.front();
    again_.erase(again_.begin());
    transactions_.push_back(transaction);
    return transaction;
  }
  for (int misfits = 0; misfits < kMostMisfits; ++misfits) {
    if (exhausted_ || resting_ || !may_start()) return nullptr;
    queue::Attempt* attempt = owner_.take();
    if (attempt == nullptr) {
      exhausted_ = true;
      return nullptr;
    }
    ASSERT(!attempt->recipients.empty() && attempt->results.size() == attempt->recipients.size());
    if (!fits(*attempt)) continue;

    if (free_.empty()) {
      pool_.push_back(std::make_unique<Transaction>());
      free_.push_back(pool_.back().get());
    }
    Transaction* transaction = free_.back();
    free_.pop_back();
    std::vector<Answer> answers = std::move(transaction->answers);
    *transaction = {};
    transaction->answers = std::move(answers);
    transaction->attempt = attempt;
    transaction->recipients = static_cast<uint32_t>(attempt->recipients.size());
    if (capabilities_.rcpt_max > 0 && transaction->recipients > capabilities_.rcpt_max) {
      transaction->recipients = capabilities_.rcpt_max;
      attempt->recipients_learned = capabilities_.rcpt_max;
    }
    transaction->answers.assign(transaction->recipients, Answer::none);
    transaction->form = smtp::choose_wire_form(content(*transaction), capabilities_);
    transaction->number = ++started_;
    transaction->started_ns = now;
    transactions_.push_back(transaction);
    return transaction;
  }
  resting_ = true;  // on_timeout() goes on, in the next turn
  return nullptr;
}

// Bounces what this receiver cannot take (RFC 1870 6, RFC 6152, RFC 6531).
bool Session::fits(queue::Attempt& attempt) {
  const mail::Envelope& envelope = attempt.message->envelope;
  const mail::Content& content = attempt.message->content;
  ASSERT(envelope.tls != mail::TlsWish::required || secure_ || options_.lmtp);
  const smtp::Fit fit = smtp::check_fit(envelope, content, capabilities_);
  dsn::Category category = dsn::Category::content_related;
  std::string words;
  std::string_view status;
  switch (fit) {
    case smtp::Fit::ok:
      return true;
    case smtp::Fit::too_large:
      status = "5.3.4";
      words = fmt::format("message of {} octets is larger than the {} that {} accepts",
                          content.size(), capabilities_.size_limit, mx_);
      break;
    case smtp::Fit::needs_smtputf8:
      status = "5.6.7";
      words = fmt::format("message needs SMTPUTF8, which {} does not offer", mx_);
      break;
    case smtp::Fit::needs_8bitmime:
      status = "5.6.3";
      words = fmt::format("message has 8-bit content, and {} does not offer 8BITMIME", mx_);
      break;
    case smtp::Fit::needs_requiretls:
      status = "5.7.30";
      words = fmt::format("REQUIRETLS support required, and {} does not offer it", mx_);
      category = dsn::Category::policy_related;
      break;
  }
  for (queue::RecipientResult& result : attempt.results) {
    result.action = Action::bounce;
    result.scope = events::Scope::message;
    result.stage = Stage::ehlo;
    result.code = 0;
    result.enhanced = status;
    result.bounce_class = dsn::to_string(category);
    result.reply = words;
  }
  attempt.session_message = started_ + 1;
  attempt.transaction_ms = 0;
  owner_.finished(attempt);
  return false;
}

void Session::write_reset() {
  commands_ += smtp::kRsetLine;
  expect(Command::rset);
  need_reset_ = false;
}

void Session::write_mail(Transaction& transaction) {
  smtp::append_mail(commands_, envelope(transaction), content(transaction), capabilities_);
  transaction.mail_sent = true;
  transaction.group = group_;
  ++mails_;
  expect(Command::mail, &transaction);
}

void Session::write_rcpt(Transaction& transaction) {
  const uint32_t number = transaction.rcpt_sent++;
  const mail::Envelope& to = envelope(transaction);
  smtp::append_rcpt(commands_, to, to.recipients[transaction.attempt->recipients[number]],
                    capabilities_);
  expect(Command::rcpt, &transaction, number);
}

void Session::write_data(Transaction& transaction) {
  commands_ += smtp::kDataLine;
  transaction.data_sent = true;
  expect(Command::data, &transaction);
}

void Session::write_content(Transaction& transaction, int64_t now) {
  const mail::Content& what = content(transaction);
  const bool chunk = transaction.form == mail::WireForm::bdat;
  if (chunk) smtp::append_bdat(commands_, what.size(), true);
  add_commands_part();
  const size_t first = parts_.size();
  what.gather(transaction.form, parts_);
  for (size_t i = first; i < parts_.size(); ++i) written_ += parts_[i].iov_len;
  transaction.end_offset = written_;
  if (!chunk) {
    commands_ += smtp::kEndOfData;
    transaction.end_offset += smtp::kEndOfData.size();
  }
  transaction.content_sent = true;
  transaction.content_ns = now;
  ++unanswered_ends_;
  if (!options_.lmtp) return expect(chunk ? Command::chunk : Command::content, &transaction);
  // RFC 2033 4.2: a reply for each recipient that was accepted, in their order.
  for (uint32_t i = 0; i < transaction.recipients; ++i) {
    if (transaction.answers[i] == Answer::accepted) expect(Command::content, &transaction, i);
  }
}

// All recipients were refused, and a 354 came all the same: the shortest legal way on.
void Session::write_lone_dot(Transaction& transaction) {
  commands_ += smtp::kEndOfData;
  transaction.content_sent = true;
  expect(Command::lone_dot, &transaction);
}

void Session::expect(Command command, Transaction* transaction, uint32_t recipient) {
  if (expected_empty()) front_is_new_ = true;
  expected_.push_back({command, transaction, recipient});
}

void Session::add_commands_part() {
  const size_t size = commands_.size() - commands_used_;
  if (size == 0) return;
  // The string may still move: its address is put in by flush().
  command_parts_.push_back({parts_.size(), commands_used_});
  parts_.push_back({nullptr, size});
  commands_used_ = commands_.size();
  written_ += size;
}

void Session::begin_group() {
  ++group_;
  commands_.clear();
  commands_used_ = 0;
  parts_.clear();
  command_parts_.clear();
}

void Session::flush(int64_t now) {
  add_commands_part();
  for (const CommandPart& at : command_parts_) {
    parts_[at.part].iov_base = commands_.data() + at.offset;
  }
  last_unsent_ = 0;
  for (const iovec& part : parts_) last_unsent_ += part.iov_len;
  sending_ = true;
  block_since_ = now;
  if (front_is_new_) front_since_ = now;
  front_is_new_ = false;
  owner_.send(parts_);
}

void Session::quit(int64_t now) {
  ASSERT(!sending_ && expected_empty());
  enter(SessionState::quitting);
  begin_group();
  commands_ += smtp::kQuitLine;
  flush(now);
  update_deadline(now);
}

// ---- receive cursor

void Session::on_reply(PeerReply& reply, int64_t now) {
  if (expected_empty()) return on_unexpected(reply, now);
  const Stage stage = current_stage();
  const Expected front = expected_[expected_head_++];
  if (expected_empty()) {
    expected_.clear();
    expected_head_ = 0;
  }
  front_since_ = now;

  if (reply.code == 421) {
    const Verdict verdict = judged(reply, stage);
    closing_421_ = true;
    if (front.transaction != nullptr && verdict.action != Action::give_back) {
      // It closes the connection, but it is about this message.
      Transaction& transaction = *front.transaction;
      for (uint32_t i = 0; i < transaction.recipients; ++i) {
        if (transaction.answers[i] == Answer::refused || transaction.answers[i] == Answer::done) continue;
        // LMTP: it is about this recipient's copy, and nobody knows of the later ones.
        if (options_.lmtp && front.command == Command::content && i != front.recipient) continue;
        transaction.answers[i] = Answer::refused;
        set_result(transaction.attempt->results[i], reply, stage, verdict);
      }
    }
    set_end_reply(reply, stage, verdict);
    return end(Ending::told_to_slow, now);
  }

  switch (front.command) {
    case Command::greeting:
      return on_greeting(reply, now);
    case Command::ehlo:
    case Command::helo:
      return on_hello(front.command, reply, now);
    case Command::starttls:
      return on_starttls(reply, now);
    case Command::auth:
      return on_auth(reply, now);
    case Command::mail:
      return on_mail(*front.transaction, reply, now);
    case Command::rcpt:
      return on_rcpt(*front.transaction, front.recipient, reply);
    case Command::data:
      return on_data(*front.transaction, reply, now);
    case Command::content:
    case Command::chunk:
      if (options_.lmtp) return on_end_for(*front.transaction, front.recipient, reply, now);
      return on_end_of_data(*front.transaction, front.command, reply, now);
    case Command::lone_dot:
      return finish_or_restart(*front.transaction, now);
    case Command::rset:
      if (reply.reply_class() != 2) fail_protocol("RSET was refused", now, Stage::mail);
      return;
  }
}

void Session::on_unexpected(const PeerReply& reply, int64_t now) {
  if (reply.code != 421) return fail_protocol("a reply that nothing was asked for", now);
  const Verdict verdict = judged(reply, Stage::none);
  closing_421_ = true;
  ended_idle_ = idle();
  set_end_reply(reply, Stage::none, verdict);
  // "421 4.4.2 idle too long" is how a receiver takes its leave; a policy code is not.
  const bool leave = ended_idle_ && reply.status.subject != 7;
  end(leave ? Ending::peer_closed : Ending::told_to_slow, now);
}

void Session::append_hello() {
  if (options_.lmtp) {
    smtp::append_lhlo(commands_, options_.ehlo_name);
  } else {
    smtp::append_ehlo(commands_, options_.ehlo_name);
  }
}

void Session::on_greeting(const PeerReply& reply, int64_t now) {
  if (reply.code == 220) {
    enter(SessionState::ehlo);
    begin_group();
    append_hello();
    expect(Command::ehlo);
    return flush(now);
  }
  if (reply.reply_class() < 4) return fail_protocol("the greeting is no 220", now);
  const Verdict verdict = judged(reply, Stage::greeting);
  set_end_reply(reply, Stage::greeting, verdict);
  end(verdict.next_host ? Ending::refused : Ending::told_to_slow, now);
}

// RFC 4954 4. Whatever goes wrong here, no message is to blame.
void Session::begin_auth(int64_t now) {
  if (!secure_) return refuse_auth("credentials go nowhere in the clear", now);
  std::string why;
  exchange_ = owner_.authenticate(capabilities_, why);
  if (!exchange_) return refuse_auth(std::move(why), now);
  enter(SessionState::authenticating);
  begin_group();
  commands_ += "AUTH ";
  commands_ += to_string(exchange_->mechanism());
  if (exchange_->has_initial()) {
    std::string initial = exchange_->initial();
    std::string encoded = to_base64(initial);
    explicit_bzero(initial.data(), initial.size());
    // The command is a line of 512 octets like any other; a response may be longer.
    initial_due_ = commands_.size() + 1 + encoded.size() + 2 > smtp::kCommandLineLimit;
    if (initial_due_) {
      initial_response_ = std::move(encoded);
    } else {
      commands_ += ' ';
      commands_ += encoded;
      explicit_bzero(encoded.data(), encoded.size());
    }
  }
  commands_ += "\r\n";
  expect(Command::auth);
  flush(now);
}

void Session::on_auth(const PeerReply& reply, int64_t now) {
  if (reply.code == 235) {
    const bool proven = exchange_->server_proven();
    exchange_.reset();
    if (!proven) return refuse_auth("the server said yes without knowing the password: it is not whom it seems to be", now);
    return open(now);
  }
  if (reply.code == 334) {
    const auto challenge = from_base64(reply.text);
    std::optional<std::string> response;
    if (std::exchange(initial_due_, false)) {
      response = from_base64(initial_response_);
      explicit_bzero(initial_response_.data(), initial_response_.size());
    } else if (challenge) {
      response = exchange_->respond(*challenge);
    }
    if (!response) return refuse_auth(challenge ? exchange_->error() : "the server's challenge is no base64", now);
    begin_group();
    append_base64(commands_, *response);
    explicit_bzero(response->data(), response->size());
    commands_ += "\r\n";
    expect(Command::auth);
    return flush(now);
  }
  exchange_.reset();
  if (reply.reply_class() < 4) return fail_protocol("the reply to AUTH is neither 235 nor 334", now, Stage::auth);
  const Verdict verdict = judge(reply, Stage::auth);
  set_end_reply(reply, Stage::auth, verdict);
  end(Ending::refused, now);
}

void Session::refuse_auth(std::string why, int64_t now) {
  exchange_.reset();
  end_stage_ = Stage::auth;
  end_code_ = 0;
  end_enhanced_ = "4.7.0";
  end_reply_ = fmt::format("AUTH: {}", why);
  end(Ending::refused, now);
}

void Session::on_hello(Command command, const PeerReply& reply, int64_t now) {
  if (reply.code == 250) {
    if (command == Command::ehlo) capabilities_ = smtp::parse_capabilities(reply);
    if (!options_.pipelining) capabilities_.pipelining = false;
    if (!options_.chunking || options_.lmtp) capabilities_.chunking = false;
    using Tls = SessionOptions::Tls;
    const bool wanted = !secure_ && options_.tls != Tls::off;
    if (wanted && capabilities_.starttls) {
      enter(SessionState::starttls);
      begin_group();
      commands_ += smtp::kStartTlsLine;
      expect(Command::starttls);
      return flush(now);
    }
    if (wanted) tls_refused_ = true;
    if (wanted && options_.tls == Tls::required) {
      end_stage_ = Stage::starttls;
      end_enhanced_ = "4.7.4";
      end_reply_ = "STARTTLS is not offered, and nothing may go there in the clear";
      return end(Ending::refused, now);
    }
    if (options_.requiretls && !capabilities_.requiretls) {
      lacks_requiretls_ = true;
      end_stage_ = Stage::ehlo;
      end_enhanced_ = "5.7.30";
      end_reply_ = fmt::format("{} does not offer REQUIRETLS", mx_);
      return end(Ending::refused, now);
    }
    if (options_.authenticate) return begin_auth(now);
    return open(now);
  }
  if (reply.reply_class() < 4) return fail_protocol("the reply to EHLO is no 250", now);
  const Verdict verdict = judged(reply, Stage::ehlo);
  if (command == Command::ehlo && verdict.try_helo && !options_.lmtp) {
    enter(SessionState::helo);
    begin_group();
    smtp::append_helo(commands_, options_.ehlo_name);
    expect(Command::helo);
    return flush(now);
  }
  set_end_reply(reply, Stage::ehlo, verdict);
  const bool other_host = verdict.next_host || verdict.try_helo;
  end(other_host ? Ending::refused : Ending::told_to_slow, now);
}

void Session::open(int64_t now) {
  enter(SessionState::open);
  idle_since_ = now;
  owner_.ready();
}

void Session::on_starttls(const PeerReply& reply, int64_t now) {
  if (reply.code == 220) {
    capabilities_ = {};
    enter(SessionState::securing);
    return;  // parse() goes on when it has seen that nothing follows
  }
  if (reply.reply_class() < 4) return fail_protocol("the reply to STARTTLS is no 220", now, Stage::starttls);
  tls_refused_ = true;
  set_end_reply(reply, Stage::starttls, judge(reply, Stage::starttls));
  end(Ending::refused, now);
}

void Session::on_mail(Transaction& transaction, const PeerReply& reply, int64_t now) {
  transaction.mail_answered = true;
  if (reply.reply_class() == 2) {
    transaction.mail_ok = true;
    need_reset_ = false;
    return;
  }
  if (reply.reply_class() == 3) return fail_protocol("3xx in reply to MAIL", now, Stage::mail);
  if (reply.code == 503 && transaction.behind_failure && !transaction.started_again) {
    // The failure of the message before it left a transaction open at the peer (RFC 3030 2).
    transaction.again = true;
    need_reset_ = true;
    return;
  }
  refuse_all(transaction, reply, Stage::mail);
}

void Session::on_rcpt(Transaction& transaction, uint32_t recipient, const PeerReply& reply) {
  ++transaction.rcpt_answered;
  if (!transaction.mail_ok) return;  // the answer to MAIL has said it all
  Answer& answer = transaction.answers[recipient];
  if (reply.reply_class() == 2) {
    answer = Answer::accepted;
    ++transaction.accepted;
    return;
  }
  const Verdict verdict = judged(reply, Stage::rcpt, transaction.accepted > 0);
  if (verdict.enough) {
    answer = Answer::enough;
    transaction.enough = true;
    transaction.attempt->recipients_learned = transaction.accepted;
    return;
  }
  answer = Answer::refused;
  set_result(transaction.attempt->results[recipient], reply, Stage::rcpt, verdict);
  if (verdict.slow_down) note_slow(reply, Stage::rcpt, verdict);
}

void Session::on_data(Transaction& transaction, const PeerReply& reply, int64_t now) {
  if (reply.code == 354) {
    if (options_.lmtp && transaction.accepted == 0) {
      // RFC 2033 4.2: then there is no end of data, nor a reply to one.
      return fail_protocol("354 without an accepted recipient", now, Stage::data);
    }
    transaction.go_ahead = true;
    return;
  }
  if (reply.reply_class() < 4) return fail_protocol("the reply to DATA is no 354", now, Stage::data);
  need_reset_ = need_reset_ || transaction.mail_ok;
  if (transaction.accepted > 0) refuse_all(transaction, reply, Stage::data);
  finish_or_restart(transaction, now);
}

void Session::on_end_of_data(Transaction& transaction, Command command, const PeerReply& reply,
                             int64_t now) {
  if (reply.reply_class() == 3) {
    // The message may or may not be theirs now: settle() calls it uncertain.
    return fail_protocol("3xx in reply to the end of data", now, Stage::end_of_data);
  }
  --unanswered_ends_;
  const bool refused = reply.reply_class() != 2;
  if (refused && command == Command::chunk) {
    need_reset_ = true;
    for (Transaction* later : transactions_) later->behind_failure = later != &transaction;
  }
  if (transaction.accepted == 0) return finish_or_restart(transaction, now);
  ++messages_;
  if (refused) {
    refuse_all(transaction, reply, Stage::end_of_data);
  } else {
    for (uint32_t i = 0; i < transaction.recipients; ++i) {
      if (transaction.answers[i] != Answer::accepted) continue;
      set_delivered(transaction.attempt->results[i], reply);
    }
  }
  finish(transaction, now);
}

Verdict Session::judged(const smtp::PeerReply& reply, Stage stage, bool recipient_accepted) const {
  return judge(reply, stage, recipient_accepted, options_.shaping, options_.provider);
}

// LMTP: what became of one recipient's copy.
void Session::on_end_for(Transaction& transaction, uint32_t recipient, const PeerReply& reply, int64_t now) {
  if (reply.reply_class() == 3) return fail_protocol("3xx in reply to the end of data", now, Stage::end_of_data);
  queue::RecipientResult& result = transaction.attempt->results[recipient];
  if (reply.reply_class() == 2) {
    set_delivered(result, reply);
  } else {
    const Verdict verdict = judged(reply, Stage::end_of_data);
    set_result(result, reply, Stage::end_of_data, verdict);
    if (verdict.slow_down) note_slow(reply, Stage::end_of_data, verdict);
  }
  transaction.answers[recipient] = Answer::done;
  if (!expected_empty()) return;  // others of its recipients: nothing else is asked meanwhile
  --unanswered_ends_;
  ++messages_;
  finish(transaction, now);
}

// The reply is about all who were not refused one by one.
void Session::refuse_all(Transaction& transaction, const PeerReply& reply, Stage stage) {
  const Verdict verdict = judged(reply, stage);
  for (uint32_t i = 0; i < transaction.recipients; ++i) {
    Answer& answer = transaction.answers[i];
    if (stage != Stage::mail && answer != Answer::accepted) continue;
    answer = Answer::refused;
    set_result(transaction.attempt->results[i], reply, stage, verdict);
  }
  transaction.accepted = 0;
  if (verdict.slow_down) note_slow(reply, stage, verdict);
}

void Session::finish_or_restart(Transaction& transaction, int64_t now) {
  if (!transaction.again) return finish(transaction, now);
  std::erase(transactions_, &transaction);
  queue::Attempt* attempt = transaction.attempt;
  const uint32_t number = transaction.number;
  const uint32_t recipients = transaction.recipients;
  const int64_t started_ns = transaction.started_ns;
  const mail::WireForm form = transaction.form;
  std::vector<Answer> answers = std::move(transaction.answers);
  answers.assign(recipients, Answer::none);
  transaction = {};
  transaction.attempt = attempt;
  transaction.answers = std::move(answers);
  transaction.recipients = recipients;
  transaction.form = form;
  transaction.number = number;
  transaction.started_ns = started_ns;
  transaction.started_again = true;
  again_.push_back(&transaction);
}

void Session::finish(Transaction& transaction, int64_t now) {
  std::erase(transactions_, &transaction);
  queue::Attempt& attempt = *transaction.attempt;
  attempt.mx = mx_;
  attempt.receiver_reports = capabilities_.dsn;
  attempt.session_message = transaction.number;
  attempt.transaction_ms = static_cast<uint32_t>(
      std::clamp<int64_t>((now - transaction.started_ns) / 1'000'000, 0, UINT32_MAX));
  transaction.attempt = nullptr;
  free_.push_back(&transaction);
  idle_since_ = now;
  owner_.finished(attempt);
}

// Results for those who have none, because the conversation is over.
void Session::abandon(Transaction& transaction, bool end_left, int64_t now) {
  for (uint32_t i = 0; i < transaction.recipients; ++i) {
    const Answer answer = transaction.answers[i];
    if (answer == Answer::refused || answer == Answer::enough || answer == Answer::done) continue;
    queue::RecipientResult& result = transaction.attempt->results[i];
    result.stage = end_stage_;
    result.code = 0;
    if (end_left && !closing_421_ && (transaction.mail_answered || !closed_by_peer_)) {
      result.action = Action::uncertain;
      result.stage = Stage::end_of_data;
      result.enhanced = "4.4.2";
      result.bounce_class = dsn::to_string(dsn::category_of_silence(result.stage));
      result.reply = fmt::format("{}; it may have been delivered", end_reply_);
    } else if (!transaction.mail_ok || closing_421_ || ending_ == Ending::told_to_slow) {
      result.action = Action::give_back;
    } else {
      result.action = Action::defer;
      result.enhanced = end_enhanced_;
      result.bounce_class = dsn::to_string(dsn::category_of_silence(result.stage));
      result.reply = end_reply_;
    }
  }
}

// ---- the end

void Session::set_end_reply(const PeerReply& reply, Stage stage, const Verdict& verdict) {
  end_stage_ = stage;
  end_code_ = reply.code;
  end_enhanced_.clear();
  if (!verdict.status.empty()) verdict.status.append_to(end_enhanced_);
  assign_reply(end_reply_, reply);
  end_verdict_ = verdict;
}

void Session::note_slow(const PeerReply& reply, Stage stage, const Verdict& verdict) {
  if (slow_) return;
  slow_ = true;
  set_end_reply(reply, stage, verdict);
}

void Session::fail_protocol(std::string_view why, int64_t now, Stage at) {
  end_stage_ = at == Stage::none ? current_stage() : at;
  end_code_ = 0;
  end_enhanced_ = "4.5.0";
  end_reply_ = fmt::format("{} while {}", why, doing(end_stage_));
  end(Ending::protocol, now);
}

void Session::end(Ending ending, int64_t now) {
  ASSERT(state_ != SessionState::over);
  enter(SessionState::over);
  ending_ = ending;
  holding_reply_ = false;
  deadline_ = INT64_MAX;
  owner_.over();
}

Stage Session::current_stage() const {
  switch (state_) {
    case SessionState::securing:
    case SessionState::starttls:
      return Stage::starttls;
    case SessionState::greeting:
      return Stage::greeting;
    case SessionState::ehlo:
    case SessionState::helo:
      return Stage::ehlo;
    case SessionState::authenticating:
      return Stage::auth;
    case SessionState::quitting:
      return Stage::quit;
    case SessionState::open:
    case SessionState::over:
      break;
  }
  if (expected_empty()) return transactions_.empty() ? Stage::none : Stage::data;
  const Expected& front = expected_[expected_head_];
  switch (front.command) {
    case Command::greeting:
      return Stage::greeting;
    case Command::ehlo:
    case Command::helo:
      return Stage::ehlo;
    case Command::starttls:
      return Stage::starttls;
    case Command::auth:
      return Stage::auth;
    case Command::mail:
    case Command::rset:
      return Stage::mail;
    case Command::rcpt:
      return Stage::rcpt;
    case Command::data:
      return Stage::data;
    case Command::lone_dot:
      return Stage::end_of_data;
    case Command::content:
    case Command::chunk:
      return front.transaction->end_offset > left() ? Stage::body : Stage::end_of_data;
  }
  UNREACHABLE();
}

void Session::update_deadline(int64_t now) {
  switch (state_) {
    case SessionState::greeting:
      deadline_ = front_since_ + options_.greeting_timeout_ns;
      return;
    case SessionState::securing:
      deadline_ = front_since_ + std::min(kHandshakeTimeoutNs, options_.mail_timeout_ns);
      return;
    case SessionState::ehlo:
    case SessionState::helo:
    case SessionState::starttls:
    case SessionState::authenticating:
      deadline_ = front_since_ + options_.mail_timeout_ns;
      return;
    case SessionState::quitting:
      deadline_ = block_since_ + kQuitTimeoutNs;
      return;
    case SessionState::over:
      deadline_ = INT64_MAX;
      return;
    case SessionState::open:
      break;
  }
  if (resting_ && !sending_) {
    deadline_ = now;
    return;
  }
  if (expected_empty()) {
    deadline_ = (transactions_.empty() ? idle_since_ : front_since_) +
                (transactions_.empty() ? options_.idle_timeout_ns : options_.mail_timeout_ns);
    return;
  }
  const Expected& front = expected_[expected_head_];
  switch (front.command) {
    case Command::content:
    case Command::chunk:
      deadline_ = current_stage() == Stage::body ? block_since_ + options_.data_block_timeout_ns
                                                 : front_since_ + options_.data_done_timeout_ns;
      return;
    case Command::lone_dot:
      deadline_ = front_since_ + options_.data_done_timeout_ns;
      return;
    case Command::data:
      deadline_ = front_since_ + options_.data_initiation_timeout_ns;
      break;
    case Command::rcpt:
      deadline_ = front_since_ + options_.rcpt_timeout_ns;
      break;
    case Command::mail:
    case Command::rset:
    case Command::greeting:
    case Command::ehlo:
    case Command::helo:
    case Command::starttls:
    case Command::auth:
      deadline_ = front_since_ + options_.mail_timeout_ns;
      break;
  }
  // A hundred recipients answered one time-out apart would hold the slot for a day.
  if (front.transaction != nullptr) {
    const int64_t begun = std::max(front.transaction->started_ns, idle_since_);
    deadline_ =
        std::min(deadline_, begun + options_.mail_timeout_ns + 4 * options_.rcpt_timeout_ns +
                                options_.data_initiation_timeout_ns);
  }
}

}  // namespace millrace::delivery
