// The session's part of AUTH: which mechanisms there are on this connection, whose password is right, when the refusal
// leaves, and what the account may do once it is in.
//
//   AUTH ──> exchange ──> SCRAM: proven or refused, at once
//                    └──> a password ──> right a moment ago (cache): 235
//                                    └─> PasswordChecker, on a thread of its own ──> 235, or a 535 that waits
#include <fmt/format.h>

#include "auth/crypto.h"
#include "base/base64.h"
#include "base/log.h"
#include "events/json.h"
#include "ingress/listener.h"
#include "ingress/session.h"

namespace millrace::ingress {
namespace {

constexpr smtp::Reply kFrozen{450, {4, 7, 0}, "Account is frozen, ask the operator"};
constexpr smtp::Reply kAccountGone{550, {5, 7, 1}, "Account does not exist any more"};
constexpr smtp::Reply kNetworkRefused{550, {5, 7, 1}, "Account may not be used from this network"};
constexpr smtp::Reply kSenderRefused{553, {5, 7, 1}, "Sender address not allowed for this account"};

reactor::Address parse_client(std::string_view text) {
  Result<reactor::Address> address = reactor::Address::parse_host(text, 0);
  return address ? *address : reactor::Address();
}

bool is_loopback(const reactor::Address& client) {
  static const reactor::Network ipv4 = *reactor::Network::parse("127.0.0.0/8");
  static const reactor::Network ipv6 = *reactor::Network::parse("::1");
  return !client.empty() && (ipv4.contains(client) || ipv6.contains(client));
}

// For the log: names are the client's, and may be anything.
std::string printable(std::string_view text) {
  std::string out(text.substr(0, 80));
  for (char& c : out) c = c >= 0x20 && c < 0x7f ? c : '?';
  return out;
}

}  // namespace

class Session::Verifiers final : public auth::Verifiers {
 public:
  Verifiers(const Accounts& accounts, const config::Credentials& credentials)
      : accounts_(accounts), credentials_(credentials) {}
  auth::ScramVerifier scram_verifier(std::string_view user) const override {
    return accounts_.scram_verifier(credentials_, user);
  }

 private:
  const Accounts& accounts_;
  const config::Credentials& credentials_;
};

const config::Credentials* Session::credentials() { return acceptance_.settings()->config->accounts.get(); }

bool Session::may_authenticate() const {
  const config::Config& config = *acceptance_.settings()->config;
  if (!config.accounts || config.accounts->size() == 0 || !context_.accounts) return false;
  if (protocol_->secure()) return true;
  return config.auth_on_loopback && !opening_.proxy && is_loopback(parse_client(client_));
}

std::string_view Session::auth_mechanisms() {
  if (!may_authenticate()) return {};
  if (!auth_) auth_ = std::make_unique<Auth>();
  std::string& offer = auth_->offer;
  offer.clear();
  if (credentials()->has_scram()) {
    if (stream_.tls() && !stream_.tls()->channel_binding().empty()) offer += "SCRAM-SHA-256-PLUS ";
    offer += "SCRAM-SHA-256 ";
  }
  offer += "PLAIN LOGIN";
  return offer;
}

smtp::Reply Session::auth_refusal() {
  const config::Config& config = *acceptance_.settings()->config;
  const bool any = config.accounts && config.accounts->size() > 0 && context_.accounts;
  return any && !protocol_->secure() ? smtp::replies::kAuthNeedsTls : smtp::replies::kNotImplemented;
}

smtp::ServerPolicy::AuthStep Session::auth_begin(std::string_view mechanism, const std::string* initial) {
  using auth::Mechanism;
  const auto found = auth::find_mechanism(mechanism);
  const std::string binding = stream_.tls() ? stream_.tls()->channel_binding() : std::string();
  const bool scram = found == Mechanism::scram_sha_256 || found == Mechanism::scram_sha_256_plus;
  if (!found || (scram && !credentials()->has_scram()) || (found == Mechanism::scram_sha_256_plus && binding.empty())) {
    return {smtp::replies::kUnknownMechanism, {}};
  }
  // Sealed with what nobody outside knows, so that it cannot be foretold from the Io's numbers.
  static const std::string seal = auth::random_octets(auth::kDigestSize);
  std::string nonce = to_base64(auth::hmac_sha256(seal, fmt::format("{} {} {}", context_.io.random(), number_, now())));
  auth_->exchange.emplace(*found, auth::ServerExchange::Facts{nullptr, std::move(nonce), binding});
  Verifiers verifiers(*context_.accounts, *credentials());
  auth_->exchange->use(scram ? &verifiers : nullptr);
  std::optional<std::string_view> first;
  if (initial) first = *initial;
  auto step = auth_->exchange->begin(first);
  auth_->exchange->use(nullptr);
  return auth_step(std::move(step));
}

smtp::ServerPolicy::AuthStep Session::auth_respond(std::string_view response) {
  if (!credentials()) {  // a reload took them all away
    auth_cancelled();
    return {smtp::replies::kAuthBusy, {}};
  }
  Verifiers verifiers(*context_.accounts, *credentials());
  auth_->exchange->use(&verifiers);
  auto step = auth_->exchange->respond(response);
  auth_->exchange->use(nullptr);
  return auth_step(std::move(step));
}

void Session::auth_cancelled() { auth_->exchange.reset(); }

smtp::ServerPolicy::AuthStep Session::auth_step(auth::ServerExchange::Step step) {
  using Kind = auth::ServerExchange::Step::Kind;
  switch (step.kind) {
    case Kind::challenge:
      return {{}, std::move(step.challenge)};
    case Kind::malformed:
      auth_->exchange.reset();
      return {smtp::replies::kAuthMalformed, {}};
    case Kind::check_password:
      return check_password();
    case Kind::proven:
    case Kind::refused: {
      auto verdict = context_.accounts->check(parse_client(client_), auth_->exchange->user(), now());
      if (verdict != auth::Guard::Verdict::may_try) {
        ++context_.stats.auth_shut_out;
        auth_->exchange.reset();
        return {smtp::replies::kAuthBusy, {}};
      }
      return {conclude_auth(step.kind == Kind::proven, "wrong password or no such account"), {}};
    }
  }
  UNREACHABLE();
}

smtp::ServerPolicy::AuthStep Session::check_password() {
  Accounts& accounts = *context_.accounts;
  const std::string& user = auth_->exchange->user();
  if (accounts.check(parse_client(client_), user, now()) != auth::Guard::Verdict::may_try) {
    ++context_.stats.auth_shut_out;
    auth_->exchange.reset();
    return {smtp::replies::kAuthBusy, {}};
  }
  const config::Account* account = credentials()->find(user);
  auth_->password_digest.clear();
  if (account) {
    auth_->password_digest = accounts.digest(*account, auth_->exchange->password());
    if (accounts.was_right(auth_->password_digest, now())) return {conclude_auth(true, {}), {}};
  }
  auto job = std::make_unique<PasswordJob>();
  // Nobody's password takes as long as somebody's.
  job->secret = account ? account->secret : credentials()->decoy();
  job->password = auth_->exchange->password();
  job->mailbox = context_.mailbox;
  job->owner = this;
  job->done = &Session::on_password_checked;
  PasswordJob* waiting = job.get();
  if (!context_.passwords->submit(std::move(job))) {
    ++context_.stats.auth_busy;
    auth_->exchange.reset();
    return {smtp::replies::kAuthBusy, {}};
  }
  password_job_ = waiting;
  waiting_auth_ = true;
  return {kLater, {}};
}

void Session::on_password_checked(void* self, PasswordJob& job) {
  auto& session = *static_cast<Session*>(self);
  session.password_job_ = nullptr;
  if (!session.waiting_auth_ || session.state_ != State::talking) return;
  const bool right = job.right && !session.auth_->password_digest.empty();
  smtp::Reply reply = session.conclude_auth(right, "wrong password or no such account");
  if (reply.code != kLater.code) session.answer_auth(reply);
}

// The reply, or kLater: a refusal that waits.
smtp::Reply Session::conclude_auth(bool right, std::string_view reason) {
  Accounts& accounts = *context_.accounts;
  const reactor::Address client = parse_client(client_);
  const std::string user = auth_->exchange->user();
  const std::string mechanism(to_string(auth_->exchange->mechanism()));
  auth_->exchange.reset();
  const config::Account* account = credentials() ? credentials()->find(user) : nullptr;
  if (right && account && !account->allows_network(client)) {
    // Not told apart from a wrong password: whoever has it from elsewhere need not know that it is right.
    right = false;
    reason = "right password, but not from this network";
  }
  if (right && account) {
    ++context_.stats.auth_succeeded;
    accounts.succeeded(client, user, now());
    if (!auth_->password_digest.empty()) accounts.remember(auth_->password_digest, now());
    auth_->password_digest.clear();
    auth_->account = user;
    log::debug("session {}: {} authenticated as {} by {}", number_, client_, printable(user), mechanism);
    return smtp::replies::kAuthOk;
  }
  ++context_.stats.auth_failed;
  auth_->password_digest.clear();
  mail::Envelope envelope;
  envelope.account = printable(user);
  acceptance_.report_rejected(envelope, client_, smtp::replies::kAuthFailed, reason, number_, events::Stage::auth);
  if (listener_.may_log_refusal()) {
    log::warning("session {}: {} failed to authenticate as '{}' by {}: {}", number_, client_, printable(user), mechanism, reason);
  }
  auth_refusal_at_ = now() + accounts.failed(client, user, now());
  waiting_auth_ = true;
  rearm();
  return kLater;
}

void Session::answer_auth(const smtp::Reply& reply) {
  ASSERT(waiting_auth_);
  waiting_auth_ = false;
  auth_refusal_at_ = 0;
  last_data_ = idle_since_ = now();  // the silence was ours
  input_blocked_ = false;
  protocol_->answer_auth(reply);
  schedule_settle();
}

void Session::forget_auth() {
  if (password_job_) password_job_->owner = nullptr;
  password_job_ = nullptr;
  auth_.reset();
  waiting_auth_ = false;
  auth_refusal_at_ = 0;
}

const std::string& Session::account_name() const {
  static const std::string nobody;
  return auth_ ? auth_->account : nobody;
}

// ---- what an account may do

smtp::Reply Session::check_account(const mail::Envelope& envelope) {
  protocol_->envelope().account = account_name();
  const config::Account* account = find_account(*settings_, account_name());
  auto refuse = [&](const smtp::Reply& reply, std::string_view reason) {
    ++context_.stats.rejected_account;
    acceptance_.report_rejected(envelope, client_, reply, reason, number_, events::Stage::mail);
    return reply;
  };
  if (!account) return refuse(kAccountGone, "account not in --credentials any more");
  if (context_.accounts->frozen(account_name())) return refuse(kFrozen, "account is frozen");
  if (!account->allows_network(parse_client(client_))) return refuse(kNetworkRefused, "network not allowed for the account");
  if (!account->allows_sender(envelope.reverse_path)) return refuse(kSenderRefused, "sender not allowed for the account");
  return {};
}

smtp::Reply Session::check_recipient(const mail::Envelope& envelope, const mail::Recipient&) {
  if (account_name().empty()) return {};
  const config::Account* account = find_account(*settings_, account_name());
  if (!account) return {};
  auto refusal = context_.accounts->charge(*account, now(), context_.io.wall_ms());
  if (!refusal) {
    if (account->recipients_per_hour == 0 && account->recipients_per_day == 0) return {};
    ++auth_->charged;
    auth_->charged_at = now();
    return {};
  }
  ++context_.stats.rejected_account;
  char time[events::kTimeSize];
  events::format_time(refusal->until_ms, time);
  auth_->refusal_text = fmt::format("{} recipients per {} are used up for this account; more from {} on", refusal->limit,
                              refusal->budget, std::string_view(time, sizeof time));
  smtp::Reply reply{452, {4, 7, 1}, auth_->refusal_text};
  acceptance_.report_rejected(envelope, client_, reply, "the account's budget", number_, events::Stage::rcpt);
  return reply;
}

void Session::transaction_dropped() { refund(); }

void Session::refund() {
  if (!auth_ || auth_->charged == 0) return;
  context_.accounts->refund(auth_->account, std::exchange(auth_->charged, 0), auth_->charged_at, now());
}

}  // namespace millrace::ingress
