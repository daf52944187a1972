#include "mail/enhanced_status.h"

namespace millrace::mail {
namespace {

// Up to three digits without a needless leading zero (RFC 3463 2).
bool parse_number(std::string_view& text, uint16_t& number) {
  size_t digits = 0;
  number = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9') {
    if (digits == 3) return false;
    number = static_cast<uint16_t>(number * 10 + (text[digits] - '0'));
    ++digits;
  }
  if (digits == 0 || (digits > 1 && text[0] == '0')) return false;
  text.remove_prefix(digits);
  return true;
}

char* put_number(char* at, uint16_t number) {
  if (number >= 100) *at++ = static_cast<char>('0' + number / 100 % 10);
  if (number >= 10) *at++ = static_cast<char>('0' + number / 10 % 10);
  *at++ = static_cast<char>('0' + number % 10);
  return at;
}

// Removes the code from the front of `text`.
std::optional<EnhancedStatus> take(std::string_view& text) {
  if (text.size() < 5 || text[1] != '.') return std::nullopt;
  EnhancedStatus status;
  if (text[0] != '2' && text[0] != '4' && text[0] != '5') return std::nullopt;
  status.status_class = static_cast<uint8_t>(text[0] - '0');
  text.remove_prefix(2);
  if (!parse_number(text, status.subject) || text.empty() || text[0] != '.') return std::nullopt;
  text.remove_prefix(1);
  if (!parse_number(text, status.detail)) return std::nullopt;
  return status;
}

}  // namespace

void EnhancedStatus::append_to(std::string& out) const {
  char text[16];
  char* end = put_number(text, status_class);
  *end++ = '.';
  end = put_number(end, subject);
  *end++ = '.';
  end = put_number(end, detail);
  out.append(text, static_cast<size_t>(end - text));
}

std::string EnhancedStatus::to_string() const {
  std::string out;
  append_to(out);
  return out;
}

std::optional<EnhancedStatus> EnhancedStatus::parse_prefix(std::string_view text) {
  auto status = take(text);
  if (!status) return std::nullopt;
  if (!text.empty() && text[0] != ' ' && text[0] != '\t' && text[0] != '\n') return std::nullopt;
  return status;
}

std::optional<EnhancedStatus> EnhancedStatus::parse(std::string_view text) {
  auto status = take(text);
  return status && text.empty() ? status : std::nullopt;
}

}  // namespace millrace::mail
