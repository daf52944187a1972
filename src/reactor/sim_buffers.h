// The simulator's receive buffers, in both layouts that production has: one large block filled with
// pieces of many connections (the kernel's incremental buffers), or one small block for each receive.
// What a block held is overwritten when its last reference goes, so that a reader that kept the bytes
// without the reference is found out.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "reactor/buffers.h"

namespace millrace::reactor {

enum class BufferLayout : uint8_t { incremental, small };

class SimBufferPool final : public BufferPool {
 public:
  // Told whenever a receive may find room again.
  struct Listener {
    virtual void on_buffers_free(SimBufferPool& pool) = 0;
    // False: this allocate() finds nothing.
    virtual bool may_allocate(SimBufferPool& pool) = 0;

   protected:
    ~Listener() = default;
  };
  // `block_size` is a multiple of 4096.
  SimBufferPool(Listener& listener, BufferLayout layout, uint32_t block_size, uint64_t limit);
  ~SimBufferPool() override;

  BufferRef allocate(uint32_t size) override;
  uint64_t bytes_in_use() const override { return in_use_; }
  uint64_t bytes_limit() const override { return limit_; }
  void set_limit(uint64_t bytes) override;

  // Room for a receive, from 1 to *size bytes (*size is set to what there is), or an empty ref: none.
  BufferRef reserve(uint32_t* size, char** data);

 protected:
  void recycle(Buffer& buffer) override;

 private:
  struct Block {
    Buffer buffer;
    uint32_t used = 0;
    bool for_receives = false;
  };
  Block* take(uint32_t size, bool for_receives);
  static void wipe(Block& block);

  Listener& listener_;
  const BufferLayout layout_;
  const uint32_t block_size_;
  uint64_t limit_;
  uint64_t in_use_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;  // by Buffer::index; a free slot is null
  std::vector<uint32_t> free_slots_;
  std::vector<uint32_t> free_blocks_;  // block_size_ each, ready to be filled again
  Block* filling_ = nullptr;           // incremental: the block that receives share
};

}  // namespace millrace::reactor
