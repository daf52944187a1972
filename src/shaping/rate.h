// A rate limit: never more than `count` in any window of `period`, and never rounded in our favour.
//
// GCRA (ITU-T I.371) spaces events evenly. Timers tick in milliseconds, so a strict spacing would lose
// what falls between two ticks at high rates; a tolerance of a few milliseconds' worth of events lets a
// late wake-up catch up, and the spacing is widened so that the window still never holds more than
// `count`.
#pragma once

#include <algorithm>
#include <cstdint>

#include "config/config.h"

namespace millrace::shaping {

class RateLimiter {
 public:
  RateLimiter() = default;
  explicit RateLimiter(const config::Rate& rate) {
    if (!rate.limited()) return;
    double period_ns = static_cast<double>(rate.period_ms) * 1e6;
    // Events that fit kCatchUp; at least 1 (no tolerance), at most half of the limit.
    double burst = std::clamp(rate.count * kCatchUp / period_ns, 1.0, std::max(1.0, rate.count / 2));
    burst = static_cast<double>(static_cast<int64_t>(burst));
    // One event may catch up where a spacing rounded up to a tick costs more than the wider spacing does.
    if (burst < 2 && rate.count >= 4 && rate.count * rate.count * kTick > period_ns) burst = 2;
    interval_ = static_cast<int64_t>(period_ns / (rate.count - burst + 1) + 1);
    tolerance_ = static_cast<int64_t>((burst - 1) * static_cast<double>(interval_));
  }

  bool limited() const { return interval_ != 0; }
  // When the next event may happen: now or earlier means at once.
  int64_t allowed_at() const { return due_ - tolerance_; }
  bool allowed(int64_t now) const { return !limited() || allowed_at() <= now; }
  void charge(int64_t now) {
    if (!limited()) return;
    due_ = std::max(due_, now) + interval_;
    last_count_ = last_at_ == now ? last_count_ + 1 : 1;
    last_at_ = now;
  }
  // Takes back what was charged at `charged_at` and not used, if nothing has been charged since: as a queue that
  // drains with time, its last unit leaves, but for what has drained of it. An earlier one stays charged.
  void refund(int64_t now, int64_t charged_at) {
    if (!limited() || charged_at != last_at_ || last_count_ == 0) return;
    --last_count_;
    due_ = std::max(due_ - interval_, std::min(due_, now));
  }

 private:
  static constexpr double kCatchUp = 2e6, kTick = 1e6;  // nanoseconds
  int64_t interval_ = 0;                   // nanoseconds between events; 0: no limit
  int64_t tolerance_ = 0;
  int64_t due_ = INT64_MIN / 2;            // the theoretical arrival time of the next event
  int64_t last_at_ = INT64_MIN;            // of the last charge
  uint32_t last_count_ = 0;                // charges at that time
};

}  // namespace millrace::shaping
