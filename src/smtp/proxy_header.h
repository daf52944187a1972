// The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): the line or block that a
// load balancer sends before everything else to tell who the client is. Only a listener that was
// told so reads it, and only from peers that were named.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace millrace::smtp {

struct ProxyEndpoint {
  std::array<uint8_t, 16> address{};  // IPv4 in the first four
  uint16_t port = 0;
};

struct ProxyHeader {
  enum class Outcome : uint8_t {
    incomplete,  // more bytes are needed; give all of them again
    client,      // source and destination are known
    local,  // a health check of the proxy itself, or an unknown family: use the connection's own
    invalid,
  };
  Outcome outcome = Outcome::incomplete;
  size_t consumed = 0;  // octets of the header; the rest is the client's
  bool ipv6 = false;
  ProxyEndpoint source, destination;
};

// A header is at most so long: the caller keeps that much and gives it again until it is complete.
constexpr size_t kLongestProxyHeader = 16 + 2048;

// `bytes`: everything received so far.
ProxyHeader parse_proxy_header(std::string_view bytes);

}  // namespace millrace::smtp
