#include "reactor/address.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <unordered_set>

namespace millrace::reactor {
namespace {

TEST(Address, IsPrintedAsItIsWritten) {
  for (const char* text :
       {"192.0.2.1:25", "[2001:db8::1]:25", "0.0.0.0:0", "[::]:65535", "unix:/run/x"}) {
    auto address = Address::parse(text);
    ASSERT_TRUE(address.ok()) << address.error().text;
    EXPECT_EQ(address->to_string(), text);
  }
}

TEST(Address, DefaultPortStandsInForAMissingOne) {
  EXPECT_EQ(Address::parse("192.0.2.1", 25).value().to_string(), "192.0.2.1:25");
  EXPECT_EQ(Address::parse("[2001:db8::1]", 25).value().to_string(), "[2001:db8::1]:25");
  EXPECT_EQ(Address::parse("2001:db8::1", 25).value().to_string(), "[2001:db8::1]:25");
  EXPECT_EQ(Address::parse("192.0.2.1:587", 25).value().port(), 587);
  EXPECT_FALSE(Address::parse("192.0.2.1").ok());
  EXPECT_FALSE(Address::parse("[2001:db8::1]").ok());
  EXPECT_FALSE(Address::parse("2001:db8::1").ok());
}

TEST(Address, MalformedTextIsRefused) {
  for (const char* text :
       {"", ":", ":25", "192.0.2.1:", "192.0.2.1:65536", "192.0.2.1:-1", "192.0.2.1:+1",
        "192.0.2.1: 25", "192.0.2.1:000025", "192.0.2:25", "192.0.2.256:25", "[192.0.2.1]:25",
        "[2001:db8::1:25", "2001:db8::1]:25", "[2001:db8::g]:25", "[]:25", "[fe80::1%eth0]:25",
        "example.com:25", "unix:"}) {
    EXPECT_FALSE(Address::parse(text, 25).ok()) << text;
  }
  EXPECT_FALSE(Address::parse(std::string_view("192.0.2.1\0:25", 13)).ok());
  EXPECT_FALSE(Address::parse("unix:/" + std::string(200, 'x')).ok());
}

TEST(Address, HostsTakeNoPort) {
  EXPECT_EQ(Address::parse_host("2001:db8::1", 25).value().to_string(), "[2001:db8::1]:25");
  EXPECT_EQ(Address::parse_host("[2001:db8::1]", 25).value().host_string(), "2001:db8::1");
  EXPECT_FALSE(Address::parse_host("192.0.2.1:25", 25).ok());
  EXPECT_FALSE(Address::parse_host("[2001:db8::1]:25", 25).ok());
}

TEST(Address, EqualityAndHashLookAtHostAndPortOnly) {
  sockaddr_in raw{};
  raw.sin_family = AF_INET;
  raw.sin_port = htons(25);
  raw.sin_addr.s_addr = htonl(0xC0000201);
  sockaddr_in noisy = raw;
  std::fill(std::begin(noisy.sin_zero), std::end(noisy.sin_zero), 7);
  auto a = Address::from_sockaddr(reinterpret_cast<sockaddr*>(&raw), sizeof raw);
  auto b = Address::from_sockaddr(reinterpret_cast<sockaddr*>(&noisy), sizeof noisy);
  EXPECT_EQ(a, b);
  EXPECT_EQ(a.hash(), b.hash());
  b.set_port(26);
  EXPECT_FALSE(a == b);
  EXPECT_EQ(b.port(), 26);
  std::unordered_set<Address, AddressHash> set{a, b, a};
  EXPECT_EQ(set.size(), 2u);
  EXPECT_EQ(Address::unix_path("/a"), Address::unix_path("/a"));
  EXPECT_FALSE(Address::unix_path("/a") == Address::unix_path("/b"));
}

TEST(Address, TruncatedSockaddrIsEmpty) {
  sockaddr_in raw{};
  raw.sin_family = AF_INET;
  EXPECT_TRUE(Address::from_sockaddr(reinterpret_cast<sockaddr*>(&raw), 4).empty());
  EXPECT_TRUE(Address::from_sockaddr(nullptr, 0).empty());
}

TEST(Address, UnnamedUnixSocketIsNotEmpty) {
  sockaddr_un raw{};
  raw.sun_family = AF_UNIX;
  auto address = Address::from_sockaddr(reinterpret_cast<sockaddr*>(&raw), sizeof(sa_family_t));
  EXPECT_FALSE(address.empty());
  EXPECT_EQ(address.to_string(), "unix:");
}

TEST(Address, OctetsAreInNetworkOrder) {
  EXPECT_EQ(Address::ipv4(0x0A010203, 1).octets(), std::string_view("\x0A\x01\x02\x03", 4));
  EXPECT_EQ(Address::parse_host("2001:db8::1", 1).value().octets().size(), 16u);
  EXPECT_TRUE(Address().octets().empty());
}

bool contains(const char* network, const char* host) {
  return Network::parse(network).value().contains(Address::parse_host(host, 25).value());
}

TEST(Network, ContainsItsAddressesOnly) {
  EXPECT_TRUE(contains("10.0.0.0/8", "10.255.255.255"));
  EXPECT_FALSE(contains("10.0.0.0/8", "11.0.0.0"));
  EXPECT_TRUE(contains("10.32.0.0/11", "10.63.255.255"));
  EXPECT_FALSE(contains("10.32.0.0/11", "10.64.0.0"));
  EXPECT_TRUE(contains("0.0.0.0/0", "203.0.113.9"));
  EXPECT_FALSE(contains("0.0.0.0/0", "2001:db8::1"));
  EXPECT_TRUE(contains("192.0.2.1", "192.0.2.1"));
  EXPECT_FALSE(contains("192.0.2.1", "192.0.2.2"));
  EXPECT_TRUE(contains("2001:db8::/33", "2001:db8:7fff::1"));
  EXPECT_FALSE(contains("2001:db8::/33", "2001:db8:8000::1"));
  EXPECT_TRUE(contains("::/0", "2001:db8::1"));
  EXPECT_TRUE(contains("::1", "::1"));
  EXPECT_FALSE(Network().contains(Address::ipv4(1, 1)));
  EXPECT_FALSE(Network::parse("10.0.0.0/8").value().contains(Address::unix_path("/x")));
}

TEST(Network, MappedAddressIsTheIpv4AddressItHolds) {
  EXPECT_TRUE(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
  EXPECT_FALSE(contains("::/0", "::ffff:10.1.2.3"));
  EXPECT_TRUE(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
  EXPECT_EQ(Network::parse("::ffff:10.0.0.0/104").value().to_string(), "10.0.0.0/8");
}

TEST(Network, MalformedTextIsRefused) {
  for (const char* text : {"", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/8/8",
                           "10/8", "2001:db8::/129", "10.0.0.0/8 ", "10.0.0.1/8"}) {
    EXPECT_FALSE(Network::parse(text).ok()) << text;
  }
  EXPECT_NE(Network::parse("10.0.0.1/8").error().text.find("10.0.0.0/8 is meant"),
            std::string::npos);
}

}  // namespace
}  // namespace millrace::reactor
