#include "smtp/reply_parser.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace millrace::smtp {

std::string_view to_string(ReplyParser::Outcome outcome) {
  switch (outcome) {
    case ReplyParser::Outcome::incomplete:
      return "incomplete reply";
    case ReplyParser::Outcome::reply:
      return "reply";
    case ReplyParser::Outcome::mixed_codes:
      return "different codes within one reply";
    case ReplyParser::Outcome::bad_code:
      return "not an SMTP reply";
    case ReplyParser::Outcome::too_long:
      return "reply too long";
  }
  UNREACHABLE();
}

void ReplyParser::reset() {
  reply_.code = 0;
  reply_.status = {};
  reply_.text.clear();
  reply_.text_size = 0;
  reply_.lines = 0;
  complete_ = false;
  position_ = 0;
  line_code_ = 0;
  last_line_ = false;
  after_cr_ = false;
  total_ = 0;
}

void ReplyParser::add_text(std::string_view text) {
  reply_.text_size += static_cast<uint32_t>(text.size());
  if (reply_.text.size() < text_limit_) {
    reply_.text.append(text.substr(0, text_limit_ - reply_.text.size()));
  }
}

bool ReplyParser::end_line() {
  if (++reply_.lines == 1) {
    auto status = mail::EnhancedStatus::parse_prefix(reply_.text);
    if (status && status->status_class == reply_.reply_class()) reply_.status = *status;
  }
  position_ = 0;
  line_code_ = 0;
  after_cr_ = false;
  complete_ = last_line_;
  return complete_;
}

ReplyParser::Outcome ReplyParser::next(std::string_view& piece) {
  if (complete_) reset();
  while (!piece.empty()) {
    const char c = piece.front();
    if (position_ < 4 && ++total_ > kLongestReply) return Outcome::too_long;
    if (position_ < 3) {
      if (c < '0' || c > '9') return Outcome::bad_code;
      line_code_ = static_cast<uint16_t>(line_code_ * 10 + (c - '0'));
      piece.remove_prefix(1);
      if (++position_ < 3) continue;
      if (line_code_ < 200 || line_code_ > 599) return Outcome::bad_code;
      if (reply_.lines == 0) {
        reply_.code = line_code_;
      } else if (line_code_ != reply_.code) {
        return Outcome::mixed_codes;
      } else {
        add_text("\n");
      }
      continue;
    }
    if (position_ == 3) {
      // A reply without text may lack the blank as well (RFC 5321 4.2.1 asks to tolerate it).
      if (c != ' ' && c != '\t' && c != '-' && c != '\r' && c != '\n') return Outcome::bad_code;
      last_line_ = c != '-';
      position_ = 4;
      if (c == '\r') after_cr_ = true;
      piece.remove_prefix(1);
      if (c == '\n' && end_line()) return Outcome::reply;
      continue;
    }
    const void* found = std::memchr(piece.data(), '\n', piece.size());
    size_t size =
        found ? static_cast<size_t>(static_cast<const char*>(found) - piece.data()) : piece.size();
    total_ += size + (found ? 1 : 0);
    if (total_ > kLongestReply) return Outcome::too_long;
    std::string_view text = piece.substr(0, size);
    piece.remove_prefix(size + (found ? 1 : 0));
    // A CR is text unless it turns out to belong to the line's end.
    if (after_cr_ && !text.empty()) {
      add_text("\r");
      after_cr_ = false;
    }
    if (text.ends_with('\r')) {
      text.remove_suffix(1);
      after_cr_ = true;
    }
    add_text(text);
    if (found && end_line()) return Outcome::reply;
  }
  return Outcome::incomplete;
}

}  // namespace millrace::smtp
