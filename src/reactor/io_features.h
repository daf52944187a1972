// What the running kernel offers beyond the floor (Linux 6.1), and what the operator lets us use of it
// (--io-features). Every feature has a fallback that behaves the same and costs more; CI runs once with
// all of them masked.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace millrace::reactor {

struct Features {
  // incremental-buffers, Linux 6.12: one large receive buffer holds pieces of many receives. Without:
  // one small buffer for each receive.
  bool incremental_buffers = false;
  // msg-ring: one core wakes another through its own ring, without a system call of its own. Without:
  // an eventfd.
  bool msg_ring = false;

  // "incremental-buffers,msg-ring", or "none".
  std::string to_string() const;
  friend Features operator&(Features a, Features b) {
    return {a.incremental_buffers && b.incremental_buffers, a.msg_ring && b.msg_ring};
  }
  friend bool operator==(const Features&, const Features&) = default;
};

inline constexpr Features kAllFeatures{true, true};

// The value of --io-features: "all", "none", or a comma-separated list of names.
Result<Features> parse_features(std::string_view text);

// Asks the kernel. Fails, naming what is missing and the remedy, where io_uring cannot be used at all.
Result<Features> probe_features();

}  // namespace millrace::reactor
