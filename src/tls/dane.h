// TLSA records (RFC 6698) and what they say of a server's certificates, by the rules for SMTP (RFC 7672 3).
//
// Usable are the usages DANE-TA(2) and DANE-EE(3), both selectors, and the matching types 0 to 2; the others are passed over
// (RFC 7672 3.1.3), as is a digest where the same usage and selector has a stronger one (RFC 7671 9).
//
//   DANE-EE(3)  the server's certificate or key is the record's. Neither names nor dates count (RFC 7672 3.1.1).
//   DANE-TA(2)  an authority in the chain that the server sent is the record's, it leads to the server's certificate
//               by good signatures within their dates, and that has one of the names (RFC 7672 3.1.2, 3.2.2).
//
// Limits: an authority that the server leaves out of its chain is not found, also where the record holds all of it
// (RFC 7672 3.1.2 requires it to be sent).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tls/session_cache.h"

namespace millrace::tls {

struct TlsaRecord {
  uint8_t usage = 0, selector = 0, matching = 0;
  std::string data;
  bool operator==(const TlsaRecord&) const = default;
};
bool is_usable(const TlsaRecord& record);
// "3 1 1 0123...": as zone files have it.
std::string to_string(const TlsaRecord& record);

struct DaneWish {
  std::vector<TlsaRecord> records;  // the usable ones, at least one
  std::vector<std::string> names;   // for DANE-TA, lower case; the first is the one that SNI asks for
};

// `chain`: DER, the server's own certificate first.
Verified check_dane(const DaneWish& wish, std::span<const std::string_view> chain);

}  // namespace millrace::tls
