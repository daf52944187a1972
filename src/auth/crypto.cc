#include "auth/crypto.h"

#include <string.h>
#include <sys/random.h>

#include <wolfssl/options.h>

#include <wolfssl/wolfcrypt/settings.h>

#include <wolfssl/wolfcrypt/hmac.h>
#include <wolfssl/wolfcrypt/pwdbased.h>
#include <wolfssl/wolfcrypt/sha256.h>

#include "base/assert.h"

namespace millrace::auth {
namespace {

const byte* octets(std::string_view text) { return reinterpret_cast<const byte*>(text.data()); }
byte* octets(std::string& text) { return reinterpret_cast<byte*>(text.data()); }
word32 size_of(std::string_view text) { return static_cast<word32>(text.size()); }

}  // namespace

std::string sha256(std::string_view data) {
  std::string digest(kDigestSize, '\0');
  wc_Sha256 state;
  ASSERT(wc_InitSha256(&state) == 0);
  ASSERT(wc_Sha256Update(&state, octets(data), size_of(data)) == 0);
  ASSERT(wc_Sha256Final(&state, octets(digest)) == 0);
  wc_Sha256Free(&state);
  return digest;
}

std::string hmac_sha256(std::string_view key, std::string_view data) {
  // A key of zeros is the same as none (RFC 2104 2), and wolfSSL wants one.
  static constexpr std::string_view kNoKey("\0", 1);
  if (key.empty()) key = kNoKey;
  std::string digest(kDigestSize, '\0');
  Hmac state;
  ASSERT(wc_HmacInit(&state, nullptr, INVALID_DEVID) == 0);
  ASSERT(wc_HmacSetKey(&state, WC_SHA256, octets(key), size_of(key)) == 0);
  ASSERT(wc_HmacUpdate(&state, octets(data), size_of(data)) == 0);
  ASSERT(wc_HmacFinal(&state, octets(digest)) == 0);
  wc_HmacFree(&state);
  return digest;
}

std::string pbkdf2_sha256(std::string_view password, std::string_view salt, uint32_t iterations) {
  static constexpr std::string_view kNoPassword("\0", 1);
  if (password.empty()) password = kNoPassword;
  std::string key(kDigestSize, '\0');
  ASSERT(iterations > 0 && iterations <= 100'000'000);
  ASSERT(wc_PBKDF2(octets(key), octets(password), static_cast<int>(password.size()), octets(salt),
                   static_cast<int>(salt.size()), static_cast<int>(iterations), static_cast<int>(kDigestSize),
                   WC_SHA256) == 0);
  return key;
}

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  volatile unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = static_cast<unsigned char>(difference | (static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i])));
  }
  return difference == 0;
}

std::string random_octets(size_t count) {
  std::string out(count, '\0');
  ASSERT(count <= 256);  // which getrandom() gives whole
  ASSERT(getrandom(out.data(), out.size(), 0) == static_cast<ssize_t>(out.size()));
  return out;
}

void wipe(std::string& secret) {
  secret.resize(secret.capacity());
  explicit_bzero(secret.data(), secret.size());
  secret.clear();
}

}  // namespace millrace::auth
