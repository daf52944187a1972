// The one pass over a message's bytes at intake: finds the end of data, the dots at the start of
// lines, faults of line ends, and computes size and checksum. The bytes stay where they are.
//
// Only CRLF ends a line, and only CRLF "." CRLF ends DATA (RFC 5321 2.3.8, 4.1.1.4): no bare CR or
// LF ever takes part in it. The result is the same for every split of the input into pieces; DATA
// and BDAT yield the same facts about the same content (dots mean different things, see
// mail/content.h).
//
// Speed: 64 octets at a time, by AVX2 where compiled in, by AVX-512 where the processor has it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "mail/content.h"

namespace millrace::smtp {

constexpr uint32_t kLongestTextLine = 998;  // RFC 5321 4.5.3.1.6, without CRLF

enum class LineFault : uint8_t { none, bare_cr, bare_lf, nul, long_line };
std::string_view to_string(LineFault fault);  // "bare CR", ...

struct IntakeFacts {
  uint64_t raw_size = 0;       // octets of the message as received, without the final ".\r\n"
  uint64_t dot_count = 0;      // lines that begin with a dot
  std::vector<uint32_t> dots;  // their offsets, or empty when more than mail::kMostListedDots
  uint32_t crc = 0;            // CRC32C of those octets
  bool stuffed = false;
  bool eight_bit = false;
  bool ends_in_crlf = true;  // also for an empty message
  bool too_large = false;  // the canonical size went over the limit; crc and dots mean nothing then
  LineFault fault = LineFault::none;  // the first one
  uint64_t fault_line = 0;            // counted from 1
  uint64_t fault_octet = 0;           // within the canonical line, from 1

  // Octets of the canonical content.
  uint64_t size() const { return stuffed ? raw_size - dot_count : raw_size; }
  // Moves what the facts know into a Content whose raw spans hold at least raw_size octets; surplus
  // ones (the final dot) are dropped. REQUIRES: !too_large
  void apply_to(mail::Content& content);
};

namespace detail {

struct Masks {  // one bit an octet, the first octet in bit 0
  uint64_t cr, lf, dot, nul, high;
};
Masks masks_portable(const char* block);  // 64 octets
Masks masks_fast(const char* block);      // AVX2 where the build has it, else masks_portable

// Where the lines stand while plain blocks are passed.
struct PlainRun {
  int64_t line_start = 0;  // offset of the current line's first octet
  uint64_t after_cr = 0;   // 1: the octet before was CR
  uint64_t at_line_start = 0;
  uint64_t lines = 0;      // passed
  bool eight_bit = false;  // an octet above 127 was passed

  // Takes one block's masks; false: it is not plain, and nothing has changed.
  bool pass(uint64_t cr, uint64_t lf, uint64_t dot, bool any_nul, size_t block_end);
};
// Pass plain blocks of 64 octets from `at` and return where they stopped: at the first other, or
// where less than a block is left before `stop`.
size_t pass_plain(PlainRun& run, const char* data, size_t at, size_t stop);
// The same where the processor compares 64 octets at once. REQUIRES: avx512_usable()
size_t pass_plain_avx512(PlainRun& run, const char* data, size_t at, size_t stop);
bool avx512_usable();

// What DATA and BDAT share: the state of lines across pieces.
class ContentScanner {
 public:
  ContentScanner(bool stuffed, uint64_t max_size);
  // All octets up to the end of data. `found_end` only when stuffed; the return value is how many
  // octets of the piece were used, the terminator included.
  size_t scan(const char* data, size_t size, bool& found_end);
  void finish();                               // unstuffed: the last octet has been seen
  uint64_t octets() const { return offset_; }  // of the content, a possible final dot included
  IntakeFacts& facts() { return facts_; }
  const IntakeFacts& facts() const { return facts_; }

 private:
  enum class Dot : uint8_t {
    none,
    seen,
    seen_cr
  };  // a lone dot at line start at the end of a piece

  size_t resume_dot(const char* data, size_t size, bool& found_end);
  enum class LineDot : uint8_t { content, end, unknown };
  static LineDot classify_dot(const char* data, size_t size, size_t dot);
  size_t scan_strip(const char* data, size_t size, size_t start, bool& found_end);
  size_t pass_plain_blocks(const char* data, size_t at, size_t stop);
  size_t scan_block(const char* data, size_t size, size_t at, size_t valid, bool& found_end);
  void add_dot(uint64_t offset);
  void find_fault(const Masks& masks, size_t valid, uint64_t bare_lf, uint64_t bare_cr,
                  uint64_t crlf, uint64_t dots);
  void end_at(uint64_t raw_size);
  void check_size(uint64_t raw_size);

  IntakeFacts facts_;
  uint64_t max_size_;
  uint64_t offset_ = 0;      // raw octets seen
  uint64_t line_start_ = 0;  // raw offset of the canonical line's first octet
  uint64_t lines_ = 0;       // complete ones
  bool after_cr_ = false;    // the last octet was CR
  bool at_line_start_ = true;
  Dot dot_ = Dot::none;  // its octets are in offset_, but not in the checksum or the dots
  uint64_t dot_offset_ = 0;
};

}  // namespace detail

class DataDecoder {
 public:
  explicit DataDecoder(uint64_t max_size) : scanner_(true, max_size) {}

  struct Consumed {
    size_t used = 0;        // octets of the piece that belong to this DATA, its end included
    size_t body = 0;        // of these, from the front, what may be content
    bool finished = false;  // what follows are commands
  };
  // When the final ".\r\n" was split, its first octets have been reported as body by an earlier
  // call; facts().raw_size is exact, and IntakeFacts::apply_to trims the spans to it. Past max_size
  // bytes are still consumed until the end of data is found.
  Consumed consume(const char* data, size_t size);
  IntakeFacts& facts() { return scanner_.facts(); }  // complete once finished

 private:
  detail::ContentScanner scanner_;
};

class BdatDecoder {
 public:
  explicit BdatDecoder(uint64_t max_size) : scanner_(false, max_size) {}
  void consume(const char* data, size_t size);  // octets of a chunk
  void finish() { scanner_.finish(); }          // after the last chunk
  IntakeFacts& facts() { return scanner_.facts(); }

 private:
  detail::ContentScanner scanner_;
};

}  // namespace millrace::smtp
