// What DANE wants to know of a certificate (RFC 5280 4.1), read from its DER: the key, the names, and whether it
// may sign others. Pure; views point into the bytes.
//
// Limits: only what is asked below is looked at. Signatures, dates and everything else is wolfSSL's business. A
// certificate that cannot be read so far is no certificate here.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::tls {

struct CertificateView {
  std::string_view public_key;     // SubjectPublicKeyInfo, header included
  bool is_authority = false;       // basicConstraints says cA, and a keyUsage, if there is one, allows keyCertSign
  std::vector<std::string> names;  // dNSName, lower case; of names that hold NUL none
  std::string common_name;         // the subject's last one, lower case; empty: none, or no host name could be meant
};
std::optional<CertificateView> view_certificate(std::string_view der);

// Whether `der` is one whole DER element of this tag, and nothing else.
bool is_der_element(std::string_view der, unsigned char tag);

}  // namespace millrace::tls
