#include "smtp/xtext.h"

#include "mail/address.h"

namespace millrace::smtp {
namespace {

// RFC 3461 4: hexchar is "+" and two digits, letters in upper case only.
int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool is_printable(int octet) { return octet >= 0x20 && octet <= 0x7e; }

// The octet that "+XX" at `at` stands for, or -1 when it is no hexchar or not printable.
int decode_hexchar(std::string_view text, size_t at) {
  if (text.size() - at < 3) return -1;
  int upper = hex_value(text[at + 1]), lower = hex_value(text[at + 2]);
  if (upper < 0 || lower < 0) return -1;
  int octet = upper * 16 + lower;
  return is_printable(octet) ? octet : -1;
}

}  // namespace

bool is_xtext(std::string_view text, bool utf8) {
  bool high = false;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char c = static_cast<unsigned char>(text[i]);
    if (c == '+') {
      if (decode_hexchar(text, i) < 0) return false;
      i += 2;
    } else if (c >= 0x80 && utf8) {
      high = true;
    } else if (c < 0x21 || c > 0x7e || c == '=') {
      return false;
    }
  }
  return !high || mail::is_utf8(text);
}

void append_xtext(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  const bool utf8 = mail::is_utf8(text);
  for (char c : text) {
    unsigned char octet = static_cast<unsigned char>(c);
    if (octet == '+' || octet == '=' || octet == ' ') {
      out.push_back('+');
      out.push_back(kHex[octet >> 4]);
      out.push_back(kHex[octet & 15]);
    } else if (is_printable(octet) || (octet >= 0x80 && utf8)) {
      out.push_back(c);
    }
  }
}

bool append_decoded_xtext(std::string& out, std::string_view text) {
  if (!is_xtext(text, true)) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+') {
      out.push_back(static_cast<char>(decode_hexchar(text, i)));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return true;
}

}  // namespace millrace::smtp
