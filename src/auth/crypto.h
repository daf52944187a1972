// The few primitives that authentication is made of, over wolfSSL's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace millrace::auth {

inline constexpr size_t kDigestSize = 32;

// All of SHA-256; the digests are strings of kDigestSize octets.
std::string sha256(std::string_view data);
std::string hmac_sha256(std::string_view key, std::string_view data);
// RFC 8018 5.2; what RFC 5802 calls Hi().
std::string pbkdf2_sha256(std::string_view password, std::string_view salt, uint32_t iterations);
// The octets of both are always all looked at; lengths are no secret.
bool equal_in_constant_time(std::string_view a, std::string_view b);
// From the kernel; waits for its pool at boot only.
std::string random_octets(size_t count);
// Overwrites the octets, the room behind them included, in a way that is not optimized away, and empties it.
void wipe(std::string& secret);

}  // namespace millrace::auth
