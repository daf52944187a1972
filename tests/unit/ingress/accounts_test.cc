// What accounts have sent: budgets, days, freezing, and what of it outlives a restart.
#include "ingress/accounts.h"

#include <gtest/gtest.h>

#include <memory>

namespace millrace::ingress {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kHour = 3600 * kSecond;
constexpr int64_t kWall = 1'795'000'000'000;
constexpr int64_t kDayMs = 86'400'000;

config::Account limited(uint64_t hour, uint64_t day) {
  config::Account account;
  account.name = "joe";
  account.recipients_per_hour = hour;
  account.recipients_per_day = day;
  return account;
}

struct Book {
  std::unique_ptr<Accounts> accounts = std::make_unique<Accounts>();
  uint64_t take(const config::Account& account, uint64_t most, int64_t now) {
    uint64_t taken = 0;
    while (taken < most && !accounts->charge(account, now, kWall + now / 1'000'000)) ++taken;
    return taken;
  }
};

TEST(Accounts, BudgetsOfAnHourAndADayHoldTogether) {
  Book book;
  config::Account account = limited(100, 150);
  EXPECT_EQ(book.take(account, 1000, 0), 100u);
  auto refusal = book.accounts->charge(account, 0, kWall);
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->budget, "hour");
  EXPECT_GT(refusal->until_ms, kWall + 3'500'000);
  EXPECT_LT(refusal->until_ms, kWall + 3'800'000);
  EXPECT_EQ(book.take(account, 1000, kHour + kHour / 10), 50u);
  EXPECT_EQ(book.accounts->charge(account, kHour + kHour / 10, kWall)->budget, "day");
  EXPECT_EQ(book.take(account, 1000, 26 * kHour), 100u);
}

TEST(Accounts, WhatIsGivenBackMayBeUsedAgain) {
  Book book;
  config::Account account = limited(10, 0);
  EXPECT_EQ(book.take(account, 10, 0), 10u);
  book.accounts->refund("joe", 4, 0, kSecond);
  EXPECT_EQ(book.take(account, 10, kSecond), 4u);
}

TEST(Accounts, WithoutALimitNothingIsCharged) {
  Book book;
  EXPECT_EQ(book.take(limited(0, 0), 100'000, 0), 100'000u);
}

TEST(Accounts, BudgetsOutliveARestartAndAreNeverOver) {
  Book before;
  std::vector<Accounts::Record> disk;
  before.accounts->on_changed = [&](const std::string& account) { disk = before.accounts->records(account, 0, kWall); };
  config::Account account = limited(1000, 5000);
  EXPECT_EQ(before.take(account, 700, 0), 700u);
  ASSERT_FALSE(disk.empty());
  Book after;
  for (const Accounts::Record& record : disk) {
    ASSERT_TRUE(record.key.starts_with("account/"));
    after.accounts->recover(record.key.substr(8), record.value, 5 * kSecond, kWall + 6000);
  }
  uint64_t left = after.take(account, 10'000, 5 * kSecond);
  EXPECT_LE(left, 300u);
  EXPECT_GE(left, 300u - 1000 / 64 - 1);  // what was written ahead counts as used
}

TEST(Accounts, JunkOnTheDiskIsPassedOver) {
  Book book;
  for (std::string_view key : {"", "h", "h/", "x/joe", "h/joe", "s/joe"}) book.accounts->recover(key, "no numbers", 0, kWall);
  EXPECT_EQ(book.take(limited(5, 0), 10, 0), 5u);
}

TEST(Accounts, ASuddenRiseIsSuspiciousOnce) {
  Book book;
  config::Account account = limited(0, 0);
  std::vector<std::string> suspicions;
  book.accounts->on_suspicious = [&](const std::string&, const std::string& why) { suspicions.push_back(why); };
  for (int day = 0; day < 5; ++day) book.accounts->accepted(account, 200, kWall + day * kDayMs);
  EXPECT_TRUE(suspicions.empty());
  book.accounts->accepted(account, 1999, kWall + 5 * kDayMs);
  EXPECT_TRUE(suspicions.empty());
  book.accounts->accepted(account, 2, kWall + 5 * kDayMs);
  ASSERT_EQ(suspicions.size(), 1u);
  EXPECT_NE(suspicions[0].find("2001 recipients today, the median of the days before is 200"), std::string::npos);
  book.accounts->accepted(account, 1000, kWall + 5 * kDayMs);
  EXPECT_EQ(suspicions.size(), 1u);
}

TEST(Accounts, ANewAccountAndASmallOneAreNotJudged) {
  Book book;
  int suspicions = 0;
  book.accounts->on_suspicious = [&](const std::string&, const std::string&) { ++suspicions; };
  book.accounts->accepted(limited(0, 0), 1'000'000, kWall);
  config::Account small = limited(0, 0);
  small.name = "small";
  for (int day = 0; day < 5; ++day) book.accounts->accepted(small, 1, kWall + day * kDayMs);
  book.accounts->accepted(small, 900, kWall + 5 * kDayMs);
  config::Account trusted = limited(0, 0);
  trusted.name = "trusted";
  trusted.auto_freeze = false;
  for (int day = 0; day < 5; ++day) book.accounts->accepted(trusted, 1, kWall + day * kDayMs);
  book.accounts->accepted(trusted, 1'000'000, kWall + 5 * kDayMs);
  EXPECT_EQ(suspicions, 0);
}

TEST(Accounts, ManyBouncesAreSuspicious) {
  Book book;
  std::vector<std::string> suspicions;
  book.accounts->on_suspicious = [&](const std::string&, const std::string& why) { suspicions.push_back(why); };
  book.accounts->accepted(limited(0, 0), 1000, kWall);
  for (int n = 0; n < 400; ++n) book.accounts->ended("joe", false, kWall);
  for (int n = 0; n < 171; ++n) book.accounts->ended("joe", true, kWall);
  EXPECT_TRUE(suspicions.empty());
  book.accounts->ended("joe", true, kWall);
  ASSERT_EQ(suspicions.size(), 1u);
  EXPECT_NE(suspicions[0].find("many bounces: 172 of 572"), std::string::npos) << suspicions[0];
}

TEST(Accounts, NamesThatNobodyHasHaveTheirOwnSaltAlways) {
  auto credentials = *config::Credentials::parse(
      "[account.joe]\nscram-sha-256 = \"" +
          auth::print_scram_verifier(auth::make_scram_verifier("secret", "0123456789abcdef", 5000)) + "\"\n",
      "credentials.toml", {});
  auto one = std::make_unique<Accounts>(), again = std::make_unique<Accounts>(), other = std::make_unique<Accounts>();
  one->set_secret("the same");
  again->set_secret("the same");
  const auth::ScramVerifier nobody = one->scram_verifier(*credentials, "nobody");
  EXPECT_EQ(nobody.salt, again->scram_verifier(*credentials, "nobody").salt);
  EXPECT_NE(nobody.salt, one->scram_verifier(*credentials, "somebody").salt);
  EXPECT_NE(nobody.salt, other->scram_verifier(*credentials, "nobody").salt);
  EXPECT_EQ(nobody.iterations, 5000u);
  EXPECT_EQ(nobody.salt.size(), auth::kSaltSize);
  EXPECT_EQ(one->scram_verifier(*credentials, "joe").salt, "0123456789abcdef");
}

}  // namespace
}  // namespace millrace::ingress
