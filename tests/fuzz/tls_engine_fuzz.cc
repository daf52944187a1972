// The TLS engine against any bytes: as a server from the first octet, as a client from the first octet, and on
// both ends of a finished handshake, whose genuine stream is changed by the input. What was changed is never
// taken for what was sent. The first octet chooses; the second sets the size of the pieces.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "tls/client_hello.h"
#include "tls/engine.h"

using namespace millrace::tls;

namespace {

// Of nobody: made for this file.
constexpr char kChain[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBozCCAUqgAwIBAgIUO6yRWWdTcLOFgAH6B7YiQarfHAUwCgYIKoZIzj0EAwIw\n"
    "GTEXMBUGA1UEAwwObXguZXhhbXBsZS5vcmcwIBcNMjYxMTIyMDY1MjU5WhgPMjEy\n"
    "NjEwMjkwNjUyNTlaMBkxFzAVBgNVBAMMDm14LmV4YW1wbGUub3JnMFkwEwYHKoZI\n"
    "zj0CAQYIKoZIzj0DAQcDQgAEHSKhX1ChqPZ9sMJMl2U6rnxvlCMbTYTSk+wxNrX9\n"
    "sqbQf0/cVlQZ/JoQvm/M9300PcrAXUHP2ObaS1yFM9PV8KNuMGwwHQYDVR0OBBYE\n"
    "FG4wAEiSkQYlAclRrvDM56U+LDDcMB8GA1UdIwQYMBaAFG4wAEiSkQYlAclRrvDM\n"
    "56U+LDDcMA8GA1UdEwEB/wQFMAMBAf8wGQYDVR0RBBIwEIIObXguZXhhbXBsZS5v\n"
    "cmcwCgYIKoZIzj0EAwIDRwAwRAIgTMJ/kpANpGv8+HKiQkT9IvBNK/pPZdeSa2q0\n"
    "VmVJ0/oCIGUrgrq3WCU9lmldVZXYhizlAXelVDc5nxOd27sLH6gD\n"
    "-----END CERTIFICATE-----\n";
constexpr char kKey[] =
    "-----BEGIN PRIVATE KEY-----\n"
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg8VeZ8zjJjbTcnuYg\n"
    "jUt96nyyN9cRBww/RNmKJl6CJ7GhRANCAAQdIqFfUKGo9n2wwkyXZTqufG+UIxtN\n"
    "hNKT7DE2tf2yptB/T9xWVBn8mhC+b8z3fTQ9ysBdQc/Y5tpLXIUz09Xw\n"
    "-----END PRIVATE KEY-----\n";

std::shared_ptr<ServerContext> server() {
  static std::shared_ptr<ServerContext> context = [] {
    ServerSettings settings;
    Certificate certificate;
    certificate.chain_pem = kChain;
    certificate.key_pem = kKey;
    certificate.names = {"mx.example.org"};
    certificate.ecdsa = true;
    settings.certificates.push_back(certificate);
    return *ServerContext::make(settings);
  }();
  return context;
}
std::shared_ptr<ClientContext> client() {
  static std::shared_ptr<ClientContext> context = *ClientContext::make({});
  return context;
}

// Decrypts in place, as a stream does, and gives back the plaintext.
std::string feed(Engine& engine, std::string bytes, size_t step) {
  std::string plain;
  for (size_t at = 0; at < bytes.size(); at += step) {
    const size_t size = std::min(step, bytes.size() - at);
    engine.give({bytes.data() + at, size});
    size_t written = 0;
    while (const size_t ready = engine.next()) {
      ASSERT(ready <= Engine::kLongestRecord);
      std::string record(ready, '\0');
      engine.read(record.data(), ready);
      if (ready <= engine.taken() - written) {
        record.copy(bytes.data() + at + written, ready);
        written += ready;
      }
      plain += record;
    }
    ASSERT(engine.taken() == size);
  }
  return plain;
}

std::string take(Engine& engine) {
  std::string bytes = std::move(engine.output());
  engine.output().clear();
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t step = size_t{1} + data[1];
  (void)first_record(input);
  (void)parse_client_hello(input);
  (void)dns_names(input);
  if (data[0] % 4 == 0) {
    auto engine = Engine::accept(server());
    ASSERT(feed(*engine, std::string(input), step).empty());
    return 0;
  }
  auto near = Engine::connect(client(), {.server_name = "mx.example.org"});
  if (data[0] % 4 == 1) {
    ASSERT(feed(*near, std::string(input), step).empty());
    return 0;
  }
  auto far = Engine::accept(server());
  // One of the flights is changed, or what is sent after the handshake.
  const size_t changed = data[0] / 4 % 4;
  std::string text = "EHLO me\r\n";
  for (size_t flight = 0; flight < 4; ++flight) {
    if (flight == 3 && near->state() == Engine::State::open) {
      iovec part{text.data(), text.size()};
      std::span<iovec> parts(&part, 1);
      near->encrypt(parts, SIZE_MAX);
    }
    std::string bytes = flight % 2 == 0 || flight == 3 ? take(*near) : take(*far);
    bool different = false;
    if (flight == changed) {
      for (size_t i = 0; i < input.size() && i < bytes.size(); ++i) {
        bytes[i] = static_cast<char>(bytes[i] ^ input[i]);
        different |= input[i] != 0;
      }
    }
    const std::string plain = feed(flight == 1 ? *near : *far, bytes, step);
    ASSERT(plain.empty() || (flight == 3 && plain == text && !different));
  }
  return 0;
}
