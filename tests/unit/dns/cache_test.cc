// The cache over the model of the DNS, on a simulated clock.
#include "dns/cache.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dns/model.h"
#include "reactor/sim.h"

namespace millrace::dns {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

class CacheTest : public ::testing::Test {
 protected:
  CacheTest()
      : world_(2), io_(world_.make_io(world_.add_host({"192.0.2.250"}))), transport_(*io_, zones_) {
    make({});
  }
  void make(const Cache::Options& options) {
    cache_ = std::make_unique<Cache>(*io_, transport_, options);
  }
  AnswerRef look_up(std::string_view name, Type type = Type::a) {
    AnswerRef found;
    cache_->lookup(name, type, [&](const AnswerRef& answer) { found = answer; });
    EXPECT_EQ(found, nullptr);
    EXPECT_TRUE(world_.run_until([&] { return found != nullptr; }, world_.now() + 60 * kSecond));
    return found;
  }
  uint64_t asked(std::string_view name) { return transport_.asked(name, Type::a); }

  reactor::SimWorld world_;
  std::unique_ptr<reactor::Io> io_;
  ModelZones zones_;
  ModelTransport transport_;
  std::unique_ptr<Cache> cache_;
};

TEST_F(CacheTest, AnswersAreKeptForTheirTtl) {
  zones_.add_address("a.example", "198.51.100.1");
  zones_.ttl_s = 100;
  look_up("a.example");
  world_.run_for(90 * kSecond);
  look_up("A.Example.");
  EXPECT_EQ(asked("a.example"), 1u);
  world_.run_for(20 * kSecond);
  look_up("a.example");
  EXPECT_EQ(asked("a.example"), 2u);
}

TEST_F(CacheTest, TtlIsBoundedBothWays) {
  zones_.add_address("short.example", "198.51.100.1");
  zones_.ttl_s = 0;
  look_up("short.example");
  world_.run_for(29 * kSecond);
  look_up("short.example");
  EXPECT_EQ(asked("short.example"), 1u);
  zones_.add_address("long.example", "198.51.100.1");
  zones_.ttl_s = 0x7fffffff;
  look_up("long.example");
  world_.run_for(86'401 * kSecond);
  look_up("long.example");
  EXPECT_EQ(asked("long.example"), 2u);
}

TEST_F(CacheTest, NegativeAnswersAreKeptAtMostAsLongAsTold) {
  make({.negative_ttl_ms = 10'000});
  zones_.negative_ttl_s = 3600;
  EXPECT_EQ(look_up("no.example")->outcome, Outcome::nxdomain);
  world_.run_for(9 * kSecond);
  look_up("no.example");
  EXPECT_EQ(asked("no.example"), 1u);
  world_.run_for(2 * kSecond);
  look_up("no.example");
  EXPECT_EQ(asked("no.example"), 2u);
}

TEST_F(CacheTest, FailuresAreKeptBriefly) {
  zones_.fail("a.example", Outcome::failure);
  EXPECT_EQ(look_up("a.example")->outcome, Outcome::failure);
  look_up("a.example");
  EXPECT_EQ(asked("a.example"), 1u);
  world_.run_for(6 * kSecond);
  look_up("a.example");
  EXPECT_EQ(asked("a.example"), 2u);
}

TEST_F(CacheTest, OneQueryIsInFlightPerQuestion) {
  zones_.add_address("a.example", "198.51.100.1");
  int answered = 0;
  for (int i = 0; i < 50; ++i)
    cache_->lookup("a.example", Type::a, [&](const AnswerRef&) { ++answered; });
  cache_->lookup("a.example", Type::mx, [&](const AnswerRef&) { ++answered; });
  ASSERT_TRUE(world_.run_until([&] { return answered == 51; }, 60 * kSecond));
  EXPECT_EQ(asked("a.example"), 1u);
  EXPECT_EQ(transport_.queries(), 2u);
}

TEST_F(CacheTest, SizeIsBoundedAndTheLongestUnusedGoes) {
  make({.max_entries = 10});
  for (int i = 0; i < 10; ++i) {
    look_up(fmt::format("n{}.example", i));
  }
  look_up("n0.example");  // used again
  look_up("more.example");
  EXPECT_EQ(cache_->size(), 10u);
  look_up("n0.example");
  EXPECT_EQ(asked("n0.example"), 1u);
  look_up("n1.example");
  EXPECT_EQ(asked("n1.example"), 2u);
}

TEST_F(CacheTest, QueriesInTheNetworkAreBounded) {
  make({.max_in_flight = 4});
  int answered = 0;
  size_t most = 0;
  for (int i = 0; i < 40; ++i) {
    cache_->lookup(fmt::format("n{}.example", i), Type::a, [&](const AnswerRef&) { ++answered; });
    most = std::max(most, transport_.in_flight());
  }
  ASSERT_TRUE(world_.run_until(
      [&] {
        most = std::max(most, transport_.in_flight());
        return answered == 40;
      },
      60 * kSecond));
  EXPECT_EQ(most, 4u);
}

TEST_F(CacheTest, AliasLeftToUsTakesTheLowestTtl) {
  zones_.faults.leave_aliases = true;
  zones_.add_alias("www.example", "real.example");
  zones_.add_address("real.example", "198.51.100.1");
  const AnswerRef answer = look_up("www.example");
  ASSERT_EQ(answer->outcome, Outcome::records);
  EXPECT_EQ(answer->addresses[0].host_string(), "198.51.100.1");
}

TEST_F(CacheTest, LookupFromWithinACallbackIsAnswered) {
  zones_.add_address("a.example", "198.51.100.1");
  bool second = false;
  cache_->lookup("a.example", Type::a, [&](const AnswerRef&) {
    cache_->lookup("a.example", Type::a, [&](const AnswerRef&) { second = true; });
  });
  EXPECT_TRUE(world_.run_until([&] { return second; }, 60 * kSecond));
}

TEST_F(CacheTest, TheEndOfAnOutageIsNoticedThoughNobodyAsks) {
  for (const char* name : {"a.example", "b.example", "c.example"}) zones_.add_address(name, "198.51.100.1");
  int recovered = 0;
  cache_->on_recovered = [&] { ++recovered; };
  zones_.faults.outage = Outcome::failure;
  look_up("a.example");
  look_up("b.example");
  EXPECT_FALSE(cache_->in_outage());
  look_up("c.example");
  EXPECT_TRUE(cache_->in_outage());
  world_.run_for(600 * kSecond);
  EXPECT_EQ(recovered, 0);
  // One name, every 15 s and what the failure itself takes.
  EXPECT_GT(asked("c.example"), 25u);
  EXPECT_LE(asked("c.example"), 42u);
  EXPECT_EQ(asked("a.example"), 1u);
  zones_.faults.outage.reset();
  world_.run_for(25 * kSecond);
  EXPECT_EQ(recovered, 1);
  EXPECT_FALSE(cache_->in_outage());
  const uint64_t before = asked("c.example");
  world_.run_for(600 * kSecond);
  EXPECT_EQ(asked("c.example"), before);
}

TEST_F(CacheTest, ADomainThatFailsAmongOthersIsNoOutage) {
  zones_.add_address("good.example", "198.51.100.1");
  zones_.ttl_s = 0;
  zones_.fail("bad.example", Outcome::failure);
  int recovered = 0;
  cache_->on_recovered = [&] { ++recovered; };
  for (int i = 0; i < 10; ++i) {
    look_up("bad.example");
    world_.run_for(40 * kSecond);
    look_up("good.example");
  }
  EXPECT_FALSE(cache_->in_outage());
  EXPECT_EQ(recovered, 0);
  EXPECT_EQ(asked("bad.example"), 10u);
}

}  // namespace
}  // namespace millrace::dns
