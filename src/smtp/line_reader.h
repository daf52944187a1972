// Splits a client's bytes into command lines ended by CRLF, over any split of the input. A line
// that lies in one piece is a view into that piece; only a line that straddles pieces is copied.
//
// A bare LF, a bare CR or a NUL is reported once, when seen, and the rest up to the next CRLF is
// skipped: it neither ends a line nor becomes part of one (RFC 5321 2.3.8). An overlong line is
// reported once too and skipped in constant memory; skipped() tells how much, so that the caller
// can close.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace millrace::smtp {

// RFC 5321 4.5.3.1.4; with the parameters of extensions; RFC 4954 4. All with their CRLF.
constexpr size_t kCommandLineLimit = 512;
constexpr size_t kExtendedLineLimit = 4096;
constexpr size_t kAuthLineLimit = 12288;

class LineReader {
 public:
  enum class Outcome : uint8_t { incomplete, line, too_long, bare_lf, bare_cr, nul };
  struct Line {
    Outcome outcome = Outcome::incomplete;
    std::string_view
        text;  // outcome == line: without CRLF, valid until the next call or the piece ends
    size_t consumed = 0;  // octets of the piece used up
  };

  explicit LineReader(size_t limit = kCommandLineLimit) : limit_(limit) {}
  // Takes at most one line from the front of `piece`. With `incomplete`, all of it is consumed.
  Line next(std::string_view piece);

  void set_limit(size_t limit) { limit_ = limit; }  // octets with CRLF
  // Octets thrown away in the line being skipped.
  uint64_t skipped() const { return skipped_; }
  // No started line is waiting for its end.
  bool empty() const { return partial_.empty() && !skipping_; }
  // Forgets a started line (what was sent before TLS began).
  void reset();
  // Overwrites what is kept of lines.
  void wipe();
  // Whether it is an AUTH command.
  static bool is_auth(std::string_view line);
  // The started line may become one.
  bool may_be_auth() const { return skipping_ || is_auth(partial_); }

 private:
  Line bad(Outcome outcome, size_t consumed, bool after_cr);
  Line skip(std::string_view piece);

  size_t limit_;
  uint64_t skipped_ = 0;
  bool skipping_ = false;
  bool skipped_cr_ = false;
  std::string partial_;  // the start of a line whose end has not come
  bool partial_given_ = false;
};

}  // namespace millrace::smtp
