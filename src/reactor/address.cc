#include "reactor/address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

namespace millrace::reactor {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";

template <typename T>
T as(const sockaddr_storage& storage) {
  T address;
  std::memcpy(&address, &storage, sizeof address);
  return address;
}

// Digits only, at most five of them, up to `most`.
bool parse_number(std::string_view text, unsigned most, unsigned& number) {
  if (text.empty() || text.size() > 5) return false;
  unsigned value = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return false;
    value = value * 10 + static_cast<unsigned>(c - '0');
  }
  if (value > most) return false;
  number = value;
  return true;
}

bool is_mapped(std::string_view octets) {
  static constexpr char kPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '\xff', '\xff'};
  return octets.size() == 16 && std::memcmp(octets.data(), kPrefix, sizeof kPrefix) == 0;
}

}  // namespace

Address Address::from_sockaddr(const sockaddr* address, socklen_t length) {
  Address result;
  if (!address || length < sizeof(sa_family_t) || length > sizeof result.storage_) return result;
  // Only as much as the family has: what the kernel leaves behind it is not part of the address.
  if (address->sa_family == AF_INET) {
    if (length < sizeof(sockaddr_in)) return result;
    length = sizeof(sockaddr_in);
  } else if (address->sa_family == AF_INET6) {
    if (length < sizeof(sockaddr_in6)) return result;
    length = sizeof(sockaddr_in6);
  }
  std::memcpy(&result.storage_, address, length);
  result.length_ = length;
  return result;
}

Address Address::ipv4(uint32_t host_order, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(host_order);
  return from_sockaddr(reinterpret_cast<sockaddr*>(&address), sizeof address);
}

Address Address::ipv6(const uint8_t (&octets)[16], uint16_t port) {
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(port);
  std::memcpy(&address.sin6_addr, octets, sizeof octets);
  return from_sockaddr(reinterpret_cast<sockaddr*>(&address), sizeof address);
}

Address Address::unix_path(std::string_view path) {
  sockaddr_un address{};
  if (path.empty() || path.size() >= sizeof address.sun_path || path.find('\0') != path.npos)
    return {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return from_sockaddr(reinterpret_cast<sockaddr*>(&address),
                       static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1));
}

Result<Address> Address::parse_host(std::string_view text, uint16_t port) {
  std::string_view host = text;
  bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  char copy[INET6_ADDRSTRLEN + 1];
  if (host.size() < sizeof copy && host.find('\0') == host.npos) {
    std::memcpy(copy, host.data(), host.size());
    copy[host.size()] = '\0';
    in_addr four{};
    if (!bracketed && inet_pton(AF_INET, copy, &four) == 1) return ipv4(ntohl(four.s_addr), port);
    uint8_t six[16];
    if (inet_pton(AF_INET6, copy, six) == 1) return ipv6(six, port);
  }
  return fail(fmt::format("\"{}\" is not an IP address", text));
}

Result<Address> Address::parse(std::string_view text, uint16_t default_port) {
  if (text.starts_with(kUnixPrefix)) {
    Address address = unix_path(text.substr(kUnixPrefix.size()));
    if (address.empty()) {
      return fail(fmt::format("\"{}\": a socket path has 1 to {} octets", text,
                              sizeof(sockaddr_un::sun_path) - 1));
    }
    return address;
  }
  // The port follows the last colon, unless that is part of an IPv6 address: one in brackets ends
  // in
  // "]", one without has several colons (and then no port can be told apart).
  std::string_view host = text;
  std::string_view port_text;
  size_t colon = text.rfind(':');
  bool bare_ipv6 = !text.starts_with('[') && text.find(':') != colon;
  if (colon != text.npos && !text.ends_with(']') && !bare_ipv6) {
    host = text.substr(0, colon);
    port_text = text.substr(colon + 1);
    unsigned port = 0;
    if (!parse_number(port_text, 65535, port)) {
      return fail(fmt::format("\"{}\": the port is a number from 0 to 65535", text));
    }
    Result<Address> address = parse_host(host, static_cast<uint16_t>(port));
    if (!address) return fail(fmt::format("\"{}\": {}", text, address.error().text));
    return address;
  }
  if (default_port == 0) {
    return fail(
        fmt::format("\"{}\": a port is needed, as in 192.0.2.1:25 or [2001:db8::1]:25", text));
  }
  return parse_host(host, default_port);
}

uint16_t Address::port() const {
  if (is_ipv4()) return ntohs(as<sockaddr_in>(storage_).sin_port);
  if (is_ipv6()) return ntohs(as<sockaddr_in6>(storage_).sin6_port);
  return 0;
}

void Address::set_port(uint16_t port) {
  ASSERT(is_ipv4() || is_ipv6());
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
  uint16_t network_order = htons(port);
  std::memcpy(reinterpret_cast<char*>(&storage_) + offsetof(sockaddr_in, sin_port), &network_order,
              sizeof network_order);
}

std::string_view Address::octets() const {
  const char* start = reinterpret_cast<const char*>(&storage_);
  if (is_ipv4()) return {start + offsetof(sockaddr_in, sin_addr), 4};
  if (is_ipv6()) return {start + offsetof(sockaddr_in6, sin6_addr), 16};
  return {};
}

std::string Address::host_string() const {
  char text[INET6_ADDRSTRLEN];
  if (is_ipv4() || is_ipv6()) {
    if (!inet_ntop(family(), octets().data(), text, sizeof text)) return {};
    return text;
  }
  if (is_unix()) {
    constexpr size_t kPathOffset = offsetof(sockaddr_un, sun_path);
    if (length_ <= kPathOffset) return {};  // an unnamed one, the usual client
    const char* path = reinterpret_cast<const char*>(&storage_) + kPathOffset;
    return std::string(path, strnlen(path, length_ - kPathOffset));
  }
  return {};
}

std::string Address::to_string() const {
  if (is_ipv4()) return fmt::format("{}:{}", host_string(), port());
  if (is_ipv6()) return fmt::format("[{}]:{}", host_string(), port());
  if (is_unix()) return fmt::format("{}{}", kUnixPrefix, host_string());
  return {};
}

bool operator==(const Address& a, const Address& b) {
  if (a.family() != b.family() || a.length_ != b.length_) return false;
  if (a.is_ipv4() || a.is_ipv6()) return a.port() == b.port() && a.octets() == b.octets();
  return std::memcmp(&a.storage_, &b.storage_, a.length_) == 0;
}

size_t Address::hash() const {
  std::string_view bytes = octets();
  if (bytes.empty()) bytes = {reinterpret_cast<const char*>(&storage_), length_};
  return std::hash<std::string_view>{}(bytes)*31 + port();
}

Result<Network> Network::parse(std::string_view text) {
  size_t slash = text.find('/');
  Result<Address> base = Address::parse_host(text.substr(0, slash), 0);
  if (!base) return fail(fmt::format("\"{}\": {}", text, base.error().text));
  unsigned most = base->is_ipv4() ? 32 : 128;
  unsigned bits = most;
  if (slash != text.npos && !parse_number(text.substr(slash + 1), most, bits)) {
    return fail(fmt::format("\"{}\": the prefix length is a number from 0 to {}", text, most));
  }
  Network network;
  network.bits_ = bits;
  std::string octets(base->octets());
  for (unsigned bit = bits; bit < most; ++bit) {
    octets[bit / 8] = static_cast<char>(octets[bit / 8] & ~(0x80 >> (bit % 8)));
  }
  auto address_of = [](std::string_view from) {
    if (from.size() == 4) {
      uint32_t four;
      std::memcpy(&four, from.data(), sizeof four);
      return Address::ipv4(ntohl(four), 0);
    }
    uint8_t six[16];
    std::memcpy(six, from.data(), sizeof six);
    return Address::ipv6(six, 0);
  };
  network.base_ = address_of(octets);
  if (!(network.base_ == *base)) {
    return fail(fmt::format("\"{}\" has bits set past its prefix; {} is meant, or a longer prefix",
                            text, network.to_string()));
  }
  if (is_mapped(octets) && bits >= 96) {
    network.base_ = address_of(std::string_view(octets).substr(12));
    network.bits_ = bits - 96;
  }
  return network;
}

bool Network::contains(const Address& address) const {
  std::string_view octets = address.octets();
  if (is_mapped(octets)) octets.remove_prefix(12);
  std::string_view base = base_.octets();
  if (octets.size() != base.size() || octets.empty()) return false;
  unsigned whole = bits_ / 8;
  if (std::memcmp(octets.data(), base.data(), whole) != 0) return false;
  unsigned rest = bits_ % 8;
  if (rest == 0) return true;
  auto difference = static_cast<uint8_t>(octets[whole] ^ base[whole]);
  return (difference >> (8 - rest)) == 0;
}

std::string Network::to_string() const { return fmt::format("{}/{}", base_.host_string(), bits_); }

}  // namespace millrace::reactor
