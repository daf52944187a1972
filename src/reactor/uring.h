// The production back end of io.h: one io_uring a shard. See docs/reactor.md.
//
// Limits: Linux 6.1 or newer. A ring is used by one thread, the one that calls turn() first. No Op may
// be pending and no BufferRef held when the Io is destroyed. wake() is not for signal handlers. All
// shards end their loops before the first Io is destroyed.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "reactor/io_features.h"
#include "reactor/io.h"

namespace millrace::reactor {

struct UringOptions {
  unsigned submission_entries = 1024;  // a fuller queue is submitted at once
  unsigned completion_entries = 8192;  // past it the kernel queues, and multishots are re-armed
  // Buffers handed out at most, in bytes, a group (BufferPool::set_limit changes it).
  uint64_t ingress_bytes = 256ull << 20;
  uint64_t delivery_bytes = 64ull << 20;
  uint64_t spool_bytes = 64ull << 20;
  uint64_t control_bytes = 16ull << 20;
  // Those the operator allows; the ones the kernel lacks are not used.
  Features features = kAllFeatures;
};

// Fails, naming what is missing, where the kernel or a limit of the process does not suffice.
Result<std::unique_ptr<Io>> make_uring(const UringOptions& options);

// The features that an Io made with `allowed` uses on this kernel.
Result<Features> usable_features(Features allowed);

}  // namespace millrace::reactor
