// Receive buffers. A Buffer is a large aligned block that the kernel (or the simulator) fills with
// pieces of many connections; whoever keeps bytes of it holds a reference, and the last one gone gives
// the block back to be filled again. Counts are not atomic: references stay on the shard that received
// them, and another shard only borrows the bytes while the home holds the reference.
//
// --memory counts whole buffers. The pool grows up to its limit and says how full it is; what to do
// about a few bytes that pin a whole buffer is its users' business (Buffer::size against bytes kept).
#pragma once

#include <cstdint>
#include <utility>

#include "base/assert.h"

namespace millrace::reactor {

class BufferPool;

struct Buffer {
  char* data = nullptr;   // aligned to 4096
  uint32_t size = 0;      // bytes, a multiple of 4096
  uint32_t references = 0;  // holders, the back end among them while it still fills the buffer
  uint32_t index = 0;     // the pool's own
  BufferPool* pool = nullptr;
};

// Where buffers come from and return to.
class BufferPool {
 public:
  virtual ~BufferPool() = default;
  // A private buffer of at least `size` bytes (rounded up to 4096) with one reference, or an empty ref
  // when the pool is at its limit: for content that does not come from a socket, for read-backs, and
  // for a slow partial message that would otherwise pin a large buffer.
  virtual class BufferRef allocate(uint32_t size) = 0;
  virtual uint64_t bytes_in_use() const = 0;   // handed out or partly filled
  virtual uint64_t bytes_limit() const = 0;
  virtual void set_limit(uint64_t bytes) = 0;

 protected:
  friend class BufferRef;
  virtual void recycle(Buffer& buffer) = 0;  // the last reference is gone
};

class BufferRef {
 public:
  BufferRef() = default;
  // Adopts one existing reference.
  explicit BufferRef(Buffer* adopted) : buffer_(adopted) {}
  BufferRef(const BufferRef& other) : buffer_(other.buffer_) {
    if (buffer_) ++buffer_->references;
  }
  BufferRef(BufferRef&& other) noexcept : buffer_(std::exchange(other.buffer_, nullptr)) {}
  BufferRef& operator=(BufferRef other) noexcept {
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  ~BufferRef() { reset(); }

  void reset() {
    Buffer* buffer = std::exchange(buffer_, nullptr);
    if (!buffer) return;
    ASSERT(buffer->references > 0);
    if (--buffer->references == 0) buffer->pool->recycle(*buffer);
  }
  Buffer* get() const { return buffer_; }
  Buffer* operator->() const { return buffer_; }
  explicit operator bool() const { return buffer_ != nullptr; }

 private:
  Buffer* buffer_ = nullptr;
};

}  // namespace millrace::reactor
