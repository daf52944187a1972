// What tenants may hand in: recipients of accepted messages over sliding windows, `intake-rate` of [tenant.NAME] in the
// shaping file. For all shards, and exact over them: shared and locked, by one of kStripes locks, once a message of a
// tenant that has a quota; mail without a tenant never comes here.
//
// On the disk: windows of an hour or longer, key "quota/PERIOD/NAME" with the period in milliseconds. A part (1/64) is written
// before it is used, by a letter that goes ahead of the message's own record (see accounts.h): what was answered with
// 250 has been counted, also after a crash.
//
// Limits: a message of more recipients than a whole quota counts as the whole quota. A tenant is known until the next start.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "config/config.h"
#include "shaping/window.h"

namespace millrace::ingress {

class Quotas final {
 public:
  struct Refusal {
    config::Rate rate;     // that is used up
    int64_t until_ms = 0;  // UTC: when there is room for this message again
  };
  // Any thread; `now` is monotonic. Nothing is charged where one of the windows has no room.
  std::optional<Refusal> charge(std::string_view tenant, const std::vector<config::Rate>& rates, uint64_t recipients, int64_t now,
                                int64_t wall_ms);
  // What was charged at `charged_at` and not accepted.
  void refund(std::string_view tenant, uint64_t recipients, int64_t charged_at, int64_t now);

  // ---- the disk. On the control shard.
  std::function<void(const std::string& tenant)> on_changed;  // records() are to be written
  struct Record {
    std::string key, value;
  };
  std::vector<Record> records(const std::string& tenant, int64_t now, int64_t wall_ms);
  // Before the first session. `key` begins behind "quota/".
  void recover(std::string_view key, std::string_view value, int64_t now, int64_t wall_ms);

 private:
  struct Budget {
    explicit Budget(int64_t period_ms) : window(kNoLimit, period_ms * 1'000'000, 0) {}
    shaping::Window window;
    uint64_t charged = 0, written = 0;  // since the start; of that, what the disk knows
  };
  using Book = std::map<int64_t, Budget>;  // by period
  struct alignas(64) Stripe {
    std::mutex mutex;
    std::unordered_map<std::string, Book> books;
  };
  static constexpr size_t kStripes = 16;
  static constexpr uint64_t kNoLimit = UINT64_MAX / 2;

  Stripe& stripe_of(std::string_view tenant) { return stripes_[std::hash<std::string_view>()(tenant) % kStripes]; }
  std::array<Stripe, kStripes> stripes_;
};

}  // namespace millrace::ingress
