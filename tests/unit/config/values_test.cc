#include "config/values.h"

#include <gtest/gtest.h>

namespace millrace::config {
namespace {

TEST(Durations, UnitsAndCompounds) {
  EXPECT_EQ(*parse_duration_ms("250ms"), 250);
  EXPECT_EQ(*parse_duration_ms("90s"), 90'000);
  EXPECT_EQ(*parse_duration_ms("1h30m"), 5'400'000);
  EXPECT_EQ(*parse_duration_ms("4d12h"), 388'800'000);
  EXPECT_EQ(*parse_duration_ms("0"), 0);
}

TEST(Durations, WithoutUnitOrOutOfOrderIsRefused) {
  for (const char* wrong : {"", "30", "s", "5 s", "-5s", "5x", "1m1h", "5s5s", "1.5s", "s5",
                            "99999999999999999999s", "9999999999d"}) {
    EXPECT_FALSE(parse_duration_ms(wrong).ok()) << wrong;
  }
  EXPECT_NE(parse_duration_ms("30").error().text.find("30s or 1h30m"), std::string::npos);
}

TEST(Durations, PrintedReadsBackTheSame) {
  for (int64_t each : {0LL, 1LL, 999LL, 1000LL, 61'001LL, 86'400'000LL, 90'061'001LL})
    EXPECT_EQ(*parse_duration_ms(print_duration_ms(each)), each);
  EXPECT_EQ(print_duration_ms(5'400'000), "1h30m");
}

TEST(Durations, ListsTakeBlanksAfterCommas) {
  EXPECT_EQ(*parse_durations_ms("5m, 10m,1h"), (std::vector<int64_t>{300'000, 600'000, 3'600'000}));
  EXPECT_FALSE(parse_durations_ms("5m,,1h").ok());
  EXPECT_FALSE(parse_durations_ms("").ok());
}

TEST(Sizes, BinaryUnits) {
  EXPECT_EQ(*parse_size("4096"), 4096u);
  EXPECT_EQ(*parse_size("50M"), 50u << 20);
  EXPECT_EQ(*parse_size("1g"), 1u << 30);
  EXPECT_EQ(*parse_size("64KiB"), 65536u);
  for (const char* wrong :
       {"", "M", "5X", "5MB", "-1", "1.5G", "99999999T", "18446744073709551616"})
    EXPECT_FALSE(parse_size(wrong).ok()) << wrong;
  for (uint64_t each :
       {uint64_t{0}, uint64_t{1}, uint64_t{1000}, uint64_t{1536} << 10, uint64_t{3} << 40})
    EXPECT_EQ(*parse_size(print_size(each)), each);
}

TEST(Rates, PerUnitOrPeriod) {
  EXPECT_EQ(parse_rate("100/s")->count, 100);
  EXPECT_EQ(parse_rate("5000/h")->period_ms, 3'600'000);
  EXPECT_EQ(parse_rate("30/10m")->period_ms, 600'000);
  EXPECT_EQ(parse_rate("0.5/s")->count, 0.5);
  EXPECT_FALSE(parse_rate("none")->limited());
  for (const char* wrong :
       {"", "100", "/s", "100/", "0/s", "-1/s", "5/x", "5/0m", "1e9/s", "nan/s", "inf/s", "5/ms"})
    EXPECT_FALSE(parse_rate(wrong).ok()) << wrong;
  for (const char* each : {"none", "100/s", "0.5/s", "30/10m", "20000/d"})
    EXPECT_EQ(print_rate(*parse_rate(each)), each);
}

TEST(Listeners, BothFamiliesAndProxy) {
  EXPECT_EQ(print_listen(*parse_listen("127.0.0.1:25")), "127.0.0.1:25");
  EXPECT_EQ(print_listen(*parse_listen("[2001:db8::1]:2525,proxy")), "[2001:db8::1]:2525,proxy");
  EXPECT_TRUE(parse_listen("0.0.0.0:25,proxy")->proxy);
  for (const char* wrong : {"", "127.0.0.1", "localhost:25", "127.0.0.1:25,tls", "::1:25,",
                            "127.0.0.1:99999", "unix:/run/x"})
    EXPECT_FALSE(parse_listen(wrong).ok()) << wrong;
}

TEST(Sources, OneAddressOfEachFamilyAndAName) {
  EXPECT_EQ(print_source(*parse_source("192.0.2.1")), "192.0.2.1");
  EXPECT_EQ(print_source(*parse_source("2001:db8::1=MTA1.example.com")),
            "2001:db8::1=mta1.example.com");
  auto both = parse_source("192.0.2.1+2001:db8::1=mta1.example.com");
  ASSERT_TRUE(both.ok());
  EXPECT_TRUE(both->ipv4.is_ipv4());
  EXPECT_TRUE(both->ipv6.is_ipv6());
  EXPECT_EQ(both->ehlo_name, "mta1.example.com");
  for (const char* wrong :
       {"", "mta1.example.com", "192.0.2.1=", "192.0.2.1=mta1", "192.0.2.1=a b.c",
        "192.0.2.1+192.0.2.2=a.example", "192.0.2.1:25", "192.0.2.1=a.example\r\nX"})
    EXPECT_FALSE(parse_source(wrong).ok()) << wrong;
}

TEST(NextHops, NamesAndAddressesWithTheirPort) {
  EXPECT_EQ(print_next_hop(*parse_next_hop("Relay.Example.com:587")), "relay.example.com:587");
  EXPECT_EQ(print_next_hop(*parse_next_hop("192.0.2.1")), "192.0.2.1:25");
  EXPECT_EQ(print_next_hop(*parse_next_hop("[2001:db8::1]:2525")), "[2001:db8::1]:2525");
  EXPECT_EQ(print_next_hop(*parse_next_hop("localhost:25")), "localhost:25");
  for (const char* wrong : {"", ":25", "host:", "host:0", "host:x", "2001:db8::1", "[192.0.2.1",
                            "a..b:25", "-a.example:25", "[::1]x", "[host]:25"})
    EXPECT_FALSE(parse_next_hop(wrong).ok()) << wrong;
}

TEST(Routes, DomainIsLowerCased) {
  auto route = parse_route("Example.COM=[::1]:2526");
  ASSERT_TRUE(route.ok());
  EXPECT_EQ(route->first, "example.com");
  EXPECT_EQ(route->second.host, "::1");
  EXPECT_EQ(route->second.port, 2526);
  for (const char* wrong : {"example.com", "=host:25", "b\xc3\xbc.example=host:25", "example.com="})
    EXPECT_FALSE(parse_route(wrong).ok()) << wrong;
}

TEST(HostNames, FullyQualifiedMeansTwoLabelsAndNoAddress) {
  EXPECT_TRUE(is_fully_qualified("mail.example.com"));
  for (const char* wrong : {"", "mail", "192.0.2.1", "mail.example.com.", "ma_il.example.com",
                            "-a.example", "a-.example", "a..b"})
    EXPECT_FALSE(is_fully_qualified(wrong)) << wrong;
  EXPECT_FALSE(is_fully_qualified(std::string(64, 'a') + ".example"));
}

TEST(Nearest, OnlyWhatIsCloseEnough) {
  std::vector<std::string_view> names{"listen", "hostname", "expire-after", "retry"};
  EXPECT_EQ(nearest("lisen", names), "listen");
  EXPECT_EQ(nearest("host-name", names), "hostname");
  EXPECT_EQ(nearest("expire", names), "expire-after");
  EXPECT_EQ(nearest("colour", names), "");
}

}  // namespace
}  // namespace millrace::config
