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
    case LineFault::none:
      return "no fault";
    case LineFault::bare_cr:
      return "bare CR";
    case LineFault::bare_lf:
      return "bare LF";
    case LineFault::nul:
      return "NUL";
    case LineFault::long_line:
      return "line over 998 octets";
  }
  UNREACHABLE();
}

void IntakeFacts::apply_to(mail::Content& content) {
  ASSERT(!too_large && raw_size <= content.raw_size);
  content.truncate_raw(static_cast<uint32_t>(raw_size));
  content.unlisted_dots = static_cast<uint32_t>(dot_count - dots.size());
  content.dots.swap(dots);
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

namespace {

// 64 octets to be compared. `Ored` gathers octets over many blocks, to ask once whether any was
// high.
#if defined(__AVX2__)

class Block {
 public:
  using Ored = __m256i;
  static Ored nothing() { return _mm256_setzero_si256(); }
  static bool any_high(Ored ored) { return _mm256_movemask_epi8(ored) != 0; }

  explicit Block(const char* at)
      : low_(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))),
        high_(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32))) {}
  uint64_t equal(char c) const {
    const __m256i wanted = _mm256_set1_epi8(c);
    return join(_mm256_cmpeq_epi8(low_, wanted), _mm256_cmpeq_epi8(high_, wanted));
  }
  uint64_t high() const { return join(low_, high_); }
  bool any_nul() const {
    const __m256i zero = _mm256_setzero_si256();
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(low_, high_), zero)) != 0;
  }
  void or_into(Ored& ored) const { ored = _mm256_or_si256(ored, _mm256_or_si256(low_, high_)); }

 private:
  static uint64_t join(__m256i low, __m256i high) {
    return static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
           (uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(high))} << 32);
  }
  __m256i low_, high_;
};

#else

class Block {
 public:
  using Ored = uint64_t;
  static Ored nothing() { return 0; }
  static bool any_high(Ored ored) { return ored != 0; }

  explicit Block(const char* at) : masks_(masks_portable(at)) {}
  uint64_t equal(char c) const {
    return c == '\r' ? masks_.cr : c == '\n' ? masks_.lf : c == '.' ? masks_.dot : masks_.nul;
  }
  uint64_t high() const { return masks_.high; }
  bool any_nul() const { return masks_.nul != 0; }
  void or_into(Ored& ored) const { ored |= masks_.high; }

 private:
  Masks masks_;
};

#endif

Masks make_masks(const Block& block) {
  return {block.equal('\r'), block.equal('\n'), block.equal('.'), block.equal('\0'), block.high()};
}

}  // namespace

inline bool PlainRun::pass(uint64_t cr, uint64_t lf, uint64_t dot, bool any_nul, size_t block_end) {
  const uint64_t dots = dot & ((lf << 1) | at_line_start);
  const uint64_t unpaired = lf ^ ((cr << 1) | after_cr);
  const int64_t end = static_cast<int64_t>(block_end);
  if ((dots | unpaired | uint64_t{any_nul} | uint64_t{end - line_start > kLongestTextLine}) != 0) [[unlikely]] {
    return false;
  }
  lines += static_cast<uint64_t>(std::popcount(lf));
  if (lf) line_start = end - std::countl_zero(lf);
  after_cr = cr >> 63;
  at_line_start = lf >> 63;
  return true;
}

size_t pass_plain(PlainRun& run, const char* data, size_t at, size_t stop) {
  Block::Ored ored = Block::nothing();
  PlainRun passed = run;
  for (; stop - at >= kBlock; at += kBlock) {
    const Block block(data + at);
    if (!passed.pass(block.equal('\r'), block.equal('\n'), block.equal('.'), block.any_nul(), at + kBlock)) break;
    block.or_into(ored);
  }
  run = passed;
  run.eight_bit = Block::any_high(ored);
  return at;
}

#if defined(__AVX2__)

[[gnu::target("avx512bw")]] size_t pass_plain_avx512(PlainRun& run, const char* data, size_t at, size_t stop) {
  const __m512i wanted_cr = _mm512_set1_epi8('\r');
  const __m512i wanted_lf = _mm512_set1_epi8('\n');
  const __m512i wanted_dot = _mm512_set1_epi8('.');
  __m512i ored = _mm512_setzero_si512();
  PlainRun passed = run;
  for (; stop - at >= kBlock; at += kBlock) {
    const __m512i block = _mm512_loadu_si512(data + at);
    if (!passed.pass(_mm512_cmpeq_epi8_mask(block, wanted_cr), _mm512_cmpeq_epi8_mask(block, wanted_lf),
                     _mm512_cmpeq_epi8_mask(block, wanted_dot), _mm512_testn_epi8_mask(block, block) != 0,
                     at + kBlock)) {
      break;
    }
    ored = _mm512_or_si512(ored, block);
  }
  run = passed;
  run.eight_bit = _mm512_movepi8_mask(ored) != 0;
  return at;
}

bool avx512_usable() { return __builtin_cpu_supports("avx512bw"); }

#else

size_t pass_plain_avx512(PlainRun&, const char*, size_t, size_t) { UNREACHABLE(); }
bool avx512_usable() { return false; }

#endif

namespace {
const auto kPassPlain = avx512_usable() ? pass_plain_avx512 : pass_plain;
}  // namespace

Masks masks_fast(const char* block) { return make_masks(Block(block)); }

ContentScanner::ContentScanner(bool stuffed, uint64_t max_size) : max_size_(max_size) {
  facts_.stuffed = stuffed;
}

// Decides about a dot at the start of a line that ended the last piece. Nothing is consumed but an
// end of data, or the CR after which still nothing is known.
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
    used = scan_strip(data, size, start, found_end);
    // What may be the final dot stays out of the sum until it is known not to be.
    const uint64_t sure = dot_ == Dot::none ? offset_ : std::min(offset_, dot_offset_);
    if (sure > before) facts_.crc = crc32c(facts_.crc, data + start, sure - before);
    check_size(sure);
  }
  if (!found_end) facts_.raw_size = offset_;
  return used;
}

// One strip from `start`, or up to the end of data. Returns where it stopped.
size_t ContentScanner::scan_strip(const char* data, size_t size, size_t start, bool& found_end) {
  const size_t stop = std::min(size, start + kStrip);
  size_t at = start;
  while (at < stop && !found_end) {
    at = pass_plain_blocks(data, at, stop);
    if (at < stop) at += scan_block(data, size, at, std::min(kBlock, stop - at), found_end);
  }
  return at;
}

// The common case: whole blocks in which every CR is followed by an LF and every LF follows a CR,
// with no NUL, no dot at the start of a line, and no line that may be too long. Stops before the
// first other.
size_t ContentScanner::pass_plain_blocks(const char* data, size_t at, size_t stop) {
  const size_t start = at;
  const uint64_t base = offset_;
  // Where the line began, relative to `data`; it may be before it.
  PlainRun run;
  run.line_start = static_cast<int64_t>(start) - static_cast<int64_t>(base - line_start_);
  run.after_cr = after_cr_;
  run.at_line_start = at_line_start_;
  at = kPassPlain(run, data, at, stop);
  if (at == start) return at;
  if (run.eight_bit) facts_.eight_bit = true;
  offset_ = base + (at - start);
  line_start_ = offset_ - static_cast<uint64_t>(static_cast<int64_t>(at) - run.line_start);
  lines_ += run.lines;
  after_cr_ = run.after_cr;
  at_line_start_ = run.at_line_start;
  return at;
}

// Any block, the last short one of a piece too. Returns how many octets were used.
size_t ContentScanner::scan_block(const char* data, size_t size, size_t at, size_t valid,
                                  bool& found_end) {
  const bool stuffed = facts_.stuffed;
  char padded[kBlock];
  const char* octets = data + at;
  if (valid < kBlock) {
    std::memset(padded, 'x', kBlock);
    std::memcpy(padded, octets, valid);
    octets = padded;
  }
  const Masks masks = make_masks(Block(octets));
  const uint64_t expected_lf = (masks.cr << 1) | uint64_t{after_cr_};
  const uint64_t crlf = masks.lf & expected_lf;
  const uint64_t bare_lf = masks.lf & ~expected_lf;
  const uint64_t bare_cr = expected_lf & ~masks.lf & below(valid);  // the octet after it
  const uint64_t dots = masks.dot & ((crlf << 1) | uint64_t{at_line_start_});
  if (stuffed && (dots & 1)) line_start_ = offset_ + 1;

  size_t end = valid;  // of the content within this block
  for (uint64_t rest = dots; rest && !found_end; rest &= rest - 1) {
    const size_t bit = lowest(rest);
    switch (stuffed ? classify_dot(data, size, at + bit) : LineDot::content) {
      case LineDot::content:
        add_dot(offset_ + bit);
        break;
      case LineDot::end:
        found_end = true;
        end = bit;
        break;
      case LineDot::unknown:
        dot_ = at + bit + 1 == size ? Dot::seen : Dot::seen_cr;
        dot_offset_ = offset_ + bit;
        break;
    }
  }
  const uint64_t content = below(end);
  if (masks.high & content) facts_.eight_bit = true;
  if (facts_.fault == LineFault::none && (((bare_lf | bare_cr | masks.nul) & content) != 0 ||
                                          offset_ + end > line_start_ + kLongestTextLine)) {
    find_fault(masks, end, bare_lf & content, bare_cr & content, crlf & content,
               stuffed ? dots & content : 0);
  }
  lines_ += static_cast<uint64_t>(std::popcount(crlf & content));
  if (found_end) {
    offset_ += end;
    end_at(offset_);
    return end + 3;
  }
  if (crlf) {
    const size_t last = highest(crlf);
    line_start_ = offset_ + last + 1;
    if (stuffed && last < 63 && ((dots >> (last + 1)) & 1)) ++line_start_;
  }
  after_cr_ = (masks.cr >> (valid - 1)) & 1;
  at_line_start_ = (crlf >> (valid - 1)) & 1;
  offset_ += valid;
  return valid;
}

// A dot at the start of a line: the next two octets decide, and they may lie in the next piece.
ContentScanner::LineDot ContentScanner::classify_dot(const char* data, size_t size, size_t dot) {
  if (dot + 1 == size) return LineDot::unknown;
  if (data[dot + 1] != '\r') return LineDot::content;
  if (dot + 2 == size) return LineDot::unknown;
  return data[dot + 2] == '\n' ? LineDot::end : LineDot::content;
}

void ContentScanner::add_dot(uint64_t offset) {
  ++facts_.dot_count;
  if (facts_.dot_count > mail::kMostListedDots || facts_.too_large) {
    facts_.dots.clear();
  } else {
    if (facts_.dots.empty()) facts_.dots.reserve(16);
    facts_.dots.push_back(static_cast<uint32_t>(offset));
  }
}

// The first fault of a block in which there may be one. `bare_cr` marks the octets after a bare CR;
// the CR itself may be the last octet of the block before.
void ContentScanner::find_fault(const Masks& masks, size_t valid, uint64_t bare_lf,
                                uint64_t bare_cr, uint64_t crlf, uint64_t dots) {
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
  consumed.body = !consumed.finished  ? consumed.used
                  : raw_size > before ? static_cast<size_t>(raw_size - before)
                                      : 0;
  return consumed;
}

void BdatDecoder::consume(const char* data, size_t size) {
  bool found_end = false;
  scanner_.scan(data, size, found_end);
}

}  // namespace millrace::smtp
