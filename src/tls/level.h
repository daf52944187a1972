// What is asked of TLS towards a receiver: by a flag, by the shaping file, or by what its domain publishes.
#pragma once

#include <cstdint>

namespace millrace::tls {

enum class Level : uint8_t {
  none,           // mail goes in the clear
  opportunistic,  // encrypted where it can be
  required,       // never in the clear
  verified,       // and the certificate is good for the host, by an authority that we trust
  // Of domains, not of hosts:
  dane,           // by secure TLSA records, or not at all
  mta_sts,        // by an MTA-STS policy in mode enforce, or not at all
  automatic,      // DANE where there are secure TLSA records, else an MTA-STS policy, else opportunistic
};

}  // namespace millrace::tls
