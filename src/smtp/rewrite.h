// Rewrites a message's content once, for the two cases in which it cannot stay as it was received:
// line faults that are to be fixed (`--on-bad-lines fix`), and a BDAT message with too many leading
// dots to list. The bytes copied are returned, because copies are counted.
//
// Fixed are: a bare CR or LF becomes CRLF, a NUL is dropped, a line over 998 octets is broken (in the
// header section at a blank where there is one, with a blank after the break; in the body without one;
// never within a UTF-8 sequence).
#pragma once

#include <cstdint>
#include <string>

#include "mail/content.h"

namespace millrace::smtp {

struct Rewritten {
  std::string bytes;       // stuffed form, without the final ".\r\n"; becomes the new raw
  uint64_t bytes_copied = 0;
  uint64_t faults_fixed = 0;
};
// Reads content.raw (with content.stuffed), and sets raw_size, dots, unlisted_dots, stuffed, eight_bit,
// ends_in_crlf and crc for the rewritten bytes. content.raw is emptied: the caller puts `bytes` into a
// place that lives long enough and appends it with append_raw(), which must not change raw_size again:
// use content.raw.push_back().
// REQUIRES: no cuts yet; stuffed content has had its final dot removed.
Rewritten rewrite_content(mail::Content& content);

}  // namespace millrace::smtp
