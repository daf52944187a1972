// What is known of accounts while the relay runs, for all shards: who guesses passwords, which were right a moment ago,
// what each account has sent, and which are frozen. What accounts *may* is the credentials file's
// (config/credentials.h).
//
// Like ConnectionLimits this is shared and locked: by its own lock for authentication (once a session), by one of
// kStripes for an account's numbers (once a recipient of an account with a limit, once a message, once an outcome).
// Only the shards that serve the same account meet there, and mail without an account never does. That makes its
// limits exact over all shards.
//
// On the disk. Budgets and days are written by the control shard (`on_changed` asks it to), keys "account/h/NAME"
// (the hour), "account/d/NAME" (24 hours) and "account/s/NAME" (days). A message's recipients are charged before its record goes to the same log, and the letter that
// asks for the writing goes ahead of the record: whatever was answered with 250 has been counted, also after a crash.
//
// Limits: freezing looks at one day (UTC) at a time; what is refused is not counted.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "auth/guard.h"
#include "auth/success_cache.h"
#include "config/credentials.h"
#include "reactor/address.h"
#include "shaping/window.h"

namespace millrace::ingress {

class Accounts final {
 public:
  Accounts();

  // ---- authentication. Any thread; times are monotonic nanoseconds.
  auth::Guard::Verdict check(const reactor::Address& client, std::string_view account, int64_t now);
  // Nanoseconds by which the refusal is to be delayed.
  int64_t failed(const reactor::Address& client, std::string_view account, int64_t now);
  void succeeded(const reactor::Address& client, std::string_view account, int64_t now);
  std::string digest(const config::Account& account, std::string_view password) const;
  bool was_right(const std::string& digest, int64_t now);
  void remember(const std::string& digest, int64_t now);

  // What SCRAM is told about an account, or about a name that nobody has: always the same salt for the same name.
  auth::ScramVerifier scram_verifier(const config::Credentials& credentials, std::string_view user) const;
  // What that salt is made from; from the spool's state, so that it outlives restarts. Before the first session.
  void set_secret(std::string secret) { secret_ = std::move(secret); }

  // ---- budgets. Any thread.
  struct Refusal {
    std::string_view budget;  // "hour" or "day"
    uint64_t limit = 0;
    int64_t until_ms = 0;     // UTC
  };
  // One recipient more; nothing is charged where one of the budgets has no room.
  std::optional<Refusal> charge(const config::Account& account, int64_t now, int64_t wall_ms);
  // Recipients that were charged at `charged_at` and not accepted.
  void refund(std::string_view account, uint64_t recipients, int64_t charged_at, int64_t now);

  // ---- days, and freezing. Any thread.
  void accepted(const config::Account& account, uint64_t recipients, int64_t wall_ms);
  void ended(std::string_view account, bool bounced, int64_t wall_ms);
  bool frozen(std::string_view account);
  void set_frozen(std::string_view account, bool frozen);
  // Of what `accepted` and `ended` meet; the freezing itself is the control's.
  std::function<void(const std::string& account, const std::string& why)> on_suspicious;

  // ---- the disk. On the control shard.
  // Something of the account is to be written: records().
  std::function<void(const std::string& account)> on_changed;
  struct Record {
    std::string key, value;
  };
  std::vector<Record> records(const std::string& account, int64_t now, int64_t wall_ms);
  // Before the first session. `key` begins behind "account/".
  void recover(std::string_view key, std::string_view value, int64_t now, int64_t wall_ms);

  static constexpr uint64_t kRiseFactor = 10;
  static constexpr uint64_t kRiseFloor = 1000;       // recipients a day below which nothing is a rise
  static constexpr size_t kRiseDays = 3;             // that there must be to compare with
  static constexpr uint64_t kBounceFloor = 500;      // outcomes a day below which nothing is judged
  static constexpr uint64_t kBouncePercent = 30;

 private:
  struct Budget {
    explicit Budget(uint64_t limit, int64_t period_ns) : window(limit, period_ns, 0) {}
    shaping::Window window;
    uint64_t charged = 0;  // since the start
    uint64_t written = 0;  // of that, what the disk knows of
  };
  struct Days {
    int64_t today = 0;                        // days since 1970
    uint64_t recipients = 0, delivered = 0, bounced = 0;
    std::vector<std::pair<int64_t, uint64_t>> before;  // recipients by day, oldest first; at most 7
    uint64_t unwritten = 0;
  };
  struct Book {
    std::optional<Budget> hour, day;
    std::string recovered_hour, recovered_day;
    Days days;
    bool frozen = false;
    bool auto_freeze = true;
    bool reported = false;  // told to on_suspicious, not frozen yet
  };
  struct alignas(64) Stripe {
    std::mutex mutex;
    std::unordered_map<std::string, Book> books;
  };
  static constexpr size_t kStripes = 64;

  static std::string address_key(const reactor::Address& client);
  Stripe& stripe_of(std::string_view account) { return stripes_[std::hash<std::string_view>()(account) % kStripes]; }
  static Budget* budget_of(std::optional<Budget>& budget, std::string& recovered, uint64_t limit, int64_t period_ns,
                           int64_t now, int64_t wall_ms);
  static void turn_day(Days& days, int64_t wall_ms);
  static std::string suspicion(const Days& days);

  std::mutex guard_mutex_;
  auth::Guard guard_;
  auth::SuccessCache right_;
  std::string secret_;
  std::array<Stripe, kStripes> stripes_;
};

}  // namespace millrace::ingress
