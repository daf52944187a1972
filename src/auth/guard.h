// Slows down whoever guesses passwords, by client address and by account. Each failure makes the next refusal come
// later; past a number of them everything is refused at once for a time, without a look at the password.
//
//   address: the 535 is delayed by 1, 2, 4 ... 30 s; after 20 failures the address is shut out for 15 minutes
//   account: after 50 failures from addresses that have never been right about it, only addresses that have been
//            (within 30 days) get in for 15 minutes: a guesser cannot lock the owner out
//
// An address is an IPv4 address or an IPv6 /64. A failure is forgotten after an hour. Not synchronized: the owner
// locks. Both tables are bounded; when one is full, what failed longest ago goes.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

namespace millrace::auth {

class Guard {
 public:
  struct Limits {
    uint32_t failures_of_address = 20;
    uint32_t failures_of_account = 50;
    int64_t forget_ms = 3'600'000;
    int64_t shut_out_ms = 900'000;
    int64_t longest_delay_ms = 30'000;
    int64_t trust_ms = 30LL * 86'400'000;
    size_t entries_most = 65'536;  // of each table
  };
  Guard() : Guard(Limits()) {}
  explicit Guard(const Limits& limits) : limits_(limits) {}

  // Whether it may try at all. Times are monotonic milliseconds.
  enum class Verdict : uint8_t { may_try, address_shut_out, account_shut_out };
  Verdict check(std::string_view address, std::string_view account, int64_t now_ms);
  // Says how long the refusal is to be delayed.
  int64_t failed(std::string_view address, std::string_view account, int64_t now_ms);
  void succeeded(std::string_view address, std::string_view account, int64_t now_ms);

  size_t addresses() const { return addresses_.size(); }

 private:
  struct Entry {
    uint32_t failures = 0;
    int64_t last_ms = 0;
    int64_t shut_until_ms = 0;
    std::list<std::string>::iterator age;  // in order of the last failure, or success
  };
  struct Table {
    std::unordered_map<std::string, Entry> entries;
    std::list<std::string> ages;
    size_t size() const { return entries.size(); }
  };
  Entry* find(Table& table, const std::string& key, int64_t now_ms, int64_t keep_ms);
  Entry& touch(Table& table, const std::string& key, int64_t now_ms);
  size_t most() const { return limits_.entries_most; }
  static std::string pair(std::string_view address, std::string_view account);

  const Limits limits_;
  Table addresses_, accounts_;
  Table trusted_;  // (address, account) that were right
};

}  // namespace millrace::auth
