#include "base/crc32c.h"

#include <array>
#include <cstring>
#if defined(__SSE4_2__)
#include <immintrin.h>
#endif

namespace millrace {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

#if defined(__SSE4_2__)

// The instruction has a latency of three cycles and a throughput of one, so three streams of kStride
// bytes run side by side; their sums are joined by shifting a CRC over kStride zero bytes, which is a
// linear map, kept as four tables of 256.
constexpr size_t kStride = 256;
using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;

constexpr uint32_t shift_one(uint32_t crc) {
  for (size_t bit = 0; bit < kStride * 8; ++bit) {
    crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
  }
  return crc;
}

ShiftTable make_shift_table() {
  ShiftTable table{};
  for (size_t byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value) table[byte][value] = shift_one(value << (8 * byte));
  }
  return table;
}
const ShiftTable kShift = make_shift_table();

uint32_t shift(uint32_t crc) {
  return kShift[0][crc & 0xff] ^ kShift[1][(crc >> 8) & 0xff] ^ kShift[2][(crc >> 16) & 0xff] ^
         kShift[3][crc >> 24];
}

uint64_t load(const uint8_t* at) {
  uint64_t word;
  std::memcpy(&word, at, 8);
  return word;
}

// Where the processor multiplies polynomials 512 bits at a time: the message is folded onto its own last
// kFold bytes (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel 2009),
// whose sum is that of the whole.
constexpr size_t kFold = 256;

// x^exponent modulo the polynomial, reflected, as a factor of the fold.
constexpr uint64_t fold_factor(unsigned exponent) {
  uint32_t power = 0x80000000;
  for (unsigned i = 0; i < exponent; ++i) power = (power >> 1) ^ ((power & 1) ? kPolynomial : 0);
  return uint64_t{power} << 1;
}

// REQUIRES: blocks > 0. `crc` and the result are not inverted.
[[gnu::target("avx512f,vpclmulqdq")]] uint32_t crc_of_folds(uint32_t crc, const uint8_t* at, size_t blocks) {
  constexpr auto kLow = static_cast<int64_t>(fold_factor(kFold * 8 + 32));
  constexpr auto kHigh = static_cast<int64_t>(fold_factor(kFold * 8 - 32));
  const __m512i factors = _mm512_set4_epi64(kHigh, kLow, kHigh, kLow);
  __m512i sums[4];
  for (size_t i = 0; i < 4; ++i) sums[i] = _mm512_loadu_si512(at + 64 * i);
  sums[0] = _mm512_xor_si512(sums[0], _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, crc));
  while (--blocks > 0) {
    at += kFold;
    for (size_t i = 0; i < 4; ++i) {
      const __m512i low = _mm512_clmulepi64_epi128(sums[i], factors, 0x00);
      const __m512i high = _mm512_clmulepi64_epi128(sums[i], factors, 0x11);
      constexpr int kXorOfThree = 0x96;
      sums[i] = _mm512_ternarylogic_epi64(low, high, _mm512_loadu_si512(at + 64 * i), kXorOfThree);
    }
  }
  uint8_t folded[kFold];
  for (size_t i = 0; i < 4; ++i) _mm512_storeu_si512(folded + 64 * i, sums[i]);
  uint64_t sum = 0;
  for (size_t i = 0; i < kFold; i += 8) sum = _mm_crc32_u64(sum, load(folded + i));
  return static_cast<uint32_t>(sum);
}

const bool kFolds = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");

#else

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t value = 0; value < 256; ++value) {
    uint32_t crc = value;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[value] = crc;
  }
  return table;
}
constexpr auto kTable = make_table();

#endif

}  // namespace

uint32_t detail::crc32c_unfolded(uint32_t crc, const void* data, size_t size) {
  const uint8_t* at = static_cast<const uint8_t*>(data);
  crc = ~crc;
#if defined(__SSE4_2__)
  while (size >= 3 * kStride) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < kStride; i += 8) {
      a = _mm_crc32_u64(a, load(at + i));
      b = _mm_crc32_u64(b, load(at + kStride + i));
      c = _mm_crc32_u64(c, load(at + 2 * kStride + i));
    }
    crc = shift(shift(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
    at += 3 * kStride;
    size -= 3 * kStride;
  }
  for (; size >= 8; at += 8, size -= 8) crc = static_cast<uint32_t>(_mm_crc32_u64(crc, load(at)));
  for (; size > 0; ++at, --size) crc = _mm_crc32_u8(crc, *at);
#else
  for (; size > 0; ++at, --size) crc = kTable[(crc ^ *at) & 0xff] ^ (crc >> 8);
#endif
  return ~crc;
}

uint32_t crc32c(uint32_t crc, const void* data, size_t size) {
#if defined(__SSE4_2__)
  if (kFolds && size >= 2 * kFold) {
    const uint8_t* at = static_cast<const uint8_t*>(data);
    const size_t blocks = size / kFold;
    crc = ~crc_of_folds(~crc, at, blocks);
    data = at + blocks * kFold;
    size -= blocks * kFold;
  }
#endif
  return detail::crc32c_unfolded(crc, data, size);
}

}  // namespace millrace
