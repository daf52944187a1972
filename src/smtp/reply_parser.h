// Parses the replies of a server we deliver to: bytes in, replies out, over any split of the input.
//
// Tolerant where peers are odd and the meaning is clear: bare LF as line end, no text, a tab for
// the blank. An error where the meaning is not: lines of one reply with different codes, no three
// digits, a class other than 2 to 5, more than kLongestReply octets (then the connection is of no
// more use). The text is kept as the peer sent it, up to text_limit octets; whoever prints it
// escapes it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "mail/enhanced_status.h"

namespace millrace::smtp {

struct PeerReply {
  uint16_t code = 0;
  mail::EnhancedStatus status;  // of the first line, if its class is the code's
  std::string text;        // lines without code, separated by '\n'; enhanced codes kept as sent
  uint32_t text_size = 0;  // of the whole text; more than text.size() when cut
  uint32_t lines = 0;

  int reply_class() const { return code / 100; }
};

class ReplyParser {
 public:
  static constexpr size_t kLongestReply = 64 * 1024;
  enum class Outcome : uint8_t {
    incomplete,   // the piece is used up
    reply,        // reply() is complete; call next() again with the rest of the piece
    mixed_codes,  // errors: the stream cannot be trusted any more
    bad_code,
    too_long,
  };

  explicit ReplyParser(size_t text_limit = 2048) : text_limit_(text_limit) {}
  // Takes at most one reply from the front of `piece` and removes it there.
  Outcome next(std::string_view& piece);
  // Valid after Outcome::reply until the next call. May be moved from.
  PeerReply& reply() { return reply_; }
  // No part of a reply is waiting for its end.
  bool empty() const { return complete_ || total_ == 0; }
  void reset();

 private:
  void add_text(std::string_view text);
  bool end_line();  // true when it was the reply's last

  size_t text_limit_;
  PeerReply reply_;
  bool complete_ = false;
  // Of the current line:
  uint32_t position_ = 0;  // 0 to 2 digits of the code, 3 the separator, 4 text
  uint16_t line_code_ = 0;
  bool last_line_ = false;
  bool after_cr_ = false;  // a CR that may be part of CRLF
  size_t total_ = 0;       // octets of this reply
};
std::string_view to_string(ReplyParser::Outcome outcome);

}  // namespace millrace::smtp
