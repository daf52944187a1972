#include "auth/guard.h"

#include <gtest/gtest.h>

namespace millrace::auth {
namespace {

using Verdict = Guard::Verdict;
constexpr int64_t kMinute = 60'000;

TEST(Guard, EachFailureMakesTheNextRefusalLater) {
  Guard guard;
  EXPECT_EQ(guard.failed("192.0.2.1", "joe", 0), 1000);
  EXPECT_EQ(guard.failed("192.0.2.1", "jane", 0), 2000);
  EXPECT_EQ(guard.failed("192.0.2.1", "joe", 0), 4000);
  for (int i = 0; i < 10; ++i) EXPECT_LE(guard.failed("192.0.2.1", "joe", 0), 30'000);
  EXPECT_EQ(guard.failed("192.0.2.2", "joe", 0), 1000);
}

TEST(Guard, AnAddressIsShutOutForATime) {
  Guard guard;
  for (int i = 0; i < 19; ++i) guard.failed("192.0.2.1", "u" + std::to_string(i), 0);
  EXPECT_EQ(guard.check("192.0.2.1", "joe", 1), Verdict::may_try);
  guard.failed("192.0.2.1", "joe", 0);
  EXPECT_EQ(guard.check("192.0.2.1", "joe", 1), Verdict::address_shut_out);
  EXPECT_EQ(guard.check("192.0.2.2", "joe", 1), Verdict::may_try);
  EXPECT_EQ(guard.check("192.0.2.1", "joe", 15 * kMinute + 1), Verdict::may_try);
}

TEST(Guard, AnAccountUnderAttackStaysOpenToWhereItWasUsedBefore) {
  Guard guard;
  guard.succeeded("198.51.100.1", "joe", 0);
  for (int i = 0; i < 50; ++i) guard.failed("192.0.2." + std::to_string(i), "joe", 0);
  EXPECT_EQ(guard.check("203.0.113.1", "joe", 1), Verdict::account_shut_out);
  EXPECT_EQ(guard.check("203.0.113.1", "jane", 1), Verdict::may_try);
  EXPECT_EQ(guard.check("198.51.100.1", "joe", 1), Verdict::may_try);
  EXPECT_EQ(guard.check("203.0.113.1", "joe", 15 * kMinute + 1), Verdict::may_try);
}

TEST(Guard, TheOwnersOwnSlipsDoNotShutTheAccount) {
  Guard guard;
  guard.succeeded("198.51.100.1", "joe", 0);
  for (int i = 0; i < 100; ++i) guard.failed("198.51.100.1", "joe", i * 2 * kMinute);
  EXPECT_EQ(guard.check("203.0.113.1", "joe", 200 * kMinute), Verdict::may_try);
}

TEST(Guard, FailuresAreForgottenAfterAnHour) {
  Guard guard;
  for (int i = 0; i < 5; ++i) guard.failed("192.0.2.1", "joe", 0);
  EXPECT_EQ(guard.failed("192.0.2.1", "joe", 61 * kMinute), 1000);
}

TEST(Guard, OneRightPasswordDoesNotBuyGuessesAtOthers) {
  Guard guard;
  int tried = 0;
  while (guard.check("192.0.2.1", "joe", 0) == Verdict::may_try && tried < 1000) {
    guard.failed("192.0.2.1", "joe", 0);
    guard.failed("192.0.2.1", "joe", 0);
    guard.failed("192.0.2.1", "joe", 0);
    ++tried;
    if (tried % 8 == 0) guard.succeeded("192.0.2.1", "mine", 0);
  }
  EXPECT_LT(tried, 100);
}

TEST(Guard, ItsTablesAreBounded) {
  Guard::Limits limits;
  limits.entries_most = 100;
  Guard guard(limits);
  for (int i = 0; i < 1000; ++i) guard.failed("a" + std::to_string(i), "u" + std::to_string(i), i);
  EXPECT_EQ(guard.addresses(), 100u);
  // The latest are known, the first are not.
  EXPECT_EQ(guard.failed("a999", "u", 1000), 2000);
  EXPECT_EQ(guard.failed("a0", "u", 1000), 1000);
}

}  // namespace
}  // namespace millrace::auth
