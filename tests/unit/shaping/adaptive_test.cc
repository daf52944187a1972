// What is learned from refusals: the state machine by itself.
#include "shaping/adaptive.h"

#include <gtest/gtest.h>

namespace millrace::shaping {
namespace {

using dsn::Throttle;
constexpr int64_t kSecond = Adaptive::kSecondNs, kMinute = Adaptive::kMinuteNs, kHour = Adaptive::kHourNs;

class AdaptiveTest : public testing::Test {
 protected:
  // What is refused was begun just now, unless said otherwise.
  bool refuse(Throttle what, uint32_t open = 1, uint32_t accepted = 0, int64_t rest_ms = 0, int64_t begun = INT64_MIN) {
    return state_.refuse(now_, {what, begun == INT64_MIN ? now_ : begun, rest_ms, "421 slow down", open, accepted});
  }
  // Time passes, and the limits bind; what goes at the learned rate is accepted.
  void run(int64_t ns, bool binds = true, bool accepting = true, uint32_t most = 0) {
    for (int64_t end = now_ + ns; now_ < end; now_ += kSecond) {
      double rate = state_.limits().per_minute;
      if (accepting && state_.state() == Adaptive::State::open) {
        for (due_ += rate / 60; due_ >= 1; --due_) state_.accept(now_, now_);
      }
      if (state_.next_at() <= now_) state_.tick(now_, binds, binds, most);
    }
  }
  uint32_t connections() const { return state_.limits().connections; }
  double rate() const { return state_.limits().per_minute; }

  Adaptive state_;
  int64_t now_ = 1000 * kHour;
  double due_ = 0;
};

TEST_F(AdaptiveTest, NothingIsLearnedBeforeARefusal) {
  EXPECT_TRUE(state_.forgotten());
  EXPECT_EQ(connections(), 0u);
  EXPECT_EQ(rate(), 0);
  EXPECT_EQ(state_.next_at(), INT64_MAX);
}

TEST_F(AdaptiveTest, ATooManyConnectionsReplyCutsConnectionsAndNotTheRate) {
  EXPECT_TRUE(refuse(Throttle::concurrency, 11));
  EXPECT_EQ(connections(), 8u);
  EXPECT_EQ(rate(), 0);
  EXPECT_EQ(state_.why_connections().reply, "421 slow down");
  EXPECT_EQ(state_.why_connections().since, now_);
}

TEST_F(AdaptiveTest, WhatWasBegunBeforeTheCutCutsNoMore) {
  int64_t before = now_;
  now_ += kSecond;
  refuse(Throttle::volume, 1, 600);
  EXPECT_EQ(rate(), 300);
  EXPECT_FALSE(refuse(Throttle::volume, 1, 0, 0, before));
  EXPECT_EQ(rate(), 300);
}

TEST_F(AdaptiveTest, ConnectionsRefusedInOneEpisodeWereNotLetIn) {
  int64_t before = now_;
  now_ += kSecond;
  refuse(Throttle::concurrency, 8);  // five were let in, three are refused
  EXPECT_FALSE(refuse(Throttle::concurrency, 7, 0, 0, before));
  EXPECT_FALSE(refuse(Throttle::concurrency, 6, 0, 0, before));
  run(kMinute);
  EXPECT_EQ(connections(), 5u);
}

TEST_F(AdaptiveTest, ConnectionsReturnSoonAndProbeBeyondAfterTenMinutes) {
  refuse(Throttle::concurrency, 21);
  EXPECT_EQ(connections(), 16u);
  run(30 * kSecond);
  EXPECT_EQ(connections(), 18u);  // 0.9 of the 20 that were let in
  run(9 * kMinute);
  EXPECT_EQ(connections(), 18u);
  run(2 * kMinute);
  EXPECT_GT(connections(), 18u);
}

TEST_F(AdaptiveTest, ALimitThatDoesNotBindDoesNotGrow) {
  refuse(Throttle::concurrency, 21);
  now_ += kSecond;
  refuse(Throttle::volume, 1, 600);
  run(2 * kHour, false);
  EXPECT_EQ(connections(), 16u);
  EXPECT_EQ(rate(), 300);
}

TEST_F(AdaptiveTest, LearnedConnectionsAreForgottenOnceAllThatAreConfiguredGo) {
  refuse(Throttle::concurrency, 6);
  run(2 * kHour, true, true, 10);
  EXPECT_TRUE(state_.forgotten());
}

TEST_F(AdaptiveTest, ATooFastReplyHalvesWhatWasAcceptedAndReturnsSoon) {
  refuse(Throttle::volume, 1, 600);
  EXPECT_EQ(rate(), 300);
  EXPECT_EQ(connections(), 0u);
  run(kMinute);
  EXPECT_NEAR(rate(), 570, 1);
}

TEST_F(AdaptiveTest, TheRateGoesBeyondOnceItsRefusalsAreOneInAHundred) {
  refuse(Throttle::volume, 1, 600);
  for (int i = 0; i < 29; ++i) refuse(Throttle::volume, 1, 0, 0, now_ - 1);
  run(5 * kMinute);
  EXPECT_NEAR(rate(), 570, 1);  // 30 were refused, some 2,600 accepted
  run(2 * kMinute);
  EXPECT_GT(rate(), 590);
}

TEST_F(AdaptiveTest, OtherShardsAcceptancesCountForTheFirstCut) {
  refuse(Throttle::volume, 1, 200);
  state_.accepted_elsewhere(now_, 400);
  EXPECT_EQ(rate(), 300);
}

TEST_F(AdaptiveTest, WhereNothingIsAcceptedAfterACutItStopsAndTheCeilingStays) {
  refuse(Throttle::volume, 1, 600);
  now_ += kSecond;
  EXPECT_TRUE(refuse(Throttle::volume));
  EXPECT_EQ(state_.state(), Adaptive::State::stopped);
  EXPECT_EQ(state_.limits().not_before, now_ + 10 * kSecond);
  run(11 * kSecond);
  EXPECT_EQ(state_.state(), Adaptive::State::trial);
  EXPECT_EQ(state_.limits().in_flight, 1u);
  EXPECT_TRUE(state_.accept(now_, now_));
  EXPECT_EQ(rate(), 300);
  run(kMinute);
  EXPECT_NEAR(rate(), 570, 1);
}

TEST_F(AdaptiveTest, StopsForWantOfRoomDouble) {
  refuse(Throttle::concurrency, 1);
  for (int64_t rest = 10 * kSecond; rest <= 8 * kMinute; rest *= 2) {
    EXPECT_EQ(state_.limits().not_before - now_, rest);
    run(rest + kSecond);
    refuse(Throttle::concurrency, 1);
  }
}

TEST_F(AdaptiveTest, AReputationReplyStopsForTheNamedTime) {
  refuse(Throttle::reputation, 1, 100, 4 * kHour / 1'000'000);
  EXPECT_EQ(state_.limits().not_before, now_ + 4 * kHour);
  run(4 * kHour - kMinute);
  EXPECT_EQ(state_.state(), Adaptive::State::stopped);
}

TEST_F(AdaptiveTest, WithoutANamedTimeRestsDoubleFromAQuarterToFourHours) {
  for (int64_t rest : {kHour / 4, kHour / 2, kHour, 2 * kHour, 4 * kHour, 4 * kHour}) {
    EXPECT_TRUE(refuse(Throttle::reputation, 1, 100));
    EXPECT_EQ(state_.limits().not_before - now_, rest);
    run(rest + kSecond);
  }
}

TEST_F(AdaptiveTest, OnlyTheTrialMessagesAcceptanceReopens) {
  int64_t before = now_;
  now_ += kSecond;
  refuse(Throttle::reputation, 1, 100);
  EXPECT_FALSE(state_.accept(now_ + kSecond, before));
  run(16 * kMinute);
  EXPECT_EQ(state_.state(), Adaptive::State::trial);
  EXPECT_FALSE(state_.accept(now_, before));  // a late reply to what was under way
  EXPECT_EQ(state_.state(), Adaptive::State::trial);
  EXPECT_TRUE(state_.accept(now_, now_));
  EXPECT_EQ(state_.state(), Adaptive::State::open);
  EXPECT_EQ(rate(), 50);
}

TEST_F(AdaptiveTest, ARateThatCostTheReputationIsNotTriedAgainForFortyTimesTheRest) {
  refuse(Throttle::volume, 1, 200);
  run(3 * kMinute);
  refuse(Throttle::reputation);
  run(16 * kMinute);
  state_.accept(now_, now_);
  run(2 * kHour);
  const double kept = rate();
  EXPECT_NEAR(kept, 0.95 * 190, 20);
  run(7 * kHour);
  EXPECT_EQ(rate(), kept);
  run(90 * kMinute);
  EXPECT_GT(rate(), kept);
  // It was too much again: back to what was good for so long.
  refuse(Throttle::reputation);
  run(16 * kMinute);
  state_.accept(now_, now_);
  run(3 * kHour);
  EXPECT_NEAR(rate(), kept, 0.1);
}

TEST_F(AdaptiveTest, AfterALostReputationTheRateGrowsByTheLeastStepOnly) {
  refuse(Throttle::reputation, 1, 3);  // a burst, before any rate was kept to
  run(16 * kMinute);
  state_.accept(now_, now_);
  run(kHour);
  const double before = rate();
  run(kMinute);
  EXPECT_NEAR(rate() / before, 1.05, 0.001);
}

TEST_F(AdaptiveTest, WhatHasNotBoundForADayIsForgotten) {
  refuse(Throttle::volume, 1, 600);
  run(25 * kHour, false);
  EXPECT_TRUE(state_.forgotten());
}

TEST(Minute, CountsTheLastMinute) {
  Minute minute;
  for (int64_t at = 1000 * kSecond; at < 1120 * kSecond; at += kSecond) minute.add(at);
  EXPECT_NEAR(minute.sum(1120 * kSecond), 57, 3);
  EXPECT_EQ(minute.sum(1185 * kSecond), 0u);
}

}  // namespace
}  // namespace millrace::shaping
