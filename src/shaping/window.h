// A budget over a sliding window: never more than `limit` in any span of `period`, whatever the weights
// and whenever the charges come. Unlike a spacing (rate.h) it lets a whole budget go at once and gives
// back exactly what was charged and not used.
//
// Time is cut into kBuckets cells; a charge lies in the cell of its time, and the last kBuckets cells
// together hold at most `limit`. Any span of `period` touches at most kBuckets of them, because a cell
// is (period + slack) / (kBuckets - 1) wide. So it is exact, and at most 1/63 slower than the limit.
// `slack` is how long after its charge a use may come.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "base/assert.h"

namespace millrace::shaping {

class Window {
 public:
  static constexpr int kBuckets = 64;

  Window(uint64_t limit, int64_t period_ns, int64_t slack_ns)
      : limit_(limit), width_((period_ns + slack_ns + kBuckets - 2) / (kBuckets - 1)) {}

  uint64_t limit() const { return limit_; }
  // A lowered limit lets nothing more in until what is in the window is below it.
  void set_limit(uint64_t limit) { limit_ = limit; }
  uint64_t used(int64_t now) {
    advance(now);
    return sum_;
  }
  // What is larger than the whole limit counts as the whole limit: else it could never go.
  uint64_t weight(uint64_t n) const { return std::min(n, limit_); }
  bool allowed(int64_t now, uint64_t n) {
    advance(now);
    return sum_ + weight(n) <= limit_;
  }
  void charge(int64_t now, uint64_t n) {
    advance(now);
    cells_[index(newest_)] += n;
    sum_ += n;
  }
  // Takes back what was charged at `charged_at` and not used.
  void refund(int64_t now, int64_t charged_at, uint64_t n) {
    advance(now);
    int64_t cell = floor(charged_at, width_);
    if (cell <= newest_ - kBuckets || cell > newest_) return;
    uint64_t& at = cells_[index(cell)];
    n = std::min(n, at);
    at -= n;
    sum_ -= n;
  }
  // When `n` more will be allowed if nothing else is charged.
  int64_t allowed_at(int64_t now, uint64_t n) {
    advance(now);
    uint64_t left = sum_;
    n = weight(n);
    for (int64_t cell = newest_ - kBuckets + 1; left + n > limit_ && cell <= newest_; ++cell) {
      left -= cells_[index(cell)];
      if (left + n <= limit_) return (cell + kBuckets) * width_;
    }
    return now;
  }

  // For the disk, times in UTC milliseconds: "width newest-cell's-end, counts oldest first".
  void encode(int64_t now, int64_t wall_ms, uint64_t ahead, std::string& out) {
    advance(now);
    int64_t end_ms = wall_ms + ((newest_ + 1) * width_ - now) / 1'000'000;
    out = std::to_string(width_) + ' ' + std::to_string(end_ms) + ' ' + std::to_string(ahead);
    for (int64_t cell = newest_ - kBuckets + 1; cell <= newest_; ++cell) {
      out += ' ';
      out += std::to_string(cells_[index(cell)]);
    }
  }
  // Charges what was in use then, not earlier than it was, and `ahead` as used just now: it may have
  // been used after the record was written. False: the record makes no sense.
  bool decode(int64_t now, int64_t wall_ms, std::string_view text) {
    auto number = [&text](auto& to) {
      size_t end = std::min(text.find(' '), text.size());
      to = {};
      bool any = false;
      for (char c : text.substr(0, end)) {
        if (c < '0' || c > '9') return false;
        to = to * 10 + static_cast<std::remove_reference_t<decltype(to)>>(c - '0');
        any = true;
      }
      text.remove_prefix(std::min(end + 1, text.size()));
      return any;
    };
    int64_t width = 0, end_ms = 0;
    uint64_t ahead = 0;
    if (!number(width) || !number(end_ms) || !number(ahead) || width <= 0) return false;
    for (int64_t cell = 0; cell < kBuckets; ++cell) {
      uint64_t count = 0;
      if (!number(count)) return false;
      if (count == 0) continue;
      // The end of its cell is the latest that it can have been used.
      int64_t ago_ms = wall_ms - (end_ms - (kBuckets - 1 - cell) * (width / 1'000'000));
      int64_t at = now - std::max<int64_t>(ago_ms, 0) * 1'000'000;
      put(now, at, count);
    }
    if (ahead > 0) charge(now, ahead);
    return true;
  }

 private:
  static size_t index(int64_t cell) { return static_cast<size_t>(cell % kBuckets + kBuckets) % kBuckets; }
  static int64_t floor(int64_t time, int64_t width) { return time >= 0 ? time / width : -((-time + width - 1) / width); }
  void advance(int64_t now) {
    int64_t cell = floor(now, width_);
    if (cell <= newest_) return;
    if (cell - newest_ >= kBuckets) {
      cells_.fill(0);
      sum_ = 0;
    } else {
      for (int64_t gone = newest_ + 1; gone <= cell; ++gone) {
        sum_ -= cells_[index(gone)];
        cells_[index(gone)] = 0;
      }
    }
    newest_ = cell;
  }
  void put(int64_t now, int64_t at, uint64_t n) {
    advance(now);
    int64_t cell = std::min(floor(at, width_), newest_);
    if (cell <= newest_ - kBuckets) return;
    cells_[index(cell)] += n;
    sum_ += n;
  }

  uint64_t limit_;
  int64_t width_;                  // nanoseconds a cell
  int64_t newest_ = std::numeric_limits<int64_t>::min() / 2;  // number of the newest cell
  uint64_t sum_ = 0;
  std::array<uint64_t, kBuckets> cells_{};
};

}  // namespace millrace::shaping
