// CRC32C (Castagnoli, RFC 3720 B.4), with the processor's instruction where it has one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace millrace {

// Continues from `crc` (0 to start): crc32c(crc32c(0, a), b) == crc32c(0, a + b).
uint32_t crc32c(uint32_t crc, const void* data, size_t size);
inline uint32_t crc32c(uint32_t crc, std::string_view bytes) {
  return crc32c(crc, bytes.data(), bytes.size());
}

namespace detail {
// The same without the widest instructions, for processors that have none.
uint32_t crc32c_unfolded(uint32_t crc, const void* data, size_t size);
}  // namespace detail

}  // namespace millrace
