// How the process's file descriptors are shared out: each connection is one, and where there are too few for
// what is configured, neither side may take the other's.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace millrace::relay {

struct DescriptorSplit {
  uint64_t limit = 0;     // RLIMIT_NOFILE
  uint64_t needed = 0;    // for all that is configured, files and sockets of the relay's own included
  uint32_t inbound = 0;   // connections: as configured, or scaled down in proportion
  uint32_t outbound = 0;
  bool enough() const { return limit >= needed; }
};

DescriptorSplit split_descriptors(const config::Config& config, uint64_t limit);

// As many as the system lets this process have; returns how many that is.
uint64_t raise_descriptor_limit(const config::Config& config);

}  // namespace millrace::relay
