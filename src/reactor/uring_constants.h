// Constants of the kernel's interface that are newer than Debian 12's liburing 2.3 and its kernel
// headers. Everything of that kind is here, and nowhere else. Values are the kernel's ABI
// (include/uapi/linux/io_uring.h and stat.h) and never change; whether the running kernel knows
// them is probed at start (io_features.h).
#pragma once

#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <cstdint>

namespace millrace::reactor {

// io_uring_buf_reg.flags (named `pad` in liburing 2.3); Linux 6.12. A completion consumes a part of
// the buffer at the head of the ring instead of all of it.
inline constexpr uint16_t kPbufRingIncremental = 2;  // IOU_PBUF_RING_INC
// io_uring_cqe.flags; Linux 6.12. The kernel goes on filling this buffer. Without it, the kernel
// has finished with the buffer.
inline constexpr uint32_t kCqeBufferMore = 1U << 4;  // IORING_CQE_F_BUF_MORE

// statx(2); Linux 6.1. glibc 2.36 has neither the mask nor the two fields, which lie at a fixed
// place.
inline constexpr unsigned kStatxDioAlign = 0x2000;  // STATX_DIOALIGN
struct StatxDioAlign {
  uint32_t memory;
  uint32_t offset;
};
inline constexpr size_t kStatxDioAlignOffset = 0x98;  // stx_dio_mem_align, stx_dio_offset_align

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

}  // namespace millrace::reactor
