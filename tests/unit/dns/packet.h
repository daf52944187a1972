// Builds DNS replies byte by byte, right ones and wrong ones.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace millrace::dns::testing {

inline std::string be16(unsigned value) {
  return {static_cast<char>(value >> 8), static_cast<char>(value & 0xff)};
}
inline std::string be32(uint32_t value) { return be16(value >> 16) + be16(value & 0xffff); }

// "mx.example" as length-prefixed labels.
inline std::string wire_name(std::string_view name) {
  std::string out;
  while (!name.empty() && name != ".") {
    const size_t dot = std::min(name.find('.'), name.size());
    out += static_cast<char>(dot);
    out += name.substr(0, dot);
    name.remove_prefix(std::min(dot + 1, name.size()));
  }
  out += '\0';
  return out;
}

class Packet {
 public:
  Packet(std::string_view name, unsigned type)
      : question_(wire_name(name) + be16(type) + be16(1)) {}

  Packet& flags(unsigned flags) { return flags_ = flags, *this; }
  Packet& rcode(unsigned code) { return flags_ = (flags_ & 0xfff0) | code, *this; }
  // `owner` is wire form: wire_name(...) or kQuestion.
  Packet& answer(std::string owner, unsigned type, uint32_t ttl, std::string data) {
    ++answers_;
    answer_ +=
        owner + be16(type) + be16(1) + be32(ttl) + be16(static_cast<unsigned>(data.size())) + data;
    return *this;
  }
  Packet& a(std::string owner, uint32_t ttl, uint32_t address) {
    return answer(std::move(owner), 1, ttl, be32(address));
  }
  Packet& mx(std::string owner, uint32_t ttl, unsigned preference, std::string_view host) {
    return answer(std::move(owner), 15, ttl, be16(preference) + wire_name(host));
  }
  Packet& cname(std::string owner, uint32_t ttl, std::string_view target) {
    return answer(std::move(owner), 5, ttl, wire_name(target));
  }
  Packet& soa(uint32_t ttl, uint32_t minimum) {
    ++authorities_;
    const std::string data = wire_name("ns.example") + wire_name("root.example") + be32(1) +
                             be32(2) + be32(3) + be32(4) + be32(minimum);
    authority_ += wire_name("example") + be16(6) + be16(1) + be32(ttl) +
                  be16(static_cast<unsigned>(data.size())) + data;
    return *this;
  }
  Packet& claim_answers(unsigned count) { return answers_ = count, *this; }

  std::string str(unsigned id = 0x1234) const {
    return be16(id) + be16(flags_) + be16(1) + be16(answers_) + be16(authorities_) + be16(0) +
           question_ + answer_ + authority_;
  }

 private:
  unsigned flags_ = 0x8180;
  unsigned answers_ = 0, authorities_ = 0;
  std::string question_, answer_, authority_;
};

// A pointer to the question's name.
inline const std::string kQuestion = "\xc0\x0c";

}  // namespace millrace::dns::testing
