#include "ingress/connection_limits.h"

#include <cstring>

#include "base/assert.h"

namespace millrace::ingress {

uint64_t ConnectionLimits::key(const reactor::Address& client) {
  // ff00::/8 is multicast and never a client, so its top serves for IPv4.
  constexpr uint64_t kIpv4 = 0xffffffff00000000;
  std::string_view octets = client.octets();
  auto number = [&](size_t from, size_t count) {
    uint64_t value = 0;
    for (size_t i = from; i < from + count; ++i) {
      value = value << 8 | static_cast<uint8_t>(octets[i]);
    }
    return value;
  };
  if (octets.size() == 4) return kIpv4 | number(0, 4);
  if (octets.size() != 16) return kIpv4;  // a Unix socket: one client
  constexpr char kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '\xff', '\xff'};
  if (std::memcmp(octets.data(), kMapped, sizeof kMapped) == 0) return kIpv4 | number(12, 4);
  return number(0, 8);
}

ConnectionLimits::Verdict ConnectionLimits::enter(const reactor::Address& client, uint32_t most,
                                                  uint32_t most_of_client) {
  if (open_.fetch_add(1, std::memory_order_relaxed) >= most) {
    open_.fetch_sub(1, std::memory_order_relaxed);
    return Verdict::too_many;
  }
  uint64_t of = key(client);
  Stripe& at = stripe(of);
  {
    std::lock_guard lock(at.mutex);
    uint32_t& count = at.clients[of];
    if (count < most_of_client) {
      ++count;
      return Verdict::granted;
    }
    if (count == 0) at.clients.erase(of);  // the limit is zero
  }
  open_.fetch_sub(1, std::memory_order_relaxed);
  return Verdict::too_many_of_client;
}

void ConnectionLimits::leave(const reactor::Address& client) {
  uint64_t of = key(client);
  Stripe& at = stripe(of);
  {
    std::lock_guard lock(at.mutex);
    auto found = at.clients.find(of);
    ASSERT(found != at.clients.end());
    if (--found->second == 0) at.clients.erase(found);
  }
  open_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace millrace::ingress
