// The receive buffers of one group: a provided-buffer ring that the kernel takes blocks from, and
// the pool they return to.
//
// Two ways, one interface:
//   incremental (Linux 6.12): large blocks; each receive takes the next bytes of the block at the
//   head,
//     and the completion says whether the kernel goes on with it;
//   classic: small blocks; each receive takes a whole one.
//
// Only a few blocks lie in the ring at a time, so that memory is touched as it is needed; those
// that returned last go out first, while the cache still has them. Bytes count as in use from the
// first received byte until the last reference is gone.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <deque>
#include <vector>

#include "base/result.h"
#include "reactor/buffers.h"

namespace millrace::reactor {

class ProvidedBuffers final : public BufferPool {
 public:
  struct Options {
    uint16_t group = 0;
    bool incremental = false;
    uint32_t block_size = 0;  // bytes, a multiple of 4096
    uint32_t ring_entries =
        0;               // a power of two: blocks in the ring at most; 0: no ring, private only
    uint64_t limit = 0;  // bytes
  };

  ProvidedBuffers() = default;
  ~ProvidedBuffers() override;
  Status start(io_uring& ring, const Options& options);
  // Takes the buffers back from the ring, which must still be open; no receive is armed any more.
  void stop();

  BufferRef allocate(uint32_t size) override;
  uint64_t bytes_in_use() const override { return used_bytes_; }
  uint64_t bytes_limit() const override { return limit_; }
  void set_limit(uint64_t bytes) override;

  // Tops the ring up as far as the limit allows.
  void refill();
  // Blocks that the kernel may still take bytes of.
  uint32_t blocks_in_ring() const { return in_ring_; }
  // How many parked receives one block may wake.
  uint32_t receives_per_block() const { return options_.incremental ? 16 : 1; }

  struct Piece {
    char* data = nullptr;
    BufferRef buffer;
  };
  // A completion took `size` (0 or more) bytes of the block that `flags` of the completion name.
  Piece take(uint32_t flags, uint32_t size);

 protected:
  void recycle(Buffer& buffer) override;

 private:
  struct Block : Buffer {
    uint32_t filled = 0;  // bytes received so far
    bool in_ring = false;
    bool own_memory = false;  // allocate()d: freed when its last reference goes
    bool resident = false;    // on the free list, with memory behind it
  };

  uint64_t target() const;
  Block* take_block();
  void retire(uint16_t id);
  void release_free_memory(uint64_t wanted);

  // constant after start()
  Options options_;
  io_uring* uring_ = nullptr;
  io_uring_buf_ring* ring_ = nullptr;
  size_t ring_bytes_ = 0;
  // the shard's own
  uint64_t limit_ = 0;
  uint64_t used_bytes_ = 0;           // blocks holding received bytes, and private ones
  uint64_t fresh_bytes_ = 0;          // blocks in the ring without a byte yet
  uint64_t free_resident_bytes_ = 0;  // on the free list
  uint32_t in_ring_ = 0;
  std::deque<Block> blocks_;
  std::vector<Block*> free_;   // last in, first out
  std::vector<Block*> by_id_;  // in the ring, by the kernel's buffer id
  std::vector<uint16_t> free_ids_;
  struct Mapping {
    char* data;
    size_t size;
    size_t carved;
  };
  std::vector<Mapping> mappings_;
};

}  // namespace millrace::reactor
