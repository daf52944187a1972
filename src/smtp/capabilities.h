// What a server announced in its reply to EHLO (RFC 5321 4.1.1.1). Nothing is assumed that is not
// here.
#pragma once

#include <cstdint>

#include "smtp/reply_parser.h"

namespace millrace::smtp {

struct Capabilities {
  bool pipelining = false;       // RFC 2920
  bool eight_bit_mime = false;   // RFC 6152
  bool smtputf8 = false;         // RFC 6531
  bool dsn = false;              // RFC 3461
  bool chunking = false;         // RFC 3030
  bool starttls = false;         // RFC 3207
  bool enhanced_status = false;  // RFC 2034
  bool requiretls = false;       // RFC 8689
  bool size = false;             // RFC 1870
  bool auth_plain = false;       // RFC 4954
  bool auth_login = false;
  bool auth_scram = false;        // SCRAM-SHA-256
  bool auth_scram_plus = false;   // SCRAM-SHA-256-PLUS
  bool auth_oauthbearer = false;  // RFC 7628
  bool auth_xoauth2 = false;
  uint64_t size_limit = 0;  // octets; 0 is no fixed limit
  // RFC 9422; 0 is not announced.
  uint32_t mail_max = 0;         // messages per connection
  uint32_t rcpt_max = 0;         // recipients per transaction
  uint32_t rcpt_domain_max = 0;  // recipient domains per transaction
};

// `reply` is a 250 to EHLO. Keywords in any case, unknown ones ignored, malformed values as absent.
Capabilities parse_capabilities(const PeerReply& reply);

}  // namespace millrace::smtp
