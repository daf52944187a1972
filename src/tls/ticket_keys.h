// The keys of the session tickets that we give to clients (RFC 5077, RFC 8446 4.6.1): derived from one
// secret of the process and the time, so that all shards agree on them without sharing anything that
// changes, and a new key comes into use every period by itself. A ticket is good for the period that it was
// made in and the one after.
//
// `service` separates: a ticket of one service opens no session of another (checklist row 12).
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace millrace::tls {

class TicketKeys {
 public:
  static constexpr int64_t kPeriodSeconds = 4 * 3600;
  using Secret = std::array<uint8_t, 32>;
  using Key = std::array<uint8_t, 32>;  // AES-256

  TicketKeys(const Secret& secret, std::string service);
  // Of this process: made from the system's randomness when first asked for. Any thread.
  static const Secret& process_secret();

  // The number of the period that contains `unix_seconds`.
  static uint64_t period_of(int64_t unix_seconds);
  // Whether a ticket of `period` is still good.
  static bool is_good(uint64_t period, int64_t unix_seconds);
  const Key& key(uint64_t period);

 private:
  const Secret secret_;
  const std::string service_;
  // The two last used: the present period and the one before.
  struct Slot {
    uint64_t period = UINT64_MAX;
    Key key{};
  };
  std::array<Slot, 2> slots_;
};

}  // namespace millrace::tls
