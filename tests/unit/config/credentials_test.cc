#include "config/credentials.h"

#include <gtest/gtest.h>

#include "config/values.h"

namespace millrace::config {
namespace {

constexpr std::string_view kSecret =
    "password = \"$6$rounds=1000$saltstring$2BkAo106CG84raQcWpAlhyy6TSSkAsL1nfvBCoezLYyerUzY2l8axTvq6NynEt7SQAx3/cdop9ds0po8uaeHq0\"\n";

std::vector<Source> sources() { return {*parse_source("192.0.2.1=mta1.example.com"), *parse_source("192.0.2.2=mta2.example.com")}; }

Result<std::shared_ptr<const Credentials>> parse(std::string text) { return Credentials::parse(text, "c.toml", sources()); }

TEST(Credentials, HaveAllThatAnAccountMay) {
  auto parsed = parse(std::string("[account.\"joe@example.com\"]\n").append(kSecret) +
                      "networks = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nsenders = [\"Example.com\", \"Joe@Example.NET\"]\n"
                      "tenant = \"acme\"\npools = [\"bulk\"]\nsources = [\"MTA2.example.com\"]\n"
                      "recipients-per-hour = 10\nrecipients-per-day = 100\nauto-freeze = false\n");
  ASSERT_TRUE(parsed.ok()) << parsed.error().text;
  const Account* account = (*parsed)->find("joe@example.com");
  ASSERT_TRUE(account);
  EXPECT_FALSE((*parsed)->find("joe"));
  EXPECT_TRUE(account->allows_network(*reactor::Address::parse_host("192.0.2.77", 0)));
  EXPECT_FALSE(account->allows_network(*reactor::Address::parse_host("198.51.100.1", 0)));
  EXPECT_TRUE(account->allows_sender("x@EXAMPLE.com"));
  EXPECT_TRUE(account->allows_sender("Joe@example.net"));
  EXPECT_FALSE(account->allows_sender("joe@example.net"));
  EXPECT_FALSE(account->allows_sender("x@sub.example.com"));
  EXPECT_TRUE(account->allows_sender(""));
  EXPECT_EQ(account->sources, (std::vector<unsigned>{1}));
  EXPECT_EQ(account->tenant, "acme");
  EXPECT_EQ(account->recipients_per_day, 100u);
  EXPECT_FALSE(account->auto_freeze);
  EXPECT_FALSE((*parsed)->has_scram());
}

TEST(Credentials, EveryErrorNamesItsLineAndTheRemedyAndNoSecret) {
  auto parsed = parse(
      "[account.joe]\npasword = \"hunter2hunter2\"\n[account.jane]\npassword = \"hunter2hunter2\"\nnetworks = [\"nowhere\"]\n"
      "senders = [\"@\"]\nsources = [\"mta3.example.com\"]\nrecipients-per-hour = 0\nrecipients-per-day = \"many\"\n"
      "auto-freeze = 1\nscram-sha-256 = \"hunter2hunter2\"\ntenant = \"\"\npools = []\n[acount.jim]\n");
  ASSERT_FALSE(parsed.ok());
  const std::string& text = parsed.error().text;
  for (const char* part : {"c.toml:2: unknown key 'pasword'; did you mean password?", "c.toml:1: account joe has neither password",
                           "c.toml:4: password: not a crypt(3) hash", "c.toml:5: networks: 'nowhere'", "c.toml:6: senders: '@'",
                           "c.toml:7: sources: 'mta3.example.com' is none of --source", "c.toml:8: recipients-per-hour",
                           "c.toml:9: recipients-per-day", "c.toml:10: auto-freeze", "c.toml:11: scram-sha-256",
                           "c.toml:12: tenant", "c.toml:13: pools", "c.toml:14: unknown section 'acount'"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  EXPECT_EQ(text.find("hunter2"), std::string::npos);
  auto broken = parse("[account.joe]\npassword = hunter2hunter2\n");
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().text.find("c.toml:2: not TOML"), std::string::npos) << broken.error().text;
  EXPECT_EQ(broken.error().text.find("hunter2"), std::string::npos);
}

TEST(Credentials, AnHourThatIsMoreThanTheDayIsAnError) {
  EXPECT_FALSE(parse(std::string("[account.joe]\n").append(kSecret) + "recipients-per-hour = 11\nrecipients-per-day = 10\n").ok());
}

TEST(SetPassword, ChangesOneAccountAndNothingElse) {
  const std::string before =
      "# ours\n[account.joe]   # the first\n  password = \"old\"\ntenant = \"t\"\n\n[account.\"a@b.c\"]\npassword = \"other\"\n";
  auto after = set_password(before, "joe", "$y$new", "SCRAM-SHA-256$x");
  ASSERT_TRUE(after.ok()) << after.error().text;
  EXPECT_EQ(*after,
            "# ours\n[account.joe]   # the first\npassword = \"$y$new\"\nscram-sha-256 = \"SCRAM-SHA-256$x\"\ntenant = \"t\"\n\n"
            "[account.\"a@b.c\"]\npassword = \"other\"\n");
  auto again = set_password(*after, "a@b.c", "$y$2", "s2");
  ASSERT_TRUE(again.ok());
  EXPECT_NE(again->find("[account.\"a@b.c\"]\npassword = \"$y$2\"\nscram-sha-256 = \"s2\"\n"), std::string::npos);
}

TEST(SetPassword, AddsAccountsWithTheNamesThatTheyHave) {
  EXPECT_EQ(*set_password("", "joe", "p", "s"), "[account.joe]\npassword = \"p\"\nscram-sha-256 = \"s\"\n");
  EXPECT_EQ(*set_password("[account.joe]\npassword = \"x\"", "o\"d\\d", "p", "s"),
            "[account.joe]\npassword = \"x\"\n\n[account.\"o\\\"d\\\\d\"]\npassword = \"p\"\nscram-sha-256 = \"s\"\n");
  EXPECT_FALSE(set_password("", "", "p", "s").ok());
  EXPECT_FALSE(set_password("", "a\nb", "p", "s").ok());
}

TEST(SetPassword, WhatItCannotChangeItLeaves) {
  EXPECT_FALSE(set_password("not toml", "joe", "p", "s").ok());
  EXPECT_FALSE(set_password("account.joe.password = \"x\"\n", "joe", "p", "s").ok());
  EXPECT_FALSE(set_password("[account]\njoe = { password = \"x\" }\n", "joe", "p", "s").ok());
}

}  // namespace
}  // namespace millrace::config
