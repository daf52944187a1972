// What tenants may hand in: windows, giving back, and what of it outlives a restart.
#include "ingress/quotas.h"

#include <gtest/gtest.h>

#include <memory>

#include "config/values.h"

namespace millrace::ingress {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kHour = 3600 * kSecond;
constexpr int64_t kWall = 1'795'000'000'000;

std::vector<config::Rate> rates(std::initializer_list<const char*> texts) {
  std::vector<config::Rate> out;
  for (const char* text : texts) out.push_back(*config::parse_rate(text));
  return out;
}

uint64_t take(Quotas& quotas, const std::vector<config::Rate>& limits, uint64_t most, int64_t now) {
  uint64_t taken = 0;
  while (taken < most && !quotas.charge("acme", limits, 1, now, kWall + now / 1'000'000)) ++taken;
  return taken;
}

TEST(Quotas, EveryWindowHoldsAndTheLastToOpenIsNamed) {
  Quotas quotas;
  auto limits = rates({"100/h", "150/d"});
  EXPECT_EQ(take(quotas, limits, 1000, 0), 100u);
  auto refusal = quotas.charge("acme", limits, 1, 0, kWall);
  ASSERT_TRUE(refusal);
  EXPECT_EQ(config::print_rate(refusal->rate), "100/h");
  EXPECT_GT(refusal->until_ms, kWall + 3'500'000);
  EXPECT_LT(refusal->until_ms, kWall + 3'800'000);
  // At the time that was named there is room.
  int64_t then = (refusal->until_ms - kWall) * 1'000'000;
  EXPECT_EQ(take(quotas, limits, 1000, then), 50u);
  EXPECT_EQ(config::print_rate(quotas.charge("acme", limits, 1, then, kWall)->rate), "150/d");
  EXPECT_FALSE(quotas.charge("other", limits, 100, then, kWall)) << "another tenant has its own";
}

TEST(Quotas, AMessageOfManyRecipientsGoesAsAWholeOrNotAtAll) {
  Quotas quotas;
  auto limits = rates({"100/h"});
  EXPECT_FALSE(quotas.charge("acme", limits, 60, 0, kWall));
  EXPECT_TRUE(quotas.charge("acme", limits, 60, 0, kWall));
  EXPECT_FALSE(quotas.charge("acme", limits, 40, 0, kWall));
  // More than a whole quota could never go: it counts as all of it.
  EXPECT_FALSE(quotas.charge("large", limits, 1000, 0, kWall));
  EXPECT_TRUE(quotas.charge("large", limits, 1, 0, kWall));
}

TEST(Quotas, WhatIsGivenBackMayBeUsedAgain) {
  Quotas quotas;
  auto limits = rates({"10/h"});
  EXPECT_EQ(take(quotas, limits, 10, 0), 10u);
  quotas.refund("acme", 4, 0, kSecond);
  EXPECT_EQ(take(quotas, limits, 10, kSecond), 4u);
}

TEST(Quotas, OutliveRestartsAndCrashesAndAreNeverOver) {
  for (uint64_t sent : {1u, 63u, 64u, 500u, 1000u}) {
    std::map<std::string, std::string> disk;
    auto limits = rates({"10/m", "1000/d"});
    limits.erase(limits.begin());
    uint64_t before = 0;
    {
      Quotas quotas;
      quotas.on_changed = [&](const std::string& tenant) {
        for (auto& record : quotas.records(tenant, kHour, kWall)) disk[record.key] = record.value;
      };
      before = take(quotas, limits, sent, kHour);
      EXPECT_EQ(before, sent);
    }
    ASSERT_EQ(disk.size(), 1u);
    EXPECT_EQ(disk.begin()->first, "quota/86400000/acme");
    Quotas quotas;
    quotas.recover(std::string_view(disk.begin()->first).substr(6), disk.begin()->second, 0, kWall);
    uint64_t after = take(quotas, limits, 2000, 0);
    EXPECT_LE(before + after, 1000u) << sent;
    EXPECT_GE(before + after, 1000u - 1000 / 64) << sent;
  }
}

TEST(Quotas, ShortWindowsAreNotWritten) {
  Quotas quotas;
  int written = 0;
  quotas.on_changed = [&](const std::string&) { ++written; };
  EXPECT_EQ(take(quotas, rates({"50/m"}), 100, 0), 50u);
  EXPECT_EQ(written, 0);
  EXPECT_TRUE(quotas.records("acme", 0, kWall).empty());
}

TEST(Quotas, ARecordThatMakesNoSenseIsNoLimit) {
  Quotas quotas;
  for (const char* key : {"", "x", "x/acme", "60000/acme", "86400000"}) quotas.recover(key, "1 2 3", 0, kWall);
  EXPECT_EQ(take(quotas, rates({"10/d"}), 100, 0), 10u);
}

}  // namespace
}  // namespace millrace::ingress
