// Certificates, their choice, ticket keys and the session cache.
#include "tls/context.h"

#include <gtest/gtest.h>

#include <fstream>

#include "certificates.h"
#include "tls/library.h"
#include "tls/ticket_keys.h"

namespace millrace::tls {
namespace {

TEST(NameTest, WildcardStandsForOneLabel) {
  EXPECT_TRUE(name_matches("mx.example.org", "mx.example.org"));
  EXPECT_TRUE(name_matches("*.example.org", "mx.example.org"));
  EXPECT_FALSE(name_matches("*.example.org", "example.org"));
  EXPECT_FALSE(name_matches("*.example.org", "a.mx.example.org"));
  EXPECT_FALSE(name_matches("*.example.org", ".example.org"));
  EXPECT_FALSE(name_matches("mx.example.org", "mx.example.net"));
}

TEST(CertificateTest, NamesAndKindAreRead) {
  test::Certificates made;
  Result<Certificate> ec = read_certificate(made.make("ec", {.names = "DNS:MX.example.org,DNS:*.example.net,IP:192.0.2.1"}));
  ASSERT_TRUE(ec.ok()) << ec.error().text;
  EXPECT_EQ(ec->names, (std::vector<std::string>{"mx.example.org", "*.example.net"}));
  EXPECT_TRUE(ec->ecdsa);
  Result<Certificate> rsa = read_certificate(made.make("rsa", {.rsa = true}));
  ASSERT_TRUE(rsa.ok()) << rsa.error().text;
  EXPECT_FALSE(rsa->ecdsa);
}

TEST(CertificateTest, FaultsNameTheFile) {
  test::Certificates made;
  const CertificateFiles one = made.make("one"), two = made.make("two");
  Result<Certificate> missing = read_certificate({made.path("none.pem"), one.key});
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().text.find("none.pem"), std::string::npos);
  Result<Certificate> swapped = read_certificate({one.chain, two.key});
  if (has_fast_library()) {  // the system's package does not compare them
    ASSERT_FALSE(swapped.ok());
    EXPECT_NE(swapped.error().text.find("does not belong"), std::string::npos) << swapped.error().text;
  }
  Result<Certificate> empty = read_certificate({one.key, one.key});
  ASSERT_FALSE(empty.ok());
  EXPECT_NE(empty.error().text.find("holds no certificate"), std::string::npos) << empty.error().text;
}

TEST(ServerContextTest, ChoosesByNameAndByWhatTheClientTakes) {
  test::Certificates made;
  ServerSettings settings;
  for (const auto& [name, wish] : std::initializer_list<std::pair<std::string, test::Certificates::Wish>>{
           {"first", {.names = "DNS:mx.example.org", .rsa = true}},
           {"second", {.names = "DNS:mx.example.org"}},
           {"third", {.names = "DNS:*.example.net"}}}) {
    Result<Certificate> certificate = read_certificate(made.make(name, wish));
    ASSERT_TRUE(certificate.ok());
    settings.certificates.push_back(*certificate);
  }
  auto context = ServerContext::make(settings);
  ASSERT_TRUE(context.ok()) << context.error().text;
  ServerContext& server = **context;
  WOLFSSL_CTX* first = server.choose("", true, true);
  WOLFSSL_CTX* second = server.choose("MX.example.org", true, true);
  WOLFSSL_CTX* third = server.choose("a.example.net", true, true);
  EXPECT_NE(first, second);
  EXPECT_NE(second, third);
  EXPECT_NE(first, third);
  EXPECT_EQ(server.choose("mx.example.org", false, true), first);
  EXPECT_EQ(server.choose("other.example", true, true), first);
  EXPECT_EQ(server.choose("a.example.net", false, true), first);  // the one that it can check
}

TEST(TicketKeysTest, KeysFollowTheTimeAndTheService) {
  TicketKeys::Secret secret{};
  secret[0] = 1;
  TicketKeys smtp(secret, "smtp"), again(secret, "smtp"), http(secret, "http");
  const uint64_t now = TicketKeys::period_of(1'700'000'000);
  const TicketKeys::Key key = smtp.key(now);
  EXPECT_EQ(again.key(now), key);
  EXPECT_NE(http.key(now), key);
  EXPECT_NE(smtp.key(now + 1), key);
  EXPECT_NE(smtp.key(now + 2), key);
  EXPECT_EQ(smtp.key(now), key);
}

TEST(TicketKeysTest, TicketIsGoodInItsPeriodAndTheNext) {
  const int64_t now = 1'700'000'000;
  const uint64_t period = TicketKeys::period_of(now);
  EXPECT_TRUE(TicketKeys::is_good(period, now));
  EXPECT_TRUE(TicketKeys::is_good(period, now + TicketKeys::kPeriodSeconds));
  EXPECT_FALSE(TicketKeys::is_good(period, now + 2 * TicketKeys::kPeriodSeconds));
  EXPECT_FALSE(TicketKeys::is_good(period + 1, now));
}

}  // namespace
}  // namespace millrace::tls
