#include "smtp/data_decoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "base/assert.h"
#include "base/crc32c.h"

namespace millrace::smtp {

std::string_view to_string(LineFault fault) {
  switch (fault) {
    case LineFault::none: return "no fault";
    case LineFault::bare_cr: return "bare CR";
    case LineFault::bare_lf: return "bare LF";
    case LineFault::nul: return "NUL";
    case LineFault::long_line: return "line over 998 octets";
  }
  UNREACHABLE();
}

void IntakeFacts::apply_to(mail::Content& content) {
  ASSERT(!too_large && raw_size <= content.raw_size);
  content.truncate_raw(static_cast<uint32_t>(raw_size));
  content.unlisted_dots = static_cast<uint32_t>(dot_count - dots.size());
  content.dots = std::move(dots);
  content.stuffed = stuffed;
  content.eight_bit = eight_bit;
  content.ends_in_crlf = ends_in_crlf;
  content.crc = crc;
}

namespace detail {
namespace {

constexpr size_t kBlock = 64;
// Scanned and then summed in strips that stay in the first-level cache.
constexpr size_t kStrip = 8192;

uint64_t below(size_t bit) { return bit >= 64 ? ~uint64_t{0} : (uint64_t{1} << bit) - 1; }
size_t lowest(uint64_t mask) { return static_cast<size_t>(std::countr_zero(mask)); }
size_t highest(uint64_t mask) { return 63 - static_cast<size_t>(std::countl_zero(mask)); }

}  // namespace

Masks masks_portable(const char* block) {
  Masks masks{};
  for (size_t i = 0; i < kBlock; ++i) {
    const uint8_t c = static_cast<uint8_t>(block[i]);
    masks.cr |= uint64_t{c == '\r'} << i;
    masks.lf |= uint64_t{c == '\n'} << i;
    masks.dot |= uint64_t{c == '.'} << i;
    masks.nul |= uint64_t{c == 0} << i;
    masks.high |= uint64_t{c >= 0x80} << i;
  }
  return masks;
}

#if defined(__AVX2__)

namespace {

inline uint64_t equal_mask(__m256i low, __m256i high, char c) {
  const __m256i wanted = _mm256_set1_epi8(c);
  const auto low_bits = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, wanted)));
  const auto high_bits =
      static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, wanted)));
  return low_bits | (uint64_t{high_bits} << 32);
}

inline Masks make_masks(const char* block) {
  const auto* at = reinterpret_cast<const __m256i*>(block);
  const __m256i low = _mm256_loadu_si256(at);
  const __m256i high = _mm256_loadu_si256(at + 1);
  Masks masks;
  masks.cr = equal_mask(low, high, '\r');
  masks.lf = equal_mask(low, high, '\n');
  masks.dot = equal_mask(low, high, '.');
  masks.nul = equal_mask(low, high, '\0');
  masks.high = static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
               (uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(high))} << 32);
  return masks;
}

}  // namespace

Masks masks_fast(const char* block) { return make_masks(block); }

#else

namespace {
inline Masks make_masks(const char* block) { return masks_portable(block); }
}  // namespace

Masks masks_fast(const char* block) { return masks_portable(block); }

#endif

ContentScanner::ContentScanner(bool stuffed, uint64_t max_size) : max_size_(max_size) {
  facts_.stuffed = stuffed;
}

// Decides about a dot at the start of a line that ended the last piece. Nothing is consumed but an end
// of data, or the CR after which still nothing is known.
size_t ContentScanner::resume_dot(const char* data, size_t size, bool& found_end) {
  if (dot_ == Dot::seen && data[0] == '\r') {
    if (size == 1) {
      dot_ = Dot::seen_cr;
      after_cr_ = true;
      at_line_start_ = false;
      ++offset_;
      return 1;
    }
    if (data[1] == '\n') {
      found_end = true;
      end_at(dot_offset_);
      return 2;
    }
  }
  if (dot_ == Dot::seen_cr && data[0] == '\n') {
    found_end = true;
    end_at(dot_offset_);
    return 1;
  }
  facts_.crc = crc32c(facts_.crc, ".\r", dot_ == Dot::seen ? 1 : 2);
  add_dot(dot_offset_);
  dot_ = Dot::none;
  return 0;
}

size_t ContentScanner::scan(const char* data, size_t size, bool& found_end) {
  found_end = false;
  size_t used = 0;
  if (dot_ != Dot::none && size > 0) used = resume_dot(data, size, found_end);
  while (used < size && !found_end) {
    const uint64_t before = offset_;
    const size_t start = used;
    used = scan_blocks(data, size, start, found_end);
    // What may be the final dot stays out of the sum until it is known not to be.
    const uint64_t sure = dot_ == Dot::none ? offset_ : std::min(offset_, dot_offset_);
    if (sure > before) facts_.crc = crc32c(facts_.crc, data + start, sure - before);
    check_size(sure);
  }
  if (!found_end) facts_.raw_size = offset_;
  return used;
}

// One strip from `start`, or up to the end of data. Returns where it stopped.
size_t ContentScanner::scan_blocks(const char* data, size_t size, size_t start, bool& found_end) {
  const size_t stop = std::min(size, start + kStrip);
  const bool stuffed = facts_.stuffed;
  size_t at = start;
  uint64_t high = 0;
  // Kept in registers over the loop.
  uint64_t offset = offset_;
  uint64_t line_start = line_start_;
  uint64_t after_cr = after_cr_;
  uint64_t at_line_start = at_line_start_;
  while (at < stop) {
    Masks masks;
    size_t valid = kBlock;
    if (stop - at >= kBlock) [[likely]] {
      masks = make_masks(data + at);
    } else {
      valid = stop - at;
      char padded[kBlock];
      std::memset(padded, 'x', kBlock);
      std::memcpy(padded, data + at, valid);
      masks = make_masks(padded);
    }
    const uint64_t known = below(valid);
    const uint64_t expected_lf = (masks.cr << 1) | after_cr;
    const uint64_t crlf = masks.lf & expected_lf;
    const uint64_t bare_lf = masks.lf & ~expected_lf;
    const uint64_t bare_cr = expected_lf & ~masks.lf & known;  // the octet after it
    const uint64_t dots = masks.dot & ((crlf << 1) | at_line_start);
    if (stuffed && (dots & 1)) line_start = offset + 1;

    size_t end = valid;  // of the content within this block
    if (dots) [[unlikely]] {
      for (uint64_t rest = dots; rest; rest &= rest - 1) {
        const size_t bit = lowest(rest);
        const size_t dot = at + bit;
        if (stuffed) {
          // The next two octets decide; they may lie in the next block, or in the next piece.
          if (dot + 1 == size) {
            dot_ = Dot::seen;
            dot_offset_ = offset + bit;
            continue;
          }
          if (data[dot + 1] == '\r') {
            if (dot + 2 == size) {
              dot_ = Dot::seen_cr;
              dot_offset_ = offset + bit;
              continue;
            }
            if (data[dot + 2] == '\n') {
              found_end = true;
              end = bit;
              break;
            }
          }
        }
        add_dot(offset + bit);
      }
    }
    const uint64_t content = below(end);
    high |= masks.high & content;
    if (facts_.fault == LineFault::none &&
        (((bare_lf | bare_cr | masks.nul) & content) != 0 ||
         offset + end > line_start + kLongestTextLine)) [[unlikely]] {
      offset_ = offset;
      line_start_ = line_start;
      find_fault(masks, end, bare_lf & content, bare_cr & content, crlf & content,
                 stuffed ? dots & content : 0);
    }
    lines_ += static_cast<uint64_t>(std::popcount(crlf & content));
    if (found_end) {
      if (high) facts_.eight_bit = true;
      offset_ = offset + end;
      end_at(offset_);
      return at + end + 3;
    }
    if (crlf) {
      const size_t last = highest(crlf);
      line_start = offset + last + 1;
      if (stuffed && last < 63 && ((dots >> (last + 1)) & 1)) ++line_start;
    }
    after_cr = (masks.cr >> (valid - 1)) & 1;
    at_line_start = (crlf >> (valid - 1)) & 1;
    offset += valid;
    at += valid;
  }
  if (high) facts_.eight_bit = true;
  offset_ = offset;
  line_start_ = line_start;
  after_cr_ = after_cr;
  at_line_start_ = at_line_start;
  return at;
}

void ContentScanner::add_dot(uint64_t offset) {
  ++facts_.dot_count;
  if (facts_.dot_count > mail::kMostListedDots || facts_.too_large) {
    facts_.dots.clear();
  } else {
    facts_.dots.push_back(static_cast<uint32_t>(offset));
  }
}

// The first fault of a block in which there may be one. `bare_cr` marks the octets after a bare CR; the
// CR itself may be the last octet of the block before.
void ContentScanner::find_fault(const Masks& masks, size_t valid, uint64_t bare_lf, uint64_t bare_cr,
                                uint64_t crlf, uint64_t dots) {
  constexpr int64_t kNowhere = 1000;
  const uint64_t nul = masks.nul & below(valid);
  int64_t position = kNowhere;
  LineFault fault = LineFault::none;
  auto consider = [&](LineFault kind, int64_t at) {
    if (at < position) {
      position = at;
      fault = kind;
    }
  };
  // Of two faults of one octet the special one is named, not the length: it is considered first.
  if (bare_cr) consider(LineFault::bare_cr, static_cast<int64_t>(lowest(bare_cr)) - 1);
  if (bare_lf) consider(LineFault::bare_lf, static_cast<int64_t>(lowest(bare_lf)));
  if (nul) consider(LineFault::nul, static_cast<int64_t>(lowest(nul)));
  const uint64_t limit = line_start_ + kLongestTextLine;  // the first octet too many
  if (limit >= offset_ && limit < offset_ + valid) {
    const size_t bit = static_cast<size_t>(limit - offset_);
    // A CR there ends the line in time, or is a bare one; the next octet tells.
    const bool ended = (crlf & below(bit + 1)) != 0 || ((masks.cr >> bit) & 1) != 0;
    if (!ended) consider(LineFault::long_line, static_cast<int64_t>(bit));
  }
  if (fault == LineFault::none) return;
  const uint64_t ended = position > 0 ? crlf & below(static_cast<size_t>(position)) : 0;
  uint64_t line_start = line_start_;
  if (ended) {
    const size_t last = highest(ended);
    line_start = offset_ + last + 1 + (last < 63 ? (dots >> (last + 1)) & 1 : 0);
  }
  facts_.fault = fault;
  facts_.fault_line = lines_ + static_cast<uint64_t>(std::popcount(ended)) + 1;
  facts_.fault_octet = offset_ + static_cast<uint64_t>(position) - line_start + 1;
}

void ContentScanner::end_at(uint64_t raw_size) {
  dot_ = Dot::none;
  facts_.raw_size = raw_size;
  facts_.ends_in_crlf = true;  // the final dot stands at the start of a line
  check_size(raw_size);
}

void ContentScanner::check_size(uint64_t raw_size) {
  const uint64_t size = facts_.stuffed ? raw_size - facts_.dot_count : raw_size;
  if (size > max_size_ && !facts_.too_large) {
    facts_.too_large = true;
    facts_.dots = {};
  }
}

void ContentScanner::finish() {
  facts_.raw_size = offset_;
  facts_.ends_in_crlf = offset_ == 0 || at_line_start_;
  if (after_cr_ && facts_.fault == LineFault::none) {
    facts_.fault = LineFault::bare_cr;
    facts_.fault_line = lines_ + 1;
    facts_.fault_octet = offset_ - line_start_;
  }
}

}  // namespace detail

DataDecoder::Consumed DataDecoder::consume(const char* data, size_t size) {
  const uint64_t before = scanner_.octets();
  Consumed consumed;
  consumed.used = scanner_.scan(data, size, consumed.finished);
  const uint64_t raw_size = facts().raw_size;
  consumed.body = !consumed.finished    ? consumed.used
                  : raw_size > before   ? static_cast<size_t>(raw_size - before)
                                        : 0;
  return consumed;
}

void BdatDecoder::consume(const char* data, size_t size) {
  bool found_end = false;
  scanner_.scan(data, size, found_end);
}

}  // namespace millrace::smtp
