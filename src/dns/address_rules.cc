#include "dns/address_rules.h"

#include <array>
#include <cstdint>
#include <cstring>

#include "dns/answer.h"

namespace millrace::dns {
namespace {

struct Ipv4Range {
  uint32_t base;
  unsigned bits;
  std::string_view what;
};

// IANA's special-purpose registry (RFC 6890 and later), without the documentation networks.
constexpr std::array<Ipv4Range, 12> kIpv4Ranges = {{
    {0x00000000, 8, "address of \"this network\""},
    {0x0a000000, 8, "private address"},
    {0x64400000, 10, "carrier-grade NAT address"},
    {0x7f000000, 8, "loopback address"},
    {0xa9fe0000, 16, "link-local address"},
    {0xac100000, 12, "private address"},
    {0xc0000000, 24, "protocol assignment address"},
    {0xc0586300, 24, "6to4 relay address"},
    {0xc0a80000, 16, "private address"},
    {0xc6120000, 15, "benchmarking address"},
    {0xe0000000, 4, "multicast address"},
    {0xf0000000, 4, "reserved address"},
}};

std::string_view why_not_public_ipv4(uint32_t address) {
  for (const Ipv4Range& range : kIpv4Ranges) {
    const uint32_t mask = ~uint32_t{0} << (32 - range.bits);
    if ((address & mask) == range.base) return range.what;
  }
  return {};
}

uint32_t be32(const uint8_t* octets) {
  return uint32_t{octets[0]} << 24 | uint32_t{octets[1]} << 16 | uint32_t{octets[2]} << 8 |
         octets[3];
}

bool all_zero(const uint8_t* octets, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (octets[i] != 0) return false;
  }
  return true;
}

std::string_view why_not_public_ipv6(const uint8_t (&a)[16]) {
  if (all_zero(a, 15) && a[15] == 0) return "unspecified address";
  if (all_zero(a, 15) && a[15] == 1) return "loopback address";
  if (all_zero(a, 10) && a[10] == 0xff && a[11] == 0xff) return "IPv4-mapped address";
  if (all_zero(a, 12)) return "IPv4-compatible address";
  if (a[0] == 0xff) return "multicast address";
  if ((a[0] & 0xfe) == 0xfc) return "unique local address";
  if (a[0] == 0xfe && (a[1] & 0xc0) == 0x80) return "link-local address";
  if (a[0] == 0xfe && (a[1] & 0xc0) == 0xc0) return "site-local address";
  if (be32(a) == 0x0064ff9b) {
    if (all_zero(a + 4, 8)) return why_not_public_ipv4(be32(a + 12));  // NAT64, RFC 6052
    if (a[4] == 0 && a[5] == 1) return "local NAT64 address";
  }
  if (be32(a) == 0x01000000 && all_zero(a + 4, 4)) return "discard-only address";
  if (be32(a) == 0x20010000) return "Teredo address";
  if (a[0] == 0x20 && a[1] == 0x02) return why_not_public_ipv4(be32(a + 2));  // 6to4, RFC 3056
  return {};
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

std::string_view why_not_public(const reactor::Address& address) {
  const std::string_view octets = address.octets();
  if (octets.size() == 4) {
    uint8_t bytes[4];
    std::memcpy(bytes, octets.data(), 4);
    return why_not_public_ipv4(be32(bytes));
  }
  if (octets.size() == 16) {
    uint8_t bytes[16];
    std::memcpy(bytes, octets.data(), 16);
    return why_not_public_ipv6(bytes);
  }
  return "not an IP address";
}

std::string_view why_not_a_host(std::string_view name) {
  const std::string host = canonical_name(name);
  if (!is_host_name(host)) return "not a host name";
  if (host == "localhost" || ends_with(host, ".localhost") || host == "localhost.localdomain") {
    return "the local host";
  }
  // No top-level domain begins with a digit, and resolvers read "127.1" and "0x7f000001" as
  // addresses.
  const size_t dot = host.rfind('.');
  const char first = host[dot == std::string::npos ? 0 : dot + 1];
  if (first >= '0' && first <= '9') return "an address in place of a name";
  return {};
}

reactor::Address parse_literal(std::string_view domain) {
  if (domain.size() < 3 || domain.front() != '[' || domain.back() != ']') return {};
  domain = domain.substr(1, domain.size() - 2);
  constexpr std::string_view kTag = "ipv6:";
  const bool tagged = canonical_name(domain.substr(0, kTag.size())) == kTag;
  if (tagged) domain.remove_prefix(kTag.size());
  if (domain.empty() || domain.front() == '[') return {};
  auto address = reactor::Address::parse_host(domain, 0);
  if (!address || address->is_ipv6() != tagged) return {};
  return *address;
}

}  // namespace millrace::dns
