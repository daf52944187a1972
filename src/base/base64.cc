#include "base/base64.h"

#include <array>
#include <cstdint>

namespace millrace {
namespace {

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<int8_t, 256> make_values() {
  std::array<int8_t, 256> values{};
  for (int8_t& value : values) value = -1;
  for (size_t i = 0; i < kAlphabet.size(); ++i) {
    values[static_cast<unsigned char>(kAlphabet[i])] = static_cast<int8_t>(i);
  }
  return values;
}
constexpr std::array<int8_t, 256> kValues = make_values();

}  // namespace

void append_base64(std::string& out, std::string_view octets) {
  out.reserve(out.size() + (octets.size() + 2) / 3 * 4);
  size_t at = 0;
  auto octet = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(octets[i])); };
  for (; at + 3 <= octets.size(); at += 3) {
    uint32_t bits = octet(at) << 16 | octet(at + 1) << 8 | octet(at + 2);
    for (int shift = 18; shift >= 0; shift -= 6) out += kAlphabet[bits >> shift & 63];
  }
  const size_t left = octets.size() - at;
  if (left == 0) return;
  uint32_t bits = octet(at) << 16 | (left == 2 ? octet(at + 1) << 8 : 0);
  out += kAlphabet[bits >> 18 & 63];
  out += kAlphabet[bits >> 12 & 63];
  out += left == 2 ? kAlphabet[bits >> 6 & 63] : '=';
  out += '=';
}

std::string to_base64(std::string_view octets) {
  std::string out;
  append_base64(out, octets);
  return out;
}

std::optional<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  size_t padding = 0;
  while (padding < 2 && text.ends_with('=')) {
    text.remove_suffix(1);
    ++padding;
  }
  std::string out;
  out.reserve(text.size() / 4 * 3 + 2);
  uint32_t bits = 0;
  unsigned count = 0;
  for (char c : text) {
    const int8_t value = kValues[static_cast<unsigned char>(c)];
    if (value < 0) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out += static_cast<char>(bits >> count & 0xff);
    bits &= (1u << count) - 1;
  }
  if (bits != 0) return std::nullopt;  // bits behind the last octet: another text for the same octets
  return out;
}

}  // namespace millrace
