// A hold: a scope (site, source at a site, destination) is left alone until a time, longer each time it
// fails again, and says why. Consumes no attempt of any message.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::shaping {

class Hold {
 public:
  bool active(int64_t now) const { return until_ > now; }
  int64_t until() const { return until_; }
  const std::string& reason() const { return reason_; }
  unsigned failures() const { return failures_; }

  // Fails at `now`: held for `named_ms` if the receiver named a time, else for the next step of
  // `schedule_ms`. A failure of what was begun before the hold is the same episode and changes nothing.
  void fail(int64_t now, int64_t begun, const std::vector<int64_t>& schedule_ms, int64_t named_ms,
            std::string_view why) {
    if (begun < since_ || active(now)) return;
    size_t step = failures_ < schedule_ms.size() ? failures_ : schedule_ms.size() - 1;
    int64_t wait_ms = named_ms > 0 || schedule_ms.empty() ? named_ms : schedule_ms[step];
    ++failures_;
    since_ = now;
    until_ = now + wait_ms * 1'000'000;
    reason_ = why;
  }
  // What was begun at `begun` has gone well: it works again, unless that was before it was held.
  void works(int64_t begun) {
    if (begun >= since_) clear();
  }
  // It works again.
  void clear() {
    if (failures_ == 0) return;
    failures_ = 0;
    until_ = INT64_MIN;
    reason_.clear();
  }
  // An operator's retry: ends the wait, keeps the count of failures.
  void end_now() { until_ = INT64_MIN; }

 private:
  int64_t since_ = INT64_MIN;
  int64_t until_ = INT64_MIN;
  unsigned failures_ = 0;
  std::string reason_;
};

}  // namespace millrace::shaping
