// What both sides of SCRAM-SHA-256 (RFC 5802, RFC 7677) have in common: its messages' attributes, and the proofs.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace millrace::auth::scram {

// "x=value" off the front of a message, with the comma behind it. False: that is not what stands there.
bool take_attribute(std::string_view& message, char name, std::string_view& value);
// "=2C" and "=3D" for a comma and an equals sign.
std::string escape_name(std::string_view name);
std::optional<std::string> unescape_name(std::string_view text);
// Printable ASCII without a comma, bounded.
bool is_nonce(std::string_view text);
std::string exclusive_or(std::string_view a, std::string_view b);

inline constexpr std::string_view kBindingType = "tls-exporter";  // RFC 9266

}  // namespace millrace::auth::scram
