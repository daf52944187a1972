// The pool behind a buffer group: limits, recycling, private buffers. Filling by the kernel is
// tested in uring_test.cc.
#include "reactor/buffers.h"

#include <gtest/gtest.h>

#include <cstring>

#include "reactor/uring.h"

namespace millrace::reactor {
namespace {

constexpr uint64_t kMiB = 1 << 20;

std::unique_ptr<Io> io_with_spool(uint64_t bytes) {
  UringOptions options;
  options.submission_entries = 8;
  options.completion_entries = 16;
  options.spool_bytes = bytes;
  return make_uring(options).value();
}

TEST(Buffers, PrivateBuffersAreAlignedRoundedUpAndCounted) {
  auto io = io_with_spool(kMiB);
  BufferPool& pool = io->buffers(BufferGroup::spool);
  EXPECT_EQ(pool.bytes_limit(), kMiB);
  EXPECT_EQ(pool.bytes_in_use(), 0u);
  {
    BufferRef a = pool.allocate(1);
    BufferRef b = pool.allocate(4097);
    ASSERT_TRUE(a && b);
    EXPECT_EQ(a->size, 4096u);
    EXPECT_EQ(b->size, 8192u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b->data) % 4096, 0u);
    std::memset(b->data, 1, b->size);
    EXPECT_EQ(pool.bytes_in_use(), 12288u);
    BufferRef again = b;
    b.reset();
    EXPECT_EQ(pool.bytes_in_use(), 12288u);
    EXPECT_EQ(again->data[8191], 1);
  }
  EXPECT_EQ(pool.bytes_in_use(), 0u);
}

TEST(Buffers, AllocationFailsAtTheLimitAndGoesOnWhenBytesReturn) {
  auto io = io_with_spool(64 << 10);
  BufferPool& pool = io->buffers(BufferGroup::spool);
  BufferRef a = pool.allocate(40 << 10);
  EXPECT_TRUE(a);
  EXPECT_FALSE(pool.allocate(40 << 10));
  EXPECT_TRUE(pool.allocate(24 << 10));
  a.reset();
  EXPECT_TRUE(pool.allocate(40 << 10));
  EXPECT_FALSE(pool.allocate(UINT32_MAX));
}

TEST(Buffers, LimitMayChange) {
  auto io = io_with_spool(64 << 10);
  BufferPool& pool = io->buffers(BufferGroup::spool);
  BufferRef a = pool.allocate(60 << 10);
  pool.set_limit(32 << 10);  // below what is in use: nothing is taken away
  EXPECT_EQ(pool.bytes_in_use(), 60u << 10);
  EXPECT_FALSE(pool.allocate(4096));
  a.reset();
  EXPECT_TRUE(pool.allocate(32 << 10));
  pool.set_limit(kMiB);
  EXPECT_TRUE(pool.allocate(900 << 10));
}

TEST(Buffers, EveryGroupHasItsOwnLimit) {
  auto io = io_with_spool(4096);
  BufferRef a = io->buffers(BufferGroup::spool).allocate(4096);
  EXPECT_TRUE(a);
  EXPECT_FALSE(io->buffers(BufferGroup::spool).allocate(4096));
  for (BufferGroup group : {BufferGroup::ingress, BufferGroup::delivery, BufferGroup::control}) {
    EXPECT_TRUE(io->buffers(group).allocate(4096));
  }
}

}  // namespace
}  // namespace millrace::reactor
