#include "mail/spool_id.h"

#include <array>

namespace millrace::mail {
namespace {

constexpr char kAlphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

constexpr std::array<uint8_t, 256> make_values() {
  std::array<uint8_t, 256> values{};
  for (auto& value : values) value = 0xff;
  for (uint8_t digit = 0; digit < 32; ++digit) {
    char upper = kAlphabet[digit];
    values[static_cast<uint8_t>(upper)] = digit;
    if (upper >= 'A') values[static_cast<uint8_t>(upper - 'A' + 'a')] = digit;
  }
  for (char one : {'I', 'i', 'L', 'l'}) values[static_cast<uint8_t>(one)] = 1;
  for (char zero : {'O', 'o'}) values[static_cast<uint8_t>(zero)] = 0;
  return values;
}
constexpr auto kValues = make_values();

}  // namespace

void SpoolId::format(char (&text)[kTextSize]) const {
  uint64_t upper = high, lower = low;
  for (size_t i = kTextSize; i-- > 0;) {
    text[i] = kAlphabet[lower & 31];
    lower = (lower >> 5) | (upper << 59);
    upper >>= 5;
  }
}

std::string SpoolId::to_string() const {
  char text[kTextSize];
  format(text);
  return std::string(text, kTextSize);
}

Result<SpoolId> SpoolId::parse(std::string_view text) {
  if (text.size() != kTextSize) return fail("a spool id has 26 characters");
  SpoolId id;
  for (size_t i = 0; i < kTextSize; ++i) {
    uint8_t value = kValues[static_cast<uint8_t>(text[i])];
    if (value == 0xff) return fail("a spool id consists of digits and letters other than U");
    // 26 characters hold 130 bits: the first has only three.
    if (i == 0 && value > 7) return fail("a spool id is at most 7ZZZ...");
    id.high = (id.high << 5) | (id.low >> 59);
    id.low = (id.low << 5) | value;
  }
  return id;
}

SpoolId SpoolIdMaker::make(int64_t wall_ms) {
  uint64_t high = static_cast<uint64_t>(wall_ms) << 16;
  // More than 65,536 in a millisecond, or a clock that stepped back: run ahead of it.
  last_high_ = high > last_high_ ? high : last_high_ + 1;
  return SpoolId{last_high_, low_};
}

void SpoolIdMaker::not_before(int64_t ms) {
  uint64_t high = static_cast<uint64_t>(ms) << 16;
  if (high > last_high_) last_high_ = high - 1;
}

}  // namespace millrace::mail
