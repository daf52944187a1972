// Enhanced status codes (RFC 3463): "5.1.1". A value of three numbers, parsed from the start of a
// reply's text and printed into one.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace::mail {

struct EnhancedStatus {
  uint8_t status_class = 0;  // 2, 4 or 5; 0 is "none given"
  uint16_t subject = 0;      // 0..999
  uint16_t detail = 0;       // 0..999

  bool empty() const { return status_class == 0; }
  void append_to(std::string& out) const;
  std::string to_string() const;
  // "5.1.1" at the start of `text`, followed by its end or a blank; anything else is nothing.
  static std::optional<EnhancedStatus> parse_prefix(std::string_view text);
  // All of `text` is one code.
  static std::optional<EnhancedStatus> parse(std::string_view text);
  friend auto operator<=>(const EnhancedStatus&, const EnhancedStatus&) = default;
};

}  // namespace millrace::mail
