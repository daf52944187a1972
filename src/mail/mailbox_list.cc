#include "mail/mailbox_list.h"

namespace millrace::mail {
namespace {

bool is_blank(char c) { return c == ' ' || c == '\t'; }

// Of an address as it stands in a header, blanks taken out: "local@domain" without anything special.
bool is_plain_address(std::string_view text) {
  const size_t at = text.find('@');
  if (at == 0 || at == text.npos || at + 1 == text.size() || text.find('@', at + 1) != text.npos) return false;
  for (char c : text) {
    if (static_cast<unsigned char>(c) <= 0x20 || c == 0x7f) return false;
    if (std::string_view("()<>[]:;,\\\"").find(c) != std::string_view::npos) return false;
  }
  return true;
}

}  // namespace

std::optional<std::vector<std::string>> parse_mailbox_list(std::string_view value) {
  std::vector<std::string> addresses;
  std::string words;       // outside of brackets, quoted texts and comments
  std::string bracketed;
  bool quoted = false;     // a quoted text stood there
  bool has_bracket = false;
  auto end_mailbox = [&] {
    while (!words.empty() && is_blank(words.back())) words.pop_back();
    const std::string* address = has_bracket ? &bracketed : &words;
    if (!has_bracket && words.empty() && !quoted) return true;  // an empty place in the list
    if (!has_bracket && quoted) return false;                    // "a b"@example.com: seldom, and easily misread
    if (!is_plain_address(*address)) return false;
    // Some readers show the address in the words before the one in brackets.
    if (has_bracket && words.find('@') != words.npos && words != bracketed) return false;
    addresses.push_back(*address);
    words.clear();
    bracketed.clear();
    quoted = has_bracket = false;
    return true;
  };
  for (size_t i = 0; i < value.size(); ++i) {
    const char c = value[i];
    switch (c) {
      case '"':
        for (++i; i < value.size() && value[i] != '"'; ++i) {
          if (value[i] == '\\') ++i;
        }
        if (i >= value.size()) return std::nullopt;
        quoted = true;
        break;
      case '(': {
        int depth = 1;
        for (++i; i < value.size(); ++i) {
          if (value[i] == '\\') {
            ++i;
          } else if (value[i] == '(') {
            ++depth;
          } else if (value[i] == ')' && --depth == 0) {
            break;
          }
        }
        if (i >= value.size()) return std::nullopt;
        break;
      }
      case '<': {
        const size_t end = value.find('>', i);
        if (has_bracket || end == value.npos) return std::nullopt;
        has_bracket = true;
        for (char inner : value.substr(i + 1, end - i - 1)) {
          if (!is_blank(inner)) bracketed += inner;
        }
        i = end;
        break;
      }
      case ',':
        if (!end_mailbox()) return std::nullopt;
        break;
      case ')':
      case '>':
      case ':':
      case ';':
      case '\\':
        return std::nullopt;
      default:
        if (has_bracket && !is_blank(c)) return std::nullopt;  // words behind the address
        if (!is_blank(c) || !words.empty()) words += c;
    }
  }
  if (!end_mailbox() || addresses.empty()) return std::nullopt;
  return addresses;
}

}  // namespace millrace::mail
