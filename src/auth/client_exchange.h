// The client's side of one SASL exchange, without I/O: the server's challenges in (decoded from base64), responses out.
//
//   ClientExchange exchange(mechanism, facts);
//   send "AUTH name" with base64 of exchange.initial(), or without it where it does not fit
//   334: respond(challenge) -> what to send; nullopt: cancel with `*`, exchange.error() says why
//   235: exchange.server_proven() must hold, or the server is not whom the password is shared with
//
// Besides those of server_exchange.h: OAUTHBEARER (RFC 7628) and XOAUTH2, with an access token in place of a password.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace::auth {

enum class ClientMechanism : uint8_t { scram_sha_256_plus, scram_sha_256, plain, login, oauthbearer, xoauth2 };
std::string_view to_string(ClientMechanism mechanism);
std::optional<ClientMechanism> find_client_mechanism(std::string_view name);  // in any case

class ClientExchange {
 public:
  struct Facts {
    std::string user, password;   // or the access token
    std::string host;             // of the server, and its port: OAUTHBEARER says them
    uint16_t port = 0;
    std::string nonce;            // SCRAM: fresh, printable, of at least 128 bits
    std::string channel_binding;  // SCRAM: of the connection, where it has one
    bool plus_offered = false;    // the server offered SCRAM-SHA-256-PLUS
  };
  ClientExchange(ClientMechanism mechanism, Facts facts);
  ~ClientExchange();
  ClientExchange(const ClientExchange&) = delete;
  ClientExchange& operator=(const ClientExchange&) = delete;

  ClientMechanism mechanism() const { return mechanism_; }
  // Whether the client speaks first; LOGIN does not.
  bool has_initial() const { return mechanism_ != ClientMechanism::login; }
  // REQUIRES: has_initial(). Once.
  std::string initial();
  std::optional<std::string> respond(std::string_view challenge);
  // SCRAM: its proof was right. The others have none.
  bool server_proven() const { return proven_; }
  const std::string& error() const { return error_; }

  // A server that asks for more than this would keep a core busy.
  static constexpr uint32_t kMostIterations = 1'000'000;

 private:
  std::optional<std::string> refuse(std::string why);
  std::optional<std::string> answer_first(std::string_view challenge);
  std::optional<std::string> check_final(std::string_view challenge);

  const ClientMechanism mechanism_;
  Facts facts_;
  unsigned step_ = 0;
  bool proven_ = true;
  std::string gs2_, first_bare_, server_signature_;
  std::string error_;
};

}  // namespace millrace::auth
