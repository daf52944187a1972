#include "auth/server_exchange.h"

#include "auth/crypto.h"
#include "auth/scram.h"
#include "base/base64.h"

namespace millrace::auth {
namespace {

constexpr std::pair<std::string_view, Mechanism> kMechanisms[] = {
    {"PLAIN", Mechanism::plain},
    {"LOGIN", Mechanism::login},
    {"SCRAM-SHA-256", Mechanism::scram_sha_256},
    {"SCRAM-SHA-256-PLUS", Mechanism::scram_sha_256_plus},
};

char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }

bool is_user(std::string_view name) {
  return !name.empty() && name.size() <= kLongestUser && name.find('\0') == name.npos;
}

}  // namespace

std::string_view to_string(Mechanism mechanism) {
  for (const auto& [name, known] : kMechanisms) {
    if (known == mechanism) return name;
  }
  UNREACHABLE();
}

std::optional<Mechanism> find_mechanism(std::string_view name) {
  std::string given(name);
  for (char& c : given) c = upper(c);
  for (const auto& [known, mechanism] : kMechanisms) {
    if (known == given) return mechanism;
  }
  return std::nullopt;
}

ServerExchange::ServerExchange(Mechanism mechanism, Facts facts) : mechanism_(mechanism), facts_(std::move(facts)) {}

ServerExchange::~ServerExchange() { wipe(password_); }

ServerExchange::Step ServerExchange::end(Step::Kind kind) {
  state_ = State::over;
  return {kind, {}};
}

ServerExchange::Step ServerExchange::begin(const std::optional<std::string_view>& initial_response) {
  ASSERT(state_ == State::begun);
  switch (mechanism_) {
    case Mechanism::plain:
      state_ = State::first;
      break;
    case Mechanism::login:
      state_ = State::user;
      if (!initial_response) return {Step::Kind::challenge, "Username:"};
      break;
    case Mechanism::scram_sha_256:
    case Mechanism::scram_sha_256_plus:
      ASSERT(facts_.verifiers != nullptr && scram::is_nonce(facts_.nonce));
      state_ = State::first;
      break;
  }
  if (initial_response) return respond(*initial_response);
  return {Step::Kind::challenge, {}};
}

ServerExchange::Step ServerExchange::respond(std::string_view response) {
  switch (state_) {
    case State::user:
      if (!is_user(response)) return end(Step::Kind::malformed);
      user_ = response;
      state_ = State::password;
      return {Step::Kind::challenge, "Password:"};
    case State::password:
      password_ = response;
      return end(Step::Kind::check_password);
    case State::first:
      return mechanism_ == Mechanism::plain ? plain(response) : first(response);
    case State::final:
      return final(response);
    case State::acknowledge:
      return end(response.empty() ? Step::Kind::proven : Step::Kind::malformed);
    case State::begun:
    case State::over:
      break;
  }
  UNREACHABLE();
}

// RFC 4616 2: [authorization] NUL user NUL password
ServerExchange::Step ServerExchange::plain(std::string_view message) {
  const size_t first_nul = message.find('\0');
  const size_t second_nul = first_nul == message.npos ? message.npos : message.find('\0', first_nul + 1);
  if (second_nul == message.npos) return end(Step::Kind::malformed);
  const std::string_view authorization = message.substr(0, first_nul);
  const std::string_view user = message.substr(first_nul + 1, second_nul - first_nul - 1);
  const std::string_view password = message.substr(second_nul + 1);
  if (!is_user(user) || password.empty() || password.find('\0') != password.npos) return end(Step::Kind::malformed);
  user_ = user;
  if (!authorization.empty() && authorization != user) return end(Step::Kind::refused);
  password_ = password;
  return end(Step::Kind::check_password);
}

// RFC 5802 7, client-first-message.
ServerExchange::Step ServerExchange::first(std::string_view message) {
  const std::string_view whole = message;
  const size_t comma = message.find(',');
  if (comma == message.npos) return end(Step::Kind::malformed);
  const std::string_view flag = message.substr(0, comma);
  message.remove_prefix(comma + 1);
  const bool plus = mechanism_ == Mechanism::scram_sha_256_plus;
  bool refused = false;
  if (flag.starts_with("p=")) {
    if (!plus) return end(Step::Kind::malformed);
    refused = flag.substr(2) != scram::kBindingType || facts_.channel_binding.empty();
  } else if (flag == "n" || flag == "y") {
    if (plus) return end(Step::Kind::malformed);
    // "y": it could bind, and did not see that we can: somebody took -PLUS out of what we offered.
    refused = flag == "y" && !facts_.channel_binding.empty();
  } else {
    return end(Step::Kind::malformed);
  }
  std::string authorization;
  std::string_view value;
  if (scram::take_attribute(message, 'a', value)) {
    auto name = scram::unescape_name(value);
    if (!name) return end(Step::Kind::malformed);
    authorization = std::move(*name);
  } else if (message.starts_with(',')) {
    message.remove_prefix(1);
  } else {
    return end(Step::Kind::malformed);
  }
  binding_ = whole.substr(0, whole.size() - message.size());
  if (plus) binding_ += facts_.channel_binding;

  const std::string_view bare = message;
  std::string_view name, nonce;
  if (!scram::take_attribute(message, 'n', name) || !scram::take_attribute(message, 'r', nonce) || !scram::is_nonce(nonce)) {
    return end(Step::Kind::malformed);  // "m=" too: an extension that we do not know and must
  }
  auto user = scram::unescape_name(name);
  if (!user || !is_user(*user)) return end(Step::Kind::malformed);
  user_ = std::move(*user);
  if (!authorization.empty() && authorization != user_) refused = true;
  if (refused) return end(Step::Kind::refused);

  verifier_ = facts_.verifiers->scram_verifier(user_);
  nonce_ = nonce;
  nonce_ += facts_.nonce;
  std::string challenge = "r=" + nonce_ + ",s=" + to_base64(verifier_.salt) + ",i=" + std::to_string(verifier_.iterations);
  auth_message_ = bare;
  auth_message_ += ',';
  auth_message_ += challenge;
  state_ = State::final;
  return {Step::Kind::challenge, std::move(challenge)};
}

// client-final-message: c=binding,r=nonce[,extensions],p=proof
ServerExchange::Step ServerExchange::final(std::string_view message) {
  const size_t before_proof = message.rfind(",p=");
  if (before_proof == message.npos) return end(Step::Kind::malformed);
  const std::string_view without_proof = message.substr(0, before_proof);
  const auto proof = from_base64(message.substr(before_proof + 3));
  std::string_view binding, nonce;
  if (!proof || proof->size() != kDigestSize || !scram::take_attribute(message, 'c', binding) ||
      !scram::take_attribute(message, 'r', nonce)) {
    return end(Step::Kind::malformed);
  }
  const auto said = from_base64(binding);
  if (!said) return end(Step::Kind::malformed);
  if (nonce != nonce_) return end(Step::Kind::refused);
  auth_message_ += ',';
  auth_message_ += without_proof;
  const std::string signature = hmac_sha256(verifier_.stored_key, auth_message_);
  const std::string client_key = scram::exclusive_or(*proof, signature);
  const bool knows = equal_in_constant_time(sha256(client_key), verifier_.stored_key);
  const bool bound = equal_in_constant_time(*said, binding_);
  if (!knows || !bound) return end(Step::Kind::refused);
  // The proof that we know it too goes as a challenge: a 235 carries no data (RFC 4954 4).
  state_ = State::acknowledge;
  return {Step::Kind::challenge, "v=" + to_base64(hmac_sha256(verifier_.server_key, auth_message_))};
}

}  // namespace millrace::auth
