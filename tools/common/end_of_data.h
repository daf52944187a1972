// Finds the end of SMTP data, CRLF "." CRLF, in a stream that arrives in pieces cut anywhere, and
// names the canonical content in it (stuffed dots removed). The receiver simulator's own reading of
// RFC 5321 4.5.2, apart from the relay's, because it is there to check the relay.
//
// One memchr a line, nothing a byte, no copy. A bare LF or CR never ends a line (RFC 5321 2.3.8);
// bare LFs are counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace millrace::tools {

class EndOfData {
 public:
  static constexpr size_t kNotYet = SIZE_MAX;

  // Returns how many bytes of the piece belong to the data, the terminator included, or kNotYet
  // when all do and more must come. After the end it is ready for the next message. emit(const
  // char*, size_t) gets the pieces of canonical content, in order.
  template <typename Emit>
  size_t find(const char* data, size_t size, Emit&& emit) {
    size_t at = 0;
    size_t kept = 0;  // content before here has been emitted or dropped
    while (at < size) {
      switch (state_) {
        case State::text: {
          const void* found = memchr(data + at, '\n', size - at);
          if (!found) {
            if (data[size - 1] == '\r') state_ = State::cr;
            at = size;
            break;
          }
          size_t line_feed = static_cast<size_t>(static_cast<const char*>(found) - data);
          if (line_feed > at && data[line_feed - 1] == '\r') {
            state_ = State::line_start;
          } else {
            ++bare_line_feeds_;
          }
          at = line_feed + 1;
          break;
        }
        case State::cr:
          if (data[at] == '\n') {
            state_ = State::line_start;
            ++at;
          } else {
            state_ = State::text;
          }
          break;
        case State::line_start:
          if (data[at] != '.') {
            state_ = State::text;
            break;
          }
          if (at > kept) emit(data + kept, at - kept);
          kept = ++at;  // a stuffed dot, or the terminator's: not content either way
          state_ = State::dot;
          break;
        case State::dot:
          if (data[at] == '\r') {
            kept = ++at;  // held back: content only if no LF follows
            state_ = State::dot_cr;
          } else {
            state_ = State::text;
          }
          break;
        case State::dot_cr:
          if (data[at] == '\n') {
            state_ = State::line_start;
            return at + 1;
          }
          emit("\r", 1);
          state_ = State::text;
          break;
      }
    }
    if (size > kept) emit(data + kept, size - kept);
    return kNotYet;
  }
  size_t find(const char* data, size_t size) {
    return find(data, size, [](const char*, size_t) {});
  }

  uint64_t bare_line_feeds() const { return bare_line_feeds_; }

 private:
  enum class State : uint8_t { text, cr, line_start, dot, dot_cr };
  State state_ = State::line_start;  // data may begin with the terminator
  uint64_t bare_line_feeds_ = 0;
};

}  // namespace millrace::tools
