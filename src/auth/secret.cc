#include "auth/secret.h"

#include <crypt.h>
#include <fmt/format.h>
#include <string.h>

#include <charconv>
#include <memory>

#include "auth/crypto.h"
#include "base/base64.h"

namespace millrace::auth {
namespace {

constexpr std::string_view kScheme = "SCRAM-SHA-256$";
constexpr std::string_view kMethods[] = {"$y$", "$gy$", "$7$", "$2b$", "$2y$", "$2a$", "$6$", "$5$"};

// crypt() of a password with NUL in it would only see what stands before.
bool can_be_hashed(std::string_view password) {
  return password.size() <= kLongestPassword && password.find('\0') == password.npos;
}

// What crypt(3) makes of it; empty where it cannot.
std::string crypt_of(std::string_view password, const std::string& setting) {
  // Both are large, and hold the password.
  auto data = std::make_unique<crypt_data>();
  std::string phrase(password);
  const char* made = crypt_rn(phrase.c_str(), setting.c_str(), data.get(), sizeof *data);
  std::string out = made ? made : "";
  explicit_bzero(data.get(), sizeof *data);
  wipe(phrase);
  return out;
}

}  // namespace

Result<ScramVerifier> parse_scram_verifier(std::string_view text) {
  auto wrong = [] {
    return fail("not a SCRAM verifier; it reads SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY, as "
                "'millracectl passwd NAME' writes it");
  };
  if (!text.starts_with(kScheme)) return wrong();
  text.remove_prefix(kScheme.size());
  const size_t colon = text.find(':'), dollar = text.find('$');
  if (colon == text.npos || dollar == text.npos || colon > dollar) return wrong();
  ScramVerifier verifier;
  const char* end = text.data() + colon;
  auto [stop, error] = std::from_chars(text.data(), end, verifier.iterations);
  if (error != std::errc() || stop != end) return wrong();
  if (verifier.iterations < kIterations || verifier.iterations > kMostIterations) {
    return fail(fmt::format("{} iterations; give {} to {}", verifier.iterations, kIterations, kMostIterations));
  }
  auto salt = from_base64(text.substr(colon + 1, dollar - colon - 1));
  text.remove_prefix(dollar + 1);
  const size_t between = text.find(':');
  if (!salt || salt->empty() || salt->size() > 128 || between == text.npos) return wrong();
  auto stored = from_base64(text.substr(0, between)), server = from_base64(text.substr(between + 1));
  if (!stored || !server || stored->size() != kDigestSize || server->size() != kDigestSize) return wrong();
  verifier.salt = std::move(*salt);
  verifier.stored_key = std::move(*stored);
  verifier.server_key = std::move(*server);
  return verifier;
}

std::string print_scram_verifier(const ScramVerifier& verifier) {
  return fmt::format("{}{}:{}${}:{}", kScheme, verifier.iterations, to_base64(verifier.salt),
                     to_base64(verifier.stored_key), to_base64(verifier.server_key));
}

ScramVerifier make_scram_verifier(std::string_view password, std::string_view salt, uint32_t iterations) {
  ASSERT(iterations >= 1 && iterations <= kMostIterations);
  ScramVerifier verifier;
  verifier.iterations = iterations;
  verifier.salt = salt;
  std::string salted = pbkdf2_sha256(password, salt, iterations);
  std::string client_key = hmac_sha256(salted, "Client Key");
  verifier.stored_key = sha256(client_key);
  verifier.server_key = hmac_sha256(salted, "Server Key");
  wipe(salted);
  wipe(client_key);
  return verifier;
}

Status check_crypt_hash(std::string_view hash) {
  bool known = false;
  for (std::string_view method : kMethods) known |= hash.starts_with(method);
  std::string whole(hash);
  if (!known || hash.find_first_of(" \t\r\n:") != hash.npos ||
      crypt_checksalt(whole.c_str()) == CRYPT_SALT_INVALID || crypt_of("x", whole).empty()) {
    return fail("not a crypt(3) hash of yescrypt ($y$), scrypt ($7$), bcrypt ($2b$), SHA-512 ($6$) or SHA-256 ($5$); "
                "'millracectl passwd NAME' makes one");
  }
  // A setting is a beginning of a hash, which no password has.
  if (crypt_of("x", whole).size() != whole.size()) return fail("the hash is cut short");
  return success();
}

Result<std::string> make_crypt_hash(std::string_view password) {
  if (!can_be_hashed(password)) return fail(fmt::format("a password has at most {} octets and no NUL", kLongestPassword));
  char setting[CRYPT_GENSALT_OUTPUT_SIZE];
  if (!crypt_gensalt_rn("$y$", 0, nullptr, 0, setting, sizeof setting)) return fail("crypt(3) makes no yescrypt hashes");
  std::string hash = crypt_of(password, setting);
  if (hash.empty()) return fail("crypt(3) makes no yescrypt hashes");
  return hash;
}

std::string make_decoy_hash(std::string_view like) {
  if (like.empty()) {
    auto made = make_crypt_hash(to_base64(random_octets(32)));
    return made ? std::move(*made) : std::string();
  }
  // Its setting and length; but what stands behind the last $ is of nobody's password.
  std::string hash(like);
  const size_t end = hash.rfind('$');
  const size_t from = hash.starts_with("$2") ? end + 23 : end + 1;  // bcrypt has the salt in front there
  std::string noise = to_base64(random_octets(96));
  for (size_t i = from, n = 0; i < hash.size(); ++i, ++n) {
    char c = noise[n % noise.size()];
    hash[i] = c == '+' || c == '=' ? '.' : c;
  }
  return hash;
}

bool password_matches(const Secret& secret, std::string_view password) {
  if (!secret.crypt.empty()) {
    const bool usable = can_be_hashed(password);
    const std::string made = crypt_of(usable ? password : "x", secret.crypt);
    return equal_in_constant_time(made, secret.crypt) && usable && !made.empty();
  }
  if (!secret.scram) return false;
  const ScramVerifier made = make_scram_verifier(password, secret.scram->salt, secret.scram->iterations);
  return equal_in_constant_time(made.stored_key, secret.scram->stored_key);
}

}  // namespace millrace::auth
