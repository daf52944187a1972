// The server's side of one SASL exchange (RFC 4422), without I/O: the client's responses in (decoded from base64),
// challenges and the verdict out. SMTP's part of it (AUTH, 334, `*`) is smtp/server_protocol.h's.
//
//   ServerExchange exchange(*mechanism, facts);
//   Step step = exchange.begin(initial_response);        // or std::nullopt
//   challenge:       send step.challenge, give the answer to respond()
//   check_password:  user() and password() are to be checked; the exchange is over
//   proven:          the client knows user()'s password; the exchange is over
//   refused:         it does not, or lies about the channel; over
//   malformed:       what it said is no message of this mechanism; over
//
// PLAIN is RFC 4616, LOGIN the usual one without a standard, SCRAM-SHA-256 RFC 5802 and RFC 7677; -PLUS binds it to
// the TLS connection (tls-exporter, RFC 9266). An authorization identity other than the user is refused.
//
// Limits: messages are bounded by the caller's line; a name by kLongestUser.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "auth/secret.h"

namespace millrace::auth {

enum class Mechanism : uint8_t { plain, login, scram_sha_256, scram_sha_256_plus };
std::string_view to_string(Mechanism mechanism);
std::optional<Mechanism> find_mechanism(std::string_view name);  // in any case

inline constexpr size_t kLongestUser = 255;

// Who has which verifier. For a name that nobody has (or that has none), one that no password fits, always the same
// for the same name.
class Verifiers {
 public:
  virtual ScramVerifier scram_verifier(std::string_view user) const = 0;

 protected:
  ~Verifiers() = default;
};

class ServerExchange {
 public:
  struct Facts {
    const Verifiers* verifiers = nullptr;  // for SCRAM; see use()
    std::string nonce;                     // fresh, printable, of at least 128 bits
    std::string channel_binding;           // empty: the connection has none, and -PLUS was not offered
  };
  struct Step {
    enum class Kind : uint8_t { challenge, check_password, proven, refused, malformed } kind = Kind::malformed;
    std::string challenge;  // not yet base64
  };

  ServerExchange(Mechanism mechanism, Facts facts);
  ~ServerExchange();  // overwrites what is secret
  ServerExchange(const ServerExchange&) = delete;
  ServerExchange& operator=(const ServerExchange&) = delete;

  // Whom the next call asks.
  void use(const Verifiers* verifiers) { facts_.verifiers = verifiers; }
  Step begin(const std::optional<std::string_view>& initial_response);
  Step respond(std::string_view response);

  Mechanism mechanism() const { return mechanism_; }
  const std::string& user() const { return user_; }  // as far as it is known
  std::string& password() { return password_; }      // after check_password; may be moved out

 private:
  enum class State : uint8_t { begun, user, password, first, final, acknowledge, over };

  Step plain(std::string_view message);
  Step first(std::string_view message);
  Step final(std::string_view message);
  Step end(Step::Kind kind);

  const Mechanism mechanism_;
  Facts facts_;
  State state_ = State::begun;
  std::string user_, password_;
  // ---- SCRAM
  std::string binding_;       // what c= must say, decoded
  std::string nonce_;         // the client's and ours
  std::string auth_message_;  // as far as it is known
  ScramVerifier verifier_;
};

}  // namespace millrace::auth
