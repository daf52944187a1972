#include "auth/client_exchange.h"

#include <charconv>

#include "auth/crypto.h"
#include "auth/scram.h"
#include "base/assert.h"
#include "base/base64.h"

namespace millrace::auth {
namespace {

constexpr std::pair<std::string_view, ClientMechanism> kMechanisms[] = {
    {"SCRAM-SHA-256-PLUS", ClientMechanism::scram_sha_256_plus},
    {"SCRAM-SHA-256", ClientMechanism::scram_sha_256},
    {"PLAIN", ClientMechanism::plain},
    {"LOGIN", ClientMechanism::login},
    {"OAUTHBEARER", ClientMechanism::oauthbearer},
    {"XOAUTH2", ClientMechanism::xoauth2},
};

bool is_scram(ClientMechanism mechanism) {
  return mechanism == ClientMechanism::scram_sha_256 || mechanism == ClientMechanism::scram_sha_256_plus;
}

}  // namespace

std::string_view to_string(ClientMechanism mechanism) {
  for (const auto& [name, known] : kMechanisms) {
    if (known == mechanism) return name;
  }
  UNREACHABLE();
}

std::optional<ClientMechanism> find_client_mechanism(std::string_view name) {
  std::string given(name);
  for (char& c : given) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c;
  for (const auto& [known, mechanism] : kMechanisms) {
    if (known == given) return mechanism;
  }
  return std::nullopt;
}

ClientExchange::ClientExchange(ClientMechanism mechanism, Facts facts)
    : mechanism_(mechanism), facts_(std::move(facts)), proven_(!is_scram(mechanism)) {
  ASSERT(!is_scram(mechanism) || scram::is_nonce(facts_.nonce));
  ASSERT(mechanism != ClientMechanism::scram_sha_256_plus || !facts_.channel_binding.empty());
}

ClientExchange::~ClientExchange() { wipe(facts_.password); }

std::optional<std::string> ClientExchange::refuse(std::string why) {
  error_ = std::move(why);
  return std::nullopt;
}

std::string ClientExchange::initial() {
  ASSERT(has_initial() && step_ == 0);
  step_ = 1;
  switch (mechanism_) {
    case ClientMechanism::plain:
      return '\0' + facts_.user + '\0' + facts_.password;
    case ClientMechanism::xoauth2:
      return "user=" + facts_.user + "\x01" "auth=Bearer " + facts_.password + "\x01\x01";
    case ClientMechanism::oauthbearer:
      return "n,a=" + scram::escape_name(facts_.user) + ",\x01host=" + facts_.host + "\x01port=" + std::to_string(facts_.port) +
             "\x01" "auth=Bearer " + facts_.password + "\x01\x01";
    case ClientMechanism::scram_sha_256:
      // "y" tells a server that did offer -PLUS that somebody took it out on the way.
      gs2_ = facts_.channel_binding.empty() || facts_.plus_offered ? "n,," : "y,,";
      break;
    case ClientMechanism::scram_sha_256_plus:
      gs2_ = "p=" + std::string(scram::kBindingType) + ",,";
      break;
    case ClientMechanism::login:
      UNREACHABLE();
  }
  first_bare_ = "n=" + scram::escape_name(facts_.user) + ",r=" + facts_.nonce;
  return gs2_ + first_bare_;
}

std::optional<std::string> ClientExchange::respond(std::string_view challenge) {
  switch (mechanism_) {
    case ClientMechanism::plain:
      return refuse("the server asked for more than PLAIN has to say");
    case ClientMechanism::login:
      // What it asks in is not standard, the order is.
      if (step_ > 1) return refuse("the server asked for more than a name and a password");
      return step_++ == 0 ? facts_.user : facts_.password;
    case ClientMechanism::oauthbearer:
    case ClientMechanism::xoauth2:
      // Why the token was refused, in JSON; the refusal itself follows.
      if (step_++ > 1) return refuse("the server asked for more than a token");
      return mechanism_ == ClientMechanism::oauthbearer ? "\x01" : "";
    case ClientMechanism::scram_sha_256:
    case ClientMechanism::scram_sha_256_plus:
      switch (step_++) {
        case 1:
          return answer_first(challenge);
        case 2:
          return check_final(challenge);
        default:
          return refuse("the server asked for more than SCRAM has to say");
      }
  }
  UNREACHABLE();
}

std::optional<std::string> ClientExchange::answer_first(std::string_view challenge) {
  const std::string_view whole = challenge;
  std::string_view nonce, salt_text, iterations_text;
  if (!scram::take_attribute(challenge, 'r', nonce) || !scram::take_attribute(challenge, 's', salt_text) ||
      !scram::take_attribute(challenge, 'i', iterations_text)) {
    return refuse("the server's first message is no SCRAM");
  }
  if (!scram::is_nonce(nonce) || nonce.size() <= facts_.nonce.size() || !nonce.starts_with(facts_.nonce)) {
    return refuse("the server's nonce does not begin with ours");
  }
  const auto salt = from_base64(salt_text);
  uint32_t iterations = 0;
  auto [stop, error] = std::from_chars(iterations_text.data(), iterations_text.data() + iterations_text.size(), iterations);
  if (!salt || salt->empty() || error != std::errc() || stop != iterations_text.data() + iterations_text.size() ||
      iterations == 0 || iterations > kMostIterations) {
    return refuse("the server's salt or number of iterations is no good");
  }
  std::string binding = gs2_;
  if (mechanism_ == ClientMechanism::scram_sha_256_plus) binding += facts_.channel_binding;
  std::string message = "c=" + to_base64(binding) + ",r=" + std::string(nonce);
  const std::string auth_message = first_bare_ + ',' + std::string(whole) + ',' + message;
  std::string salted = pbkdf2_sha256(facts_.password, *salt, iterations);
  std::string client_key = hmac_sha256(salted, "Client Key");
  const std::string signature = hmac_sha256(sha256(client_key), auth_message);
  server_signature_ = hmac_sha256(hmac_sha256(salted, "Server Key"), auth_message);
  message += ",p=" + to_base64(scram::exclusive_or(client_key, signature));
  wipe(salted);
  wipe(client_key);
  return message;
}

std::optional<std::string> ClientExchange::check_final(std::string_view challenge) {
  std::string_view value;
  if (scram::take_attribute(challenge, 'e', value)) return refuse("the server refused: " + std::string(value));
  if (!scram::take_attribute(challenge, 'v', value)) return refuse("the server's last message is no SCRAM");
  const auto signature = from_base64(value);
  if (!signature || !equal_in_constant_time(*signature, server_signature_)) {
    return refuse("the server does not know the password: it is not whom it seems to be");
  }
  proven_ = true;
  return std::string();
}

}  // namespace millrace::auth
