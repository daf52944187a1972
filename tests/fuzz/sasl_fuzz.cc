// Both sides of a SASL exchange against arbitrary messages of the other: the first octet chooses side and mechanism,
// lines are the messages. Nothing may be proven by anybody who does not know the password.
#include <cstdint>
#include <string>
#include <string_view>

#include "auth/client_exchange.h"
#include "auth/server_exchange.h"
#include "base/assert.h"
#include "base/base64.h"

namespace {

using namespace millrace::auth;

class Nobody final : public Verifiers {
 public:
  ScramVerifier scram_verifier(std::string_view) const override {
    ScramVerifier verifier;
    verifier.iterations = 4096;
    verifier.salt = "0123456789abcdef";
    verifier.stored_key = "the digest of a key that nobody.";
    verifier.server_key = "and the key of a server, too.xxx";
    return verifier;
  }
};

std::string_view take_line(std::string_view& input) {
  const size_t end = input.find('\n');
  std::string_view line = input.substr(0, end);
  input.remove_prefix(end == input.npos ? input.size() : end + 1);
  return line;
}

void serve(Mechanism mechanism, bool bound, bool initial, std::string_view input) {
  using Kind = ServerExchange::Step::Kind;
  Nobody nobody;
  ServerExchange exchange(mechanism, {&nobody, "servernonce", bound ? "the binding of this connection.." : ""});
  std::optional<std::string_view> first;
  if (initial) first = take_line(input);
  auto step = exchange.begin(first);
  for (int messages = 0; step.kind == Kind::challenge; ++messages) {
    ASSERT(messages < 4);
    step = exchange.respond(take_line(input));
  }
  ASSERT(exchange.user().size() <= kLongestUser && exchange.user().find('\0') == std::string::npos);
  ASSERT(step.kind != Kind::proven);
  const bool password = mechanism == Mechanism::plain || mechanism == Mechanism::login;
  ASSERT(step.kind != Kind::check_password || (password && !exchange.user().empty()));
}

void ask(ClientMechanism mechanism, std::string_view input) {
  ClientExchange exchange(mechanism, {"joe", "secret", "host", 25, "clientnonce", "the binding of this connection..", false});
  if (exchange.has_initial()) exchange.initial();
  for (int messages = 0; messages < 8 && !input.empty(); ++messages) {
    // Each iteration costs; what is asked for is bounded by the exchange, the time of a fuzzer more tightly.
    std::string_view line = take_line(input);
    const size_t at = line.find(",i=");
    if (at != line.npos && line.size() - at > 7) return;
    if (!exchange.respond(line)) {
      ASSERT(!exchange.error().empty());
      break;
    }
  }
  const bool scram = mechanism == ClientMechanism::scram_sha_256 || mechanism == ClientMechanism::scram_sha_256_plus;
  ASSERT(exchange.server_proven() == !scram);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const uint8_t choice = data[0];
  if (choice & 0x80) {
    ask(static_cast<ClientMechanism>((choice & 7) % 6), input);
  } else {
    serve(static_cast<Mechanism>(choice & 3), (choice & 4) != 0, (choice & 8) != 0, input);
  }
  if (auto octets = millrace::from_base64(input)) ASSERT(millrace::to_base64(*octets) == input);
  return 0;
}
