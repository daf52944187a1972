// What a server wants to know of a ClientHello before it chooses its certificate: the name asked for, and
// which kinds of signature the client takes. Pure; reads only, and decides nothing of the handshake.
//
// Limits: a ClientHello that does not lie in one record whole is not looked into (the default certificate
// serves it). Those of post-quantum clients, about 1.7 KiB, fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace millrace::tls {

struct ClientHello {
  std::string_view server_name;  // SNI (RFC 6066 3), as sent; empty: none. A view into the bytes
  bool takes_ecdsa = true;       // signature_algorithms has one with ECDSA, or is absent
  bool takes_rsa = true;
};

// Of a TLS record (RFC 8446 5.1): how long it is, header included.
struct RecordLength {
  enum class Outcome : uint8_t { complete, incomplete, not_tls } outcome = Outcome::incomplete;
  size_t size = 0;  // when complete
};
// `bytes` begin with a connection's first record, which must be a handshake record.
RecordLength first_record(std::string_view bytes);
// `record` is that record, whole. What is malformed is as if absent: wolfSSL will refuse it.
ClientHello parse_client_hello(std::string_view record);

}  // namespace millrace::tls
