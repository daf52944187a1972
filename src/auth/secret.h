// What is kept of a password: a crypt(3) hash, a SCRAM-SHA-256 verifier, or both. Neither leads back to it.
//
// The verifier is written as PostgreSQL writes it, SCRAM-SHA-256$ITERATIONS:SALT$StoredKey:ServerKey, with
// base64 for the octets, so that what other tools have made can be taken over.
//
// Limits: passwords are compared octet for octet. What is not ASCII is not normalized (RFC 4013), so it must be
// entered in the same form everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace millrace::auth {

struct ScramVerifier {
  uint32_t iterations = 0;
  std::string salt;
  std::string stored_key, server_key;  // RFC 5802 3
};
Result<ScramVerifier> parse_scram_verifier(std::string_view text);
std::string print_scram_verifier(const ScramVerifier& verifier);
// REQUIRES: 1 <= iterations <= kMostIterations
ScramVerifier make_scram_verifier(std::string_view password, std::string_view salt, uint32_t iterations);

inline constexpr uint32_t kIterations = 4096;          // RFC 7677 4: at least
inline constexpr uint32_t kMostIterations = 1'000'000;
inline constexpr size_t kSaltSize = 16;
inline constexpr size_t kLongestPassword = 512;        // crypt(3)'s own limit

struct Secret {
  std::string crypt;                   // "$y$...", empty: none
  std::optional<ScramVerifier> scram;
};
// Whether crypt(3) of this system can check it and it is no weak method: yescrypt, gost-yescrypt, scrypt, bcrypt,
// SHA-512, SHA-256. An error says what would be right.
Status check_crypt_hash(std::string_view hash);
// A new yescrypt hash, at crypt(3)'s own cost.
Result<std::string> make_crypt_hash(std::string_view password);
// A hash that no password has, made as `like` was (same method, same cost); empty: as make_crypt_hash().
std::string make_decoy_hash(std::string_view like);

// Slow, by design: tens of milliseconds. Uses the crypt(3) hash or, where there is none, the verifier. Any thread.
bool password_matches(const Secret& secret, std::string_view password);

}  // namespace millrace::auth
