// Base64 (RFC 4648 4) as SASL and SMTP use it: padded, no line ends, and strict: what is not the one encoding
// of some octets is refused.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace millrace {

void append_base64(std::string& out, std::string_view octets);
std::string to_base64(std::string_view octets);
std::optional<std::string> from_base64(std::string_view text);

}  // namespace millrace
