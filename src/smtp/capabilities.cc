#include "smtp/capabilities.h"

#include <limits>
#include <string_view>

namespace millrace::smtp {
namespace {

char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
bool is_blank(char c) { return c == ' ' || c == '\t'; }

bool equals_ignoring_case(std::string_view text, std::string_view upper_case) {
  if (text.size() != upper_case.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (upper(text[i]) != upper_case[i]) return false;
  }
  return true;
}

std::string_view take_word(std::string_view& text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  size_t end = 0;
  while (end < text.size() && !is_blank(text[end])) ++end;
  std::string_view word = text.substr(0, end);
  text.remove_prefix(end);
  return word;
}

// 0 for what is no number; what does not fit is the largest number.
template <typename T>
T parse_number(std::string_view digits) {
  constexpr T kMost = std::numeric_limits<T>::max();
  T number = 0;
  if (digits.size() > 20) return 0;
  for (char c : digits) {
    if (c < '0' || c > '9') return 0;
    T digit = static_cast<T>(c - '0');
    number = number > (kMost - digit) / 10 ? kMost : static_cast<T>(number * 10 + digit);
  }
  return number;
}

void parse_auth(std::string_view mechanisms, Capabilities& capabilities) {
  while (true) {
    std::string_view word = take_word(mechanisms);
    if (word.empty()) return;
    capabilities.auth_plain |= equals_ignoring_case(word, "PLAIN");
    capabilities.auth_login |= equals_ignoring_case(word, "LOGIN");
    capabilities.auth_scram |= equals_ignoring_case(word, "SCRAM-SHA-256");
    capabilities.auth_scram_plus |= equals_ignoring_case(word, "SCRAM-SHA-256-PLUS");
    capabilities.auth_oauthbearer |= equals_ignoring_case(word, "OAUTHBEARER");
    capabilities.auth_xoauth2 |= equals_ignoring_case(word, "XOAUTH2");
  }
}

void parse_limits(std::string_view limits, Capabilities& capabilities) {
  while (true) {
    std::string_view word = take_word(limits);
    if (word.empty()) return;
    size_t equals = word.find('=');
    if (equals == word.npos) continue;
    std::string_view name = word.substr(0, equals);
    uint32_t number = parse_number<uint32_t>(word.substr(equals + 1));
    if (equals_ignoring_case(name, "MAILMAX")) capabilities.mail_max = number;
    if (equals_ignoring_case(name, "RCPTMAX")) capabilities.rcpt_max = number;
    if (equals_ignoring_case(name, "RCPTDOMAINMAX")) capabilities.rcpt_domain_max = number;
  }
}

void parse_line(std::string_view line, Capabilities& capabilities) {
  std::string_view keyword = take_word(line);
  auto is = [&](const char* name) { return equals_ignoring_case(keyword, name); };
  if (is("PIPELINING")) {
    capabilities.pipelining = true;
  } else if (is("SIZE")) {
    capabilities.size = true;
    capabilities.size_limit = parse_number<uint64_t>(take_word(line));
  } else if (is("8BITMIME")) {
    capabilities.eight_bit_mime = true;
  } else if (is("SMTPUTF8")) {
    capabilities.smtputf8 = true;
  } else if (is("DSN")) {
    capabilities.dsn = true;
  } else if (is("CHUNKING")) {
    capabilities.chunking = true;
  } else if (is("STARTTLS")) {
    capabilities.starttls = true;
  } else if (is("ENHANCEDSTATUSCODES")) {
    capabilities.enhanced_status = true;
  } else if (is("REQUIRETLS")) {
    capabilities.requiretls = true;
  } else if (is("AUTH")) {
    parse_auth(line, capabilities);
  } else if (is("LIMITS")) {
    parse_limits(line, capabilities);
  }
}

}  // namespace

Capabilities parse_capabilities(const PeerReply& reply) {
  Capabilities capabilities;
  std::string_view text = reply.text;
  // A line cut short by the text limit could read as another keyword.
  bool cut = reply.text_size > reply.text.size();
  bool first = true;  // the greeting
  while (true) {
    size_t end = text.find('\n');
    if (end == text.npos && cut) break;
    if (!first) parse_line(text.substr(0, end), capabilities);
    first = false;
    if (end == text.npos) break;
    text.remove_prefix(end + 1);
  }
  return capabilities;
}

}  // namespace millrace::smtp
