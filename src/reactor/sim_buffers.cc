#include "reactor/sim_buffers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace millrace::reactor {
namespace {

constexpr uint32_t kAlignment = 4096;

}  // namespace

SimBufferPool::SimBufferPool(Listener& listener, BufferLayout layout, uint32_t block_size,
                             uint64_t limit)
    : listener_(listener), layout_(layout), block_size_(block_size), limit_(limit) {
  ASSERT(block_size % kAlignment == 0 && block_size > 0);
}

SimBufferPool::~SimBufferPool() {
  for (auto& block : blocks_) {
    if (!block) continue;
    // Whoever holds a reference would hand it back to a pool that is gone.
    ASSERT(block->buffer.references == (block.get() == filling_ ? 1 : 0));
    std::free(block->buffer.data);
  }
}

SimBufferPool::Block* SimBufferPool::take(uint32_t size, bool for_receives) {
  if (in_use_ + size > limit_) return nullptr;
  Block* block;
  if (size == block_size_ && !free_blocks_.empty()) {
    block = blocks_[free_blocks_.back()].get();
    free_blocks_.pop_back();
  } else {
    uint32_t slot;
    if (free_slots_.empty()) {
      slot = static_cast<uint32_t>(blocks_.size());
      blocks_.emplace_back();
    } else {
      slot = free_slots_.back();
      free_slots_.pop_back();
    }
    blocks_[slot] = std::make_unique<Block>();
    block = blocks_[slot].get();
    block->buffer.data = static_cast<char*>(std::aligned_alloc(kAlignment, size));
    ASSERT(block->buffer.data != nullptr);
    block->buffer.size = size;
    block->buffer.index = slot;
    block->buffer.pool = this;
  }
  block->buffer.references = 1;
  block->used = 0;
  block->for_receives = for_receives;
  in_use_ += size;
  return block;
}

BufferRef SimBufferPool::allocate(uint32_t size) {
  if (size == 0 || size > UINT32_MAX - kAlignment || !listener_.may_allocate(*this)) return {};
  Block* block = take((size + kAlignment - 1) / kAlignment * kAlignment, false);
  return block ? BufferRef(&block->buffer) : BufferRef();
}

BufferRef SimBufferPool::reserve(uint32_t* size, char** data) {
  if (layout_ == BufferLayout::small) {
    Block* block = take(block_size_, true);
    if (!block) return {};
    *size = std::min(*size, block_size_);
    block->used = *size;
    *data = block->buffer.data;
    return BufferRef(&block->buffer);
  }
  if (!filling_) filling_ = take(block_size_, true);
  if (!filling_) return {};
  Block* block = filling_;
  *size = std::min(*size, block_size_ - block->used);
  *data = block->buffer.data + block->used;
  block->used += *size;
  if (block->used == block_size_) {
    filling_ = nullptr;  // the pool's own reference goes to the last piece
  } else {
    ++block->buffer.references;
  }
  return BufferRef(&block->buffer);
}

void SimBufferPool::wipe(Block& block) {
  uint32_t used = block.for_receives ? block.used : block.buffer.size;
  std::memset(block.buffer.data, 0xdd, used);
}

void SimBufferPool::recycle(Buffer& buffer) {
  Block& block = *blocks_[buffer.index];
  ASSERT(&block.buffer == &buffer);
  wipe(block);
  in_use_ -= buffer.size;
  if (buffer.size == block_size_) {
    free_blocks_.push_back(buffer.index);
  } else {
    std::free(buffer.data);
    free_slots_.push_back(buffer.index);
    blocks_[buffer.index] = nullptr;
  }
  listener_.on_buffers_free(*this);
}

void SimBufferPool::set_limit(uint64_t bytes) {
  limit_ = bytes;
  listener_.on_buffers_free(*this);
}

}  // namespace millrace::reactor
