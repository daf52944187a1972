// SpoolId: the one identity of a message, from its 250 to its last event. 128 bits, ordered by
// time, unique over shards, restarts and machines. Never called Message-ID, which is a header.
//
// Layout, most significant first: 48 bits UTC milliseconds, 16 bits counter within the millisecond
// and shard, 64 bits: a random number drawn at each start and mixed with the shard number.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace millrace::mail {

struct SpoolId {
  uint64_t high = 0;
  uint64_t low = 0;

  static constexpr size_t kTextSize = 26;
  // 26 characters of base32 (Crockford's alphabet, upper case, sorts as the number does).
  std::string to_string() const;
  void format(char (&text)[kTextSize]) const;
  // Either case; the letters I, L and O are read as 1, 1 and 0.
  static Result<SpoolId> parse(std::string_view text);

  int64_t time_ms() const { return static_cast<int64_t>(high >> 16); }
  bool empty() const { return high == 0 && low == 0; }
  friend auto operator<=>(const SpoolId&, const SpoolId&) = default;
};

struct SpoolIdHash {
  size_t operator()(const SpoolId& id) const { return id.high * 0x9e3779b97f4a7c15 ^ id.low; }
};

// Makes the ids of one shard. Never repeats and never goes backwards, even when the wall clock
// does.
class SpoolIdMaker {
 public:
  SpoolIdMaker(uint64_t random, unsigned shard) : low_(random ^ (uint64_t{shard} << 48)) {}
  SpoolId make(int64_t wall_ms);
  // No id made from now on has an earlier time, whatever the clock says.
  void not_before(int64_t ms);

 private:
  uint64_t low_;
  uint64_t last_high_ = 0;
};

}  // namespace millrace::mail
