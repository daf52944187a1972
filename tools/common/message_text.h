// The load generator's messages. Every message is a function of (run, number): its header carries
// both in X-Load-Id, its first line, and its body is a window into one prepared text. So no body is
// made or copied for a message, messages differ from each other, and one sent again is the same
// bytes.
//
// A message's identity is the SHA-256 of its canonical content from the X-Load-Id line on; what
// relays put in front of it does not count.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "common/digest.h"

namespace millrace::tools {

inline constexpr std::string_view kIdHeader = "X-Load-Id: ";
// "rrrrrrrr-nnnnnnnnnn": the run in hexadecimal, the message's number in decimal.
inline constexpr size_t kIdSize = 19;
struct LoadId {
  uint32_t run = 0;
  uint64_t number = 0;  // below 10^10
};
void write_id(LoadId id, char* out);
bool parse_id(std::string_view text, LoadId& id);

// How large messages are, in bytes of canonical content.
class SizeLaw {
 public:
  // "20480", "20KiB", "uniform:4096-102400", "lognormal" (median 20 KiB, sigma 1),
  // "lognormal:MEDIAN,SIGMA"
  static Result<SizeLaw> parse(std::string_view text);
  uint64_t size_of(uint64_t number) const;
  uint64_t most() const { return most_; }

 private:
  enum class Kind { fixed, uniform, lognormal };
  Kind kind_ = Kind::fixed;
  uint64_t least_ = 0;
  uint64_t most_ = 0;
  double median_ = 0;
  double sigma_ = 0;
};

// One line of 76 characters and CRLF, many times over, in both wire forms.
class MessageText {
 public:
  // `leading_dots`: the share of lines that begin with a dot.
  MessageText(uint32_t run, const SizeLaw& law, double leading_dots, std::string_view from);

  size_t header_size() const { return header_.size(); }
  // Copies the header of this message to `out`, header_size() bytes.
  void write_header(uint64_t number, char* out) const;
  // The body in `parts`, stuffed for DATA or as it is for BDAT; together with the header it is
  // SizeLaw::size_of(number) bytes of canonical content, or the header and an empty line if that is
  // more. Ends in CRLF. The bytes live as long as this object. Returns the body's wire size.
  static constexpr size_t kBodyParts = 2;
  size_t body(uint64_t number, bool stuffed, iovec (&parts)[kBodyParts]) const;
  Sha256 digest(uint64_t number, Digest& digest) const;

 private:
  static constexpr size_t kLine = 78;  // CRLF included

  uint32_t run_;
  SizeLaw law_;
  std::string header_;
  std::vector<size_t> id_places_;
  std::string plain_;
  std::string stuffed_;
  std::vector<uint32_t> dots_before_;  // of line i: stuffed dots in the lines before it
  size_t first_lines_ = 1;             // windows begin at one of these lines
};

// "20480", "20KiB", "1MiB"
Result<uint64_t> parse_size(std::string_view text);
// "80ms", "5s", "1m"; nanoseconds
Result<int64_t> parse_duration(std::string_view text);

}  // namespace millrace::tools
