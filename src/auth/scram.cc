#include "auth/scram.h"

#include "base/assert.h"

namespace millrace::auth::scram {

bool take_attribute(std::string_view& message, char name, std::string_view& value) {
  if (message.size() < 2 || message[0] != name || message[1] != '=') return false;
  const size_t comma = message.find(',');
  value = message.substr(2, comma == message.npos ? message.npos : comma - 2);
  message.remove_prefix(comma == message.npos ? message.size() : comma + 1);
  return true;
}

std::string escape_name(std::string_view name) {
  std::string out;
  for (char c : name) {
    if (c == ',') {
      out += "=2C";
    } else if (c == '=') {
      out += "=3D";
    } else {
      out += c;
    }
  }
  return out;
}

std::optional<std::string> unescape_name(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    if (text[0] == '=') {
      if (text.starts_with("=2C")) {
        out += ',';
      } else if (text.starts_with("=3D")) {
        out += '=';
      } else {
        return std::nullopt;
      }
      text.remove_prefix(3);
    } else if (text[0] == '\0') {
      return std::nullopt;
    } else {
      out += text[0];
      text.remove_prefix(1);
    }
  }
  return out;
}

bool is_nonce(std::string_view text) {
  if (text.empty() || text.size() > 512) return false;
  for (char c : text) {
    if (c < 0x21 || c > 0x7e || c == ',') return false;
  }
  return true;
}

std::string exclusive_or(std::string_view a, std::string_view b) {
  ASSERT(a.size() == b.size());
  std::string out(a);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<char>(out[i] ^ b[i]);
  return out;
}

}  // namespace millrace::auth::scram
