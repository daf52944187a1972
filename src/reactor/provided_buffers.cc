#include "reactor/provided_buffers.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "reactor/uring_constants.h"

namespace millrace::reactor {
namespace {

constexpr uint32_t kPage = 4096;
// Address space is asked for in pieces of this size; it costs nothing until touched.
constexpr size_t kMappingBytes = 64ull << 20;

}  // namespace

ProvidedBuffers::~ProvidedBuffers() {
  ASSERT(ring_ == nullptr);
  ASSERT(used_bytes_ == 0);  // somebody keeps received bytes beyond the life of the Io
  for (const Mapping& mapping : mappings_) munmap(mapping.data, mapping.size);
}

void ProvidedBuffers::stop() {
  if (!ring_) return;
  io_uring_unregister_buf_ring(uring_, options_.group);
  munmap(std::exchange(ring_, nullptr), ring_bytes_);
  for (size_t id = 0; id < by_id_.size(); ++id) {
    if (by_id_[id]) retire(static_cast<uint16_t>(id));
  }
}

Status ProvidedBuffers::start(io_uring& ring, const Options& options) {
  options_ = options;
  limit_ = options.limit;
  if (options.ring_entries == 0) return success();
  ring_bytes_ = std::max<size_t>(options.ring_entries * sizeof(io_uring_buf), kPage);
  void* memory =
      mmap(nullptr, ring_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return fail(fmt::format("no memory for a buffer ring: {}", std::strerror(errno)), errno);
  }
  io_uring_buf_reg registration{};
  registration.ring_addr = reinterpret_cast<uint64_t>(memory);
  registration.ring_entries = options.ring_entries;
  registration.bgid = options.group;
  registration.pad = options.incremental ? kPbufRingIncremental : 0;
  if (int r = io_uring_register_buf_ring(&ring, &registration, 0); r < 0) {
    munmap(memory, ring_bytes_);
    return fail(
        fmt::format("io_uring cannot register a provided-buffer ring: {}{}", std::strerror(-r),
                    r == -ENOMEM ? "; look at the locked memory limit (ulimit -l)" : ""),
        -r);
  }
  uring_ = &ring;
  ring_ = static_cast<io_uring_buf_ring*>(memory);
  io_uring_buf_ring_init(ring_);
  by_id_.assign(options.ring_entries, nullptr);
  for (uint32_t id = options.ring_entries; id > 0; --id) {
    free_ids_.push_back(static_cast<uint16_t>(id - 1));
  }
  refill();
  return success();
}

void ProvidedBuffers::set_limit(uint64_t bytes) { limit_ = bytes; }

uint64_t ProvidedBuffers::target() const {
  // Blocks waiting in the ring are memory that nobody uses yet: at most a quarter of the limit.
  uint64_t quarter = limit_ / 4 / options_.block_size;
  return std::clamp<uint64_t>(quarter, 1, options_.ring_entries);
}

void ProvidedBuffers::refill() {
  if (!ring_) return;
  uint64_t wanted = target();
  while (in_ring_ < wanted) {
    Block* block = take_block();
    if (!block) return;
    uint16_t id = free_ids_.back();
    free_ids_.pop_back();
    by_id_[id] = block;
    block->index = id;
    block->in_ring = true;
    block->filled = 0;
    block->references = 1;  // the kernel's
    fresh_bytes_ += block->size;
    ++in_ring_;
    io_uring_buf_ring_add(ring_, block->data, block->size, id,
                          io_uring_buf_ring_mask(options_.ring_entries), 0);
    io_uring_buf_ring_advance(ring_, 1);
  }
}

ProvidedBuffers::Block* ProvidedBuffers::take_block() {
  if (used_bytes_ + fresh_bytes_ + options_.block_size > limit_) return nullptr;
  if (!free_.empty()) {
    Block* block = free_.back();
    free_.pop_back();
    if (block->resident) free_resident_bytes_ -= block->size;
    block->resident = false;
    return block;
  }
  if (mappings_.empty() || mappings_.back().carved == mappings_.back().size) {
    void* memory = mmap(nullptr, kMappingBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;  // ENOMEM: as good as being at the limit
    // Every byte of mail passes here four times: fewer entries of the address cache, and fewer pages for the kernel
    // to pin under a direct write. Refused where the system has no huge pages, which costs speed only.
    (void)madvise(memory, kMappingBytes, MADV_HUGEPAGE);
    mappings_.push_back({static_cast<char*>(memory), kMappingBytes, 0});
  }
  Mapping& mapping = mappings_.back();
  Block& block = blocks_.emplace_back();
  block.data = mapping.data + mapping.carved;
  block.size = options_.block_size;
  block.pool = this;
  mapping.carved += options_.block_size;
  return &block;
}

ProvidedBuffers::Piece ProvidedBuffers::take(uint32_t flags, uint32_t size) {
  ASSERT(flags & IORING_CQE_F_BUFFER);
  auto id = static_cast<uint16_t>(flags >> IORING_CQE_BUFFER_SHIFT);
  ASSERT(id < by_id_.size() && by_id_[id] != nullptr);
  Block& block = *by_id_[id];
  Piece piece;
  if (size > 0) {
    ASSERT(size <= block.size - block.filled);
    if (block.filled == 0) {
      fresh_bytes_ -= block.size;
      used_bytes_ += block.size;
    }
    piece.data = block.data + block.filled;
    ++block.references;
    piece.buffer = BufferRef(&block);
    block.filled += size;
  }
  // A completion without bytes ends a classic buffer; an incremental one stays at the head of the
  // ring.
  bool kernel_goes_on = options_.incremental && ((flags & kCqeBufferMore) || size == 0);
  if (!kernel_goes_on) retire(id);
  return piece;
}

void ProvidedBuffers::retire(uint16_t id) {
  Block& block = *by_id_[id];
  by_id_[id] = nullptr;
  free_ids_.push_back(id);
  --in_ring_;
  block.in_ring = false;
  if (block.filled == 0) {
    fresh_bytes_ -= block.size;
    used_bytes_ += block.size;
  }
  BufferRef kernels(&block);  // lets the kernel's reference go
}

void ProvidedBuffers::recycle(Buffer& buffer) {
  auto& block = static_cast<Block&>(buffer);
  ASSERT(!block.in_ring);
  used_bytes_ -= block.size;
  if (block.own_memory) {
    std::free(block.data);
    delete &block;
    return;
  }
  block.resident = true;
  free_resident_bytes_ += block.size;
  free_.push_back(&block);
}

BufferRef ProvidedBuffers::allocate(uint32_t size) {
  uint64_t rounded = (uint64_t{std::max(size, 1u)} + kPage - 1) / kPage * kPage;
  if (rounded > UINT32_MAX || used_bytes_ + fresh_bytes_ + rounded > limit_) return {};
  release_free_memory(rounded);
  void* memory = std::aligned_alloc(kPage, rounded);
  if (!memory) return {};
  auto* block = new Block;
  block->data = static_cast<char*>(memory);
  block->size = static_cast<uint32_t>(rounded);
  block->references = 1;
  block->pool = this;
  block->own_memory = true;
  used_bytes_ += block->size;
  return BufferRef(block);
}

// Blocks on the free list keep their memory for the next receive; private buffers must not come on
// top of it once the sum passes the limit. The coldest go first.
void ProvidedBuffers::release_free_memory(uint64_t wanted) {
  for (Block* block : free_) {
    if (used_bytes_ + fresh_bytes_ + free_resident_bytes_ + wanted <= limit_) return;
    if (!block->resident) continue;
    // Fails only for wrong arguments; the memory then merely stays.
    if (madvise(block->data, block->size, MADV_DONTNEED) != 0) return;
    block->resident = false;
    free_resident_bytes_ -= block->size;
  }
}

}  // namespace millrace::reactor
