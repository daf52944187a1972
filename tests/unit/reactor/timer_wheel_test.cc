#include "reactor/timer_wheel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/prng.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kStart = 123'456'789'012;  // not on a tick

struct Clock {
  explicit Clock(int64_t at = kStart) : now(at) { wheel.start(now); }
  void advance(int64_t nanoseconds) {
    now += nanoseconds;
    wheel.advance(now);
  }
  TimerWheel wheel;
  int64_t now;
};

struct Owner {
  Owner() { timer.bind<&Owner::on_due>(this); }
  void on_due() {
    ++fired;
    if (log) log->push_back(this);
    if (then) then(*this);
  }
  Timer timer;
  int fired = 0;
  std::vector<Owner*>* log = nullptr;
  void (*then)(Owner&) = nullptr;
  Clock* clock = nullptr;
  Owner* other = nullptr;
};

TEST(TimerWheel, NeverFiresEarlyAndAtMostATickLate) {
  for (int64_t delay :
       {int64_t{1}, kMillisecond / 2, kMillisecond, 63 * kMillisecond, 64 * kMillisecond,
        65 * kMillisecond, 4096 * kMillisecond + 1, int64_t{86'400'000} * kMillisecond}) {
    Clock clock;
    Owner owner;
    int64_t deadline = clock.now + delay;
    clock.wheel.arm(owner.timer, deadline);
    clock.wheel.advance(deadline - 1);
    EXPECT_EQ(owner.fired, 0) << delay;
    clock.wheel.advance(deadline + kMillisecond);
    EXPECT_EQ(owner.fired, 1) << delay;
    EXPECT_FALSE(owner.timer.armed());
  }
}

TEST(TimerWheel, SleepingUntilNextReachesATimerInOneStepALevel) {
  Prng prng(7);
  for (int round = 0; round < 2000; ++round) {
    Clock clock(static_cast<int64_t>(prng.next() >> 20));
    Owner owner;
    int64_t delay = 1 + static_cast<int64_t>(prng.next() >> (16 + prng.below(46)));
    int64_t deadline = clock.now + delay;
    clock.wheel.arm(owner.timer, deadline);
    int steps = 0;
    while (owner.fired == 0) {
      int64_t next = clock.wheel.next();
      ASSERT_LT(next, deadline + kMillisecond);
      ASSERT_GT(next, clock.now);  // or the loop would not sleep
      clock.now = next;
      clock.wheel.advance(next);
      ASSERT_LE(++steps, 8) << delay;
    }
    EXPECT_GE(clock.now, deadline);
  }
}

TEST(TimerWheel, NextIsNeverWhenNothingIsArmed) {
  Clock clock;
  EXPECT_EQ(clock.wheel.next(), INT64_MAX);
  Owner owner;
  clock.wheel.arm(owner.timer, clock.now + 100 * kMillisecond);
  EXPECT_LT(clock.wheel.next(), INT64_MAX);
  owner.timer.cancel();  // the wheel is not told
  EXPECT_EQ(clock.wheel.next(), INT64_MAX);
  clock.advance(200 * kMillisecond);
  EXPECT_EQ(owner.fired, 0);
}

TEST(TimerWheel, DeadlineInThePastFiresAtTheNextAdvance) {
  Clock clock;
  Owner owner;
  clock.wheel.arm(owner.timer, clock.now - 5 * kMillisecond);
  EXPECT_LE(clock.wheel.next(), clock.now);
  EXPECT_EQ(owner.fired, 0);
  clock.advance(0);
  EXPECT_EQ(owner.fired, 1);
}

TEST(TimerWheel, CallbackThatArmsForThePastDoesNotHoldTheAdvance) {
  Clock clock;
  Owner owner;
  owner.clock = &clock;
  owner.then = [](Owner& self) { self.clock->wheel.arm(self.timer, self.clock->now); };
  clock.wheel.arm(owner.timer, clock.now + kMillisecond);
  clock.advance(10 * kMillisecond);
  EXPECT_GE(owner.fired, 1);
  EXPECT_LE(owner.fired, 2);
  int before = owner.fired;
  clock.advance(0);
  EXPECT_EQ(owner.fired, before + 1);
}

TEST(TimerWheel, CallbackMayCancelAndDestroyOthersDueAtTheSameTime) {
  Clock clock;
  auto first = std::make_unique<Owner>();
  auto second = std::make_unique<Owner>();
  static std::unique_ptr<Owner>* victim;
  victim = &second;
  first->then = [](Owner&) { victim->reset(); };
  clock.wheel.arm(first->timer, clock.now + kMillisecond);
  clock.wheel.arm(second->timer, clock.now + kMillisecond);
  clock.advance(5 * kMillisecond);
  EXPECT_EQ(first->fired, 1);
  EXPECT_EQ(second, nullptr);
}

TEST(TimerWheel, RearmingMovesTheDeadline) {
  Clock clock;
  Owner owner;
  clock.wheel.arm(owner.timer, clock.now + 10 * kMillisecond);
  clock.wheel.arm(owner.timer, clock.now + 500 * kMillisecond);
  clock.advance(400 * kMillisecond);
  EXPECT_EQ(owner.fired, 0);
  clock.advance(101 * kMillisecond);
  EXPECT_EQ(owner.fired, 1);
}

TEST(TimerWheel, NeverMeansNever) {
  Clock clock;
  Owner owner;
  clock.wheel.arm(owner.timer, INT64_MAX);
  clock.advance(int64_t{3600} * 24 * 365 * 10 * 1000 * kMillisecond);
  EXPECT_EQ(owner.fired, 0);
  EXPECT_TRUE(owner.timer.armed());
}

TEST(TimerWheel, CrossingTheHorizonKeepsDeadlines) {
  constexpr int64_t kHorizon = (int64_t{1} << 36) * kMillisecond;
  Clock clock(kHorizon - 3 * kMillisecond);
  Owner near, far;
  clock.wheel.arm(near.timer, kHorizon + 2 * kMillisecond);
  clock.wheel.arm(far.timer, 3 * kHorizon + 7 * kMillisecond);
  clock.advance(4 * kMillisecond);
  EXPECT_EQ(near.fired, 0);
  clock.advance(2 * kMillisecond);
  EXPECT_EQ(near.fired, 1);
  clock.wheel.advance(3 * kHorizon + 6 * kMillisecond);
  EXPECT_EQ(far.fired, 0);
  clock.wheel.advance(3 * kHorizon + 7 * kMillisecond);
  EXPECT_EQ(far.fired, 1);
}

TEST(TimerWheel, TimersOutliveTheWheel) {
  Owner owner;
  {
    Clock clock;
    clock.wheel.arm(owner.timer, clock.now + kMillisecond);
  }
  EXPECT_FALSE(owner.timer.armed());
}

// Random arms, re-arms, cancels and advances, against a list that is searched.
TEST(TimerWheel, AgreesWithASimpleModel) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Prng prng(seed);
    Clock clock(static_cast<int64_t>(prng.next() >> (2 + prng.below(40))));
    std::vector<Owner*> log;
    std::vector<std::unique_ptr<Owner>> owners;
    for (int i = 0; i < 200; ++i) {
      owners.push_back(std::make_unique<Owner>());
      owners.back()->log = &log;
    }
    // Armed for the past, or due on a tick.
    std::vector<bool> past(owners.size(), false);
    auto fire_tick = [](const Owner& owner) {
      return (owner.timer.deadline + kMillisecond - 1) / kMillisecond;
    };
    for (int step = 0; step < 5000; ++step) {
      size_t chosen = prng.below(owners.size());
      Owner& owner = *owners[chosen];
      switch (prng.below(4)) {
        case 0:
        case 1: {
          // Delays of every magnitude, a few of them in the past.
          auto delay = static_cast<int64_t>(prng.next() >> (14 + prng.below(50)));
          int64_t deadline =
              prng.below(10) == 0 ? std::max<int64_t>(0, clock.now - delay) : clock.now + delay;
          clock.wheel.arm(owner.timer, deadline);
          past[chosen] = deadline <= clock.now;
          break;
        }
        case 2:
          owner.timer.cancel();
          break;
        case 3: {
          clock.now += static_cast<int64_t>(prng.next() >> (20 + prng.below(44)));
          std::vector<Owner*> due;
          for (size_t i = 0; i < owners.size(); ++i) {
            bool passed = past[i] || fire_tick(*owners[i]) <= clock.now / kMillisecond;
            if (owners[i]->timer.armed() && passed) due.push_back(owners[i].get());
          }
          log.clear();
          clock.wheel.advance(clock.now);
          ASSERT_EQ(log.size(), due.size());
          EXPECT_TRUE(std::is_permutation(log.begin(), log.end(), due.begin()));
          break;
        }
      }
      int64_t earliest = INT64_MAX;
      for (size_t i = 0; i < owners.size(); ++i) {
        if (!owners[i]->timer.armed()) continue;
        earliest = std::min(earliest, past[i] ? clock.now : fire_tick(*owners[i]) * kMillisecond);
      }
      int64_t next = clock.wheel.next();
      ASSERT_LE(next, earliest);
      ASSERT_EQ(next > clock.now, earliest > clock.now);
      ASSERT_EQ(next == INT64_MAX, earliest == INT64_MAX);
    }
  }
}

TEST(TimerWheel, FiresInOrderOfDeadlines) {
  Prng prng(3);
  Clock clock;
  std::vector<Owner*> log;
  std::vector<Owner> owners(5000);
  for (Owner& owner : owners) {
    owner.log = &log;
    clock.wheel.arm(owner.timer,
                    clock.now + 1 + static_cast<int64_t>(prng.below(100'000) * kMillisecond));
  }
  clock.advance(100'001 * kMillisecond);
  ASSERT_EQ(log.size(), owners.size());
  EXPECT_TRUE(std::is_sorted(log.begin(), log.end(), [](const Owner* a, const Owner* b) {
    return a->timer.deadline / kMillisecond < b->timer.deadline / kMillisecond;
  }));
}

}  // namespace
}  // namespace millrace::reactor
