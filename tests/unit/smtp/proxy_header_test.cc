#include "smtp/proxy_header.h"

#include <gtest/gtest.h>

#include <string>

namespace millrace::smtp {
namespace {

using Outcome = ProxyHeader::Outcome;

std::string block(char command, char family, const std::string& rest) {
  std::string bytes("\r\n\r\n\0\r\nQUIT\n", 12);
  bytes.push_back(static_cast<char>(0x20 | command));
  bytes.push_back(family);
  bytes.push_back(static_cast<char>(rest.size() >> 8));
  bytes.push_back(static_cast<char>(rest.size() & 255));
  return bytes + rest;
}

// Every proper prefix is incomplete, the whole is `outcome`, and what follows is left alone.
ProxyHeader parse(const std::string& bytes, Outcome outcome) {
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_EQ(parse_proxy_header(bytes.substr(0, size)).outcome, Outcome::incomplete) << size;
  }
  ProxyHeader header = parse_proxy_header(bytes + "EHLO x\r\n");
  EXPECT_EQ(header.outcome, outcome);
  EXPECT_EQ(header.consumed, bytes.size());
  return header;
}

TEST(ProxyHeader, VersionOne) {
  ProxyHeader header = parse("PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n", Outcome::client);
  EXPECT_FALSE(header.ipv6);
  EXPECT_EQ(header.source.address[0], 192);
  EXPECT_EQ(header.source.address[3], 1);
  EXPECT_EQ(header.source.port, 56324);
  EXPECT_EQ(header.destination.port, 25);
  header = parse("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", Outcome::client);
  EXPECT_TRUE(header.ipv6);
  EXPECT_EQ(header.source.address[0], 0x20);
  EXPECT_EQ(header.destination.address[15], 2);
  parse("PROXY UNKNOWN\r\n", Outcome::local);
  parse("PROXY UNKNOWN ff:ff::1 whatever 1 2\r\n", Outcome::local);
}

TEST(ProxyHeader, VersionTwo) {
  std::string addresses("\xc0\0\2\1\xc6\x33\x64\2\xdc\4\0\x19", 12);
  ProxyHeader header = parse(block(1, 0x11, addresses), Outcome::client);
  EXPECT_EQ(header.source.address[0], 192);
  EXPECT_EQ(header.source.port, 56324);
  EXPECT_EQ(header.destination.port, 25);
  parse(block(1, 0x11, addresses + std::string("\3\0\4abcd", 7)), Outcome::client);  // with a TLV
  std::string six(36, '\0');
  six[15] = 9;
  six[33] = 7;
  header = parse(block(1, 0x21, six), Outcome::client);
  EXPECT_TRUE(header.ipv6);
  EXPECT_EQ(header.source.address[15], 9);
  EXPECT_EQ(header.source.port, 7);
  parse(block(0, 0, ""), Outcome::local);
  parse(block(1, 0x31, std::string(216, 'u')), Outcome::local);
}

TEST(ProxyHeader, WrongOnesAreInvalid) {
  for (const char* bad : {"EHLO x\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
                          "PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", "PROXY TCP4 ::1 ::2 1 2\r\n",
                          "PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n",
                          "PROXY TCP4 192.0.2.1 198.51.100.2 1 25 x\r\n",
                          "PROXY TCP4 192.0.2.1 198.51.100.2 01 25\r\n",
                          "PROXY TCP4  192.0.2.1 198.51.100.2 1 25\r\n",
                          "PROXY UDP4 192.0.2.1 198.51.100.2 1 25\r\n", "PROXY\r\n"}) {
    EXPECT_EQ(parse_proxy_header(bad).outcome, Outcome::invalid) << bad;
  }
  EXPECT_EQ(parse_proxy_header("PROXY " + std::string(200, 'x')).outcome, Outcome::invalid);
  EXPECT_EQ(parse_proxy_header(block(1, 0x11, "short")).outcome, Outcome::invalid);
  EXPECT_EQ(parse_proxy_header(block(2, 0x11, std::string(12, 'x'))).outcome, Outcome::invalid);
  EXPECT_EQ(parse_proxy_header(block(1, 0x11, std::string(4000, 'x'))).outcome, Outcome::invalid);
}

}  // namespace
}  // namespace millrace::smtp
