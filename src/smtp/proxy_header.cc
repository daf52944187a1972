#include "smtp/proxy_header.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstring>

namespace millrace::smtp {
namespace {

using Outcome = ProxyHeader::Outcome;

constexpr std::string_view kSignature2("\r\n\r\n\0\r\nQUIT\n", 12);
constexpr std::string_view kSignature1 = "PROXY ";
constexpr size_t kLongestLine1 = 107;  // with CRLF
constexpr size_t kHead2 = 16;

ProxyHeader invalid() {
  ProxyHeader header;
  header.outcome = Outcome::invalid;
  return header;
}

uint16_t read_port(std::string_view bytes) {
  return static_cast<uint16_t>(static_cast<unsigned char>(bytes[0]) << 8 |
                               static_cast<unsigned char>(bytes[1]));
}

bool parse_address(std::string_view text, bool ipv6, ProxyEndpoint& endpoint) {
  char copy[INET6_ADDRSTRLEN];
  if (text.empty() || text.size() >= sizeof copy || text.find('\0') != text.npos) return false;
  std::memcpy(copy, text.data(), text.size());
  copy[text.size()] = '\0';
  return inet_pton(ipv6 ? AF_INET6 : AF_INET, copy, endpoint.address.data()) == 1;
}

bool parse_port(std::string_view text, ProxyEndpoint& endpoint) {
  if (text.empty() || text.size() > 5 || (text.size() > 1 && text[0] == '0')) return false;
  unsigned port = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return false;
    port = port * 10 + static_cast<unsigned>(c - '0');
  }
  endpoint.port = static_cast<uint16_t>(port);
  return port <= 65535;
}

// "PROXY TCP4 192.0.2.1 192.0.2.2 56324 25\r\n": exactly one blank between the words.
ProxyHeader parse_line(std::string_view bytes) {
  size_t end = bytes.substr(0, kLongestLine1).find("\r\n");
  if (end == bytes.npos) return bytes.size() >= kLongestLine1 ? invalid() : ProxyHeader();
  ProxyHeader header;
  header.consumed = end + 2;
  std::string_view rest = bytes.substr(kSignature1.size(), end - kSignature1.size());
  auto take = [&rest] {
    size_t blank = rest.find(' ');
    std::string_view word = rest.substr(0, blank);
    rest = blank == rest.npos ? std::string_view() : rest.substr(blank + 1);
    return word;
  };
  std::string_view family = take();
  if (family == "UNKNOWN") {
    header.outcome = Outcome::local;
    return header;
  }
  if (family != "TCP4" && family != "TCP6") return invalid();
  header.ipv6 = family == "TCP6";
  bool good = parse_address(take(), header.ipv6, header.source);
  good = good && parse_address(take(), header.ipv6, header.destination);
  good = good && parse_port(take(), header.source);
  std::string_view port = rest;  // the last word: nothing may follow it
  good = good && parse_port(port, header.destination);
  if (!good) return invalid();
  header.outcome = Outcome::client;
  return header;
}

ProxyHeader parse_block(std::string_view bytes) {
  if (bytes.size() < kHead2) return {};
  const auto version_command = static_cast<unsigned char>(bytes[12]);
  const auto family = static_cast<unsigned char>(bytes[13]);
  const size_t size = kHead2 + read_port(bytes.substr(14));
  if ((version_command >> 4) != 2 || (version_command & 15) > 1) return invalid();
  if (size > kLongestProxyHeader) return invalid();
  if (bytes.size() < size) return {};
  ProxyHeader header;
  header.consumed = size;
  header.outcome = Outcome::local;
  // Command 0 is LOCAL; families other than TCP over IPv4 and IPv6 say nothing of use.
  if ((version_command & 15) == 0 || (family != 0x11 && family != 0x21)) return header;
  header.ipv6 = family == 0x21;
  const size_t address = header.ipv6 ? 16 : 4;
  std::string_view rest = bytes.substr(kHead2, size - kHead2);
  if (rest.size() < 2 * address + 4) return invalid();
  std::memcpy(header.source.address.data(), rest.data(), address);
  std::memcpy(header.destination.address.data(), rest.data() + address, address);
  header.source.port = read_port(rest.substr(2 * address));
  header.destination.port = read_port(rest.substr(2 * address + 2));
  header.outcome = Outcome::client;
  return header;
}

bool agree(std::string_view bytes, std::string_view signature) {
  size_t size = std::min(bytes.size(), signature.size());
  return bytes.substr(0, size) == signature.substr(0, size);
}

}  // namespace

ProxyHeader parse_proxy_header(std::string_view bytes) {
  if (agree(bytes, kSignature1)) {
    return bytes.size() < kSignature1.size() ? ProxyHeader() : parse_line(bytes);
  }
  if (agree(bytes, kSignature2)) return parse_block(bytes);
  return invalid();
}

}  // namespace millrace::smtp
