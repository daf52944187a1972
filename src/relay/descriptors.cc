#include "relay/descriptors.h"

#include <sys/resource.h>

#include <algorithm>

namespace millrace::relay {
namespace {

// Segments of the spool, logs, name service, operators, connections that are being refused.
constexpr uint64_t kOwn = 1000;

}  // namespace

DescriptorSplit split_descriptors(const config::Config& config, uint64_t limit) {
  DescriptorSplit split{limit, 0, config.max_connections, config.total_connections};
  uint64_t connections = uint64_t{split.inbound} + split.outbound;
  split.needed = connections + kOwn;
  if (split.enough()) return split;
  uint64_t left = limit - std::min(kOwn, limit / 2);
  split.inbound = static_cast<uint32_t>(std::max<uint64_t>(1, left * split.inbound / connections));
  split.outbound = static_cast<uint32_t>(std::max<uint64_t>(1, left * split.outbound / connections));
  return split;
}

uint64_t raise_descriptor_limit(const config::Config& config) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  rlim_t wanted = std::max<rlim_t>(limit.rlim_max, split_descriptors(config, 0).needed);
  rlimit raised{wanted, wanted};
  if (setrlimit(RLIMIT_NOFILE, &raised) != 0) {
    raised = {limit.rlim_max, limit.rlim_max};
    (void)setrlimit(RLIMIT_NOFILE, &raised);
  }
  getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

}  // namespace millrace::relay
