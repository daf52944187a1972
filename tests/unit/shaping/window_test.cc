#include "shaping/window.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/prng.h"
#include "shaping/rate.h"

namespace millrace::shaping {
namespace {

constexpr int64_t kMs = 1'000'000, kSecond = 1000 * kMs;

struct Use {
  int64_t at;
  uint64_t n;
};

// The most that any half-open span of `period` holds. A span that holds the most begins at a use.
uint64_t most_in_a_window(const std::vector<Use>& uses, int64_t period) {
  uint64_t most = 0, sum = 0;
  size_t first = 0;
  for (size_t last = 0; last < uses.size(); ++last) {
    sum += uses[last].n;
    while (uses[last].at - uses[first].at >= period) sum -= uses[first++].n;
    most = std::max(most, sum);
  }
  return most;
}

TEST(Window, LetsTheWholeBudgetGoAtOnceAndNoMore) {
  Window window(10, 60 * kSecond, 0);
  int64_t now = 1000 * kSecond;
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(window.allowed(now, 1));
    window.charge(now, 1);
  }
  EXPECT_FALSE(window.allowed(now, 1));
  int64_t at = window.allowed_at(now, 1);
  EXPECT_GE(at, now + 60 * kSecond);
  EXPECT_LE(at, now + 62 * kSecond);
  EXPECT_FALSE(window.allowed(at - 1, 1));
  EXPECT_TRUE(window.allowed(at, 1));
}

TEST(Window, NoSpanIsEverOverUnderRandomSchedules) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    uint64_t limit = 1 + prng.below(40);
    int64_t period = static_cast<int64_t>(1 + prng.below(5000)) * kMs;
    int64_t slack = static_cast<int64_t>(prng.below(3)) * 20 * kMs;
    Window window(limit, period, slack);
    std::vector<Use> uses;
    int64_t now = static_cast<int64_t>(prng.below(1'000'000'000'000));
    for (int i = 0; i < 2000; ++i) {
      now += static_cast<int64_t>(prng.below(static_cast<uint64_t>(period) / (prng.below(10) == 0 ? 2 : limit * 2) + 2));
      uint64_t n = 1 + prng.below(limit);
      if (!window.allowed(now, n)) {
        int64_t at = window.allowed_at(now, n);
        ASSERT_GT(at, now) << "seed " << seed;
        if (prng.below(2) == 0) continue;
        now = at;
        ASSERT_TRUE(window.allowed(now, n)) << "seed " << seed;
      }
      window.charge(now, n);
      // The use comes up to `slack` later.
      uses.push_back({now + (slack ? static_cast<int64_t>(prng.below(static_cast<uint64_t>(slack))) : 0), n});
    }
    std::sort(uses.begin(), uses.end(), [](const Use& a, const Use& b) { return a.at < b.at; });
    ASSERT_LE(most_in_a_window(uses, period), limit) << "seed " << seed;
    ASSERT_GT(uses.size(), 100u) << "seed " << seed;
  }
}

TEST(Window, WhatIsGivenBackMayBeUsedAgainAndNoSpanIsOver) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    uint64_t limit = 2 + prng.below(20);
    int64_t period = kSecond;
    Window window(limit, period, 0);
    std::vector<Use> kept;
    std::vector<int64_t> out;
    int64_t now = 77 * kSecond;
    for (int i = 0; i < 3000; ++i) {
      now += static_cast<int64_t>(prng.below(60)) * kMs;
      if (!out.empty() && prng.below(3) == 0) {
        size_t which = prng.below(out.size());
        if (prng.below(2) == 0) {
          window.refund(now, out[which], 1);  // was not accepted
        } else {
          kept.push_back({out[which], 1});
        }
        out.erase(out.begin() + static_cast<std::ptrdiff_t>(which));
      } else if (window.allowed(now, 1)) {
        window.charge(now, 1);
        out.push_back(now);
      }
    }
    for (int64_t at : out) kept.push_back({at, 1});
    std::sort(kept.begin(), kept.end(), [](const Use& a, const Use& b) { return a.at < b.at; });
    ASSERT_LE(most_in_a_window(kept, period), limit) << "seed " << seed;
  }
}

TEST(Window, AFullLoadReachesTheLimitButForASixtieth) {
  Window window(1000, 10 * kSecond, 0);
  uint64_t sent = 0;
  for (int64_t now = 0; now < 1000 * kSecond; now += kMs) {
    if (window.allowed(now, 1)) window.charge(now, 1), ++sent;
  }
  EXPECT_GE(sent, 100'000u * 62 / 64);
}

TEST(Window, WhatIsLargerThanTheLimitGoesAloneInItsWindow) {
  Window window(10, kSecond, 0);
  ASSERT_TRUE(window.allowed(0, 25));
  window.charge(0, window.weight(25));
  EXPECT_FALSE(window.allowed(0, 1));
}

TEST(Window, SurvivesARestartWithoutBeingRefilled) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng prng(seed);
    uint64_t limit = 1 + prng.below(50);
    int64_t period = 3600 * kSecond;
    auto window = std::make_unique<Window>(limit, period, 0);
    std::vector<Use> uses;
    int64_t clock = 0, base = 0;  // clock: since the world began; the monotonic clock begins anew at each start
    for (int i = 0; i < 3000; ++i) {
      clock += static_cast<int64_t>(prng.below(200)) * kSecond;
      if (prng.below(100) == 0) {
        std::string record;
        window->encode(clock - base, clock / kMs, 0, record);
        clock += static_cast<int64_t>(prng.below(1000)) * kSecond;
        base = clock - static_cast<int64_t>(prng.below(1000)) * kSecond;
        window = std::make_unique<Window>(limit, period, 0);
        ASSERT_TRUE(window->decode(clock - base, clock / kMs, record));
      }
      if (window->allowed(clock - base, 1)) {
        window->charge(clock - base, 1);
        uses.push_back({clock, 1});
      }
    }
    ASSERT_LE(most_in_a_window(uses, period), limit) << "seed " << seed;
  }
}

TEST(Window, ARecordThatMakesNoSenseIsRefused) {
  Window window(10, kSecond, 0);
  for (const char* text : {"", "1", "x y z", "-5 1 1", "1000 5 0 1 2 3"}) EXPECT_FALSE(window.decode(0, 0, text)) << text;
}

TEST(RateLimiter, NoSpanIsEverOverUnderRandomSchedules) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    config::Rate rate{static_cast<double>(1 + prng.below(3000)), static_cast<int64_t>(1 + prng.below(60)) * 1000};
    RateLimiter limiter(rate);
    std::vector<Use> uses;
    int64_t now = 0;
    for (int i = 0; i < 3000; ++i) {
      if (prng.below(50) == 0) now += static_cast<int64_t>(prng.below(static_cast<uint64_t>(rate.period_ms))) * kMs;
      if (!limiter.allowed(now)) now = limiter.allowed_at() + static_cast<int64_t>(prng.below(3)) * kMs;
      limiter.charge(now);
      uses.push_back({now, 1});
    }
    ASSERT_LE(most_in_a_window(uses, rate.period_ms * kMs), static_cast<uint64_t>(rate.count)) << "seed " << seed;
  }
}

TEST(RateLimiter, WhatIsGivenBackLeavesNoSpanOver) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    config::Rate rate{static_cast<double>(1 + prng.below(1500)), static_cast<int64_t>(1 + prng.below(3)) * 1000};
    RateLimiter limiter(rate);
    std::vector<Use> uses;
    int64_t now = 0;
    for (int i = 0; i < 3000; ++i) {
      now += static_cast<int64_t>(prng.below(5)) * kMs;
      if (!limiter.allowed(now)) continue;
      limiter.charge(now);
      if (prng.below(3) != 0) {
        uses.push_back({now, 1});
        continue;
      }
      int64_t charged = now;
      now += static_cast<int64_t>(prng.below(30)) * kMs;
      if (prng.below(4) == 0 && limiter.allowed(now)) limiter.charge(now), uses.push_back({now, 1});
      limiter.refund(now, charged);
    }
    ASSERT_LE(most_in_a_window(uses, rate.period_ms * kMs), static_cast<uint64_t>(rate.count)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace millrace::shaping
