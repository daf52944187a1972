#include "tls/client_hello.h"

namespace millrace::tls {
namespace {

constexpr size_t kRecordHeader = 5;
constexpr size_t kLongestRecord = 16384 + 256;
constexpr uint8_t kHandshake = 22;
constexpr uint8_t kClientHello = 1;
constexpr uint16_t kServerName = 0;
constexpr uint16_t kSignatureAlgorithms = 13;

// Reads big-endian numbers and vectors; past the end everything is 0 and empty, and ok() false.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}
  bool ok() const { return ok_; }
  bool empty() const { return left_.empty() || !ok_; }
  uint32_t number(size_t octets) {
    std::string_view part = take(octets);
    uint32_t value = 0;
    for (char c : part) value = value << 8 | static_cast<uint8_t>(c);
    return value;
  }
  std::string_view take(size_t size) {
    if (!ok_ || size > left_.size()) {
      ok_ = false;
      return {};
    }
    std::string_view part = left_.substr(0, size);
    left_.remove_prefix(size);
    return part;
  }
  std::string_view vector(size_t length_octets) { return take(number(length_octets)); }

 private:
  std::string_view left_;
  bool ok_ = true;
};

void read_server_name(std::string_view extension, ClientHello& hello) {
  Reader outer(extension);
  Reader names(outer.vector(2));
  while (!names.empty()) {
    const uint32_t type = names.number(1);
    std::string_view name = names.vector(2);
    if (type == 0 && names.ok()) hello.server_name = name;
  }
}

void read_signature_algorithms(std::string_view extension, ClientHello& hello) {
  Reader outer(extension);
  Reader schemes(outer.vector(2));
  bool ecdsa = false;
  bool rsa = false;
  while (!schemes.empty()) {
    const uint32_t scheme = schemes.number(2);
    if (!schemes.ok()) return;
    const uint32_t high = scheme >> 8;
    const uint32_t low = scheme & 0xff;
    // RFC 8446 4.2.3: {sha1..sha512} x {rsa, ecdsa}, and RSA-PSS with its own numbers.
    if (high <= 6 && low == 3) ecdsa = true;
    if (high <= 6 && low == 1) rsa = true;
    if (high == 8 && ((low >= 4 && low <= 6) || (low >= 9 && low <= 11))) rsa = true;
  }
  hello.takes_ecdsa = ecdsa;
  hello.takes_rsa = rsa;
}

}  // namespace

RecordLength first_record(std::string_view bytes) {
  using Outcome = RecordLength::Outcome;
  const auto octet = [&](size_t at) { return static_cast<uint8_t>(bytes[at]); };
  if (!bytes.empty() && octet(0) != kHandshake) return {Outcome::not_tls, 0};
  if (bytes.size() >= 2 && octet(1) != 3) return {Outcome::not_tls, 0};
  if (bytes.size() < kRecordHeader) return {Outcome::incomplete, 0};
  const size_t length = size_t{octet(3)} << 8 | octet(4);
  if (length == 0 || length > kLongestRecord) return {Outcome::not_tls, 0};
  if (bytes.size() < kRecordHeader + length) return {Outcome::incomplete, 0};
  return {Outcome::complete, kRecordHeader + length};
}

ClientHello parse_client_hello(std::string_view record) {
  ClientHello hello;
  if (record.size() < kRecordHeader) return hello;
  Reader handshake(record.substr(kRecordHeader));
  if (handshake.number(1) != kClientHello) return hello;
  Reader body(handshake.vector(3));
  body.take(2 + 32);  // legacy_version, random
  body.vector(1);     // session id
  body.vector(2);     // cipher suites
  body.vector(1);     // compression
  Reader extensions(body.vector(2));
  while (!extensions.empty()) {
    const uint32_t type = extensions.number(2);
    std::string_view content = extensions.vector(2);
    if (!extensions.ok()) break;
    if (type == kServerName) read_server_name(content, hello);
    if (type == kSignatureAlgorithms) read_signature_algorithms(content, hello);
  }
  return hello;
}

}  // namespace millrace::tls
