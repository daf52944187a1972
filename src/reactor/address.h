// A socket address: IPv4, IPv6 or a Unix path; printed and parsed the way operators write it.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace millrace::reactor {

class Address {
 public:
  Address() = default;  // empty
  static Address from_sockaddr(const sockaddr* address, socklen_t length);
  static Address ipv4(uint32_t host_order, uint16_t port);
  static Address ipv6(const uint8_t (&octets)[16], uint16_t port);
  static Address unix_path(std::string_view path);
  // "192.0.2.1", "2001:db8::1", "[2001:db8::1]" (no port)
  static Result<Address> parse_host(std::string_view text, uint16_t port);
  // "192.0.2.1:25", "[2001:db8::1]:25"; `default_port` is used when none is written, 0: it must be.
  static Result<Address> parse(std::string_view text, uint16_t default_port = 0);

  bool empty() const { return length_ == 0; }
  bool is_ipv4() const { return family() == AF_INET; }
  bool is_ipv6() const { return family() == AF_INET6; }
  bool is_unix() const { return family() == AF_UNIX; }
  int family() const { return length_ == 0 ? AF_UNSPEC : storage_.ss_family; }
  uint16_t port() const;
  void set_port(uint16_t port);
  // The 4 or 16 octets of an IP address, network order; empty for others.
  std::string_view octets() const;

  std::string to_string() const;       // "192.0.2.1:25", "[2001:db8::1]:25", "unix:/run/x"
  std::string host_string() const;     // "192.0.2.1", "2001:db8::1"
  const sockaddr* raw() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t raw_length() const { return length_; }

  friend bool operator==(const Address& a, const Address& b);
  size_t hash() const;

 private:
  sockaddr_storage storage_{};
  socklen_t length_ = 0;
};

struct AddressHash {
  size_t operator()(const Address& address) const { return address.hash(); }
};

// A network such as 10.0.0.0/8 or 2001:db8::/32; a bare address is a network of one. An IPv4-mapped
// IPv6 address (::ffff:a.b.c.d) is matched as the IPv4 address it is.
class Network {
 public:
  static Result<Network> parse(std::string_view text);
  bool contains(const Address& address) const;
  std::string to_string() const;

 private:
  Address base_;
  unsigned bits_ = 0;
};

}  // namespace millrace::reactor
