// How many inbound connections there are, in all and by client: the one thing the shards' listeners
// share. Touched when a connection comes and goes, never by a message, so a striped lock is enough and
// the limits are exact however the kernel spreads connections over shards.
//
// A client is an IPv4 address or an IPv6 /64: whoever has one address of a /64 has all of them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "reactor/address.h"

namespace millrace::ingress {

class ConnectionLimits {
 public:
  enum class Verdict : uint8_t { granted, too_many, too_many_of_client };

  // Any thread. `granted` is to be given back by leave() with the same address.
  Verdict enter(const reactor::Address& client, uint32_t most, uint32_t most_of_client);
  void leave(const reactor::Address& client);

  uint32_t open() const { return open_.load(std::memory_order_relaxed); }

 private:
  static uint64_t key(const reactor::Address& client);

  static constexpr size_t kStripes = 64;
  struct alignas(64) Stripe {
    std::mutex mutex;
    std::unordered_map<uint64_t, uint32_t> clients;
  };
  Stripe& stripe(uint64_t key) { return stripes_[(key * 0x9e3779b97f4a7c15) >> 58]; }

  std::atomic<uint32_t> open_{0};
  std::array<Stripe, kStripes> stripes_;
};

}  // namespace millrace::ingress
